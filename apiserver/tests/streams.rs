//! `exec`, `attach` and `portforward` as libraries and strangers see them.
#![allow(clippy::unwrap_used)]

mod running;

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, AttachedProcess};
use running::{PODS, Running, WORKLOADS, echo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Sends a request to the unix socket; what a stranger could send.
async fn ask(
    server: &Running,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> http::Response<hyper::body::Incoming> {
    let stream = tokio::net::UnixStream::connect(&server.socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let mut request = http::Request::builder().method(method).uri(path).header("host", "x");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap()
}

const WEBSOCKET: [(&str, &str); 4] = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

async fn websocket(server: &Running, path: &str, protocol: &str) -> Socket {
    let headers = [&WEBSOCKET[..], &[("sec-websocket-protocol", protocol)]].concat();
    let response = ask(server, "GET", path, &headers).await;
    assert_eq!(response.status(), 101, "{path}");
    assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
    let upgraded = hyper::upgrade::on(response).await.unwrap();
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
}

/// What came on each channel until the socket was closed, and the close's code.
async fn rest(socket: &mut Socket) -> ([Vec<u8>; 4], Option<u16>) {
    let mut channels = [const { Vec::new() }; 4];
    let mut code = None;
    while let Some(message) = tokio::time::timeout(Duration::from_secs(30), socket.next()).await.unwrap() {
        match message {
            Ok(Message::Binary(bytes)) => channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            Ok(Message::Text(text)) => {
                let (channel, data) = text.split_at(1);
                let data = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
                channels[channel.parse::<usize>().unwrap()].extend(data);
            }
            Ok(Message::Close(frame)) => code = frame.map(|frame| frame.code.into()),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    (channels, code)
}

fn binary(channel: u8, bytes: &[u8]) -> Message {
    Message::binary([&[channel], bytes].concat())
}

#[tokio::test]
async fn discovery_lists_them() {
    let server = Running::start().await;
    for (path, plural) in [("/api/v1", "pods"), ("/apis/nodelet.dev/v1alpha1", "workloads")] {
        let body = ask(&server, "GET", path, &[]).await.into_body().collect().await.unwrap().to_bytes();
        let list: Value = serde_json::from_slice(&body).unwrap();
        for part in ["exec", "attach", "portforward"] {
            let name = format!("{plural}/{part}");
            let found = list["resources"].as_array().unwrap().iter().find(|r| r["name"] == *name);
            assert_eq!(found.unwrap()["verbs"], json!(["create", "get"]), "{name}");
        }
    }
}

#[tokio::test]
async fn bad_requests_get_plain_answers() {
    let server = Running::start().await;
    let spdy = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v4.channel.k8s.io")];
    let exec = "exec?command=true&stdout=true";
    for (method, name, part, headers, code, says) in [
        ("GET", "web", exec, &[][..], 400, "Upgrade request required"),
        ("PUT", "web", exec, &WEBSOCKET[..], 405, "does not allow this method"),
        ("POST", "web", exec, &WEBSOCKET, 400, "begins with GET"),
        ("GET", "web", "exec?command=true", &WEBSOCKET, 400, "at least 1 of stdin, stdout, stderr"),
        ("POST", "web", "exec?stdout=1", &spdy, 400, "at least one command"),
        ("POST", "two", exec, &spdy, 400, "choose one of: [a tty]"),
        ("POST", "stopped", exec, &spdy, 400, "it is stopped"),
        ("POST", "missing", exec, &spdy, 404, "not found"),
        ("POST", "web", "portforward", &spdy, 403, "unable to negotiate protocol"),
        ("GET", "web", "portforward", &WEBSOCKET, 400, "\"ports\" is required"),
        ("GET", "web", "portforward?ports=99999", &WEBSOCKET, 400, "not a port"),
        ("GET", "web", "nonsense", &WEBSOCKET, 404, "could not find"),
    ] {
        for collection in [PODS, WORKLOADS] {
            let response = ask(&server, method, &format!("{collection}/{name}/{part}"), headers).await;
            let found = response.status();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let status: Value = serde_json::from_slice(&body).unwrap();
            let message = status["message"].as_str().unwrap();
            assert!(found == code && message.contains(says), "{method} {name}/{part}: {found} {message}");
        }
    }
}

#[tokio::test]
async fn the_viewer_only_looks() {
    let server = Running::start().await;
    let pods: Api<Pod> = Api::default_namespaced(server.client("viewer.kubeconfig").await);
    assert!(pods.get("web").await.is_ok());
    assert!(pods.exec("web", ["true"], &AttachParams::default()).await.is_err());
    assert!(pods.attach("web", &AttachParams::default()).await.is_err());
    assert!(pods.portforward("web", &[80]).await.is_err());
}

async fn output(mut process: AttachedProcess) -> (String, String, Value) {
    let (mut out, mut err) = (String::new(), String::new());
    let status = process.take_status().unwrap();
    let (mut stdout, stderr) = (process.stdout().unwrap(), process.stderr());
    let reading = async {
        if let Some(mut stderr) = stderr {
            stderr.read_to_string(&mut err).await.unwrap();
        }
    };
    let (read, (), status) = tokio::join!(stdout.read_to_string(&mut out), reading, status);
    read.unwrap();
    (out, err, serde_json::to_value(status.unwrap()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kube_rs_runs_programs() {
    let server = Running::start().await;
    let pods: Api<Pod> = Api::default_namespaced(server.client("admin.kubeconfig").await);
    let ended = pods.exec("web", ["sh", "-c", "echo out; echo err >&2; exit 5"], &AttachParams::default()).await;
    let (out, err, status) = output(ended.unwrap()).await;
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    assert_eq!(
        (&status["reason"], &status["details"]["causes"][0]),
        (&json!("NonZeroExitCode"), &json!({"reason": "ExitCode", "message": "5"}))
    );

    // The end of input reaches the program, and what it says after that the client.
    let mut process = pods.exec("web", ["wc", "-c"], &AttachParams::default().stdin(true)).await.unwrap();
    let mut stdin = process.stdin().unwrap();
    stdin.write_all(&vec![7; 3_000_000]).await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    let (out, _, status) = output(process).await;
    assert_eq!((out.trim(), &status["status"]), ("3000000", &json!("Success")));

    let failed = pods.exec("web", ["/nonsense"], &AttachParams::default()).await.unwrap();
    let (_, _, status) = output(failed).await;
    assert_eq!(status["reason"], "InternalError");
    assert!(status["message"].as_str().unwrap().contains("exec: \"/nonsense\""), "{status}");
    server.until_nobody_is_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kube_rs_uses_terminals_and_ports() {
    let server = Running::start().await;
    let pods: Api<Pod> = Api::default_namespaced(server.client("admin.kubeconfig").await);
    let terminal = AttachParams::interactive_tty().container("tty");
    let mut process = pods.attach("two", &terminal).await.unwrap();
    let size = kube::api::TerminalSize { width: 120, height: 40 };
    process.terminal_size().unwrap().send(size).await.unwrap();
    let mut shown = [0; 8];
    process.stdout().unwrap().read_exact(&mut shown).await.unwrap();
    assert_eq!(&shown, b"120x40\r\n");
    let status = process.take_status().unwrap();
    process.stdin().unwrap().write_all(b"q").await.unwrap();
    assert_eq!(status.await.unwrap().status.as_deref(), Some("Success"));

    let port = echo().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut ports = pods.portforward("web", &[port, free]).await.unwrap();
    let refused = ports.take_error(free).unwrap().await.unwrap();
    assert!(refused.contains("error forwarding port") && refused.contains("refused"), "{refused}");
    let mut stream = ports.take_stream(port).unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
}

/// The Python client, where there is one: `$NODELET_PYTHON` is an interpreter that has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_client_works_unchanged() {
    let python = std::env::var("NODELET_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_client = std::process::Command::new(&python).args(["-c", "import kubernetes"]).output();
    if !has_client.is_ok_and(|output| output.status.success()) {
        return;
    }
    let server = Running::start().await;
    let mut command = tokio::process::Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/running/client.py"));
    command.arg(server.file("admin.kubeconfig")).arg(echo().await.to_string()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// As many sessions as connections, which is how libraries forward ports.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kube_rs_forwards_a_thousand_connections() {
    let server = Running::start().await;
    let pods: Api<Pod> = Api::default_namespaced(server.client("admin.kubeconfig").await);
    let port = echo().await;
    for _ in 0..10 {
        let round = (0..100).map(|_| async {
            let mut ports = pods.portforward("web", &[port]).await.unwrap();
            let mut stream = ports.take_stream(port).unwrap();
            let sent = vec![9; 20_000];
            let mut back = vec![0; sent.len()];
            stream.write_all(&sent).await.unwrap();
            stream.read_exact(&mut back).await.unwrap();
            assert!(back == sent);
        });
        tokio::time::timeout(Duration::from_secs(60), futures::future::join_all(round)).await.unwrap();
    }
}

#[tokio::test]
async fn every_form_of_channels_is_spoken() {
    let server = Running::start().await;
    let path = format!(
        "{WORKLOADS}/web/exec?command=sh&command=-c&command=head+-c3;exit+2&stdin=true&stdout=true&stderr=true"
    );
    for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"] {
        let mut socket = websocket(&server, &path, protocol).await;
        socket.send(binary(0, b"abc")).await.unwrap();
        let ([_, out, _, error], code) = rest(&mut socket).await;
        assert_eq!((&out[..], code), (&b"abc"[..], Some(1000)), "{protocol}");
        let error = String::from_utf8(error).unwrap();
        assert!(error.contains("exit status 2") && error.starts_with('{') == protocol.starts_with('v'), "{error}");
    }
    for protocol in ["v4.base64.channel.k8s.io", "base64.channel.k8s.io"] {
        let mut socket = websocket(&server, &path, protocol).await;
        socket.send(Message::text("0YWJj")).await.unwrap();
        let ([_, out, _, error], code) = rest(&mut socket).await;
        assert_eq!((&out[..], code), (&b"abc"[..], Some(1000)), "{protocol}");
        assert!(String::from_utf8(error).unwrap().contains("exit status 2"));
    }
    // The Python client sends text where it means bytes.
    let mut socket = websocket(&server, &path, "v4.channel.k8s.io").await;
    socket.send(Message::text("\0abc")).await.unwrap();
    assert_eq!(rest(&mut socket).await.0[1], b"abc");
    server.until_nobody_is_left().await;
}

#[tokio::test]
async fn channel_255_ends_the_input_alone() {
    let server = Running::start().await;
    let path = format!("{PODS}/web/exec?command=sh&command=-c&command=cat;echo+end&stdin=1&stdout=1");
    let mut socket = websocket(&server, &path, "v5.channel.k8s.io").await;
    socket.send(binary(0, b"typed ")).await.unwrap();
    socket.send(binary(255, &[0])).await.unwrap();
    let ([_, out, _, error], code) = rest(&mut socket).await;
    assert_eq!((&out[..], code), (&b"typed end\n"[..], Some(1000)));
    assert!(String::from_utf8(error).unwrap().contains("Success"));
}

#[tokio::test]
async fn whoever_breaks_the_protocol_is_told_and_the_program_let_go() {
    let server = Running::start().await;
    let path = format!("{PODS}/web/exec?command=cat&stdin=1&stdout=1");
    for (message, expected) in [
        (binary(5, b"x"), 1002),
        (binary(255, &[9]), 1002),
        (Message::binary(Bytes::new()), 1002),
        (Message::binary(vec![0; (16 << 20) + 1]), 1009),
    ] {
        let mut socket = websocket(&server, &path, "v5.channel.k8s.io").await;
        // The largest one may find the connection closed before it is sent.
        let _ = socket.send(message).await;
        let (_, code) = rest(&mut socket).await;
        assert!(code == Some(expected) || (expected == 1009 && code.is_none()), "{expected}: {code:?}");
        server.until_nobody_is_left().await;
    }
    let mut socket = websocket(&server, &path, "v4.base64.channel.k8s.io").await;
    socket.send(Message::text("0!!!")).await.unwrap();
    assert_eq!(rest(&mut socket).await.1, Some(1007));
    server.until_nobody_is_left().await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_input() {
    let server = Running::start().await;
    let path = format!("{PODS}/web/exec?command=cat&stdin=1&stdout=1");
    let mut sockets = Vec::new();
    for _ in 0..5 {
        sockets.push(websocket(&server, &path, "v5.channel.k8s.io").await);
    }
    sockets[0].send(binary(0, b"x")).await.unwrap();
    while server.open.load(std::sync::atomic::Ordering::SeqCst) < 5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(sockets);
    server.until_nobody_is_left().await;
}

/// Where so many files may be open.
#[tokio::test]
async fn sessions_are_limited() {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    if files.split_whitespace().nth(3).unwrap().parse::<u64>().is_ok_and(|files| files < 4096) {
        return;
    }
    let server = Running::start().await;
    let path = format!("{PODS}/web/exec?command=@terminal&stdin=1&stdout=1&tty=1");
    let mut sockets = Vec::new();
    for _ in 0..1024 {
        sockets.push(websocket(&server, &path, "v5.channel.k8s.io").await);
    }
    assert_eq!(ask(&server, "GET", &path, &WEBSOCKET).await.status(), 429);
    assert_eq!(ask(&server, "GET", PODS, &[]).await.status(), 200);
    drop(sockets);
    while ask(&server, "GET", &path, &WEBSOCKET).await.status() != 101 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_server_that_stops_ends_its_sessions() {
    let server = Running::start().await;
    let path = format!("{PODS}/web/exec?command=cat&stdin=1&stdout=1");
    let mut socket = websocket(&server, &path, "v5.channel.k8s.io").await;
    socket.send(binary(0, b"x")).await.unwrap();
    assert!(matches!(socket.next().await, Some(Ok(Message::Binary(_)))));
    server.shutdown.cancel();
    rest(&mut socket).await;
    server.until_nobody_is_left().await;
}

#[tokio::test]
async fn forwarded_channels_begin_with_their_port() {
    let server = Running::start().await;
    let port = echo().await;
    let path = format!("{WORKLOADS}/web/portforward?ports={port}");
    let mut socket = websocket(&server, &path, "v4.channel.k8s.io").await;
    let mut first = BTreeSet::new();
    for _ in 0..2 {
        let Some(Ok(Message::Binary(bytes))) = socket.next().await else { panic!("no port") };
        assert_eq!(bytes[1..], port.to_le_bytes());
        first.insert(bytes[0]);
    }
    assert_eq!(first, BTreeSet::from([0, 1]));
    socket.send(binary(0, b"hello")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap().into_data(), &b"\0hello"[..]);
}

/// A program that reads nothing and one that is not read: neither fills the memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slowness_goes_through_to_the_other_side() {
    let server = Running::start().await;
    let path = format!("{PODS}/web/exec?command=sleep&command=60&stdin=1&stdout=1");
    let mut socket = websocket(&server, &path, "v5.channel.k8s.io").await;
    let flood = async {
        for _ in 0..2000 {
            socket.send(binary(0, &[7; 32 * 1024])).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(2), flood).await.is_err(), "64 MiB were taken by nobody");

    let path = format!("{PODS}/web/exec?command=cat&command=/dev/zero&stdout=1");
    let mut other = websocket(&server, &path, "v5.channel.k8s.io").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let before = resident();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(resident() < before + (32 << 20), "output that nobody reads is kept");
    assert!(matches!(other.next().await, Some(Ok(Message::Binary(_)))));
}
