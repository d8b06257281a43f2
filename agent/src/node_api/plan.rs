//! `POST …/nodestates/NAME/plan`: what would be done for Workloads as the body has them. Nothing is done.

use axum::body::Body;
use http::Response;
use nodelet_apiserver::SubresourceRequest;
use nodelet_controllers::workload::preview::{Error, Previews, Question};
use serde_json::json;

use super::{answer, status};

/// The answer: a list of previews in the order of the question.
pub(super) async fn plan(previews: &Previews, request: &SubresourceRequest) -> Response<Body> {
    let question: Question = match serde_json::from_slice(&request.body) {
        Ok(question) => question,
        Err(error) => return status(400, "BadRequest", &format!("the body is no question for a plan: {error}")),
    };
    match previews.plan(question).await {
        Ok(items) => answer(&json!({"items": items})),
        Err(error) => {
            let message = crate::manifest::chain(&error);
            match error {
                Error::NotRead => status(503, "ServiceUnavailable", &message),
                Error::Object { .. } => status(400, "BadRequest", &message),
                Error::Api(_) | Error::Observe(_) | Error::Name(_) => status(500, "InternalError", &message),
            }
        }
    }
}
