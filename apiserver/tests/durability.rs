//! What was acknowledged stays: through kills, full disks, damage and restores.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Fixture, MERGE, definition, open};
use http::Method;
use http_body_util::BodyExt;
use nodelet_apiserver::{OpenError, Options, Server, restore};
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn dir_of_part() -> std::path::PathBuf {
    std::env::var_os("NODELET_TEST_DIR").expect("run by another test").into()
}

fn options(dir: &Path) -> Options {
    Options { store: dir.join("store.db"), ..Options::default() }
}

#[ignore = "a part of a_full_disk_refuses_writes_and_nothing_else"]
#[tokio::test]
async fn part_fills_its_disk() {
    let dir = std::sync::Arc::new(tempfile::tempdir_in(dir_of_part()).unwrap());
    let filler = dir_of_part().join("filler");
    std::fs::write(&filler, vec![1; 4 << 20]).unwrap();
    let api = Fixture { server: open(&dir), dir };
    api.post(CONFIG_MAPS, json!({"metadata": {"name": "first"}})).await;
    let watch = http::Request::get(format!("{CONFIG_MAPS}?watch=true")).body(axum::body::Body::empty()).unwrap();
    let mut watch = api.send(watch).await.into_body();
    let large = "x".repeat(100 << 10);
    let large = |name: String| json!({"metadata": {"name": name}, "data": {"k": large}});
    let mut refused = None;
    for i in 0..100 {
        let (code, body) = api.post(CONFIG_MAPS, large(format!("m{i}"))).await;
        if code != 201 {
            refused = Some((i, code, body));
            break;
        }
    }
    let (count, code, body) = refused.expect("the disk is smaller than what was written");
    assert_eq!(code, 507, "{body}");
    assert_eq!(body["reason"], "InsufficientStorage");
    for _ in 0..20 {
        assert_eq!(api.post(CONFIG_MAPS, large("again".into())).await.0, 507);
    }
    assert_eq!(api.get(CONFIG_MAPS).await.1["items"].as_array().unwrap().len(), count + 1);
    let path = format!("{CONFIG_MAPS}?watch=true&timeoutSeconds=0");
    assert_eq!(api.call(Method::GET, &path, "", Value::Null).await.0, 200);
    // With room again, writes go on, and the watch from before tells of what was written and of nothing else.
    std::fs::remove_file(filler).unwrap();
    assert_eq!(api.post(CONFIG_MAPS, large("later".into())).await.0, 201);
    let mut seen = Vec::new();
    while seen.last().is_none_or(|name| name != "later") {
        let frame = watch.frame().await.unwrap().unwrap().into_data().unwrap();
        let event: Value = serde_json::from_slice(&frame).unwrap();
        seen.push(event["object"]["metadata"]["name"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen.len(), count + 2);
    assert!(!seen.iter().any(|name| name == "again"));
    // Nothing of what was refused is there after a restart.
    let api = api.reopen().await;
    assert_eq!(api.get(CONFIG_MAPS).await.1["items"].as_array().unwrap().len(), count + 2);
    println!("part done");
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    // A small disk in a mount namespace of its own, which goes with the process.
    let exe = std::env::current_exe().unwrap();
    let script = format!(
        "mount -t tmpfs -o size=8m tmpfs {dir} && exec {exe} --exact part_fills_its_disk --ignored --nocapture",
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
    let options = || options(dir.path());
    let in_use = Server::open(options(), vec![]).unwrap_err();
    assert!(matches!(in_use, OpenError::InUse { .. }), "{in_use}");
    drop(api);
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let newer = Server::open(options(), vec![]).unwrap_err();
    assert!(newer.to_string().contains("schema version 99, this release knows 2"), "{newer}");
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
    let restored = loop {
        match restore(&copy, &store) {
            Ok(restored) => break restored,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    // The store of before is kept, and every restore keeps another.
    let kept = restored.kept.unwrap();
    let connection = rusqlite::Connection::open(&kept).unwrap();
    let json: String = connection.query_row("SELECT json FROM objects WHERE name = 'a'", [], |row| row.get(0)).unwrap();
    assert!(json.contains("new"), "{json}");
    drop(connection);
    assert_ne!(restore(&copy, &store).unwrap().kept.unwrap(), kept);
    assert!(restored.version > later.parse().unwrap());
    let api = Fixture { server: open(&dir), dir };
    assert_eq!(api.get(&format!("{CONFIG_MAPS}/a")).await.1, before);
    // Whoever followed the lost future is told to list again.
    let (_, event) =
        api.call(Method::GET, &format!("{CONFIG_MAPS}?watch=true&resourceVersion={later}"), "", Value::Null).await;
    assert_eq!(event["object"]["code"], 410);
}

fn items(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

/// A bit that is not what it was is found, or is where nothing is.
#[tokio::test]
async fn damage_is_found_and_never_served() {
    let api = Fixture::new();
    let dir = api.dir.clone();
    for i in 0..40 {
        let data = json!({"k": "0123456789".repeat(i * 10)});
        api.post(CONFIG_MAPS, json!({"metadata": {"name": format!("m{i}")}, "data": data})).await;
    }
    let (_, before) = api.get(CONFIG_MAPS).await;
    // As a power cut would leave it: the log is not folded in.
    let at = |name: &str| dir.path().join(name);
    for name in ["store.db", "store.db-wal"] {
        std::fs::copy(at(name), at(&format!("cut-{name}"))).unwrap();
    }
    drop(api);
    drop(open(&dir));
    let whole = loop {
        // Its threads finish what they are about, and then the file is all there is.
        if !at("store.db-wal").exists() {
            break std::fs::read(at("store.db")).unwrap();
        }
        tokio::task::yield_now().await;
    };
    let try_open = async |name: &str, bytes: &[u8], wal: Option<&[u8]>| {
        let sub = at(name);
        std::fs::create_dir_all(&sub).unwrap();
        std::fs::write(sub.join("store.db"), bytes).unwrap();
        if let Some(wal) = wal {
            std::fs::write(sub.join("store.db-wal"), wal).unwrap();
        }
        let opened = Server::open(options(&sub), vec![definition()]);
        let found = match opened {
            Ok(server) => {
                let api = Fixture { server, dir: dir.clone() };
                Ok(api.get(CONFIG_MAPS).await.1)
            }
            Err(error) => Err(error),
        };
        (found, sub)
    };
    let mut refused = 0;
    for i in 0..150 {
        // Spread over the file, and dense over its first page.
        let place = if i < 50 { i * 2 } else { (i * 7919 * 31) % whole.len() };
        let mut bytes = whole.clone();
        bytes[place] ^= 1 << (i % 8);
        let (found, sub) = try_open(&format!("flip{i}"), &bytes, None).await;
        match found {
            Ok(list) => assert!(list["items"] == before["items"], "bit {} of byte {place}", i % 8),
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains("nodelet restore FILE"), "byte {place}: {error:?}");
                refused += 1;
            }
        }
        let _ = std::fs::remove_dir_all(sub);
    }
    assert!(refused > 60, "{refused}");
    for part in [0, 1, 100, 4096, whole.len() / 2, whole.len() - 1] {
        let (found, _) = try_open(&format!("cut{part}"), &whole[..part], None).await;
        match found {
            // The last byte of a page may be one that nothing is in.
            Ok(list) => assert!(list["items"] == before["items"], "cut at {part}"),
            Err(error) => assert!(matches!(error, OpenError::Corrupt { .. }), "{part}: {error:?}"),
        }
    }
    let (main, wal) = (std::fs::read(at("cut-store.db")).unwrap(), std::fs::read(at("cut-store.db-wal")).unwrap());
    assert!(wal.len() > 100_000);
    for step in 0..12 {
        // A log that was cut or damaged loses its end, never something in the middle.
        let mut log = wal.clone();
        if step % 2 == 0 {
            log.truncate(wal.len() * step / 12)
        } else {
            log[wal.len() * step / 12] ^= 4
        }
        let (found, _) = try_open(&format!("wal{step}"), &main, Some(&log)).await;
        let list = match found {
            Ok(list) => list,
            Err(error) => {
                assert!(error.to_string().contains("nodelet restore FILE"), "{error:?}");
                continue;
            }
        };
        let count = items(&list).len();
        for i in 0..count {
            assert!(items(&list).contains(&format!("m{i}").as_str()), "{step}: {count} and no m{i}");
        }
    }
    // A file whose log stayed behind is not taken for a first start.
    let sub = at("gone");
    std::fs::create_dir_all(&sub).unwrap();
    std::fs::write(sub.join("store.db-wal"), &wal).unwrap();
    assert!(matches!(Server::open(options(&sub), vec![]).unwrap_err(), OpenError::Corrupt { .. }));
}

/// The schema of the first release, with an object in it.
const FIRST: &str = r#"
    CREATE TABLE objects (resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, uid TEXT NOT NULL,
        rv INTEGER NOT NULL, json TEXT NOT NULL, PRIMARY KEY (resource, namespace, name));
    CREATE TABLE counter (id INTEGER PRIMARY KEY CHECK (id = 1), rv INTEGER NOT NULL);
    INSERT INTO counter VALUES (1, 7);
    INSERT INTO objects VALUES ('configmaps', 'default', 'old', 'u-1', 5,
        '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"old","namespace":"default","uid":"u-1","resourceVersion":"5"},"data":{"k":"v"}}');
    PRAGMA user_version = 1;"#;

#[tokio::test]
async fn every_schema_since_the_first_is_brought_up_to_date() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let store = dir.path().join("store.db");
    rusqlite::Connection::open(&store).unwrap().execute_batch(FIRST).unwrap();
    let first = std::fs::read(&store).unwrap();
    let api = Fixture { server: open(&dir), dir };
    let old = format!("{CONFIG_MAPS}/old");
    let (code, object) = api.get(&old).await;
    assert_eq!((code.as_u16(), &object["metadata"]["resourceVersion"]), (200, &json!("5")));
    let (_, changed) = api.patch(&old, MERGE, json!({"data": {"k": "w"}})).await;
    assert!(changed["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > 7);
    // What was there before is kept for the release that made it.
    let kept = api.dir.path().join("store.db.schema-1");
    let connection = rusqlite::Connection::open(&kept).unwrap();
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 1);
    let api = api.reopen().await;
    assert_eq!(api.get(&old).await.1, changed);
    // A backup of the first release can be restored by this one.
    let backup = api.dir.path().join("first.db");
    std::fs::write(&backup, first).unwrap();
    let other = api.dir.path().join("other/store.db");
    let restored = restore(&backup, &other).unwrap();
    assert_eq!((restored.objects, restored.version, restored.kept), (1, 1_000_007, None));
    let server = Server::open(options(other.parent().unwrap()), vec![definition()]).unwrap();
    let restored = Fixture { server, dir: api.dir.clone() };
    assert_eq!(restored.get(&old).await.1["data"], json!({"k": "v"}));
}

#[tokio::test]
async fn stored_objects_get_defaults_that_came_later() {
    let api = Fixture::new();
    let (_, made) = api.post(common::WIDGETS, common::widget("a")).await;
    let dir = api.dir.clone();
    drop(api);
    drop(open(&dir));
    let mut later = serde_json::to_value(definition()).unwrap();
    later["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["note"]["default"] =
        json!("none");
    let later: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition =
        serde_json::from_value(later).unwrap();
    let server = loop {
        match Server::open(options(dir.path()), vec![later.clone()]) {
            Err(OpenError::InUse { .. }) => tokio::task::yield_now().await,
            opened => break opened.unwrap(),
        }
    };
    let api = Fixture { server, dir };
    let path = format!("{}/a", common::WIDGETS);
    let (_, found) = api.get(&path).await;
    assert_eq!((&made["spec"]["note"], &found["spec"]["note"]), (&Value::Null, &json!("none")));
    assert_eq!(found["metadata"], made["metadata"], "nobody changed it");
    assert_eq!(api.get(common::WIDGETS).await.1["items"][0], found);
    // Saying so again is no change.
    assert_eq!(api.patch(&path, MERGE, json!({"spec": {"note": "none"}})).await.1, found);
}
