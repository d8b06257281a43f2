//! The channels of a WebSocket to a part of a workload: `exec`, `attach`, `portforward`.
//!
//! Each message begins with the number of its channel. For programs these are input, output, errors, the `Status` at
//! the end and the terminal's size; channel 255 names one that we end.

use anyhow::{Context as _, bail};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kube::core::Request;
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::Usage;
use super::session::Session;
use crate::client::Kind;

pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;
pub(crate) const STATUS: u8 = 3;
pub(crate) const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What is sent.
pub(crate) struct Sender(SplitSink<Socket, Message>);

/// What comes.
pub(crate) struct Receiver(SplitStream<Socket>);

/// Connects to a part of a workload; `request` makes the path and query below the collection's path.
pub(crate) async fn connect(
    session: &Session,
    kind: &Kind,
    namespace: &str,
    request: impl FnOnce(Request) -> Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> anyhow::Result<(Sender, Receiver)> {
    let request = request(Request::new(kind.path(Some(namespace), None))).context("making the request")?;
    let connection = session.client.kube().connect(request).await.map_err(crate::client::Error::from)?;
    let (sender, receiver) = connection.into_stream().split();
    Ok((Sender(sender), Receiver(receiver)))
}

impl Sender {
    pub(crate) async fn send(&mut self, channel: u8, bytes: &[u8]) -> anyhow::Result<()> {
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.put_u8(channel);
        message.put_slice(bytes);
        self.0.send(Message::Binary(message.freeze())).await.context("the connection broke")
    }

    /// Says that nothing follows on a channel.
    pub(crate) async fn end(&mut self, channel: u8) -> anyhow::Result<()> {
        self.send(CLOSE, &[channel]).await
    }
}

impl Receiver {
    /// The next piece and its channel; `None` at the end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<(u8, Bytes)>> {
        loop {
            let message = match self.0.next().await {
                None => return Ok(None),
                Some(message) => message.context("the connection broke")?,
            };
            match message {
                Message::Binary(mut bytes) if !bytes.is_empty() => {
                    let channel = bytes.split_to(1)[0];
                    return Ok(Some((channel, bytes)));
                }
                Message::Close(_) => return Ok(None),
                _ => {}
            }
        }
    }
}

/// A program's exit code, as its `Status` tells it.
pub(crate) fn exit_code(status: &[u8]) -> anyhow::Result<u8> {
    let status: Value = serde_json::from_slice(status).context("reading how the program ended")?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let code = causes.filter(|cause| cause["reason"] == "ExitCode").find_map(|cause| cause["message"].as_str());
    match code.and_then(|code| code.parse::<u32>().ok()) {
        // A process has no code above 255.
        Some(code) => Ok(u8::try_from(code).unwrap_or(u8::MAX)),
        None => bail!("{}", status["message"].as_str().unwrap_or("the program could not be run")),
    }
}

/// `WORKLOAD` or `KIND/NAME`; only workloads and their Pods have containers.
pub(crate) fn target<'a>(session: &'a Session, word: &'a str) -> anyhow::Result<(&'a Kind, &'a str)> {
    let (kind, name) = match word.split_once('/') {
        Some((kind, name)) => (session.kinds.named(kind)?, name),
        None => (session.kinds.named("workloads")?, word),
    };
    match kind.kind.as_str() {
        "Workload" | "Pod" => Ok((kind, name)),
        other => Err(Usage(format!("a {other} has no containers")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_program_is_understood() {
        assert_eq!(exit_code(br#"{"metadata":{},"status":"Success"}"#).ok(), Some(0));
        let failure = br#"{"status":"Failure","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"137"}]}}"#;
        assert_eq!(exit_code(failure).ok(), Some(137));
        let other = br#"{"status":"Failure","message":"no such thing","reason":"InternalError"}"#;
        assert_eq!(exit_code(other).map_err(|error| error.to_string()), Err("no such thing".to_owned()));
        assert!(exit_code(b"what?").is_err());
    }
}
