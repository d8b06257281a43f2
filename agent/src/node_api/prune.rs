//! `POST …/nodestates/NAME/prune`: removes the images of this node that nobody needs. `dryRun=All` only says which.

use axum::body::Body;
use http::Response;
use nodelet_apiserver::SubresourceRequest;
use nodelet_controllers::image_collector::{Collector, Error};

use super::{answer, status};

/// The answer, once it is done.
pub(super) async fn prune(collector: &Collector, request: &SubresourceRequest) -> Response<Body> {
    let mut dry_run = false;
    for (name, value) in &request.query {
        match (name.as_str(), value.as_str()) {
            ("dryRun", "All") => dry_run = true,
            ("dryRun", other) => return status(400, "BadRequest", &format!("dryRun: {other:?}; expected \"All\"")),
            _ => {}
        }
    }
    match collector.prune(dry_run).await {
        Ok(collection) => answer(&collection),
        Err(error) => {
            let message = crate::manifest::chain(&error);
            match error {
                Error::NotRead | Error::Stopping => status(503, "ServiceUnavailable", &message),
                Error::Images(_) => status(500, "InternalError", &message),
            }
        }
    }
}
