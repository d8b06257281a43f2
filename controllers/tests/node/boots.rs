//! What survives an agent, and what a boot begins anew.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_and_last_states_survive_the_agent() {
    let node = TestNode::start().await;
    node.apply(web(serde_json::json!({}))).await;
    node.runtime.crash(&container_id(&node.ready("web").await), 7);
    let restarted = |w: Option<&Workload>| {
        w.is_some_and(|w| is_ready(w) && w.status.as_ref().unwrap().container_statuses[0].restart_count == 1)
    };
    let before = node.until("web", "restarted", restarted).await.unwrap().status.unwrap();
    node.stop_agent().await;
    node.start_agent();
    node.apply(web(serde_json::json!({"terminationGracePeriodSeconds": 3}))).await;
    let after = node.ready("web").await.status.unwrap();
    let told = |status: &nodelet_crds::workload::WorkloadStatus| {
        let container = status.container_statuses[0].clone();
        (container.restart_count, container.last_state, container.container_id, status.restarts)
    };
    assert_eq!(told(&after), told(&before));
    assert_eq!(told(&after).1.terminated.unwrap().exit_code, 7);
    node.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_boot_begins_with_what_others_depend_on() {
    let node = TestNode::start().await;
    let serves = serde_json::json!({"exec": {"command": ["serves"]}, "periodSeconds": 1});
    let db = serde_json::json!({"name": "main", "image": "db:1", "readinessProbe": serves});
    node.apply(workload("db", serde_json::json!({"containers": [db]}))).await;
    node.apply(web(serde_json::json!({"dependsOn": [{"name": "db"}]}))).await;
    let before = node.ready("web").await;
    node.stop_agent().await;
    let calls = node.runtime.calls().len();
    node.runtime.reboot();
    node.sandboxes.reboot();
    node.start_agent();
    let again = |w: Option<&Workload>| w.is_some_and(|w| is_ready(w) && container_id(w) != container_id(&before));
    node.until("web", "up again", again).await;
    let calls = node.runtime.calls().split_off(calls);
    let place = |verb: &str| calls.iter().position(|call| call.starts_with(verb));
    assert!(place("start db-") < place("create web-") && place("start db-").is_some(), "{calls:#?}");
    node.stop_agent().await;
}
