//! Images: who fetches them, what is signed, what is collected, and what comes from a directory.

use nodelet_controllers::image_collector::Collection;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_fetched_once_and_failures_are_told() {
    let node = TestNode::start().await;
    node.apply(serde_json::json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "Image", "metadata": {"name": "web"},
        "spec": {"reference": "web:1", "archive": {"path": "/srv/web.tar"}}
    }))
    .await;
    node.until("web", "ready", |i: Option<&ImageObject>| {
        i.and_then(|i| i.status.as_ref()).is_some_and(|s| is_true(&s.conditions, "Ready") && s.ready_nodes == 1)
    })
    .await;
    node.apply(web(serde_json::json!({}))).await;
    node.ready("web").await;
    let fetches = node.images.fetches.lock().unwrap().clone();
    assert_eq!(fetches.len(), 1, "{fetches:?}");
    assert_eq!(fetches[0].source, Source::Archive("/srv/web.tar".into()));

    let broken = serde_json::json!({"containers": [{"name": "main", "image": "missing:1"}]});
    node.apply(workload("broken", broken)).await;
    let failed = node
        .until("broken", "failed to pull", |w: Option<&Workload>| {
            w.and_then(|w| w.status.as_ref())
                .is_some_and(|s| find_condition(&s.conditions, "Ready").is_some_and(|c| c.reason == "PullFailed"))
        })
        .await
        .unwrap();
    let waiting = failed.status.unwrap().container_statuses[0].state.waiting.clone().unwrap();
    assert!(waiting.message.contains("missing:1 is not in the registry; try 2 in"), "{}", waiting.message);
    // The event says so too.
    let events: Api<Event> = node.api();
    eventually("an Event about the pull", async || {
        let all = events.list(&ListParams::default()).await.unwrap();
        all.iter().any(|e| e.reason.as_deref() == Some("PullFailed"))
    })
    .await;
    node.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_images_that_nobody_needs_are_collected() {
    let node = TestNode::start().await;
    node.apply(web(serde_json::json!({}))).await;
    let old = serde_json::json!({"containers": [{"name": "main", "image": "old:1"}]});
    node.apply(workload("old", old)).await;
    node.apply(serde_json::json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "Image", "metadata": {"name": "wished"},
        "spec": {"reference": "wished:1"}
    }))
    .await;
    node.ready("web").await;
    node.ready("old").await;
    node.until("wished", "ready", |i: Option<&ImageObject>| {
        i.and_then(|i| i.status.as_ref()).is_some_and(|s| is_true(&s.conditions, "Ready"))
    })
    .await;
    let nothing = node.collector.prune(false).await.unwrap();
    assert_eq!((nothing.removed.len(), nothing.kept.len()), (0, 3), "{nothing:?}");

    node.api::<Workload>().delete("old", &DeleteParams::default()).await.unwrap();
    node.until("old", "gone", |w: Option<&Workload>| w.is_none()).await;
    let names = |collection: &Collection| collection.removed.iter().map(|c| c.reference.clone()).collect::<Vec<_>>();
    let would = node.collector.prune(true).await.unwrap();
    assert_eq!(names(&would), ["docker.io/library/old:1"]);
    assert!(node.images.get("old:1").await.unwrap().is_some(), "a dry run removes nothing");
    // There is room already.
    assert_eq!(names(&node.collector.make_room(0).await.unwrap()), Vec::<String>::new());
    assert_eq!(names(&node.collector.make_room(1).await.unwrap()), ["docker.io/library/old:1"]);
    assert!(node.images.get("old:1").await.unwrap().is_none());
    assert_eq!(node.images.list().await.unwrap().len(), 2, "what is needed stays, however little room there is");

    // What was collected is fetched again when somebody wants it.
    let old = serde_json::json!({"containers": [{"name": "main", "image": "old:1"}]});
    node.apply(workload("old", old)).await;
    node.ready("old").await;
    node.stop_agent().await;
    assert!(node.collector.prune(true).await.is_err(), "nobody collects any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_be_signed_gets_in_by_no_other_door() {
    const KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
        MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEAh8Gxe6p9gOFpw91R202iOAV0ZoD\n\
        yrR0G0pUZVgm8d8VRK4C4FKzmdQlaLojPd2mGkmbOBE1ZRzqzbPSC0cQMg==\n\
        -----END PUBLIC KEY-----\n";
    let node = TestNode::start().await;
    let image = |name: &str, reference: &str| {
        let verify = serde_json::json!({"publicKey": {"secretName": "signer"}});
        serde_json::json!({
            "apiVersion": "nodelet.dev/v1alpha1", "kind": "Image", "metadata": {"name": name},
            "spec": {"reference": reference, "verify": verify},
        })
    };
    // The image is there already, unchecked, before anybody asks for a signature.
    node.images.fetch(&Fetch::new("registry.test/unsigned:1"), Arc::new(|_| {})).await.unwrap();
    node.apply(image("unsigned", "registry.test/unsigned:1")).await;
    let reason = |reason: &'static str| {
        move |image: Option<&ImageObject>| {
            let ready = image.and_then(|i| find_condition(&i.status.as_ref()?.conditions, "Ready"));
            ready.is_some_and(|c| c.reason == reason && c.status == "False")
        }
    };
    node.until("unsigned", "to miss its key", reason("ConfigMissing")).await;
    let name = "registry.test/unsigned:1";
    let digest = format!("registry.test/unsigned@sha256:{}", "0".repeat(64));
    for (workload_name, reference, policy) in [
        ("present", name, "IfNotPresent"),
        ("never", name, "Never"),
        ("newer", name, "Newer"),
        ("digest", &digest, "Always"),
    ] {
        let container = serde_json::json!({"name": "c", "image": reference, "imagePullPolicy": policy});
        node.apply(workload(workload_name, serde_json::json!({"containers": [container]}))).await;
    }
    node.apply(serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "signer"}, "stringData": {"cosign.pub": KEY},
    }))
    .await;
    let refused = node.until("unsigned", "to be refused", reason("VerificationFailed")).await.unwrap();
    let message = &find_condition(&refused.status.as_ref().unwrap().conditions, "Ready").unwrap().message;
    assert!(message.contains("sha256:1b41ba856fc07abd") && message.contains("Secret default/signer"), "{message}");
    for name in ["present", "never", "newer", "digest"] {
        let held = |w: Option<&Workload>| {
            let images = w.and_then(|w| find_condition(&w.status.as_ref()?.conditions, "ImagesReady"));
            images.is_some_and(|c| c.reason == "VerificationFailed" && c.status == "False")
        };
        let workload = node.until(name, "to be held", held).await.unwrap();
        assert!(workload.status.unwrap().container_statuses.iter().all(|c| c.container_id.is_empty()), "{name} runs");
    }
    // What is signed comes in.
    node.apply(image("signed", "registry.test/signed:1")).await;
    let container = serde_json::json!({"name": "c", "image": "registry.test/signed:1"});
    node.apply(workload("signed", serde_json::json!({"containers": [container]}))).await;
    node.ready("signed").await;
    assert!(node.images.get("registry.test/signed:1").await.unwrap().unwrap().signed_by.len() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_are_dropped_in_are_imported_and_kept() {
    let node = TestNode::start().await;
    let directory = node.directory.path().join("data/images");
    eventually("the drop-in directory", async || directory.exists()).await;
    let imported = |wanted: &'static str| {
        move |state: Option<&NodeState>| {
            let condition = state.and_then(|s| find_condition(&s.status.as_ref()?.conditions, "ArchivesImported"));
            condition.is_some_and(|c| c.status == wanted)
        }
    };
    std::fs::write(directory.join("app.tar"), "archive of x.test/dropped:1").unwrap();
    node.until_node(imported("True")).await;
    let name = "x.test/dropped:1";
    assert!(node.images.get(name).await.unwrap().is_some());
    // Used without a registry.
    let container = serde_json::json!({"name": "c", "image": name, "imagePullPolicy": "Never"});
    node.apply(workload("dropped", serde_json::json!({"containers": [container]}))).await;
    node.ready("dropped").await;
    // A broken one is named and changes nothing; mended, it is imported.
    std::fs::write(directory.join("broken.tar"), "nonsense").unwrap();
    let state = node.until_node(imported("False")).await;
    let message = &find_condition(&state.status.as_ref().unwrap().conditions, "ArchivesImported").unwrap().message;
    assert!(message.contains("broken.tar") && message.contains("it is no archive"), "{message}");
    std::fs::write(directory.join("broken.tar"), "archive of x.test/mended:1").unwrap();
    node.until_node(imported("True")).await;
    assert!(node.images.get("x.test/mended:1").await.unwrap().is_some());
    // A restart reads nothing again.
    let fetches = node.images.fetches.lock().unwrap().len();
    node.stop_agent().await;
    node.start_agent();
    node.ready("dropped").await;
    assert_eq!(node.images.fetches.lock().unwrap().len(), fetches);
    // What was imported stays when its file goes. A later change that is seen proves that this one was.
    std::fs::remove_file(directory.join("app.tar")).unwrap();
    std::fs::write(directory.join("late.tar"), "nonsense").unwrap();
    node.until_node(imported("False")).await;
    assert!(node.images.get(name).await.unwrap().is_some(), "removing the file removes no image");
}
