//! `kubectl exec`, `attach`, `cp` and `port-forward`, unchanged: each version that is here, over WebSocket and SPDY.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod running;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use running::{Running, echo};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// A kubectl and how it talks.
#[derive(Debug, Clone)]
struct Kubectl {
    binary: PathBuf,
    spdy: bool,
}

/// Every kubectl of this machine, in both protocols; nothing without one.
fn all() -> Vec<Kubectl> {
    let newer = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.cache/containerd-2/bin/kubectl"));
    let there = |binary: &PathBuf| {
        std::process::Command::new(binary).args(["version", "--client"]).output().is_ok_and(|o| o.status.success())
    };
    let found = [PathBuf::from("kubectl"), newer].into_iter().filter(there);
    found.flat_map(|binary| [false, true].map(|spdy| Kubectl { binary: binary.clone(), spdy })).collect()
}

impl Kubectl {
    fn command(&self, server: &Running, kubeconfig: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .env("KUBECONFIG", server.file(kubeconfig))
            .env("HOME", server.dir.path())
            .current_dir(server.dir.path());
        command.stdin(Stdio::null()).kill_on_drop(true);
        if self.spdy {
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
            command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        }
        command
    }

    async fn run(&self, server: &Running, arguments: &[&str], input: &[u8]) -> (i32, Vec<u8>, String) {
        let mut command = self.command(server, "admin.kubeconfig");
        finish(command.args(arguments).stdin(Stdio::piped()), input).await
    }
}

async fn finish(command: &mut Command, input: &[u8]) -> (i32, Vec<u8>, String) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take();
    let writing = async {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(input).await;
        }
    };
    let ended =
        tokio::time::timeout(Duration::from_secs(120), async { tokio::join!(writing, child.wait_with_output()).1 });
    let output = ended.await.unwrap().unwrap();
    (output.status.code().unwrap_or(-1), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_runs_programs_and_tells_how_they_end() {
    let server = Running::start().await;
    for kubectl in all() {
        for (arguments, input, code, out, err) in [
            (&["exec", "web", "--", "echo", "hello"][..], "", 0, "hello\n", ""),
            (
                &["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 3"],
                "",
                3,
                "out\n",
                "err\ncommand terminated with exit code 3",
            ),
            (&["exec", "-i", "web", "--", "sh", "-c", "cat; echo done"], "typed", 0, "typeddone\n", ""),
            (&["exec", "-i", "web", "--", "wc", "-c"], "", 0, "0\n", ""),
            (&["exec", "-i", "web", "--", "true"], "nobody reads this", 0, "", ""),
            (&["exec", "web", "--", "sh", "-c", "sleep 30 & echo left"], "", 0, "left\n", ""),
            (
                &["exec", "web", "--", "/nonsense"],
                "",
                1,
                "",
                "error executing command in container: exec: \"/nonsense\": No such file",
            ),
            (&["exec", "web", "-c", "none", "--", "true"], "", 1, "", "container none is not valid for pod web"),
            (&["exec", "two", "-c", "a", "--", "echo", "a"], "", 0, "a\n", ""),
            (&["exec", "stopped", "--", "true"], "", 1, "", "container not found (\"web\"): it is stopped"),
            (&["exec", "missing", "--", "true"], "", 1, "", "pods \"missing\" not found"),
            (&["attach", "-i", "web"], "to the program", 0, "to the program", ""),
        ] {
            let (found, stdout, stderr) = kubectl.run(&server, arguments, input.as_bytes()).await;
            let stdout = String::from_utf8_lossy(&stdout).into_owned();
            assert!(
                found == code && stdout == out && stderr.contains(err),
                "{kubectl:?} {arguments:?}: {found}\n{stdout}\n{stderr}"
            );
        }
        let mut viewer = kubectl.command(&server, "viewer.kubeconfig");
        let (code, _, stderr) = finish(viewer.args(["exec", "web", "--", "true"]), b"").await;
        assert!(code != 0 && stderr.to_lowercase().contains("forbidden"), "{kubectl:?}: {code} {stderr}");
    }
    server.until_nobody_is_left().await;
}

/// What the other tests rely on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_protocols_are_tried() {
    let server = Running::start().await;
    for kubectl in all() {
        let (_, _, log) = kubectl.run(&server, &["exec", "-v=8", "web", "--", "true"], b"").await;
        let log = log.to_lowercase();
        let (spdy, websocket) = (log.contains("upgrade: spdy/3.1"), log.contains("sec-websocket-accept"));
        assert!(spdy == kubectl.spdy && websocket != kubectl.spdy, "{kubectl:?}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminals_have_sizes() {
    let server = Running::start().await;
    for kubectl in all() {
        for arguments in ["exec -it web -- @terminal", "attach -it two -c tty"] {
            // `script` gives kubectl a terminal.
            let mut command = kubectl.command(&server, "admin.kubeconfig");
            let line = format!("stty cols 91 rows 37; exec {} {arguments}", kubectl.binary.display());
            let mut script = Command::new("script");
            script.args(["-qec", &line, "/dev/null"]).current_dir(server.dir.path()).kill_on_drop(true);
            for (name, value) in command.as_std_mut().get_envs() {
                script.env(name, value.unwrap_or_default());
            }
            let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            let mut shown = String::new();
            let mut until = async |text: &str| {
                let mut buffer = [0; 1024];
                while !shown.contains(text) {
                    let read = tokio::time::timeout(Duration::from_secs(30), stdout.read(&mut buffer)).await;
                    let count = read.unwrap_or_else(|_| panic!("{kubectl:?} {arguments}: {shown}")).unwrap();
                    assert!(count > 0, "{kubectl:?} {arguments}: {shown}");
                    shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
                }
            };
            until("91x37").await;
            stdin.write_all(b"abc").await.unwrap();
            until("ABC").await;
            stdin.write_all(b"q").await.unwrap();
            let code = child.wait().await.unwrap().code().unwrap();
            assert_eq!(code, if arguments.starts_with("exec") { 7 } else { 0 }, "{kubectl:?} {arguments}");
        }
    }
}

/// As many bytes as the acceptance asks for, there and back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarter_of_a_gigabyte_comes_back_intact() {
    const SIZE: u64 = 256 << 20;
    let server = Running::start().await;
    let (sent, back) = (server.file("sent"), server.file("back"));
    let pattern: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut file = std::fs::File::create(&sent).unwrap();
    for part in 0..SIZE >> 20 {
        std::io::Write::write_all(&mut file, &part.to_le_bytes()).unwrap();
        std::io::Write::write_all(&mut file, &pattern[8..]).unwrap();
    }
    for kubectl in all() {
        let mut command = kubectl.command(&server, "admin.kubeconfig");
        command.args(["exec", "-i", "web", "--", "cat"]);
        command.stdin(std::fs::File::open(&sent).unwrap()).stdout(std::fs::File::create(&back).unwrap());
        let began = Instant::now();
        let status = tokio::time::timeout(Duration::from_secs(300), command.status()).await.unwrap().unwrap();
        let rate = (SIZE >> 20) as f64 / began.elapsed().as_secs_f64();
        println!("{kubectl:?}: {rate:.0} MiB/s through stdin and back");
        assert!(status.success(), "{kubectl:?}");
        let same = Command::new("cmp").args([&sent, &back]).status().await.unwrap();
        assert!(same.success(), "{kubectl:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cp_copies_both_ways() {
    let server = Running::start().await;
    let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(server.file("here"), &content).unwrap();
    for kubectl in all() {
        let there = server.file("there");
        let target = format!("web:{}", there.display());
        let (code, _, stderr) = kubectl.run(&server, &["cp", "here", &target], b"").await;
        assert!(code == 0 && std::fs::read(&there).unwrap() == content, "{kubectl:?}: {stderr}");
        let (code, _, stderr) = kubectl.run(&server, &["cp", &target, "again"], b"").await;
        assert!(code == 0 && std::fs::read(server.file("again")).unwrap() == content, "{kubectl:?}: {stderr}");
        std::fs::remove_file(server.file("again")).unwrap();
        std::fs::remove_file(there).unwrap();
    }
}

/// A `kubectl port-forward` and the local port that it chose.
async fn forwarding(kubectl: &Kubectl, server: &Running, port: u16) -> (Child, u16) {
    let mut command = kubectl.command(server, "admin.kubeconfig");
    let command = command.args(["port-forward", "pod/web", &format!(":{port}")]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await.unwrap().unwrap().unwrap();
    // "Forwarding from 127.0.0.1:40000 -> 80"; what follows has to be read, or kubectl waits.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let local = line.split(':').nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    (child, local.parse().unwrap())
}

async fn round_trip(port: u16, size: usize) -> usize {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut from, mut to) = stream.split();
    let sent: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
    let writing = async {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (_, read) = tokio::join!(writing, from.read_to_end(&mut back));
    read.unwrap();
    assert!(back.starts_with(&sent) && back.ends_with(b"bye"), "{} of {size} bytes", back.len());
    back.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_are_forwarded() {
    let server = Running::start().await;
    let port = echo().await;
    for kubectl in all() {
        let (mut child, local) = forwarding(&kubectl, &server, port).await;
        let began = Instant::now();
        // One hundred at a time, some of them larger than any window.
        for _ in 0..10 {
            let connections = (0..100).map(|i| round_trip(local, if i % 10 == 0 { 500_000 } else { 100 + i }));
            tokio::time::timeout(Duration::from_secs(60), futures::future::join_all(connections)).await.unwrap();
        }
        println!("{kubectl:?}: 1,000 connections in {:?}", began.elapsed());
        child.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_without_a_listener_is_told() {
    let server = Running::start().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for kubectl in all() {
        let mut command = kubectl.command(&server, "admin.kubeconfig");
        let command = command.args(["port-forward", "pod/web", &format!(":{free}")]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().unwrap();
        let local: u16 = line.split(':').nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", local)).await.unwrap();
        let mut nothing = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut nothing)).await.unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = tokio::time::timeout(Duration::from_secs(30), errors.next_line()).await.unwrap().unwrap().unwrap();
        assert!(said.contains("error forwarding port") && said.contains("refused"), "{kubectl:?}: {said}");
    }
}
