//! Parts of objects that the API server does not serve itself: the logs of workloads, the removal of images.
//!
//! `POST …/nodestates/NAME/prune` removes images that nobody needs.
//! `POST …/nodestates/NAME/plan` tells what would be done for the Workloads in its body.
//! `GET …/workloads/NAME/log` takes the parameters of a Pod's log: `container`, `follow`, `previous`, `tailLines`,
//! `sinceSeconds`, `sinceTime`, `timestamps`. Following goes on over restarts of the container and ends when the
//! workload has ended, was stopped or is gone.

mod log;
mod plan;
mod prune;
mod streams;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use axum::body::Body;
use futures::StreamExt;
use http::{Response, StatusCode, header};
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::watcher;
use nodelet_apiserver::{SubresourceRequest, Subresources};
use nodelet_controllers::image_collector::Collector;
use nodelet_controllers::workload::preview::Previews;
use serde_json::{Value, json};

use log::{LogOptions, Refused};
pub use streams::NodeStreams;

/// Answers what concerns running workloads.
pub struct NodeApi {
    logs: PathBuf,
    client: OnceLock<kube::Client>,
    node: String,
    collector: Collector,
    previews: Previews,
}

impl NodeApi {
    /// For this node, with the log files below `data_dir`, the images that `collector` removes, and plans.
    pub fn new(node: String, data_dir: &Path, collector: Collector, previews: Previews) -> Arc<Self> {
        Arc::new(Self { logs: data_dir.join("logs"), client: OnceLock::new(), node, collector, previews })
    }

    /// Lets followers see by `client` when a workload ends. The client of the server that this is part of, so it
    /// can only be given later.
    pub fn follow_with(&self, client: kube::Client) {
        let _ = self.client.set(client);
    }

    fn log(&self, request: &SubresourceRequest) -> Result<Body, Refused> {
        let options = LogOptions::parse(&request.query)?;
        let container = log::container(&request.object, options.container.as_deref())?;
        let uid = request.object["metadata"]["uid"].as_str().unwrap_or_default();
        let directory = self.logs.join(format!("{}_{}_{uid}", request.namespace, request.name)).join(&container);
        log::open(directory, &container, &request.object, options, self.ended(request))
    }

    /// Resolves when the workload writes no more.
    fn ended(&self, request: &SubresourceRequest) -> impl Future<Output = ()> + Send + use<> {
        let kind = GroupVersionKind::gvk("nodelet.dev", "v1alpha1", "Workload");
        let resource = ApiResource::from_gvk_with_plural(&kind, "workloads");
        let client = self.client.get().cloned();
        let (namespace, name) = (request.namespace.clone(), request.name.clone());
        async move {
            let Some(client) = client else { return std::future::pending().await };
            let api: Api<DynamicObject> = Api::namespaced_with(client, &namespace, &resource);
            let mut states = std::pin::pin!(watcher::watch_object(api, &name).filter_map(async |state| state.ok()));
            while let Some(state) = states.next().await {
                match state {
                    Some(object) if !log::is_over(&object.data) => {}
                    _ => return,
                }
            }
        }
    }
}

#[async_trait]
impl Subresources for NodeApi {
    fn served(&self) -> Vec<(&'static str, &'static str, &'static str, &'static [&'static str])> {
        vec![
            ("nodelet.dev", "workloads", "log", &["get"]),
            ("nodelet.dev", "nodestates", "prune", &["create"]),
            ("nodelet.dev", "nodestates", "plan", &["create"]),
        ]
    }

    async fn handle(&self, request: SubresourceRequest) -> Response<Body> {
        let reads = request.subresource == "log";
        if request.parts.method != (if reads { http::Method::GET } else { http::Method::POST }) {
            return status(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
        }
        if !reads && request.name != self.node {
            let message = format!("{:?} is another node; this one is {:?}", request.name, self.node);
            return status(400, "BadRequest", &message);
        }
        match request.subresource.as_str() {
            "prune" => return prune::prune(&self.collector, &request).await,
            "plan" => return plan::plan(&self.previews, &request).await,
            _ => {}
        }
        match self.log(&request) {
            Ok(body) => {
                let mut response = Response::new(body);
                response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
                response
            }
            Err(Refused(message)) => status(400, "BadRequest", &message),
        }
    }
}

/// A body of what `lines` yields.
fn body(lines: tokio::sync::mpsc::Receiver<std::io::Result<axum::body::Bytes>>) -> Body {
    Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(lines))
}

/// An answer that is an object of ours.
fn answer(value: &impl serde::Serialize) -> Response<Body> {
    let mut response = Response::new(Body::from(serde_json::to_string(value).unwrap_or_default()));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn status(code: u16, reason: &str, message: &str) -> Response<Body> {
    let status: Value = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    let mut response = Response::new(Body::from(status.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
