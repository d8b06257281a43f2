use nodelet_drivers::images::Fetch;
use serde_json::json;

use super::*;
use crate::workload::model::{ImageWish, PullRule};

fn workload(generation: i64, image: &str, annotations: serde_json::Value) -> Workload {
    let object = json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload",
        "metadata": {"name": "web", "namespace": "default", "uid": "u", "generation": generation, "annotations": annotations},
        "spec": {"containers": [{"name": "main", "image": image}]},
    });
    serde_json::from_value(object).unwrap()
}

fn revision(id: &str) -> Revision {
    Revision {
        number: 0,
        id: id.to_owned(),
        sandbox: SandboxId::new(format!("web-{id}")).unwrap(),
        generation: 1,
        spec: workload(1, id, json!({})).spec,
        restarted_at: None,
        config_maps: BTreeMap::new(),
        secrets: BTreeMap::new(),
        followed: Default::default(),
        digests: BTreeMap::new(),
        at: Timestamp::UNIX_EPOCH,
    }
}

fn numbers(history: &History) -> Vec<(u32, &str)> {
    history.revisions.iter().map(|revision| (revision.number, revision.id.as_str())).collect()
}

#[test]
fn revisions_are_counted_and_limited() {
    let mut history = History::default();
    assert!(history.record(revision("a"), None));
    assert!(!history.record(revision("a"), None), "the same again");
    assert!(history.record(revision("b"), None));
    assert!(history.record(revision("c"), None));
    assert_eq!(numbers(&history), [(1, "a"), (2, "b"), (3, "c")]);
    // What comes back is the youngest, under a new number.
    assert!(history.record(revision("a"), Some(1)));
    assert_eq!(numbers(&history), [(3, "c"), (4, "a")]);
    assert!(history.record(revision("d"), Some(0)));
    assert_eq!(numbers(&history), [(5, "d")]);
}

#[test]
fn a_failed_revision_is_held_back_until_something_else_is_declared() {
    let mut history = History::default();
    history.record(revision("a"), None);
    assert_eq!(history.target("a"), None);
    let to = history.target("b").unwrap().number;
    history.failed = Some(Failed { id: "b".into(), generation: 2, to, message: "it crashed".into() });
    let object = workload(2, "b", json!({}));
    let hold = history.hold(&object, "b").unwrap();
    assert_eq!((hold.revision.id.as_str(), hold.message.contains("it crashed")), ("a", true));
    assert_eq!(history.hold(&object, "c"), None, "another configuration is tried");
    history.record(revision("c"), None);
    assert_eq!(history.failed, None);
}

#[test]
fn a_wish_to_go_back_holds_for_one_generation() {
    let mut history = History::default();
    history.record(revision("a"), None);
    history.record(revision("b"), None);
    let asked = |generation, value: &str| workload(generation, "b", json!({labels::ROLLBACK_TO: value}));
    assert_eq!(history.hold(&asked(7, "1/7"), "b").unwrap().revision.id, "a");
    assert_eq!(history.hold(&asked(8, "1/7"), "b"), None);
    assert_eq!(history.hold(&asked(7, "2/7"), "b"), None, "it is that one already");
    for nonsense in ["9/7", "x", "1", "/", "1/", "-1/7"] {
        assert_eq!(history.hold(&asked(7, nonsense), "b"), None, "{nonsense}");
    }
}

#[test]
fn a_revision_restores_the_spec_but_not_whether_it_is_stopped() {
    let mut object = workload(3, "new", json!({labels::RESTARTED_AT: "later", "mine": "stays"}));
    object.spec.stopped = true;
    let effective = revision("old").object(&object);
    assert_eq!(effective.spec.containers[0].image, "old");
    assert!(effective.spec.stopped);
    assert_eq!(effective.annotations().keys().collect::<Vec<_>>(), ["mine"]);
}

#[tokio::test]
async fn histories_are_kept_privately_and_survive_damage() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let mut history = History::default();
    history.record(revision("a"), None);
    Histories::new(directory.path()).put("u", history.clone()).await.unwrap();
    let again = Histories::new(directory.path());
    assert_eq!(*again.get("u").await, history);
    let file = directory.path().join("revisions/u.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::write(&file, "{").unwrap();
    assert_eq!(*Histories::new(directory.path()).get("u").await, History::default());
    again.remove("u").await.unwrap();
    again.remove("u").await.unwrap();
    assert!(!file.exists());
}

#[test]
fn errors_count_in_a_row_and_health_without_a_break() {
    let directory = tempfile::tempdir().unwrap();
    let histories = Histories::new(directory.path());
    assert_eq!(histories.observe("u", "a", false).1, None);
    assert!(histories.observe("u", "a", true).1.is_some());
    assert_eq!(histories.observe("u", "a", false).1, None);
    for _ in 0..2 {
        histories.outcome("u", "a", Some("no".into()));
    }
    histories.outcome("u", "other", Some("no".into()));
    assert_eq!(histories.observe("u", "a", false).0.errors, 2);
    histories.outcome("u", "a", None);
    assert_eq!(histories.observe("u", "a", false).0.errors, 0);
    histories.outcome("u", "a", Some("no".into()));
    assert_eq!(histories.observe("u", "b", false).0.errors, 0, "another revision begins anew");
}

#[test]
fn the_images_of_containers_and_volumes_are_pinned_together() {
    let wish = |reference: &str| ImageWish { fetch: Fetch::new(reference), policy: PullRule::Always, digest: None };
    let mut desired = crate::workload::plan::tests::desired();
    desired.sandbox.volumes.insert("tools".into(), VolumeWish::Image(wish("tools:1")));
    desired.sandbox.volumes.insert("new".into(), VolumeWish::Image(wish("new:1")));
    let digests = [("main", "sha256:1"), ("volume tools", "sha256:2")];
    let digests = digests.map(|(part, digest)| (part.to_owned(), digest.to_owned())).into();
    Revision { digests, ..revision("a") }.pin(&mut desired);
    assert_eq!(desired.containers[0].image.digest.as_deref(), Some("sha256:1"));
    let of_volume = |name: &str| match &desired.sandbox.volumes[name] {
        VolumeWish::Image(image) => image.digest.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!([of_volume("tools"), of_volume("new")], [Some("sha256:2".to_owned()), None]);
}
