//! What the answers of registries mean.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use http::{StatusCode, header};
use oci_spec::distribution::Reference;
use reqwest::Response;
use serde::Deserialize;

use super::{Failure, Retry};
use crate::images::Error;

/// So much of the text of a refusal is read.
const MAX_TEXT: usize = 4 << 10;

/// What a registry said instead of what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{server} answered {status}{text}")]
pub(super) struct Refusal {
    server: String,
    status: StatusCode,
    /// ": …" or nothing.
    text: String,
}

/// Keeps a good answer, and says what a bad one means.
pub(super) async fn classify(answer: Response, reference: &Reference, server: &str) -> Result<Response, Failure> {
    let status = answer.status();
    if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return Ok(answer);
    }
    let retry_after = retry_after(&answer);
    let refusal = Arc::new(Refusal { server: server.to_owned(), status, text: text(answer).await });
    let reference = reference.whole();
    let doing = || format!("getting {reference} from {server}");
    let (error, retry) = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            (Error::Unauthorized { reference, source: refusal }, Retry::No)
        }
        StatusCode::NOT_FOUND => (Error::NotFound { reference }, Retry::No),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            let server = server.to_owned();
            (Error::Busy { reference, server, retry_after, source: refusal }, Retry::Later(retry_after))
        }
        StatusCode::REQUEST_TIMEOUT => (Error::Unreachable { doing: doing(), source: refusal }, Retry::Soon),
        status if status.is_server_error() => (Error::Unreachable { doing: doing(), source: refusal }, Retry::Soon),
        _ => (Error::Failed { doing: doing(), source: refusal }, Retry::No),
    };
    Err(Failure { error, retry })
}

/// No answer, or a broken one. The address is left out: that of a redirect can hold a signature.
pub(super) fn unreachable(doing: String, error: reqwest::Error) -> Failure {
    Failure { error: Error::Unreachable { doing, source: Arc::new(error.without_url()) }, retry: Retry::Soon }
}

/// `Retry-After`, in seconds or as a date.
fn retry_after(answer: &Response) -> Option<Duration> {
    parse_retry_after(answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?, jiff::Timestamp::now())
}

fn parse_retry_after(text: &str, now: jiff::Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    Duration::try_from(at.duration_since(now)).ok()
}

/// The registry's words: the messages of its JSON, or the beginning of whatever it sent. Never fails.
async fn text(answer: Response) -> String {
    #[derive(Deserialize)]
    struct Envelope {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let mut bytes = Vec::new();
    let mut stream = answer.bytes_stream();
    while bytes.len() < MAX_TEXT
        && let Some(Ok(chunk)) = stream.next().await
    {
        bytes.extend_from_slice(&chunk);
    }
    bytes.truncate(MAX_TEXT);
    let said = match serde_json::from_slice::<Envelope>(&bytes) {
        Ok(envelope) => {
            let all: Vec<_> = envelope.errors.iter().map(|e| format!("{} {}", e.code, e.message)).collect();
            all.join(", ")
        }
        Err(_) => String::from_utf8_lossy(&bytes).chars().take(120).collect(),
    };
    // Whatever a server says must not break our lines.
    let said: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if said.trim().is_empty() { String::new() } else { format!(": {}", said.trim()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_wait_are_read() {
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Thu, 01 Jan 2026 00:01:00 GMT", Some(60)),
            ("Thu, 01 Jan 2015 00:01:00 GMT", None),
            ("soon", None),
            ("-5", None),
        ] {
            assert_eq!(parse_retry_after(text, now), expected.map(Duration::from_secs), "{text}");
        }
    }
}
