//! `exec` and `attach`: between a program's pipes and a client's channels, whatever protocol these are of.

use std::future::pending;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::channel::{Chunk, Sink, Source};
use super::request::{Asked, Request};
use super::status::{of_exit, of_failure};
use super::{Input, Output, Process, StreamError, Streams, TerminalSize};

/// Once a program has ended, its output is over when nothing has come for so long: a child that it left behind may
/// hold the pipe open for ever.
const LINGER: Duration = Duration::from_secs(2);
/// The longest description of a terminal's size; a real one has 30 bytes.
const SIZE: usize = 1024;

/// A client's ends of a program's streams.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stdin: Option<Source>,
    pub(super) stdout: Option<Sink>,
    pub(super) stderr: Option<Sink>,
    pub(super) resize: Option<Source>,
    pub(super) error: Sink,
    /// The end is told as a `Status`; older clients want words, and none for success.
    pub(super) status: bool,
}

/// Starts or joins the program, lets it run to its end, and tells the client of it. Dropping the future means that the
/// client is gone.
pub(super) async fn run(streams: &dyn Streams, request: &Request, client: Client) {
    let Client { stdin, mut stdout, mut stderr, resize, mut error, status } = client;
    let target = &request.target;
    let (doing, process) = match &request.asked {
        Asked::Exec { command, streams: wanted } => {
            ("error executing command in container", streams.exec(target, command.clone(), *wanted).await)
        }
        Asked::Attach { streams: wanted } => ("error attaching to container", streams.attach(target, *wanted).await),
        Asked::PortForward { .. } => return,
    };
    let ended = match process {
        Ok(process) => follow(process, stdin, &mut stdout, &mut stderr, resize).await,
        Err(failed) => Err(failed),
    };
    let said = match ended {
        // How the container's program ended is in the Workload's status.
        Ok(code) => of_exit(if matches!(request.asked, Asked::Attach { .. }) { 0 } else { code }),
        Err(failed) => {
            tracing::debug!(error = %super::status::chain(&failed), "{doing}");
            of_failure(doing, &failed)
        }
    };
    let text = match status {
        true => said.to_string(),
        false => said["message"].as_str().unwrap_or_default().to_owned(),
    };
    if !text.is_empty() {
        let _ = error.send(Chunk::copy_of(text.as_bytes())).await;
    }
    for sink in [stdout, stderr, Some(error)].into_iter().flatten() {
        sink.close().await;
    }
}

async fn follow(
    process: Process,
    from_client: Option<Source>,
    to_client: &mut Option<Sink>,
    errors_to_client: &mut Option<Sink>,
    sizes: Option<Source>,
) -> Result<u32, StreamError> {
    let Process { stdin, stdout, stderr, resize, exit } = process;
    let over = CancellationToken::new();
    let feeding = async {
        tokio::join!(feed(from_client, stdin), follow_size(sizes, resize));
        // The end of input ends nothing else.
        pending().await
    };
    let running = async {
        let ending = async {
            let code = exit.await;
            over.cancel();
            code
        };
        let (code, (), ()) =
            tokio::join!(ending, drain(stdout, to_client, &over), drain(stderr, errors_to_client, &over));
        code
    };
    // Whatever has not been read of the input when the program is over is nobody's.
    tokio::select! {
        code = running => code,
        never = feeding => never,
    }
}

/// Gives what the client sends to the program, and then its end. A program that stops to read is no reason to stop the
/// client.
async fn feed(source: Option<Source>, stdin: Option<Input>) {
    let Some(mut source) = source else { return };
    let mut stdin = stdin;
    while let Some(bytes) = source.next().await {
        if let Some(pipe) = &mut stdin {
            let written = async {
                pipe.write_all(&bytes).await?;
                pipe.flush().await
            };
            if written.await.is_err() {
                stdin = None;
            }
        }
    }
    if let Some(mut pipe) = stdin {
        // It may have been closed from the other side.
        let _ = pipe.shutdown().await;
    }
}

/// Gives the program's output to the client until the pipe's end, or until the program is `over` and nothing comes.
async fn drain(pipe: Option<Output>, sink: &mut Option<Sink>, over: &CancellationToken) {
    let (Some(mut pipe), Some(sink)) = (pipe, sink.as_mut()) else { return };
    loop {
        let quiet = async {
            over.cancelled().await;
            tokio::time::sleep(LINGER).await;
        };
        // Reading a chunk loses nothing when it is dropped.
        let chunk = tokio::select! {
            biased;
            chunk = Chunk::read(&mut pipe) => chunk,
            () = quiet => break,
        };
        // A terminal's end is an error.
        let Ok(Some(chunk)) = chunk else { break };
        if sink.send(chunk).await.is_err() {
            break;
        }
    }
    sink.finish().await;
}

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// Tells the program of its terminal's sizes. What is no size is passed over.
async fn follow_size(source: Option<Source>, resize: Option<watch::Sender<TerminalSize>>) {
    let Some(mut source) = source else { return };
    let mut text = Vec::new();
    while let Some(bytes) = source.next().await {
        let room = SIZE.saturating_sub(text.len());
        text.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let (sizes, read) = sizes_in(&text);
        match text.len() {
            SIZE.. => text.clear(),
            _ => drop(text.drain(..read)),
        }
        if let (Some(size), Some(resize)) = (sizes, &resize) {
            resize.send_replace(size);
        }
    }
}

/// The last valid size in a row of JSON objects, and how many bytes are done with.
fn sizes_in(text: &[u8]) -> (Option<TerminalSize>, usize) {
    let mut objects = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let (mut last, mut read) = (None, 0);
    loop {
        match objects.next() {
            Some(Ok(Size { width, height })) => {
                read = objects.byte_offset();
                if width > 0 && height > 0 {
                    last = Some(TerminalSize { width, height });
                }
            }
            // More is to come.
            Some(Err(error)) if error.is_eof() => return (last, read),
            Some(Err(_)) | None => return (last, text.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_from_pieces() {
        let size = |width, height| Some(TerminalSize { width, height });
        for (text, expected) in [
            (r#"{"Width":80,"Height":24}"#, (size(80, 24), 24)),
            (r#"{"Width":80,"Height":24}{"Width":100,"Height":30}{"Wi"#, (size(100, 30), 49)),
            (r#"{"Width":0,"Height":24}"#, (None, 23)),
            (r#"{"Width":80,"#, (None, 0)),
            (r#"nonsense"#, (None, 8)),
            (r#"{"Width":-1,"Height":24}"#, (None, 24)),
            ("", (None, 0)),
        ] {
            assert_eq!(sizes_in(text.as_bytes()), expected, "{text}");
        }
    }
}
