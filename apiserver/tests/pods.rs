//! Workloads as Pods, and the parts of objects that somebody else serves.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use axum::body::Body;
use common::{Fixture, MERGE};
use http::Response;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use nodelet_apiserver::{Options, Server, SubresourceRequest, Subresources};
use serde_json::{Value, json};

const WORKLOADS: &str = "/apis/nodelet.dev/v1alpha1/namespaces/default/workloads";
const PODS: &str = "/api/v1/namespaces/default/pods";

struct Echo;

#[async_trait::async_trait]
impl Subresources for Echo {
    fn served(&self) -> Vec<(&'static str, &'static str, &'static str, &'static [&'static str])> {
        vec![("nodelet.dev", "workloads", "log", &["get"])]
    }

    async fn handle(&self, request: SubresourceRequest) -> Response<Body> {
        let SubresourceRequest { resource, namespace, name, subresource, query, object, .. } = request;
        let lines = [format!("{resource} {namespace}/{name} {subresource} {query:?}\n"), object["kind"].to_string()];
        Response::new(Body::from_stream(futures::stream::iter(lines.map(Ok::<_, std::io::Error>))))
    }
}

async fn fixture() -> Fixture {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let options = Options { store: dir.path().join("store.db"), ..Options::default() };
    let server = Server::open(options, nodelet_crds::crds()).unwrap().with_subresources(Arc::new(Echo));
    let api = Fixture { server, dir };
    let workload = json!({"apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload", "metadata": {"name": "web"}, "spec": {
        "containers": [{"name": "web", "image": "registry.example/web:1", "resources": {"limits": {"memory": "64Mi"}, "pids": 5}}],
        "volumes": [{"name": "data", "volume": {"name": "pgdata"}}], "restartPolicy": "UnlessStopped"}});
    let (code, body) = api.post(WORKLOADS, workload).await;
    assert_eq!(code, 201, "{body}");
    let status = json!({"status": {"phase": "Running", "nodeName": "edge", "readyContainers": "1/1", "restarts": 2,
        "addresses": [{"network": "default", "ip": "10.0.0.7"}],
        "conditions": [{"type": "Ready", "status": "True", "reason": "Up", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "containerStatuses": [{"name": "web", "ready": true, "restartCount": 2,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}});
    let (code, body) = api.patch(&format!("{WORKLOADS}/web/status"), MERGE, status).await;
    assert_eq!(code, 200, "{body}");
    api
}

#[tokio::test]
async fn a_workload_is_a_pod_that_nobody_can_write() {
    let api = fixture().await;
    let pods: Api<Pod> = Api::default_namespaced(api.client());
    let pod = pods.get("web").await.unwrap();
    let (spec, status) = (pod.spec.unwrap(), pod.status.unwrap());
    assert_eq!(spec.containers[0].image.as_deref(), Some("registry.example/web:1"));
    assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
    assert_eq!(spec.volumes.unwrap()[0].persistent_volume_claim.as_ref().unwrap().claim_name, "pgdata");
    assert_eq!((status.phase.as_deref(), status.pod_ip.as_deref()), (Some("Running"), Some("10.0.0.7")));
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 2);
    assert_eq!(status.qos_class.as_deref(), Some("Burstable"));
    assert_eq!(pods.list(&Default::default()).await.unwrap().items.len(), 1);
    assert!(pods.delete("web", &Default::default()).await.is_err());
    assert_eq!(api.delete(&format!("{PODS}/web"), Value::Null).await.0, 405);
    assert_eq!(api.post(PODS, json!({"metadata": {"name": "x"}})).await.0, 405);
    assert_eq!(api.get(&format!("{PODS}/none")).await.0, 404);
    let (_, event) = api.get(&format!("{PODS}?watch=true&timeoutSeconds=0")).await;
    assert_eq!((&event["object"]["kind"], &event["object"]["metadata"]["name"]), (&json!("Pod"), &json!("web")));
}

#[tokio::test]
async fn logs_of_pods_are_those_of_their_workloads() {
    let api = fixture().await;
    let pods: Api<Pod> = Api::default_namespaced(api.client());
    let text = pods.logs("web", &LogParams { tail_lines: Some(5), ..Default::default() }).await.unwrap();
    assert_eq!(text, "workloads default/web log [(\"tailLines\", \"5\")]\n\"Workload\"");
    assert_eq!(api.get(&format!("{WORKLOADS}/none/log")).await.0, 404);
    assert_eq!(api.get(&format!("{WORKLOADS}/web/nonsense")).await.0, 404);
    assert_eq!(api.get(&format!("{PODS}/web/nonsense")).await.0, 404);
    let (_, core) = api.get("/api/v1").await;
    let names: Vec<&str> = core["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"pods") && names.contains(&"pods/log"), "{names:?}");
}
