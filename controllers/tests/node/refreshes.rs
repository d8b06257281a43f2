//! Tags that are pushed again, and the Workloads that follow them.

use super::*;

/// Which image the workload's container runs, as its status says.
fn image_id(workload: &Workload) -> String {
    workload.status.as_ref().unwrap().container_statuses[0].image_id.clone()
}

/// A node with an Image whose tag is looked up every second.
async fn node_with_image() -> Arc<TestNode> {
    let node = TestNode::start().await;
    let spec = serde_json::json!({"reference": "registry.test/app:1", "refreshSeconds": 1});
    node.apply(serde_json::json!({
        "apiVersion": "nodelet.dev/v1alpha1", "kind": "Image", "metadata": {"name": "app"}, "spec": spec,
    }))
    .await;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refreshed_tag_moves_the_workloads_that_ask_for_it() {
    let node = node_with_image().await;
    for (name, policy) in [("always", "Always"), ("newer", "Newer"), ("keeps", "IfNotPresent")] {
        let container = serde_json::json!({"name": "c", "image": "registry.test/app:1", "imagePullPolicy": policy});
        node.apply(workload(name, serde_json::json!({"containers": [container]}))).await;
        node.ready(name).await;
    }
    let old = node.images.image("registry.test/app:1".to_owned()).digest;
    let kept = container_id(&node.ready("keeps").await);
    node.images.push("registry.test/app:1");
    let new = node.images.image("registry.test/app:1".to_owned()).digest;
    for name in ["always", "newer"] {
        let moved = new.clone();
        let runs = move |w: Option<&Workload>| w.is_some_and(|w| is_ready(w) && image_id(w).contains(&moved));
        node.until(name, "to run what was pushed", runs).await;
    }
    let keeps = node.ready("keeps").await;
    assert_eq!(container_id(&keeps), kept, "nobody asked for that");
    assert!(image_id(&keeps).contains(&old));
    let moved = new.clone();
    let says = move |image: Option<&ImageObject>| {
        image.is_some_and(|i| i.status.as_ref().and_then(|s| s.digest.clone()).as_deref() == Some(&moved))
    };
    node.until("app", "to say the new digest", says).await;
    // Nothing is fetched while nothing moves, however often the tag is looked up.
    let fetches = node.images.fetches.lock().unwrap().len();
    let mut resolved = node.images.resolved.subscribe();
    let before = *resolved.borrow();
    let twice = resolved.wait_for(|times| *times >= before + 2);
    tokio::time::timeout(Duration::from_secs(30), twice).await.expect("it is looked up every second").unwrap();
    assert_eq!(node.images.fetches.lock().unwrap().len(), fetches);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refreshed_tag_rolls_when_the_update_strategy_says_so() {
    let node = node_with_image().await;
    let container = serde_json::json!({"name": "c", "image": "registry.test/app:1", "imagePullPolicy": "Always"});
    let update = serde_json::json!({"strategy": "StartFirst", "healthySeconds": 0});
    let spec = serde_json::json!({"containers": [container], "update": update});
    node.apply(workload("rolls", spec)).await;
    let old = container_id(&node.ready("rolls").await);
    for _ in 0..2 {
        node.images.push("registry.test/app:1");
        let new = node.images.image("registry.test/app:1".to_owned()).digest;
        let alone = move |w: Option<&Workload>| w.is_some_and(|w| is_ready(w) && image_id(w).contains(&new));
        node.until("rolls", "to run what was pushed", alone).await;
    }
    let youngest = container_id(&node.ready("rolls").await);
    assert_ne!(youngest, old);
    let gone = |calls: &[String]| calls.iter().position(|call| *call == format!("remove {old}"));
    eventually("the old container to be removed", async || gone(&node.runtime.calls()).is_some()).await;
    let calls = node.runtime.calls();
    let made: Vec<usize> = (0..calls.len()).filter(|n| calls[*n].starts_with("create ")).collect();
    assert!(gone(&calls).is_some_and(|removed| made[1] < removed), "{calls:#?}");
    assert_eq!(made.len(), 3, "one for each image: {calls:#?}");
    // An agent that knows no Image yet moves nothing.
    node.stop_agent().await;
    node.start_agent();
    // A change that needs no new container proves that the new agent has taken over.
    let changed = serde_json::json!({"containers": [container], "update": update, "terminationGracePeriodSeconds": 3});
    node.apply(workload("rolls", changed)).await;
    assert_eq!(container_id(&node.ready("rolls").await), youngest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refreshed_tag_that_does_not_work_gives_way_to_what_did() {
    let node = node_with_image().await;
    let container = serde_json::json!({"name": "c", "image": "registry.test/app:1", "imagePullPolicy": "Always"});
    let update = serde_json::json!({"strategy": "StartFirst", "healthySeconds": 1, "progressDeadlineSeconds": 3});
    node.apply(workload("rolls", serde_json::json!({"containers": [container], "update": update}))).await;
    // Good for long enough to be gone back to.
    let good = node.until("rolls", "to be a revision", |w: Option<&Workload>| {
        w.is_some_and(|w| is_ready(w) && w.status.as_ref().is_some_and(|s| s.revision == Some(1)))
    });
    let old = container_id(&good.await.unwrap());
    let digest = node.images.image("registry.test/app:1".to_owned()).digest;
    node.images.push("registry.test/app:1");
    // Whatever is started from what was pushed ends at once.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let back = loop {
        if tokio::time::Instant::now() > deadline {
            let rolls = Api::<Workload>::namespaced(node.client.clone(), "default").get("rolls").await.unwrap();
            panic!("{:#?}\n{:#?}", node.runtime.calls(), rolls.status);
        }
        let starts = node.runtime.calls().into_iter().filter_map(|call| Some(call.strip_prefix("start ")?.to_owned()));
        for id in starts.filter(|id| *id != old.as_str()) {
            node.runtime.crash(&ContainerId::new(id).unwrap(), 1);
        }
        let rolls = Api::<Workload>::namespaced(node.client.clone(), "default").get("rolls").await.unwrap();
        let status = rolls.status.as_ref().unwrap();
        if find_condition(&status.conditions, "Progressing").is_some_and(|c| c.reason == "RolledBack") {
            break rolls;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(image_id(&back).contains(&digest), "{back:#?}");
    assert_eq!(container_id(&back), old, "what worked went on all the time");
    node.stop_agent().await;
}
