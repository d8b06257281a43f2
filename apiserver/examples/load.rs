//! Measures the API in this process: `load [OBJECTS]`. Use a release build for figures that mean something.
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use futures::{AsyncBufReadExt, StreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::PostParams};
use nodelet_apiserver::{Options, Server};
use serde_json::json;

const CLIENTS: usize = 8;
const WATCHERS: usize = 100;

fn config_map(name: String) -> ConfigMap {
    let data = json!({"metadata": {"name": name}, "data": {"k": "x".repeat(1024)}});
    serde_json::from_value(data).unwrap_or_default()
}

fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default().replace("VmRSS:", "").trim().to_owned()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count: usize = std::env::args().nth(1).map_or(Ok(10_000), |n| n.parse())?;
    let dir = tempfile::tempdir_in(std::env::var_os("LOAD_DIR").unwrap_or_else(|| "/var/tmp".into()))?;
    let options = || Options { store: dir.path().join("store.db"), ..Options::default() };
    let start = Instant::now();
    let server = Server::open(options(), nodelet_crds::crds())?;
    println!("open, new store            {:?}, resident {}", start.elapsed(), resident());

    let start = Instant::now();
    let clients = (0..CLIENTS).map(|client| {
        let maps: Api<ConfigMap> = Api::default_namespaced(server.client("default"));
        tokio::spawn(async move {
            for i in 0..count / CLIENTS {
                maps.create(&PostParams::default(), &config_map(format!("m{client}-{i}"))).await?;
            }
            Ok::<_, kube::Error>(())
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await??;
    }
    let took = start.elapsed();
    println!("{count} creates, {CLIENTS} clients  {:.0}/s, resident {}", count as f64 / took.as_secs_f64(), resident());

    let client = server.client("default");
    let start = Instant::now();
    let list = http::Request::get("/api/v1/namespaces/default/configmaps").body(Vec::new())?;
    let bytes = client.request_text(list).await?.len();
    println!("list of all                {:?} for {bytes} bytes", start.elapsed());

    let (seen, mut told) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..WATCHERS {
        let rv = "/api/v1/namespaces/default/configmaps?watch=true&resourceVersion=0&sendInitialEvents=false";
        let mut events = client.request_stream(http::Request::get(rv).body(Vec::new())?).await?.lines();
        let seen = seen.clone();
        tokio::spawn(async move {
            while let Some(Ok(_)) = events.next().await {
                let _ = seen.send(Instant::now());
            }
        });
    }
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let mut last = Vec::new();
    for i in 0..200 {
        maps.create(&PostParams::default(), &config_map(format!("w{i}"))).await?;
        let acknowledged = Instant::now();
        let mut latest = acknowledged;
        for _ in 0..WATCHERS {
            latest = latest.max(told.recv().await.unwrap_or(acknowledged));
        }
        last.push(latest - acknowledged);
    }
    last.sort();
    let at = |percent: usize| last.get(last.len() * percent / 100).copied().unwrap_or(Duration::ZERO);
    println!("last of {WATCHERS} watchers       p50 {:?}, p99 {:?} after the acknowledgement", at(50), at(99));

    drop((maps, server));
    // Tasks of the clients end in their own time.
    while Server::open(options(), nodelet_crds::crds()).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let start = Instant::now();
    let server = loop {
        match Server::open(options(), nodelet_crds::crds()) {
            Ok(server) => break server,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    println!("open, full store           {:?}, resident {}", start.elapsed(), resident());
    drop(server);
    Ok(())
}
