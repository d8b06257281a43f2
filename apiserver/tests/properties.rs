//! What holds whatever is done, in whatever order, restarts included.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::body::Body;
use common::{APPLY, Fixture, MERGE, WIDGETS, widget};
use http::{Method, Request};
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

fn rv(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

/// Applying what is there already is no change, however much later it is.
#[tokio::test]
async fn applies_of_the_unchanged_change_nothing() {
    let api = Fixture::new();
    let namespace =
        |metadata: Value| ("/api/v1/namespaces/n".to_owned(), "v1", "Namespace", json!({"metadata": metadata}));
    let cases = [
        namespace(json!({"name": "n"})),
        namespace(json!({"name": "n", "labels": {"a": "b"}, "annotations": {}})),
        namespace(json!({"name": "n", "creationTimestamp": null, "labels": {"kubernetes.io/metadata.name": "n"}})),
        (
            "/api/v1/namespaces/n".to_owned(),
            "v1",
            "Namespace",
            json!({"metadata": {"name": "n"}, "spec": {}, "status": {}}),
        ),
        ("/api/v1/namespaces/n".to_owned(), "v1", "Namespace", json!({"spec": {"finalizers": ["kubernetes"]}})),
        (format!("{CONFIG_MAPS}/c"), "v1", "ConfigMap", json!({"data": {}})),
        (format!("{CONFIG_MAPS}/d"), "v1", "ConfigMap", json!({"data": {"k": "v"}, "binaryData": null})),
        ("/api/v1/namespaces/default/secrets/s".to_owned(), "v1", "Secret", json!({"stringData": {"a": "b"}})),
        (format!("{WIDGETS}/a"), "test.dev/v1", "Widget", json!({"spec": {"size": "small"}})),
        (
            format!("{WIDGETS}/b"),
            "test.dev/v1",
            "Widget",
            json!({"spec": {"size": "small", "env": {}, "tags": [], "ports": [{"port": 1}], "note": null}, "status": {"x": 1}}),
        ),
    ];
    let requests: Vec<(String, Value)> = cases
        .into_iter()
        .enumerate()
        .map(|(i, (path, version, kind, mut object))| {
            object["apiVersion"] = json!(version);
            object["kind"] = json!(kind);
            (format!("{path}?fieldManager=m{i}&force=true"), object)
        })
        .collect();
    let plain = |path: &str| path.split('?').next().unwrap().to_owned();
    for (path, object) in &requests {
        let (code, applied) = api.patch(path, APPLY, object.clone()).await;
        assert!(code.is_success(), "{object}: {applied}");
    }
    for _ in 0..2 {
        // Times in objects are whole seconds.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        for (path, object) in &requests {
            let (_, was) = api.get(&plain(path)).await;
            let (_, applied) = api.patch(path, APPLY, object.clone()).await;
            assert_eq!(applied, was, "{object}");
        }
    }
}

/// One thing that happens to the objects of a kind, or to who follows them.
#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Label(u8, bool),
    Delete(u8),
    Reconnect,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4u8, any::<u8>()).prop_map(|(n, v)| Step::Put(n, v)),
        4 => (0..4u8, any::<bool>()).prop_map(|(n, v)| Step::Label(n, v)),
        4 => (0..4u8).prop_map(Step::Delete),
        3 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
    ]
}

/// A client as client-go is one: lists, follows, remembers the last version it saw, bookmarks included.
#[derive(Default)]
struct Follower {
    selector: &'static str,
    known: BTreeMap<String, Value>,
    seen: Option<u64>,
    lists: usize,
}

impl Follower {
    async fn catch_up(&mut self, api: &Fixture) {
        loop {
            let Some(seen) = self.seen else {
                let (_, list) = api.get(&format!("{CONFIG_MAPS}?x=y{}", self.selector)).await;
                self.known = items(&list);
                self.seen = Some(rv(&list));
                self.lists += 1;
                return;
            };
            let path = format!(
                "{CONFIG_MAPS}?watch=true&allowWatchBookmarks=true&timeoutSeconds=0&resourceVersion={seen}{}",
                self.selector
            );
            let response = api.send(Request::get(path).body(Body::empty()).unwrap()).await;
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let mut gone = false;
            for line in body.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                let event: Value = serde_json::from_slice(line).unwrap();
                let object = &event["object"];
                let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                match event["type"].as_str().unwrap() {
                    "ERROR" => {
                        assert_eq!(object["code"], 410);
                        gone = true;
                        break;
                    }
                    "DELETED" => assert!(self.known.remove(&name).is_some(), "{name} went twice"),
                    "ADDED" => assert!(self.known.insert(name.clone(), object.clone()).is_none(), "{name} came twice"),
                    "MODIFIED" => assert!(self.known.insert(name.clone(), object.clone()).is_some(), "{name} is new"),
                    _ => {}
                }
                assert!(Some(rv(object)) >= self.seen, "{event} after {:?}", self.seen);
                self.seen = Some(rv(object));
            }
            if !gone {
                return;
            }
            self.seen = None;
        }
    }
}

fn items(list: &Value) -> BTreeMap<String, Value> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| (item["metadata"]["name"].as_str().unwrap().to_owned(), item.clone())).collect()
}

proptest! {
    #![proptest_config(common::cases(40))]

    /// Whoever follows, with reconnects at any version and through restarts, knows what a list shows; and every
    /// acknowledged write survives every restart.
    #[test]
    fn following_through_everything_leads_to_the_list(steps in prop::collection::vec(step(), 1..50)) {
        run(async {
            let mut api = Fixture::new();
            let mut followers = ["", "&labelSelector=on", "&labelSelector=!on", "&fieldSelector=metadata.name%3Dn1"]
                .map(|selector| Follower { selector, ..Follower::default() });
            for follower in &mut followers {
                follower.catch_up(&api).await;
            }
            for (i, step) in steps.iter().enumerate() {
                match step {
                    Step::Put(name, value) => {
                        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"v": value.to_string()}});
                        api.patch(&format!("{CONFIG_MAPS}/n{name}?fieldManager=t&force=true"), APPLY, map).await;
                    }
                    Step::Label(name, on) => {
                        let labels = json!({"metadata": {"labels": {"on": if *on { json!("y") } else { Value::Null }}}});
                        api.patch(&format!("{CONFIG_MAPS}/n{name}"), MERGE, labels).await;
                    }
                    Step::Delete(name) => drop(api.delete(&format!("{CONFIG_MAPS}/n{name}"), Value::Null).await),
                    // Not all at once, so that they come back to different versions.
                    Step::Reconnect => followers[i % 4].catch_up(&api).await,
                    Step::Restart => {
                        let (_, before) = api.get(CONFIG_MAPS).await;
                        api = api.reopen().await;
                        let (_, after) = api.get(CONFIG_MAPS).await;
                        assert_eq!(items(&after), items(&before));
                        assert!(rv(&after) >= rv(&before));
                    }
                }
            }
            for follower in &mut followers {
                follower.catch_up(&api).await;
                let (_, list) = api.get(&format!("{CONFIG_MAPS}?x=y{}", follower.selector)).await;
                assert_eq!(&follower.known, &items(&list), "{}", follower.selector);
                assert!(follower.lists <= 1 + steps.iter().filter(|s| matches!(s, Step::Restart)).count());
            }
        });
    }
}

/// A write to a Widget's `spec.env`, `spec.tags` and `spec.note` by one of three managers.
#[derive(Debug, Clone)]
struct Edit {
    manager: u8,
    /// An apply, or else a merge patch.
    applies: bool,
    /// What is said of `env.a`, `env.b`, `note`, `ports` with the keys 1 and 2.
    fields: BTreeMap<&'static str, u8>,
    gone: BTreeSet<&'static str>,
}

const FIELDS: [&str; 5] = ["env.a", "env.b", "note", "port.1", "port.2"];

fn edit() -> impl Strategy<Value = Edit> {
    let field = || prop::sample::select(&FIELDS[..]);
    (
        0..3u8,
        prop::bool::weighted(0.7),
        prop::collection::btree_map(field(), 0..3u8, 0..4),
        prop::collection::btree_set(prop::sample::select(&FIELDS[..3]), 0..2),
    )
        .prop_map(|(manager, applies, fields, gone)| Edit { manager, applies, fields, gone })
}

fn spec_of(fields: &BTreeMap<&'static str, u8>, nulls: &BTreeSet<&'static str>) -> Value {
    let mut spec = json!({});
    for (field, value) in fields {
        match field.split_once('.') {
            Some(("env", key)) => spec["env"][key] = json!(value.to_string()),
            Some((_, port)) => {
                let port = json!({"port": port.parse::<u16>().unwrap(), "protocol": "TCP", "name": value.to_string()});
                match spec["ports"].as_array_mut() {
                    Some(ports) => ports.push(port),
                    None => spec["ports"] = json!([port]),
                }
            }
            None => spec[*field] = json!(value.to_string()),
        }
    }
    for field in nulls.iter().filter(|field| !fields.contains_key(*field)) {
        match field.split_once('.') {
            Some((outer, key)) => spec[outer][key] = Value::Null,
            None => spec[*field] = Value::Null,
        }
    }
    spec
}

/// Who owns what, by the rules of the documentation and nothing else.
#[derive(Debug, Default)]
struct Model {
    values: BTreeMap<&'static str, u8>,
    owners: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Model {
    fn write(&mut self, field: &'static str, value: u8, manager: &str, shares: bool) {
        let changed = self.values.insert(field, value) != Some(value);
        let owners = self.owners.entry(field).or_default();
        if changed {
            owners.clear();
        }
        // An update owns what it changed, an apply owns what it says.
        if changed || shares {
            owners.insert(manager.to_owned());
        }
    }

    fn make(&mut self, edit: &Edit) {
        if edit.applies {
            let manager = format!("a{}", edit.manager);
            for (field, value) in &edit.fields {
                self.write(field, *value, &manager, true);
            }
            for field in FIELDS.into_iter().filter(|field| !edit.fields.contains_key(field)) {
                let Some(owners) = self.owners.get_mut(field) else { continue };
                if owners.remove(&manager) && owners.is_empty() {
                    self.values.remove(field);
                }
            }
        } else {
            let manager = format!("u{}", edit.manager);
            for (field, value) in edit.fields.iter().filter(|(field, _)| !field.starts_with("port")) {
                self.write(field, *value, &manager, false);
            }
            for field in edit.gone.iter().filter(|field| !edit.fields.contains_key(*field)) {
                self.values.remove(field);
                self.owners.remove(field);
            }
        }
    }
}

fn found(spec: &Value) -> BTreeMap<&'static str, u8> {
    let number = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
    let port = |wanted: u16| {
        let ports = spec["ports"].as_array().into_iter().flatten();
        ports.filter(|port| port["port"] == wanted).find_map(|port| number(&port["name"]))
    };
    let value = |field: &str| match field {
        "env.a" => number(&spec["env"]["a"]),
        "env.b" => number(&spec["env"]["b"]),
        "note" => number(&spec["note"]),
        "port.1" => port(1),
        _ => port(2),
    };
    FIELDS.into_iter().filter_map(|field| Some((field, value(field)?))).collect()
}

proptest! {
    #![proptest_config(common::cases(96))]

    /// Applies and patches of several managers leave what the rules of ownership say; an apply made twice is one.
    #[test]
    fn applies_match_a_model(edits in prop::collection::vec(edit(), 1..12)) {
        run(async {
            let api = Fixture::new();
            let mut base = widget("a");
            base["spec"]["size"] = json!("small");
            api.post(&format!("{WIDGETS}?fieldManager=base"), base).await;
            let mut model = Model::default();
            for edit in &edits {
                let path = format!("{WIDGETS}/a");
                if edit.applies {
                    let object = json!({"apiVersion": "test.dev/v1", "kind": "Widget",
                        "spec": spec_of(&edit.fields, &BTreeSet::new())});
                    let path = format!("{path}?force=true&fieldManager=a{}", edit.manager);
                    let (code, once) = api.patch(&path, APPLY, object.clone()).await;
                    assert!(code.is_success(), "{once}");
                    let (_, twice) = api.patch(&path, APPLY, object).await;
                    assert_eq!(once, twice);
                } else {
                    let mut edit = edit.clone();
                    edit.fields.retain(|field, _| !field.starts_with("port"));
                    let patch = json!({"spec": spec_of(&edit.fields, &edit.gone)});
                    let (code, said) = api.patch(&format!("{path}?fieldManager=u{}", edit.manager), MERGE, patch).await;
                    assert!(code.is_success(), "{said}");
                }
                model.make(edit);
                let (_, object) = api.get(&path).await;
                assert_eq!(&found(&object["spec"]), &model.values, "after {edit:?}: {object} {model:?}");
            }
        });
    }
}

/// A ConfigMap with owners among those before it, perhaps held by somebody; and how some are deleted.
#[derive(Debug, Clone)]
struct Node {
    owners: Vec<(usize, bool)>,
    held: bool,
}

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    let node = (prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..3), prop::bool::weighted(0.2));
    prop::collection::vec(node, 2..9).prop_map(|drawn| {
        let nodes = drawn.into_iter().enumerate();
        nodes
            .map(|(i, (owners, held))| Node {
                owners: owners.into_iter().filter(|_| i > 0).map(|(o, block)| (o.index(i), block)).collect(),
                held,
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(common::cases(32))]

    /// Deletions of every kind, in any order and with restarts between, come to the same rest: nothing is half deleted,
    /// no dependent outlives all its owners, and what nobody deleted is there.
    #[test]
    fn deletions_come_to_rest(
        nodes in nodes(),
        deletions in prop::collection::vec((any::<prop::sample::Index>(), 0..3u8, any::<bool>()), 1..5),
    ) {
        run(async {
            let mut api = Fixture::new();
            let mut uids: Vec<String> = Vec::new();
            for (i, node) in nodes.iter().enumerate() {
                let mut seen = BTreeSet::new();
                let owners: Vec<Value> = node.owners.iter().filter(|(o, _)| seen.insert(*o)).map(|(o, block)| json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "name": format!("n{o}"), "uid": uids[*o],
                    "blockOwnerDeletion": block})).collect();
                let finalizers = if node.held { json!(["test.dev/hold"]) } else { json!([]) };
                let map = json!({"metadata": {"name": format!("n{i}"), "ownerReferences": owners, "finalizers": finalizers}});
                let (code, made) = api.post(CONFIG_MAPS, map).await;
                assert_eq!(code, 201, "{made}");
                uids.push(made["metadata"]["uid"].as_str().unwrap().to_owned());
            }
            let mut deleted = BTreeSet::new();
            for (which, policy, restart) in &deletions {
                let i = which.index(nodes.len());
                let policy = ["Background", "Foreground", "Orphan"][usize::from(*policy)];
                let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy});
                let (code, _) = api.delete(&format!("{CONFIG_MAPS}/n{i}"), options).await;
                assert!(code == 200 || code == 404);
                deleted.insert(i);
                if *restart {
                    api = api.reopen().await;
                }
            }
            for _ in 0..400 {
                // Whoever holds objects lets go of those that are being deleted.
                let mut settled = true;
                let list = items(&api.get(CONFIG_MAPS).await.1);
                let uids: BTreeSet<&str> = list.values().map(|o| o["metadata"]["uid"].as_str().unwrap()).collect();
                for (name, object) in &list {
                    let metadata = &object["metadata"];
                    let held = metadata["finalizers"].as_array().is_some_and(|f| f.iter().any(|f| f == "test.dev/hold"));
                    if metadata["deletionTimestamp"].is_string() {
                        settled = false;
                        if held {
                            let left: Vec<&Value> = metadata["finalizers"].as_array().unwrap().iter()
                                .filter(|f| *f != "test.dev/hold").collect();
                            api.patch(&format!("{CONFIG_MAPS}/{name}"), MERGE,
                                json!({"metadata": {"finalizers": left, "resourceVersion": metadata["resourceVersion"]}})).await;
                        }
                    }
                    let owners = metadata["ownerReferences"].as_array().cloned().unwrap_or_default();
                    let lives = |owner: &Value| uids.contains(owner["uid"].as_str().unwrap());
                    settled &= owners.is_empty() || owners.iter().any(lives);
                }
                if settled {
                    // What nobody deleted, and nobody owned, is there; so is what follows from it.
                    let mut safe = BTreeSet::new();
                    for (i, node) in nodes.iter().enumerate() {
                        let owned = node.owners.is_empty() || node.owners.iter().any(|(o, _)| safe.contains(o));
                        if owned && !deleted.contains(&i) {
                            // A foreground deletion of one owner spares what another one still owns.
                            safe.insert(i);
                            assert!(list.contains_key(&format!("n{i}")), "n{i} is gone: {nodes:?} {deletions:?}");
                        }
                    }
                    for i in &deleted {
                        assert!(!list.contains_key(&format!("n{i}")), "n{i} is left");
                    }
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            panic!("no rest: {} {nodes:?} {deletions:?}", api.get(CONFIG_MAPS).await.1);
        });
    }

    /// A namespace that is deleted empties, whatever holds its objects and whenever the server restarts, and takes
    /// nothing new meanwhile.
    #[test]
    fn namespaces_empty_and_go(held in prop::collection::vec(any::<bool>(), 0..8), restarts in 0..3u8) {
        run(async {
            let mut api = Fixture::new();
            api.post("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
            let maps = "/api/v1/namespaces/n/configmaps";
            for (i, held) in held.iter().enumerate() {
                let finalizers = if *held { json!(["test.dev/hold"]) } else { json!([]) };
                let (code, _) = api.post(maps, json!({"metadata": {"name": format!("m{i}"), "finalizers": finalizers}})).await;
                assert_eq!(code, 201);
            }
            api.delete("/api/v1/namespaces/n", Value::Null).await;
            let (code, refused) = api.post(maps, json!({"metadata": {"name": "late"}})).await;
            let waits = held.iter().any(|held| *held);
            assert!(code == 403 || (!waits && code == 404), "{code} {refused}");
            for _ in 0..restarts {
                api = api.reopen().await;
            }
            for (i, held) in held.iter().enumerate() {
                if *held {
                    assert_eq!(api.get("/api/v1/namespaces/n").await.0, 200);
                    let (code, said) = api.patch(&format!("{maps}/m{i}"), MERGE, json!({"metadata": {"finalizers": null}})).await;
                    assert_eq!(code, 200, "{said}");
                }
            }
            api.until("/api/v1/namespaces/n", 404).await;
            let (_, left) = api.call(Method::GET, "/api/v1/configmaps", "", Value::Null).await;
            assert_eq!(left["items"], json!([]));
        });
    }
}
