//! Parts of objects that the API server does not serve itself: the logs of workloads, the removal of images.
//!
//! `POST …/nodestates/NAME/prune` removes images that nobody needs.
//! `GET …/workloads/NAME/log` takes the parameters of a Pod's log: `container`, `follow`, `previous`, `tailLines`,
//! `sinceSeconds`, `sinceTime`, `timestamps`. Following goes on over restarts of the container and ends when the
//! workload has ended, was stopped or is gone.

mod log;
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
use serde_json::{Value, json};

use log::{LogOptions, Refused};
pub use streams::NodeStreams;

/// Answers what concerns running workloads.
pub struct NodeApi {
    logs: PathBuf,
    client: OnceLock<kube::Client>,
    node: String,
    collector: Collector,
}

impl NodeApi {
    /// For this node, with the log files below `data_dir` and the images that `collector` removes.
    pub fn new(node: String, data_dir: &Path, collector: Collector) -> Arc<Self> {
        Arc::new(Self { logs: data_dir.join("logs"), client: OnceLock::new(), node, collector })
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
        vec![("nodelet.dev", "workloads", "log", &["get"]), ("nodelet.dev", "nodestates", "prune", &["create"])]
    }

    async fn handle(&self, request: SubresourceRequest) -> Response<Body> {
        let prune = request.subresource == "prune";
        if request.parts.method != (if prune { http::Method::POST } else { http::Method::GET }) {
            return status(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
        }
        if prune {
            return prune::prune(&self.collector, &self.node, &request).await;
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
