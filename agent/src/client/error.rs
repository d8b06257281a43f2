//! What can go wrong between us and the API, with its refusals taken apart.

use std::sync::Arc;

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused. Its sentence is complete in itself.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// `NotFound`, `Conflict`, `Invalid`, …
        reason: String,
        /// The server's sentence.
        message: String,
        /// Which fields, if the server told.
        causes: Vec<Cause>,
    },
    /// No answer.
    #[error("the API does not answer")]
    Unreachable(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The request could not be made.
    #[error("making the request")]
    Request(#[source] http::Error),
    /// The answer cannot be read.
    #[error("reading the answer of the API")]
    Answer(#[source] serde_json::Error),
    /// The answer broke off.
    #[error("the answer of the API broke off")]
    Stream(#[source] std::io::Error),
    /// There is no such kind.
    #[error("{0}")]
    UnknownKind(String),
}

/// One field that the server refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Path of the field, such as `spec.containers[0].image`.
    pub field: String,
    /// Why.
    pub message: String,
}

impl Error {
    /// 404
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }

    /// Trying again without an edit will not help.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Refused { code: 400 | 405 | 413 | 415 | 422, .. } | Self::UnknownKind(_))
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let mut causes: Vec<Cause> = status
                    .details
                    .iter()
                    .flat_map(|details| &details.causes)
                    // A server's word that it looked no further, beside the faults that stopped it.
                    .filter(|cause| cause.field != "<nil>")
                    .map(|cause| Cause { field: cause.field.clone(), message: cause.message.clone() })
                    .collect();
                if causes.is_empty() {
                    causes = strict_decoding(&status.message);
                }
                Self::Refused { code: status.code, reason: status.reason, message: status.message, causes }
            }
            kube::Error::SerdeError(source) => Self::Answer(source),
            kube::Error::HttpError(source) => Self::Request(source),
            kube::Error::ReadEvents(source) => Self::Stream(source),
            kube::Error::Service(source) => Self::Unreachable(Arc::from(source)),
            other => Self::Unreachable(Arc::new(other)),
        }
    }
}

/// The fields in `strict decoding error: unknown field "spec.a", duplicate field "spec.b"`: such an answer has no
/// structured causes.
fn strict_decoding(message: &str) -> Vec<Cause> {
    let Some((_, problems)) = message.split_once("strict decoding error: ") else { return Vec::new() };
    problems
        .split(", ")
        .filter_map(|problem| {
            let (what, rest) = problem.split_once(" \"")?;
            let field = rest.split_once('"')?.0;
            Some(Cause { field: field.to_owned(), message: what.trim().to_owned() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_decoding_names_its_fields() {
        let message = "Workload in version \"v1alpha1\" cannot be handled as a Workload: strict decoding error: unknown \
                       field \"spec.containers[0].imagee\", duplicate field \"spec.x\"";
        let field = |field: &str, message: &str| Cause { field: field.to_owned(), message: message.to_owned() };
        assert_eq!(
            strict_decoding(message),
            [field("spec.containers[0].imagee", "unknown field"), field("spec.x", "duplicate field")]
        );
        assert_eq!(strict_decoding("something else"), []);
    }
}
