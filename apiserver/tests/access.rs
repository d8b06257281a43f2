//! Listeners: the unix socket for root, TLS for known clients.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Fixture;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use nodelet_apiserver::ServeError;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

async fn get(socket: &Path, path: &str) -> (u16, Value) {
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(path).header("host", "x").body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

#[tokio::test]
async fn the_socket_is_private_and_has_one_owner() {
    let api = Fixture::new();
    let socket = api.dir.path().join("run/api.sock");
    std::fs::create_dir(api.dir.path().join("run")).unwrap();
    // What a killed process leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let shutdown = CancellationToken::new();
    let task = tokio::spawn({
        let (server, socket, shutdown) = (api.server.clone(), socket.clone(), shutdown.clone());
        async move { server.serve_unix(&socket, shutdown).await }
    });
    while tokio::net::UnixStream::connect(&socket).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(get(&socket, "/api/v1/namespaces/default").await.0, 200);
    let second = api.server.serve_unix(&socket, shutdown.clone()).await;
    assert!(matches!(second, Err(ServeError::InUse { .. })), "{second:?}");
    shutdown.cancel();
    task.await.unwrap().unwrap();
    assert!(!socket.exists());
}

struct Tls {
    api: Fixture,
    shutdown: CancellationToken,
    address: std::net::SocketAddr,
    task: tokio::task::JoinHandle<Result<(), ServeError>>,
}

impl Tls {
    async fn start() -> Self {
        Self::over(Fixture::new()).await
    }

    async fn over(api: Fixture) -> Self {
        let shutdown = CancellationToken::new();
        let (bound, address) = tokio::sync::oneshot::channel();
        let task = tokio::spawn({
            let (server, pki, shutdown) = (api.server.clone(), api.dir.path().join("pki"), shutdown.clone());
            async move { server.serve_tls("127.0.0.1:0".parse().unwrap(), &pki, Some(bound), shutdown).await }
        });
        Self { address: address.await.unwrap(), api, shutdown, task }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.api.dir.path().join(name)
    }

    async fn client(&self, name: &str) -> Client {
        let config = Kubeconfig::read_from(self.file(name)).unwrap();
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    async fn raw(&self, path: &str, token: Option<&str>) -> u16 {
        let mut config = Config::new(format!("https://{}", self.address).parse().unwrap());
        config.root_cert = self.client_ca().await;
        config.auth_info.token = token.map(|t| t.to_owned().into());
        let client = Client::try_from(config).unwrap();
        let request = http::Request::get(path).body(kube::client::Body::empty()).unwrap();
        client.send(request).await.unwrap().status().as_u16()
    }

    async fn client_ca(&self) -> Option<Vec<Vec<u8>>> {
        let config = Kubeconfig::read_from(self.file("admin.kubeconfig")).unwrap();
        Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap().root_cert
    }
}

#[tokio::test]
async fn only_known_clients_get_in() {
    let tls = Tls::start().await;
    for file in ["admin.kubeconfig", "viewer.kubeconfig", "pki/ca.key", "pki/admin.token"] {
        assert_eq!(std::fs::metadata(tls.file(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
    let admin = tls.client("admin.kubeconfig").await;
    let maps: Api<ConfigMap> = Api::default_namespaced(admin.clone());
    let map = serde_json::from_value(json!({"metadata": {"name": "m"}})).unwrap();
    maps.create(&Default::default(), &map).await.unwrap();

    let viewer = tls.client("viewer.kubeconfig").await;
    let seen: Api<ConfigMap> = Api::default_namespaced(viewer.clone());
    assert_eq!(seen.list(&Default::default()).await.unwrap().items.len(), 1);
    let code = |error: kube::Error| match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other}"),
    };
    assert_eq!(code(seen.delete("m", &Default::default()).await.unwrap_err()), 403);
    let secrets: Api<Secret> = Api::default_namespaced(viewer);
    assert_eq!(code(secrets.list(&Default::default()).await.unwrap_err()), 403);

    for open in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(tls.raw(open, None).await, 200, "{open}");
    }
    for closed in ["/api/v1/namespaces", "/apis", "/openapi/v3", "/"] {
        assert_eq!(tls.raw(closed, None).await, 401, "{closed}");
    }
    assert_eq!(tls.raw("/api/v1/namespaces", Some("guess")).await, 401);
    let token = std::fs::read_to_string(tls.file("pki/admin.token")).unwrap();
    assert_eq!(tls.raw("/api/v1/namespaces", Some(&token)).await, 200);
    tls.shutdown.cancel();
    tls.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn kubeconfigs_outlive_a_restart_of_the_listener() {
    let tls = Tls::start().await;
    let before = std::fs::read_to_string(tls.file("admin.kubeconfig")).unwrap();
    tls.shutdown.cancel();
    tls.task.await.unwrap().unwrap();
    let shutdown = CancellationToken::new();
    let (bound, address) = tokio::sync::oneshot::channel();
    let (server, pki, stop) = (tls.api.server.clone(), tls.api.dir.path().join("pki"), shutdown.clone());
    let task = tokio::spawn(async move { server.serve_tls(tls.address, &pki, Some(bound), stop).await });
    address.await.unwrap();
    let config = Kubeconfig::from_yaml(&before).unwrap();
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(Client::try_from(config).unwrap());
    maps.list(&Default::default()).await.unwrap();
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_while_serving() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let options = nodelet_apiserver::Options {
        store: dir.path().join("store.db"),
        certificate_lifetime: std::time::Duration::from_secs(6),
        ..Default::default()
    };
    let server = nodelet_apiserver::Server::open(options, vec![]).unwrap();
    let tls = Tls::over(Fixture { server, dir }).await;
    let mut state = tls.api.server.certificates();
    let first = state.borrow_and_update().clone();
    assert_eq!((first.issued, first.failures), (1, 0));
    // A connection from before, over which a watch goes on.
    let maps: Api<ConfigMap> = Api::default_namespaced(tls.client("admin.kubeconfig").await);
    let mut watch = std::pin::pin!(maps.watch(&Default::default(), "0").await.unwrap());
    // What a renewal needs is in the way.
    std::fs::create_dir(tls.file("admin.kubeconfig.new")).unwrap();
    let started = std::time::Instant::now();
    let mut failed = false;
    while started.elapsed() < std::time::Duration::from_secs(14) {
        // A new connection each time, long after the first certificate ended.
        assert_eq!(tls.raw("/readyz", None).await, 200);
        let now = state.borrow_and_update().clone();
        if let (Some(failure), false) = (&now.failure, failed) {
            assert!(failure.contains("admin.kubeconfig"));
            assert!(now.expires > first.expires, "the server's own is new all the same");
            std::fs::remove_dir(tls.file("admin.kubeconfig.new")).unwrap();
            failed = true;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let now = state.borrow_and_update().clone();
    assert!(failed && now.failure.is_none() && now.failures >= 1 && now.issued >= 4, "{now:?}");
    assert!(now.expires >= first.expires + 8, "{first:?} {now:?}");
    // The kubeconfig on disk is as new, the listener was never gone, and the watch is the one from before.
    let maps: Api<ConfigMap> = Api::default_namespaced(tls.client("admin.kubeconfig").await);
    let map = serde_json::from_value(json!({"metadata": {"name": "m"}})).unwrap();
    maps.create(&Default::default(), &map).await.unwrap();
    let seen = futures::TryStreamExt::try_next(&mut watch).await.unwrap();
    assert!(matches!(seen, Some(kube::core::WatchEvent::Added(_))), "{seen:?}");
    assert!(!tls.task.is_finished());
    tls.shutdown.cancel();
    tls.task.await.unwrap().unwrap();
}

/// The session that the documentation promises, through the kubectl of this machine; nothing without one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_works_unchanged() {
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        return;
    }
    let tls = Tls::start().await;
    let manifest = tls.file("widget.yaml");
    let write = |size: &str| {
        let text = format!(
            "apiVersion: test.dev/v1\nkind: Widget\nmetadata: {{name: web, labels: {{app: web}}}}\nspec: {size}\n---\n\
             apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: conf}}\ndata: {{a: b}}\n"
        );
        std::fs::write(&manifest, text).unwrap();
    };
    let run = async |arguments: &str| {
        let mut command = Command::new("kubectl");
        command
            .env("KUBECONFIG", tls.file("admin.kubeconfig"))
            .env("HOME", tls.api.dir.path())
            .current_dir(tls.api.dir.path())
            .args(arguments.split(' '));
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code().unwrap(), text)
    };
    write("{size: small}");
    for (arguments, code, says) in [
        ("apply -f widget.yaml", 0, "widget.test.dev/web created\nconfigmap/conf created\n"),
        ("apply -f widget.yaml", 0, "widget.test.dev/web unchanged\nconfigmap/conf unchanged\n"),
        ("diff -f widget.yaml", 0, ""),
        ("get wd", 0, "web    small"),
        ("get widgets -A -o name", 0, "widget.test.dev/web"),
        ("explain widget.spec.ports", 0, "FIELD: ports"),
        ("label wd web x=y", 0, "labeled"),
        ("annotate wd web x=y", 0, "annotated"),
        ("patch wd web --type=merge -p {\"spec\":{\"note\":\"n\"}}", 0, "patched"),
        ("patch wd web --type=json -p [{\"op\":\"remove\",\"path\":\"/spec/note\"}]", 0, "patched"),
        ("patch cm conf -p {\"data\":{\"c\":\"d\"}}", 0, "patched"),
        (
            "patch wd web --subresource=status --type=merge -p {\"status\":{\"conditions\":[{\"type\":\"Ready\",\"status\":\"True\"}]}}",
            0,
            "patched",
        ),
        ("wait --for=condition=Ready wd/web --timeout=5s", 0, "condition met"),
        ("describe wd web", 0, "API Version:  test.dev/v1"),
        ("scale wd web --replicas=2", 1, "could not find the requested resource"),
        ("create namespace extra", 0, "created"),
        ("-n extra create configmap c --from-literal=a=b", 0, "created"),
        ("-n extra create secret generic s --from-literal=a=b", 0, "created"),
        ("delete namespace extra", 0, "deleted"),
        ("auth whoami", 0, "nodelet:admin"),
        ("auth can-i delete widgets", 0, "yes"),
        ("events", 0, "No events found"),
        ("api-resources --api-group=test.dev", 0, "widgets"),
        ("apply --server-side -f widget.yaml", 0, "serverside-applied"),
        ("apply --server-side -f widget.yaml --dry-run=server", 0, "server dry run"),
    ] {
        let (found, text) = run(arguments).await;
        assert!(found == code && text.contains(says), "kubectl {arguments}: {found}\n{text}");
    }
    write("{sise: small}");
    let (code, text) = run("apply -f widget.yaml").await;
    assert!(code == 1 && text.contains("unknown field \"spec.sise\""), "{text}");
    write("{size: large}");
    let (code, text) = run("diff -f widget.yaml").await;
    assert!(code == 1 && text.contains("+  size: large"), "{text}");
    let (code, text) = run("delete -f widget.yaml --cascade=foreground").await;
    assert!(code == 0 && text.contains("\"web\" deleted"), "{text}");
    tls.shutdown.cancel();
    tls.task.await.unwrap().unwrap();
}
