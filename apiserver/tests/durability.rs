//! What was acknowledged stays: through kills, full disks, damage and restores.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Fixture, MERGE, definition, open};
use http::Method;
use nodelet_apiserver::{OpenError, Options, Server, restore};
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// This test program again, as a process of its own that runs one of the parts below.
fn part(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]).env("NODELET_TEST_DIR", dir);
    command
}

fn dir_of_part() -> std::path::PathBuf {
    std::env::var_os("NODELET_TEST_DIR").expect("run by another test").into()
}

fn server(dir: &Path) -> Server {
    Server::open(Options { store: dir.join("store.db"), ..Options::default() }, vec![definition()]).unwrap()
}

#[ignore = "a part of kills_lose_nothing_acknowledged"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn part_writes_until_killed() {
    let dir = dir_of_part();
    let round = std::process::id();
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> =
        kube::Api::default_namespaced(server(&dir).client("default"));
    for client in 0..4 {
        let maps = maps.clone();
        tokio::spawn(async move {
            for i in 0.. {
                let name = format!("m{round}-{client}-{i}");
                let map = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
                maps.create(&Default::default(), &map).await.unwrap();
                println!("acked {name}");
            }
        });
    }
    std::future::pending::<()>().await;
}

/// `NODELET_TEST_KILLS` sets the number of rounds.
#[tokio::test]
async fn kills_lose_nothing_acknowledged() {
    let rounds = std::env::var("NODELET_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let mut acked: Vec<String> = Vec::new();
    let mut version = 0;
    for round in 0..rounds {
        let mut child =
            part("part_writes_until_killed", dir.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = 5 + (round * 37) % 150;
        let mut seen = 0;
        for line in lines {
            let Ok(line) = line else { break };
            // Cut lines can only be the last one, whose newline never came.
            if let Some((_, name)) = line.split_once("acked ") {
                acked.push(name.to_owned());
                seen += 1;
            }
            if seen == wanted {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let api = Fixture { server: server(dir.path()), dir: dir.clone() };
        let (_, list) = api.get(CONFIG_MAPS).await;
        let now: u64 = list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        assert!(now > version);
        version = now;
        let items = list["items"].as_array().unwrap().iter();
        let names: std::collections::HashSet<&str> =
            items.map(|item| item["metadata"]["name"].as_str().unwrap()).collect();
        for name in &acked {
            assert!(names.contains(name.as_str()), "{name} was acknowledged and is gone");
        }
    }
    assert!(!acked.is_empty());
}

#[ignore = "a part of a_full_disk_refuses_writes_and_nothing_else"]
#[tokio::test]
async fn part_fills_its_disk() {
    let dir = std::sync::Arc::new(tempfile::tempdir_in(dir_of_part()).unwrap());
    let api = Fixture { server: open(&dir), dir };
    api.post(CONFIG_MAPS, json!({"metadata": {"name": "first"}})).await;
    let large = "x".repeat(100 << 10);
    let mut refused = None;
    for i in 0..100 {
        let (code, body) =
            api.post(CONFIG_MAPS, json!({"metadata": {"name": format!("m{i}")}, "data": {"k": large}})).await;
        if code != 201 {
            refused = Some((i, code, body));
            break;
        }
    }
    let (count, code, body) = refused.expect("the disk is smaller than what was written");
    assert_eq!(code, 507, "{body}");
    assert_eq!(body["reason"], "InsufficientStorage");
    assert_eq!(api.get(CONFIG_MAPS).await.1["items"].as_array().unwrap().len(), count + 1);
    let path = format!("{CONFIG_MAPS}?watch=true&timeoutSeconds=0");
    assert_eq!(api.call(Method::GET, &path, "", Value::Null).await.0, 200);
    // Nothing of what was refused is there after a restart.
    let api = api.reopen().await;
    assert_eq!(api.get(CONFIG_MAPS).await.1["items"].as_array().unwrap().len(), count + 1);
    println!("part done");
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    // A small disk in a mount namespace of its own, which goes with the process.
    let exe = std::env::current_exe().unwrap();
    let script = format!(
        "mount -t tmpfs -o size=4m tmpfs {dir} && exec {exe} --exact part_fills_its_disk --ignored --nocapture",
        dir = dir.path().display(),
        exe = exe.display()
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .env("NODELET_TEST_DIR", dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("part done"), "{said}");
}

#[tokio::test]
async fn damage_and_newer_schemas_stop_the_start_with_the_remedy() {
    let api = Fixture::new();
    let dir = api.dir.clone();
    let path = dir.path().join("store.db");
    let options = || Options { store: path.clone(), ..Options::default() };
    let in_use = Server::open(options(), vec![]).unwrap_err();
    assert!(matches!(in_use, OpenError::InUse { .. }), "{in_use}");
    drop(api);
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let newer = Server::open(options(), vec![]).unwrap_err();
    assert!(newer.to_string().contains("schema version 99, this release knows 1"), "{newer}");
    let size = std::fs::metadata(&path).unwrap().len();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..usize::try_from(size).unwrap()].fill(7);
    std::fs::write(&path, bytes).unwrap();
    let corrupt = Server::open(options(), vec![]).unwrap_err();
    assert!(matches!(corrupt, OpenError::Corrupt { .. }) && corrupt.to_string().contains("restore"), "{corrupt}");
}

#[tokio::test]
async fn a_backup_brings_everything_back() {
    let api = Fixture::new();
    api.post(CONFIG_MAPS, json!({"metadata": {"name": "a"}, "data": {"k": "old"}})).await;
    let before = api.get(&format!("{CONFIG_MAPS}/a")).await.1;
    let copy = api.dir.path().join("backup.db");
    api.server.backup(&copy).unwrap();
    assert!(api.server.backup(&copy).is_err());
    api.patch(&format!("{CONFIG_MAPS}/a"), MERGE, json!({"data": {"k": "new"}})).await;
    let later = api.get(CONFIG_MAPS).await.1["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let store = api.dir.path().join("store.db");
    assert!(restore(&copy, &store).is_err(), "the store is in use");
    let dir = api.dir.clone();
    drop(api);
    // Its threads finish what they are about.
    drop(open(&dir));
    while restore(&copy, &store).is_err() {
        tokio::task::yield_now().await;
    }
    let api = Fixture { server: open(&dir), dir };
    assert_eq!(api.get(&format!("{CONFIG_MAPS}/a")).await.1, before);
    // Whoever followed the lost future is told to list again.
    let (_, event) =
        api.call(Method::GET, &format!("{CONFIG_MAPS}?watch=true&resourceVersion={later}"), "", Value::Null).await;
    assert_eq!(event["object"]["code"], 410);
}
