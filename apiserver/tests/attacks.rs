//! Clients that take more than their share are refused or cut off, and memory stays bounded.
//!
//! Each test runs in a process of its own, so the process's memory is the server's.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::{Fixture, MERGE, WIDGETS, widget};
use nodelet_apiserver::{Limits, Options, Server};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SOON: Duration = Duration::from_secs(30);

/// A server at a socket. Requests through `api` go past the socket, and are root's too.
struct Served {
    api: Fixture,
    socket: PathBuf,
    shutdown: CancellationToken,
}

impl Served {
    async fn start(limits: Limits) -> Self {
        let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
        let options = Options { store: dir.path().join("store.db"), limits, ..Options::default() };
        let server = Server::open(options, vec![common::definition()]).unwrap();
        let (socket, shutdown) = (dir.path().join("api.sock"), CancellationToken::new());
        let (served, at, token) = (server.clone(), socket.clone(), shutdown.clone());
        tokio::spawn(async move { served.serve_unix(&at, token).await.unwrap() });
        while UnixStream::connect(&socket).await.is_err() {
            tokio::task::yield_now().await;
        }
        Self { api: Fixture { server, dir }, socket, shutdown }
    }

    async fn connect(&self, bytes: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        // The server may have had enough before all is sent.
        let _ = stream.write_all(bytes).await;
        stream
    }

    /// The head of the answer, and what came of the rest until the connection ended.
    async fn answer(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect(bytes).await;
        read(&mut stream).await
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn read(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(method: &str, path: &str, kind: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn code(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

/// Resident memory now, and the most since [`forget_peak`], in MiB.
fn memory() -> (usize, usize) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
    };
    (field("VmRSS:"), field("VmHWM:"))
}

fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_never_read_cost_little_and_are_cut_off() {
    let limits = Limits { watches_per_user: 300, send: Duration::from_secs(2), ..Limits::default() };
    let served = Served::start(limits).await;
    served.api.post(CONFIG_MAPS, json!({"metadata": {"name": "a"}})).await;
    forget_peak();
    let (before, _) = memory();
    let watch = request("GET", &format!("{CONFIG_MAPS}?watch=true"), "", "");
    let mut stuck = Vec::new();
    for _ in 0..300 {
        let mut stream = served.connect(&watch).await;
        // Its first bytes tell that it is a watch.
        stream.read_exact(&mut [0; 64]).await.unwrap();
        stuck.push(stream);
    }
    let refused = served.answer(&watch).await;
    assert_eq!(code(&refused), 429, "{refused}");
    assert!(refused.contains("retry-after: 1") && refused.contains("TooManyRequests"), "{refused}");
    // Callers in the process are not concerned.
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> = kube::Api::default_namespaced(served.api.client());
    drop(maps.watch(&Default::default(), "0").await.unwrap());
    let large = "x".repeat(64 << 10);
    for i in 0..800 {
        let (code, _) =
            served.api.patch(&format!("{CONFIG_MAPS}/a"), MERGE, json!({"data": {"k": format!("{i}{large}")}})).await;
        assert_eq!(code, 200);
    }
    let (_, peak) = memory();
    println!("300 watchers, 50 MiB written: from {before} MiB to at most {peak} MiB");
    assert!(peak - before < 160, "from {before} MiB to {peak} MiB");
    for stream in &mut stuck {
        read(stream).await;
    }
    // Their places are free again.
    let mut stream = served.connect(&watch).await;
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_swell_do_not_swell_the_server() {
    let served = std::sync::Arc::new(Served::start(Limits::default()).await);
    served.api.post(WIDGETS, widget("a")).await;
    forget_peak();
    let (before, _) = memory();
    let fill = |unit: &str, limit: usize| unit.repeat(limit / unit.len());
    let most = (3 << 20) - 200;
    let bodies = [
        format!("[{}0]", fill("{\"\":0},", most)),
        format!("{{\"data\":[{}0]}}", fill("\"\",", most)),
        format!("{{\"{}\":[{}0]}}", "k".repeat(1 << 20), fill("0,", 1 << 19)),
        fill("[", most),
        fill("{\"a\":", most),
        format!("{{\"status\":{{{}\"z\":0}}}}", (0..100_000).map(|i| format!("\"k{i}\":0,")).collect::<String>()),
    ];
    let mut tasks = Vec::new();
    for round in 0..6 {
        for body in &bodies {
            for (method, path, kind) in [
                ("POST", WIDGETS.to_owned(), "application/json"),
                ("PATCH", format!("{WIDGETS}/a"), MERGE),
                ("PATCH", format!("{WIDGETS}/a"), "application/json-patch+json"),
            ] {
                let (served, bytes) = (served.clone(), request(method, &path, kind, body));
                let at = format!("{round} {method} {kind} {}", &body[..20]);
                tasks.push(tokio::spawn(async move {
                    let answer = served.answer(&bytes).await;
                    // Some are valid, and large.
                    assert!((200..430).contains(&code(&answer)), "{at}: {}", &answer[..answer.len().min(300)]);
                }));
            }
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    let (_, peak) = memory();
    println!("108 bodies of 3 MiB: from {before} MiB to at most {peak} MiB");
    // The bodies wait on this side, too: 108 times 3 MiB.
    assert!(peak - before < 324 + 400, "from {before} MiB to {peak} MiB");
    let announced = format!("POST {CONFIG_MAPS} HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n");
    assert_eq!(code(&served.answer(announced.as_bytes()).await), 413);
    let endless = format!("POST {CONFIG_MAPS} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
    assert_eq!(code(&served.answer((endless + &chunk.repeat(8)).as_bytes()).await), 413);
}

#[tokio::test]
async fn patches_and_aliases_cannot_explode() {
    let api = Fixture::new();
    api.post(WIDGETS, widget("a")).await;
    let path = format!("{WIDGETS}/a");
    let status = format!("{path}/status");
    let kind = "application/json-patch+json";
    forget_peak();
    let (before, _) = memory();
    let copies = |n: usize| {
        let mut patch = vec![json!({"op": "add", "path": "/status", "value": {"a": "x".repeat(1000)}})];
        patch.extend((0..n).map(|i| json!({"op": "copy", "from": "/status", "path": format!("/status/b{i}")})));
        Value::from(patch)
    };
    let (code, said) = api.patch(&status, kind, copies(60)).await;
    assert_eq!(code, 413, "{said}");
    assert!(said["message"].as_str().unwrap().contains("accumulated size increase of copy operations"), "{said}");
    assert_eq!(api.patch(&status, kind, copies(5)).await.0, 200);
    // Deeper and deeper, by copies as by additions and moves.
    let mut deeper = vec![json!({"op": "add", "path": "/status", "value": {}})];
    deeper.extend((1..200).map(|i| json!({"op": "add", "path": format!("/status{}", "/a".repeat(i)), "value": {}})));
    assert_eq!(api.patch(&status, kind, Value::from(deeper)).await.0, 400);
    for op in ["copy", "move"] {
        let mut deeper = vec![json!({"op": "add", "path": "/status", "value": {"a": {}}})];
        for i in 0..12 {
            let place = format!("/status{}/b", "/a".repeat(1 + i * 10));
            deeper.push(json!({"op": op, "from": "/status/a", "path": place}));
        }
        let (code, said) = api.patch(&status, kind, Value::from(deeper)).await;
        assert!(matches!(code.as_u16(), 400 | 422), "{code} {said}");
    }
    // An object that the next start could not read is not written; each step alone is harmless.
    let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!({"a": inner}));
    assert_eq!(api.patch(&status, MERGE, json!({"status": nested(100)})).await.0, 200);
    let (code, said) = api.patch(&status, MERGE, json!({"status": nested(122)})).await;
    assert_eq!(code, 400, "{said}");
    // Growing by and by ends as well.
    let mut last = 0;
    for i in 0..8 {
        let grown = json!({"status": {format!("part{i}"): "x".repeat(400 << 10)}});
        last = api.patch(&status, MERGE, grown).await.0.as_u16();
    }
    assert_eq!(last, 413);
    // YAML that is small in the file and large in memory.
    let mut bomb =
        "apiVersion: test.dev/v1\nkind: Widget\nmetadata: {name: bomb}\nspec:\n  size: small\nx0: &x0 [x,x]\n"
            .to_owned();
    for i in 1..40 {
        bomb += &format!("x{i}: &x{i} [*x{p},*x{p},*x{p},*x{p}]\n", p = i - 1);
    }
    let request = http::Request::patch(format!("{WIDGETS}/bomb?fieldManager=t"))
        .header("content-type", common::APPLY)
        .body(axum::body::Body::from(bomb))
        .unwrap();
    let code = api.send(request).await.status();
    assert!(code == 400 || code == 413, "{code}");
    let (_, peak) = memory();
    println!("from {before} MiB to at most {peak} MiB");
    assert!(peak - before < 200, "from {before} MiB to {peak} MiB");
    let api = api.reopen().await;
    assert_eq!(api.get(&path).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_lines_and_selectors_are_bounded() {
    let served = Served::start(Limits::default()).await;
    for i in 0..200 {
        let labels = json!({"app": format!("a{i}"), "tier": "1"});
        served.api.post(CONFIG_MAPS, json!({"metadata": {"name": format!("m{i}"), "labels": labels}})).await;
    }
    let get = |path: String| request("GET", &path, "", "");
    let long = served.answer(&get(format!("{CONFIG_MAPS}?x={}", "y".repeat(100_000)))).await;
    assert!(matches!(code(&long), 414 | 431), "{long}");
    let head = format!("GET {CONFIG_MAPS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
    let wide = format!("{head}x: {}\r\n\r\n", "y".repeat(1 << 20));
    assert_eq!(code(&served.answer(wide.as_bytes()).await), 431);
    let many = format!("{head}{}\r\n", "x: y\r\n".repeat(1000));
    assert_eq!(code(&served.answer(many.as_bytes()).await), 431);
    let started = std::time::Instant::now();
    let values = (0..9000).map(|i| format!("v{i}")).collect::<Vec<_>>().join(",");
    let terms = (0..9000).map(|_| "!x").collect::<Vec<_>>().join(",");
    let fields = (0..1500).map(|_| "metadata.name!=x").collect::<Vec<_>>().join(",");
    for query in [
        format!("labelSelector=app%20in%20({values})"),
        format!("labelSelector={terms}"),
        format!("labelSelector={}", "(".repeat(50_000)),
        format!("fieldSelector={fields}"),
        format!("continue={}", "A".repeat(50_000)),
        format!("fieldManager={}", "A".repeat(50_000)),
        "&a=b".repeat(12_000),
        format!("limit={}", "9".repeat(50_000)),
    ] {
        let answer = served.answer(&get(format!("{CONFIG_MAPS}?{query}"))).await;
        assert!(matches!(code(&answer), 200 | 400 | 422), "{}: {}", &query[..30], &answer[..200]);
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_slow_loses_the_connection_and_nobody_else() {
    let wait = Duration::from_millis(400);
    let limits = Limits { receive: wait, send: wait, requests_per_user: 20, ..Limits::default() };
    let served = Served::start(limits).await;
    let large = "x".repeat(200 << 10);
    for i in 0..20 {
        served.api.post(CONFIG_MAPS, json!({"metadata": {"name": format!("m{i}")}, "data": {"k": large}})).await;
    }
    // Headers that come a byte at a time.
    let mut slow = served.connect(b"GET /version HTTP/1.1\r\nhost: x\r\n").await;
    for _ in 0..40 {
        if slow.write_all(b"a").await.is_err() {
            break;
        }
        tokio::time::sleep(wait / 10).await;
    }
    assert!(slow.write_all(b"a").await.is_err(), "the connection goes on");
    // Bodies that do not come: they have all the places that a user has, for a while.
    let head = format!("POST {CONFIG_MAPS} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\nconnection: close\r\n\r\n{{");
    // On a busy machine they may have lost their places again before somebody else asks.
    let mut stuck = loop {
        let mut stuck = Vec::new();
        for _ in 0..20 {
            stuck.push(served.connect(head.as_bytes()).await);
        }
        let answer = served.answer(&request("GET", CONFIG_MAPS, "", "")).await;
        match code(&answer) {
            429 => break stuck,
            200 => {}
            other => panic!("{other}: {answer}"),
        }
    };
    let namespaces: kube::Api<k8s_openapi::api::core::v1::Namespace> = kube::Api::all(served.api.client());
    namespaces.list(&Default::default()).await.expect("callers in the process go on");
    for stream in &mut stuck {
        let answer = read(stream).await;
        assert_eq!(code(&answer), 408, "{answer}");
    }
    // A large list that nobody takes.
    let mut stuck = served.connect(&request("GET", CONFIG_MAPS, "", "")).await;
    stuck.read_exact(&mut [0; 15]).await.unwrap();
    tokio::time::sleep(wait * 4).await;
    let rest = read(&mut stuck).await;
    assert!(rest.len() < 3 << 20, "{}", rest.len());
    // Silence is no offence: a client may keep a connection for its next request, and a watch waits for changes.
    let mut silent = served.connect(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut watch =
        served.connect(&request("GET", &format!("{CONFIG_MAPS}?watch=true&resourceVersion=99999"), "", "")).await;
    let mut quiet = served.connect(&request("GET", &format!("{WIDGETS}?watch=true"), "", "")).await;
    tokio::time::sleep(wait * 3).await;
    silent.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    assert_eq!(read(&mut silent).await.matches("HTTP/1.1 200 OK").count(), 2);
    assert!(read(&mut watch).await.contains("\"code\":410"));
    served.api.post(WIDGETS, widget("a")).await;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("ADDED") {
        assert!(quiet.read_buf(&mut seen).await.unwrap() > 0);
    }
}
