//! Lists, watches and what they promise each other.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use axum::body::Body;
use common::{Fixture, MERGE, WIDGETS, widget};
use futures::{StreamExt, TryStreamExt};
use http::{Method, Request};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, api::ListParams};
use proptest::prelude::*;
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// The events of a watch, as far as they come within a moment.
async fn events(api: &Fixture, path: &str, count: usize) -> Vec<Value> {
    let response = api.send(Request::get(path).body(Body::empty()).unwrap()).await;
    read(response.into_body(), count).await
}

async fn read(mut body: Body, count: usize) -> Vec<Value> {
    let mut events = Vec::new();
    while events.len() < count {
        match tokio::time::timeout(Duration::from_secs(5), body.frame()).await {
            Ok(Some(frame)) => {
                let data = frame.unwrap().into_data().unwrap();
                events.extend(
                    data.split(|b| *b == b'\n')
                        .filter(|l| !l.is_empty())
                        .map(|l| serde_json::from_slice::<Value>(l).unwrap()),
                );
            }
            _ => break,
        }
    }
    events
}

fn kinds(events: &[Value]) -> Vec<String> {
    let name = |e: &Value| e["object"]["metadata"]["name"].as_str().unwrap_or("-").to_owned();
    events.iter().map(|e| format!("{} {}", e["type"].as_str().unwrap(), name(e))).collect()
}

fn rv(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_watch_tells_what_was_missed_and_what_happens() {
    let api = Fixture::new();
    let (_, list) = api.get(CONFIG_MAPS).await;
    api.post(CONFIG_MAPS, json!({"metadata": {"name": "a"}})).await;
    let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion={}", rv(&list));
    let response = api.send(Request::get(&path).body(Body::empty()).unwrap()).await;
    api.patch(&format!("{CONFIG_MAPS}/a"), MERGE, json!({"data": {"k": "v"}})).await;
    api.post("/api/v1/namespaces/kube-system/configmaps", json!({"metadata": {"name": "other"}})).await;
    api.delete(&format!("{CONFIG_MAPS}/a"), Value::Null).await;
    let seen = read(response.into_body(), 3).await;
    assert_eq!(kinds(&seen), ["ADDED a", "MODIFIED a", "DELETED a"]);
    assert!(seen.windows(2).all(|pair| rv(&pair[0]["object"]) < rv(&pair[1]["object"])));
    assert_eq!(seen[2]["object"]["data"], json!({"k": "v"}));
}

#[tokio::test]
async fn streaming_lists_end_with_a_bookmark() {
    let api = Fixture::new();
    api.post(CONFIG_MAPS, json!({"metadata": {"name": "a"}})).await;
    api.post(CONFIG_MAPS, json!({"metadata": {"name": "b"}})).await;
    let path = format!(
        "{CONFIG_MAPS}?watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    );
    let seen = events(&api, &path, 3).await;
    assert_eq!(kinds(&seen), ["ADDED a", "ADDED b", "BOOKMARK -"]);
    assert_eq!(seen[2]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(kinds(&events(&api, &format!("{CONFIG_MAPS}/b?watch=true"), 1).await), ["ADDED b"]);
    let ended = events(&api, &format!("{CONFIG_MAPS}?watch=true&timeoutSeconds=1&allowWatchBookmarks=true"), 9).await;
    assert_eq!(kinds(&ended), ["ADDED a", "ADDED b", "BOOKMARK -"]);
}

#[tokio::test]
async fn a_selector_turns_changes_into_coming_and_going() {
    let api = Fixture::new();
    let path = format!("{CONFIG_MAPS}?watch=true&labelSelector=app%3Dweb");
    let response = api.send(Request::get(&path).body(Body::empty()).unwrap()).await;
    api.post(CONFIG_MAPS, json!({"metadata": {"name": "a"}})).await;
    for labels in [json!({"app": "web"}), json!({"x": "y"}), json!({"app": "db"}), json!({"app": "web"})] {
        api.patch(&format!("{CONFIG_MAPS}/a"), MERGE, json!({"metadata": {"labels": labels}})).await;
    }
    api.delete(&format!("{CONFIG_MAPS}/a"), Value::Null).await;
    let seen = read(response.into_body(), 5).await;
    assert_eq!(kinds(&seen), ["ADDED a", "MODIFIED a", "DELETED a", "ADDED a", "DELETED a"]);
}

#[tokio::test]
async fn what_is_too_old_or_from_the_future_is_gone() {
    let api = Fixture::new();
    api.post(CONFIG_MAPS, json!({"metadata": {"name": "a"}})).await;
    let first = rv(&api.get(CONFIG_MAPS).await.1);
    for i in 0..2100 {
        api.patch(&format!("{CONFIG_MAPS}/a"), MERGE, json!({"data": {"k": i.to_string()}})).await;
    }
    for version in [first, u64::MAX / 2] {
        let seen = events(&api, &format!("{CONFIG_MAPS}?watch=true&resourceVersion={version}"), 1).await;
        assert_eq!((&seen[0]["type"], &seen[0]["object"]["code"]), (&json!("ERROR"), &json!(410)));
    }
    let (code, _) = api.get(&format!("{CONFIG_MAPS}?resourceVersion={first}&resourceVersionMatch=Exact")).await;
    assert_eq!(code, 410);
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_cut_off() {
    let api = Fixture::new();
    let response = api.send(Request::get(format!("{CONFIG_MAPS}?watch=true")).body(Body::empty()).unwrap()).await;
    api.post(CONFIG_MAPS, json!({"metadata": {"name": "a"}})).await;
    for i in 0..2200 {
        api.patch(&format!("{CONFIG_MAPS}/a"), MERGE, json!({"data": {"k": i.to_string()}})).await;
    }
    let seen = read(response.into_body(), 2000).await;
    let last = seen.last().unwrap();
    assert_eq!((&last["type"], &last["object"]["reason"]), (&json!("ERROR"), &json!("Expired")));
    assert!(seen.len() < 10);
}

#[tokio::test]
async fn pages_show_one_moment() {
    let api = Fixture::new();
    for name in ["a", "b", "c", "d", "e"] {
        api.post(CONFIG_MAPS, json!({"metadata": {"name": name}})).await;
    }
    let (_, first) = api.get(&format!("{CONFIG_MAPS}?limit=2")).await;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    api.delete(&format!("{CONFIG_MAPS}/c"), Value::Null).await;
    api.post(CONFIG_MAPS, json!({"metadata": {"name": "cc"}})).await;
    let mut names = vec![];
    let mut page = first.clone();
    loop {
        names.extend(
            page["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        assert_eq!(rv(&page), rv(&first));
        let Some(next) = page["metadata"]["continue"].as_str() else { break };
        page = api.get(&format!("{CONFIG_MAPS}?limit=2&continue={next}")).await.1;
    }
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert_eq!(api.get(&format!("{CONFIG_MAPS}?limit=2&continue=nonsense")).await.0, 400);
    let maps: Api<ConfigMap> = Api::default_namespaced(api.client());
    assert_eq!(maps.list(&ListParams::default().fields("metadata.name=cc")).await.unwrap().items.len(), 1);
    assert_eq!(api.get(&format!("{CONFIG_MAPS}?fieldSelector=data.x%3Dy")).await.0, 400);
    api.post(WIDGETS, widget("small")).await;
    let (_, none) = api.get(&format!("{WIDGETS}?fieldSelector=spec.size%3Dlarge")).await;
    assert_eq!(none["items"], json!([]));
}

#[tokio::test]
async fn tables_have_the_printer_columns() {
    let api = Fixture::new();
    api.post(WIDGETS, widget("a")).await;
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    api.patch(&format!("{WIDGETS}/a/status"), MERGE, status).await;
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    for path in [WIDGETS.to_owned(), format!("{WIDGETS}/a")] {
        let request = Request::get(path).header("accept", accept).body(Body::empty()).unwrap();
        let body = api.send(request).await.into_body().collect().await.unwrap().to_bytes();
        let table: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(table["kind"], "Table");
        let names: Vec<&str> =
            table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["Name", "Size", "Ready", "Age"]);
        let cells = table["rows"][0]["cells"].as_array().unwrap();
        assert_eq!(cells[..3], [json!("a"), json!("small"), json!("True")]);
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    }
    let request = Request::get(WIDGETS).header("accept", "application/vnd.kubernetes.protobuf").body(Body::empty());
    assert_eq!(api.send(request.unwrap()).await.status(), 406);
}

#[tokio::test]
async fn kube_runtime_follows_either_way() {
    let api = Fixture::new();
    api.post(CONFIG_MAPS, json!({"metadata": {"name": "before"}})).await;
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let maps: Api<ConfigMap> = Api::default_namespaced(api.client());
        let mut objects = pin!(watcher(maps, config).applied_objects());
        let first = objects.try_next().await.unwrap().unwrap();
        assert_eq!(first.metadata.name.as_deref(), Some("before"));
        api.post(CONFIG_MAPS, json!({"metadata": {"name": "after"}})).await;
        let next = tokio::time::timeout(Duration::from_secs(5), objects.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(next.metadata.name.as_deref(), Some("after"));
        api.delete(&format!("{CONFIG_MAPS}/after"), Value::Null).await;
    }
}

#[tokio::test]
async fn kube_recorders_publish_events_that_kubectl_reads() {
    let api = Fixture::new();
    let recorder = kube::runtime::events::Recorder::new(api.client(), "test".into());
    let (_, made) = api.post(WIDGETS, widget("a")).await;
    let about = k8s_openapi::api::core::v1::ObjectReference {
        api_version: Some("test.dev/v1".into()),
        kind: Some("Widget".into()),
        name: Some("a".into()),
        namespace: Some("default".into()),
        uid: made["metadata"]["uid"].as_str().map(Into::into),
        ..Default::default()
    };
    let event = kube::runtime::events::Event {
        type_: kube::runtime::events::EventType::Normal,
        reason: "Made".into(),
        note: Some("it is there".into()),
        action: "Making".into(),
        secondary: None,
    };
    recorder.publish(&event, &about).await.unwrap();
    recorder.publish(&event, &about).await.unwrap();
    let (_, events) =
        api.get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Da%2Creason%3DMade").await;
    let found = events["items"].as_array().unwrap();
    assert_eq!(found.len(), 1, "{events}");
    assert_eq!((&found[0]["message"], &found[0]["apiVersion"]), (&json!("it is there"), &json!("v1")));
    let (_, new) = api.get("/apis/events.k8s.io/v1/namespaces/default/events").await;
    assert_eq!(new["items"][0]["note"], "it is there");
}

#[tokio::test]
async fn what_is_not_served_is_refused_as_by_a_real_server() {
    let api = Fixture::new();
    for (method, path, code) in [
        (Method::GET, "/api/v1/namespaces/default/pods", 404),
        (Method::GET, "/apis/apps/v1/deployments", 404),
        (Method::GET, "/nonsense", 404),
        (Method::GET, "/api/v1/configmaps/x", 404),
        (Method::POST, "/api/v1/configmaps", 405),
        (Method::DELETE, "/api/v1/namespaces", 405),
        (Method::PUT, CONFIG_MAPS, 405),
        (Method::POST, "/version", 405),
        (Method::GET, "/api/v1/namespaces/%ff", 400),
        (Method::GET, "/readyz", 200),
        (Method::GET, "/apis/test.dev/v1/widgets", 200),
        (Method::GET, "/openapi/v3/apis/test.dev/v1", 200),
    ] {
        let (found, body) = api.call(method.clone(), path, "application/json", Value::Null).await;
        assert_eq!(found, code, "{method} {path}: {body}");
        assert!(code < 400 || body["kind"] == "Status", "{path}");
    }
    let large = json!({"metadata": {"name": "x"}, "data": {"k": "x".repeat(4 << 20)}});
    assert_eq!(api.post(CONFIG_MAPS, large).await.0, 413);
    for broken in ["{", "[]", "null", "7", "{\"metadata\": 5}", "{\"metadata\": {\"name\": 5}}", "{\"kind\": []}"] {
        let request = Request::post(CONFIG_MAPS).body(Body::from(broken)).unwrap();
        let code = api.send(request).await.status().as_u16();
        assert!(code == 400 || code == 422, "{broken}: {code}");
    }
}

/// One write of a random sequence.
#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Label(u8, bool),
    Delete(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4u8, any::<u8>()).prop_map(|(n, v)| Step::Put(n, v)),
        (0..4u8, any::<bool>()).prop_map(|(n, v)| Step::Label(n, v)),
        (0..4u8).prop_map(Step::Delete),
    ]
}

proptest! {
    #![proptest_config(common::cases(32))]

    /// Whoever lists at some point and follows from there has in the end what a list shows, with and without a
    /// selector; and a list at an old version shows what was there then.
    #[test]
    fn following_leads_to_the_list(steps in prop::collection::vec(step(), 1..40), split in 0..40usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let api = Fixture::new();
            let split = split.min(steps.len());
            run(&api, &steps[..split]).await;
            let selectors = ["", "&labelSelector=on"];
            let mut before = Vec::new();
            for selector in selectors {
                before.push(api.get(&format!("{CONFIG_MAPS}?x=y{selector}")).await.1);
            }
            run(&api, &steps[split..]).await;
            for (selector, before) in selectors.iter().zip(before) {
                let mut known = items(&before);
                let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion={}&timeoutSeconds=0{selector}", rv(&before));
                for event in events(&api, &path, usize::MAX).await {
                    let object = event["object"].clone();
                    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
                    match event["type"].as_str().unwrap() {
                        "DELETED" => assert!(known.remove(&name).is_some()),
                        "ADDED" => assert!(known.insert(name, object).is_none()),
                        _ => assert!(known.insert(name, object).is_some()),
                    }
                }
                let after = api.get(&format!("{CONFIG_MAPS}?x=y{selector}")).await.1;
                assert_eq!(known, items(&after));
                let exact = format!("{CONFIG_MAPS}?resourceVersionMatch=Exact&resourceVersion={}{selector}", rv(&before));
                assert_eq!(items(&api.get(&exact).await.1), items(&before));
            }
        });
    }
}

fn items(list: &Value) -> BTreeMap<String, Value> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| (item["metadata"]["name"].as_str().unwrap().to_owned(), item.clone())).collect()
}

async fn run(api: &Fixture, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Put(name, value) => {
                let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"v": value.to_string()}});
                api.patch(&format!("{CONFIG_MAPS}/n{name}?fieldManager=t&force=true"), common::APPLY, map).await;
            }
            Step::Label(name, on) => {
                let labels = json!({"metadata": {"labels": {"on": if *on { json!("y") } else { Value::Null }}}});
                api.patch(&format!("{CONFIG_MAPS}/n{name}"), MERGE, labels).await;
            }
            Step::Delete(name) => drop(api.delete(&format!("{CONFIG_MAPS}/n{name}"), Value::Null).await),
        }
    }
}
