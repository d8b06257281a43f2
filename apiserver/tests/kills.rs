//! A server that is killed at any moment keeps what it acknowledged and invents nothing.
//!
//! Each round starts a process that opens the store, says what is in it, and lets writers create, change and delete
//! until it is killed. Writers say what they try before and what was acknowledged after.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use http::{Method, Request};
use http_body_util::BodyExt;
use nodelet_apiserver::{Options, Server};
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tower::ServiceExt;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WRITERS: usize = 4;
const NAMES: usize = 6;

async fn call(server: &Server, method: Method, path: String, body: Value) -> (u16, Value) {
    let kind = if method == Method::PATCH { common::MERGE } else { "application/json" };
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    let request = request.body(axum::body::Body::from(body)).unwrap();
    let response = server.service().oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

#[ignore = "a part of kills_lose_nothing_and_invent_nothing"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn part_writes_until_killed() {
    let dir = std::path::PathBuf::from(std::env::var_os("NODELET_TEST_DIR").expect("run by another test"));
    let server = Server::open(Options { store: dir.join("store.db"), ..Options::default() }, vec![]).unwrap();
    let (_, list) = call(&server, Method::GET, CONFIG_MAPS.into(), Value::Null).await;
    for item in list["items"].as_array().unwrap() {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let metadata = &item["metadata"];
        let (name, rv) = (text(&metadata["name"]), text(&metadata["resourceVersion"]));
        println!("has {name} {} {rv}", text(&item["data"]["v"]));
    }
    println!("at {}", list["metadata"]["resourceVersion"].as_str().unwrap());
    for writer in 0..WRITERS {
        let server = server.clone();
        tokio::spawn(async move {
            // Values are never used twice, over all rounds.
            let base = u64::from(std::process::id()) << 32;
            for i in 0..u64::MAX {
                let name = format!("n{writer}-{}", i % NAMES as u64);
                let path = format!("{CONFIG_MAPS}/{name}");
                let value = (base + i).to_string();
                let gone = i % 11 == 10;
                println!("try {name} {}", if gone { "-" } else { &value });
                let object = json!({"metadata": {"name": name}, "data": {"v": value}});
                let (code, answer) = if gone {
                    call(&server, Method::DELETE, path, Value::Null).await
                } else {
                    match call(&server, Method::PATCH, path, object.clone()).await {
                        (404, _) => call(&server, Method::POST, CONFIG_MAPS.into(), object).await,
                        other => other,
                    }
                };
                if code >= 300 && !(gone && code == 404) {
                    println!("bad {code} {answer}");
                    std::process::exit(1);
                }
                let rv = answer["metadata"]["resourceVersion"].as_str().unwrap_or("0");
                println!("ack {name} {} {rv}", if gone { "-" } else { &value });
            }
        });
    }
    std::future::pending::<()>().await;
}

/// What may be found of one name.
#[derive(Debug, Clone, Default)]
struct Known {
    /// Value and version; `-` is absence.
    acknowledged: (String, u64),
    tried: Option<String>,
}

/// Rounds in one store; returns how many of them told their contents.
fn rounds(dir: &Path, rounds: usize, seed: u64) -> usize {
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let mut names: HashMap<String, Known> = HashMap::new();
    let (mut version, mut told) = (0, 0);
    for round in 0..=rounds {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "part_writes_until_killed", "--ignored", "--nocapture"]);
        let mut child =
            command.env("NODELET_TEST_DIR", dir).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Some are killed while they open the store, the last one tells what is there in the end.
        let early = round != rounds && rng.random_ratio(1, 8);
        if early {
            std::thread::park_timeout(Duration::from_millis(rng.random_range(0..60)));
            child.kill().unwrap();
        }
        let wanted = rng.random_range(0..60);
        let (mut acks, mut found, mut killed) = (0, HashMap::new(), early);
        for line in lines {
            let Ok(line) = line else { break };
            let words: Vec<&str> = line.split(' ').collect();
            // The test harness may have begun the first line.
            let words =
                words.iter().position(|w| matches!(*w, "has" | "at" | "try" | "ack" | "bad")).map(|at| &words[at..]);
            match words {
                Some(["has", name, value, rv]) => {
                    found.insert((*name).to_owned(), ((*value).to_owned(), rv.parse::<u64>().unwrap()));
                }
                Some(["at", rv]) => {
                    let now: u64 = rv.parse().unwrap();
                    assert!(now >= version, "the version went back from {version} to {now}");
                    version = now;
                    told += 1;
                    check(&mut names, std::mem::take(&mut found), version);
                }
                Some(["try", name, value]) => {
                    names.entry((*name).to_owned()).or_default().tried = Some((*value).to_owned());
                }
                Some(["ack", name, value, rv]) => {
                    let rv = rv.parse::<u64>().unwrap();
                    let known = names.entry((*name).to_owned()).or_default();
                    assert!(*value == "-" || rv > known.acknowledged.1, "{name}: {rv} after {known:?}");
                    version = version.max(rv);
                    *known = Known { acknowledged: ((*value).to_owned(), rv), tried: None };
                    acks += 1;
                }
                Some(["bad", ..]) => panic!("{line}"),
                // Cut by the kill, or said by the harness.
                _ => {}
            }
            if !killed && acks >= wanted && told > 0 {
                std::thread::park_timeout(Duration::from_micros(rng.random_range(0..3000)));
                child.kill().unwrap();
                killed = true;
            }
        }
        if !killed {
            child.kill().unwrap();
        }
        child.wait().unwrap();
    }
    told
}

/// Every name shows its last acknowledged value, or the one that was on its way; nothing else is there.
fn check(names: &mut HashMap<String, Known>, mut found: HashMap<String, (String, u64)>, version: u64) {
    for (name, known) in names.iter_mut() {
        let (value, rv) = found.remove(name).unwrap_or_else(|| ("-".into(), known.acknowledged.1));
        let absent = |value: &str| value.is_empty() || value == "-";
        let (was, was_rv) = &known.acknowledged;
        let kept = (value == *was || (absent(&value) && absent(was))) && (absent(was) || rv == *was_rv);
        assert!(kept || known.tried.as_ref() == Some(&value), "{name} is {value:?} at {rv}: {known:?}");
        assert!(rv <= version);
        *known = Known { acknowledged: (value, rv), tried: None };
    }
    assert!(found.is_empty(), "nobody made {found:?}");
}

/// `NODELET_TEST_KILLS` sets the number of rounds.
#[test]
fn kills_lose_nothing_and_invent_nothing() {
    let all = std::env::var("NODELET_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let lanes: Vec<_> = (0..4)
        .map(|lane| {
            std::thread::spawn(move || {
                let dir = tempfile::tempdir().unwrap();
                rounds(dir.path(), usize::div_ceil(all, 4), lane)
            })
        })
        .collect();
    let told: usize = lanes.into_iter().map(|lane| lane.join().unwrap()).sum();
    assert!(told > all / 2, "only {told} rounds told what they had");
}
