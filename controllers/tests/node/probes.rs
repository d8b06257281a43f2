//! Probes, as a user would see them.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_go_on_where_the_agent_left_them() {
    let node = TestNode::start().await;
    let probe = |command: &str| serde_json::json!({"exec": {"command": [command]}, "periodSeconds": 1});
    let container = serde_json::json!({
        "name": "main", "image": "web:1", "startupProbe": probe("started"), "readinessProbe": probe("serves"),
    });
    let spec = |grace: u32| serde_json::json!({"containers": [container], "terminationGracePeriodSeconds": grace});
    node.apply(web(spec(1))).await;
    let since = |w: &Workload| find_condition(&w.status.as_ref().unwrap().conditions, "Ready").unwrap().clone();
    let before = since(&node.ready("web").await);
    let run = |command: &str| node.runtime.execs().iter().filter(|run| run.ends_with(command)).count();
    let started = run(" started");
    node.stop_agent().await;
    let served = run(" serves");
    node.start_agent();
    node.apply(web(spec(2))).await;
    eventually("readiness to be asked again", async || run(" serves") >= served + 2).await;
    let after = since(&node.ready("web").await);
    assert_eq!(after.last_transition_time, before.last_transition_time, "ready all the time");
    assert_eq!(run(" started"), started, "it has started once and for all");
    node.stop_agent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_wait_for_a_runtime_that_cannot_keep_up() {
    let node = TestNode::start().await;
    let probe = serde_json::json!({"exec": {"command": ["stuck"]}, "periodSeconds": 1, "timeoutSeconds": 1});
    let container = serde_json::json!({"name": "main", "image": "web:1", "readinessProbe": probe});
    node.apply(web(serde_json::json!({"containers": [container]}))).await;
    eventually("three probes", async || node.runtime.execs().len() >= 3).await;
    assert_eq!(node.runtime.most_stuck(), 1, "probes pile up");
    node.stop_agent().await;
}
