//! A server whose Workloads "run": their programs are this machine's, their ports those of its loopback interface.
#![allow(dead_code, unreachable_pub)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nodelet_apiserver::{
    Options, PortConnection, Process, Server, StdStreams, StreamError, StreamKind, StreamTarget, Streams, TerminalSize,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub const PODS: &str = "/api/v1/namespaces/default/pods";
pub const WORKLOADS: &str = "/apis/nodelet.dev/v1alpha1/namespaces/default/workloads";

/// Programs that are still followed.
#[derive(Debug, Default)]
pub struct Local {
    pub open: Arc<AtomicUsize>,
}

/// Counts a program for as long as it is followed.
struct Followed(Arc<AtomicUsize>);

impl Drop for Followed {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Local {
    fn start(&self, command: &[String], streams: StdStreams) -> Result<Process, StreamError> {
        let pipe = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
        let mut child = tokio::process::Command::new(&command[0])
            .args(&command[1..])
            .stdin(pipe(streams.stdin))
            .stdout(pipe(streams.stdout))
            .stderr(pipe(streams.stderr))
            .spawn()
            .map_err(|error| StreamError::Start(format!("exec: {:?}: {error}", command[0])))?;
        self.open.fetch_add(1, Ordering::SeqCst);
        let followed = Followed(self.open.clone());
        Ok(Process {
            stdin: child.stdin.take().map(|pipe| Box::new(pipe) as _),
            stdout: child.stdout.take().map(|pipe| Box::new(pipe) as _),
            stderr: child.stderr.take().map(|pipe| Box::new(pipe) as _),
            resize: streams.tty.then(|| watch::channel(TerminalSize::default()).0),
            exit: Box::pin(async move {
                let _followed = followed;
                let status = child.wait().await;
                let status = status.map_err(|e| StreamError::Failed { message: "waiting".into(), source: e.into() })?;
                Ok(status.code().unwrap_or(137) as u32)
            }),
        })
    }

    /// A program on a terminal: prints each size and what is typed in capitals, ends at a `q` with code 7.
    fn terminal(&self) -> Process {
        let (typed, mut input) = tokio::io::duplex(1024);
        let (mut output, shown) = tokio::io::duplex(1024);
        let (resize, mut sizes) = watch::channel(TerminalSize::default());
        let program = tokio::spawn(async move {
            let mut buffer = [0; 64];
            loop {
                tokio::select! {
                    Ok(()) = sizes.changed() => {
                        let TerminalSize { width, height } = *sizes.borrow_and_update();
                        let _ = output.write_all(format!("{width}x{height}\r\n").as_bytes()).await;
                    }
                    read = input.read(&mut buffer) => match read {
                        Ok(count) if count > 0 => {
                            if buffer[..count].contains(&b'q') {
                                return 7;
                            }
                            let _ = output.write_all(&buffer[..count].to_ascii_uppercase()).await;
                        }
                        _ => return 8,
                    }
                }
            }
        });
        Process {
            stdin: Some(Box::new(typed)),
            stdout: Some(Box::new(shown)),
            stderr: None,
            resize: Some(resize),
            exit: Box::pin(async move { Ok(program.await.unwrap_or(9)) }),
        }
    }
}

#[async_trait::async_trait]
impl Streams for Local {
    async fn check(&self, target: &StreamTarget, _: StreamKind) -> Result<(), StreamError> {
        match target.name.as_str() {
            "stopped" => Err(StreamError::NotRunning("container not found (\"web\"): it is stopped".into())),
            _ => Ok(()),
        }
    }

    async fn exec(&self, _: &StreamTarget, command: Vec<String>, streams: StdStreams) -> Result<Process, StreamError> {
        if command[0] == "@terminal" { Ok(self.terminal()) } else { self.start(&command, streams) }
    }

    async fn attach(&self, target: &StreamTarget, streams: StdStreams) -> Result<Process, StreamError> {
        if target.container.as_deref() == Some("tty") {
            assert!(streams.tty && !streams.stderr);
            return Ok(self.terminal());
        }
        self.start(&["cat".into()], streams)
    }

    async fn connect(&self, _: &StreamTarget, port: u16) -> Result<Box<dyn PortConnection>, StreamError> {
        let connection = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
        Ok(Box::new(connection.map_err(|error| StreamError::Connect(error.to_string()))?))
    }
}

pub struct Running {
    pub server: Server,
    pub dir: Arc<TempDir>,
    pub address: SocketAddr,
    pub socket: PathBuf,
    pub open: Arc<AtomicUsize>,
    pub shutdown: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Running {
    /// Serves the Workloads `web` (one container), `two` (two, one with a terminal) and `stopped`.
    pub async fn start() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let options = Options { store: dir.path().join("store.db"), ..Options::default() };
        let local = Local::default();
        let open = local.open.clone();
        let server = Server::open(options, nodelet_crds::crds()).unwrap().with_streams(Arc::new(local));
        let shutdown = CancellationToken::new();
        let (bound, address) = tokio::sync::oneshot::channel();
        let socket = dir.path().join("api.sock");
        tokio::spawn({
            let (server, pki, shutdown) = (server.clone(), dir.path().join("pki"), shutdown.clone());
            async move { server.serve_tls("127.0.0.1:0".parse().unwrap(), &pki, Some(bound), shutdown).await }
        });
        tokio::spawn({
            let (server, socket, shutdown) = (server.clone(), socket.clone(), shutdown.clone());
            async move { server.serve_unix(&socket, shutdown).await }
        });
        let running = Self { address: address.await.unwrap(), server, dir, socket, open, shutdown };
        for (name, containers) in [
            ("web", json!([{"name": "web", "image": "i", "stdin": true}])),
            ("two", json!([{"name": "a", "image": "i"}, {"name": "tty", "image": "i", "tty": true, "stdin": true}])),
            ("stopped", json!([{"name": "web", "image": "i"}])),
        ] {
            let workload = json!({"apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload",
                "metadata": {"name": name}, "spec": {"containers": containers}});
            assert_eq!(running.send("POST", WORKLOADS, "application/json", workload).await, 201);
            let status = json!({"status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "reason": "Up", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
            let path = format!("{WORKLOADS}/{name}/status");
            assert_eq!(running.send("PATCH", &path, "application/merge-patch+json", status).await, 200);
        }
        running
    }

    async fn send(&self, method: &str, path: &str, kind: &str, body: Value) -> u16 {
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(Body::from(body.to_string())).unwrap();
        self.server.service().oneshot(request).await.unwrap().status().as_u16()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A client over TLS.
    pub async fn client(&self, kubeconfig: &str) -> Client {
        let config = Kubeconfig::read_from(self.file(kubeconfig)).unwrap();
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    /// Waits until nothing is followed any more.
    pub async fn until_nobody_is_left(&self) {
        for _ in 0..500 {
            if self.open.load(Ordering::SeqCst) == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} programs are still followed", self.open.load(Ordering::SeqCst));
    }
}

/// A port that answers each connection with what it gets, then with `bye`.
pub async fn echo() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.write_all(b"bye").await;
            });
        }
    });
    port
}
