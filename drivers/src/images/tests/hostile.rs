//! Registries that want tokens, are busy, lie or stall. Each is a small scripted server.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::fixture::*;
use crate::images::manifest::Digest;
use crate::images::{Error, Images as _, Options};
use crate::testing::PrivateContainerd;

/// What the server was asked.
struct Ask {
    path: String,
    authorization: String,
    /// First byte of the range.
    from: usize,
}

/// What it says.
#[derive(Clone)]
struct Say {
    status: u16,
    headers: String,
    body: Vec<u8>,
    /// The length it claims; `None` is the truth.
    claims: Option<usize>,
    /// Says no more after the body, and keeps the connection.
    stalls: bool,
}

impl Say {
    fn ok(body: &[u8]) -> Self {
        Self { status: 200, headers: String::new(), body: body.to_vec(), claims: None, stalls: false }
    }

    fn status(status: u16) -> Self {
        Self { status, ..Self::ok(b"") }
    }
}

struct Server {
    port: u16,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(answer: impl Fn(u16, Ask) -> Say + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answer.clone();
                connections.spawn(async move { serve(stream, |ask| answer(port, ask)).await });
            }
        });
        Self { port, task }
    }

    fn name(&self) -> String {
        format!("127.0.0.1:{}/app:1", self.port)
    }
}

/// One request for each connection.
async fn serve(stream: TcpStream, answer: impl Fn(Ask) -> Say) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let first = lines.next_line().await?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut ask = Ask { path, authorization: String::new(), from: 0 };
    while let Some(line) = lines.next_line().await? {
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                value.clone_into(&mut ask.authorization)
            }
            Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                ask.from = value.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or_default();
            }
            Some(_) => {}
            None => break,
        }
    }
    let say = answer(ask);
    let length = say.claims.unwrap_or(say.body.len());
    let head =
        format!("HTTP/1.1 {} x\r\nContent-Length: {length}\r\nConnection: close\r\n{}\r\n", say.status, say.headers);
    writer.write_all(head.as_bytes()).await?;
    writer.write_all(&say.body).await?;
    if say.stalls {
        std::future::pending::<()>().await;
    }
    Ok(())
}

/// An image of one layer, by path.
#[derive(Clone)]
struct Content {
    blobs: Arc<HashMap<String, Vec<u8>>>,
    layer: String,
}

impl Content {
    fn new(change: impl Fn(serde_json::Value) -> serde_json::Value) -> Self {
        let layer = random_layer("a", 1 << 20).0;
        let platform = crate::images::platform::Platform::node();
        let config = serde_json::json!({
            "architecture": platform.architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]},
        })
        .to_string();
        let manifest = change(serde_json::json!({
            "schemaVersion": 2, "mediaType": crate::images::manifest::OCI_MANIFEST,
            "config": {"mediaType": crate::images::manifest::OCI_CONFIG, "digest": Digest::of(config.as_bytes()),
                "size": config.len()},
            "layers": [{"mediaType": crate::images::manifest::OCI_LAYER, "digest": Digest::of(&layer),
                "size": layer.len()}],
        }))
        .to_string();
        let path = |blob: &[u8]| format!("/v2/app/blobs/{}", Digest::of(blob));
        let layer_path = path(&layer);
        let blobs = HashMap::from([
            (path(config.as_bytes()), config.into_bytes()),
            (layer_path.clone(), layer),
            ("/v2/app/manifests/1".to_owned(), manifest.into_bytes()),
        ]);
        Self { blobs: Arc::new(blobs), layer: layer_path }
    }

    /// An honest answer.
    fn get(&self, ask: &Ask) -> Say {
        match self.blobs.get(&ask.path) {
            None => Say::status(404),
            Some(body) if ask.path.contains("/blobs/") => {
                Say { status: 206, ..Say::ok(&body[ask.from.min(body.len())..]) }
            }
            Some(body) => Say::ok(body),
        }
    }
}

fn honest() -> Content {
    Content::new(|manifest| manifest)
}

fn impatient() -> Options {
    Options { attempts: 1, stall: Duration::from_millis(400), ..Options::default() }
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn an_expired_token_is_renewed_between_manifest_and_layer() {
    let node = PrivateContainerd::start().await;
    let (content, tokens) = (honest(), Arc::new(AtomicUsize::new(0)));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (issued, log) = (tokens.clone(), asked.clone());
    let server = Server::start(move |port, ask| {
        if ask.path.starts_with("/token") {
            log.lock().unwrap().push((ask.path.clone(), ask.authorization.clone()));
            return Say::ok(format!(r#"{{"token":"t{}"}}"#, issued.fetch_add(1, Ordering::SeqCst)).as_bytes());
        }
        // The first token is good for the manifest only.
        let wanted = if ask.path == content.layer { "Bearer t1" } else { "Bearer t" };
        if ask.authorization.starts_with(wanted) {
            return content.get(&ask);
        }
        let headers = format!("WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s\"\r\n");
        Say { headers, ..Say::status(401) }
    })
    .await;
    let fetch = with_password(from_registry(&server.name()), "user", "secret");
    images(&node, impatient()).fetch(&fetch, silent()).await.unwrap();
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked.iter().all(|(path, auth)| path.contains("repository%3Aapp%3Apull") && auth.starts_with("Basic ")));
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_later() {
    let node = PrivateContainerd::start().await;
    let (content, asked) = (honest(), AtomicUsize::new(0));
    let server = Server::start(move |_, ask| {
        if ask.path == content.layer && asked.fetch_add(1, Ordering::SeqCst) == 0 {
            return Say { headers: "Retry-After: 1\r\n".to_owned(), ..Say::status(429) };
        }
        content.get(&ask)
    })
    .await;
    let started = std::time::Instant::now();
    images(&node, Options::default()).fetch(&from_registry(&server.name()), silent()).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn every_failure_is_told_apart_and_leaves_no_image() {
    let node = PrivateContainerd::start().await;
    let layer_says = |say: fn(&Content, &Ask) -> Say| {
        let content = honest();
        move |_: u16, ask: Ask| if ask.path == content.layer { say(&content, &ask) } else { content.get(&ask) }
    };
    type Answer = Box<dyn Fn(u16, Ask) -> Say + Send + Sync>;
    let lying = |change: fn(serde_json::Value) -> serde_json::Value| -> Answer {
        let content = Content::new(change);
        Box::new(move |_, ask| content.get(&ask))
    };
    let cases: Vec<(&str, Answer, &str)> = vec![
        ("403", Box::new(layer_says(|_, _| Say::status(403))), "refused access"),
        ("404", Box::new(layer_says(|_, _| Say::status(404))), "is not in the registry"),
        ("500", Box::new(layer_says(|_, _| Say::status(500))), "500"),
        ("503", Box::new(layer_says(|_, _| Say::status(503))), "503"),
        (
            "short",
            Box::new(layer_says(|c, a| Say { claims: Some(c.get(a).body.len()), ..Say::ok(&c.get(a).body[..1000]) })),
            "getting the blob",
        ),
        (
            "stalled",
            Box::new(layer_says(|c, a| Say {
                claims: Some(c.get(a).body.len()),
                stalls: true,
                ..Say::ok(&c.get(a).body[..1000])
            })),
            "getting the blob",
        ),
        (
            "endless",
            Box::new(layer_says(|c, a| Say { status: 206, ..Say::ok(&[c.get(a).body, vec![0; 4 << 20]].concat()) })),
            "its manifest says",
        ),
        (
            "wrong",
            Box::new(layer_says(|c, a| Say { status: 206, ..Say::ok(&vec![7; c.get(a).body.len()]) })),
            "unexpected commit digest",
        ),
        ("html", Box::new(|_, _| Say::ok(b"<html>welcome</html>")), "not valid JSON"),
        (
            "size",
            lying(|mut m| {
                m["layers"][0]["size"] = 17.into();
                m
            }),
            "its manifest says 17",
        ),
        (
            "digest",
            lying(|mut m| {
                m["layers"][0]["digest"] = "sha256:../../etc/passwd".into();
                m
            }),
            "not a sha256 digest",
        ),
        (
            "layers",
            lying(|mut m| {
                m["layers"] = serde_json::json!([]);
                m
            }),
            "counts 1 layers",
        ),
        (
            "artifact",
            lying(|mut m| {
                m["config"]["mediaType"] = "application/vnd.x".into();
                m
            }),
            "not a container image",
        ),
    ];
    for (case, answer, expected) in cases {
        let server = Server::start(answer).await;
        let images = images(&node, impatient());
        let fetch = from_registry(&server.name());
        let limit = tokio::time::timeout(Duration::from_secs(10), images.fetch(&fetch, silent()));
        let error = limit.await.unwrap_or_else(|_| panic!("{case} takes for ever")).unwrap_err();
        assert!(chain(&error).contains(expected), "{case}: {}", chain(&error));
        assert_eq!(images.list().await.unwrap(), [], "{case}");
        images.remove(&server.name()).await.unwrap();
        assert_eq!(inventory(&node), Vec::<String>::new(), "{case}");
    }
}
