//! The load: creates, lists, watchers.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::client::{Endpoint, JSON};
use super::figures::{Creates, FanOut, List, percentile, sorted};
use super::process::busy;
use super::subject::{NAMESPACE, Running};

/// Where the objects are.
fn path() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/configmaps")
}

/// No two objects of one process have the same name, whichever measurement they belong to.
fn config_map() -> Bytes {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let data = "x".repeat(1024);
    Bytes::from(format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"m{number}"}},"data":{{"k":"{data}"}}}}"#
    ))
}

/// Creates of some clients, each of which sends the next when the last is acknowledged.
pub(super) async fn creates(
    running: &Running,
    endpoint: &Endpoint,
    clients: usize,
    length: Duration,
) -> Result<Creates> {
    let mut tasks = JoinSet::new();
    let (path, mut connections) = (path(), Vec::new());
    for _ in 0..clients {
        let mut client = endpoint.connect().await?;
        // The first request of a connection pays for more than itself.
        client.fetch(Method::POST, &path, config_map()).await?;
        connections.push(client);
    }
    let server_before = running.busy()?;
    let own_before = busy(std::process::id())?;
    let begin = Instant::now();
    for mut client in connections {
        let path = path.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            while begin.elapsed() < length {
                let sent = Instant::now();
                client.fetch(Method::POST, &path, config_map()).await?;
                times.push(sent.elapsed());
            }
            Ok::<_, anyhow::Error>(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    let took = begin.elapsed().as_secs_f64();
    sorted(&mut times);
    #[allow(clippy::cast_precision_loss)] // some thousands
    Ok(Creates {
        per_second: times.len() as f64 / took,
        p50: percentile(&times, 50),
        p99: percentile(&times, 99),
        server_cores: (running.busy()? - server_before).as_secs_f64() / took,
        load_cores: (busy(std::process::id())? - own_before).as_secs_f64() / took,
    })
}

/// Makes so many objects.
pub(super) async fn fill(running: &Running, count: usize) -> Result<()> {
    let mut tasks = JoinSet::new();
    for share in 0..8 {
        let mut client = running.tls.connect().await?;
        tasks.spawn(async move {
            for _ in (share..count).step_by(8) {
                client.fetch(Method::POST, &path(), config_map()).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Lists everything in one answer, over TLS.
pub(super) async fn list(running: &Running, accept: &'static str) -> Result<List> {
    let mut client = running.tls.connect().await?;
    client.fetch(Method::GET, "/version", Bytes::new()).await?;
    let begin = Instant::now();
    let mut body = client.send(Method::GET, &path(), accept, Bytes::new()).await?.into_body();
    let mut list = List::default();
    while let Some(frame) = body.frame().await {
        if list.bytes == 0 {
            list.first = begin.elapsed();
        }
        list.bytes += frame?.data_ref().map_or(0, Bytes::len);
    }
    list.last = begin.elapsed();
    Ok(list)
}

/// Writes one object after the other, each after all watchers, on a connection each, have heard of the last.
pub(super) async fn fan_out(running: &Running, watchers: usize, writes: usize) -> Result<FanOut> {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    let mut writer = running.tls.connect().await?;
    let list = writer.fetch(Method::GET, &format!("{}?limit=1", path()), Bytes::new()).await?;
    let list: serde_json::Value = serde_json::from_slice(&list)?;
    let version = list["metadata"]["resourceVersion"].as_str().context("no version of the list")?;
    let watch = format!("{}?watch=true&resourceVersion={version}", path());
    for _ in 0..watchers {
        let mut client = running.tls.connect().await?;
        let mut body = client.send(Method::GET, &watch, JSON, Bytes::new()).await?.into_body();
        let heard = heard.clone();
        tasks.spawn(async move {
            // The connection lives as long as its client.
            let _client = client;
            while let Some(Ok(frame)) = body.frame().await {
                // An event is a line; its end may come in a frame of its own.
                let lines = frame.data_ref().map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
                for _ in 0..lines {
                    let _ = heard.send(Instant::now());
                }
            }
        });
    }
    let mut figures = FanOut::default();
    for _ in 0..writes {
        let sent = Instant::now();
        writer.fetch(Method::POST, &path(), config_map()).await?;
        let acknowledged = Instant::now();
        let mut last = sent;
        for _ in 0..watchers {
            let wait = tokio::time::timeout(Duration::from_secs(10), hears.recv());
            last = last.max(wait.await.context("a watcher hears nothing")?.context("no watcher is left")?);
        }
        figures.sent.push(last - sent);
        figures.acknowledged.push(last.saturating_duration_since(acknowledged));
    }
    sorted(&mut figures.sent);
    sorted(&mut figures.acknowledged);
    Ok(figures)
}

/// What the disk can do: small writes, each synced, by one writer.
pub(super) struct Disk {
    /// Syncs per second.
    pub(super) syncs: f64,
}

/// Writes 4 KiB and syncs, for a second, over a file that has its length already, as a log that is used again.
pub(super) fn disk(directory: &Path) -> Result<Disk> {
    let mut file: File = tempfile::tempfile_in(directory)?;
    file.write_all(&vec![0; 4 << 20])?;
    file.sync_all()?;
    let begin = Instant::now();
    let mut count = 0_u32;
    while begin.elapsed() < Duration::from_secs(1) {
        file.seek(SeekFrom::Start(u64::from(count % 1024) * 4096))?;
        file.write_all(&[0x5a; 4096])?;
        file.sync_data()?;
        count += 1;
    }
    Ok(Disk { syncs: f64::from(count) / begin.elapsed().as_secs_f64() })
}
