//! How the end of a program is told on the error channel: with the `Status` that a kubelet makes.

use std::error::Error;
use std::fmt::Write;

use serde_json::{Value, json};

use super::StreamError;
use crate::status::ApiError;

/// The `Status` of a program that ended.
pub(super) fn of_exit(code: u32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

/// The `Status` of one that could not be started or followed.
pub(super) fn of_failure(doing: &str, error: &StreamError) -> Value {
    ApiError::internal(format!("{doing}: {}", chain(error))).to_status()
}

/// Why a client is refused before anything is upgraded.
pub(super) fn refusal(error: &StreamError) -> ApiError {
    match error {
        StreamError::Invalid(_) | StreamError::NotRunning(_) => ApiError::bad_request(chain(error)),
        StreamError::Start(_) | StreamError::Connect(_) | StreamError::Failed { .. } => {
            ApiError::internal(chain(error))
        }
    }
}

/// The message and those of its sources.
pub(super) fn chain(error: &StreamError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}
