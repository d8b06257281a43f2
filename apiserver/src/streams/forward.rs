//! `portforward`: between connections to a Workload's ports and a client's channels.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::channel::{Chunk, Gone, Sink, Source};
use super::request::Request;
use super::status::chain;
use super::{StreamError, Streams};

/// Once the port has said all it had to say, the client may still be heard for so long.
const LINGER: Duration = Duration::from_secs(10);

/// Said when all places are taken.
pub(super) const TOO_MANY: &str = "too many forwarded connections";

/// Carries one connection until both sides are done or one is gone. The error is for the client.
pub(super) async fn carry(
    streams: &dyn Streams,
    request: &Request,
    port: u16,
    source: Source,
    sink: &mut Sink,
) -> Result<(), String> {
    let told = |error: StreamError| {
        let target = &request.target;
        let uid = target.object["metadata"]["uid"].as_str().unwrap_or_default();
        format!("error forwarding port {port} to pod {}, uid {uid}: {}", target.name, chain(&error))
    };
    let connected = tokio::select! {
        connected = streams.connect(&request.target, port) => connected,
        () = sink.gone() => return Ok(()),
    };
    let connection = connected.map_err(told)?;
    let (mut from_port, mut to_port) = tokio::io::split(connection);
    let sending = async {
        let sent = send(source, &mut to_port).await;
        if let Err(error) = sent {
            tracing::debug!(%error, port, "a forwarded port takes no more");
        }
    };
    tokio::pin!(sending);
    let mut sent = false;
    {
        let receiving = receive(&mut from_port, sink);
        tokio::pin!(receiving);
        loop {
            // Both are pinned outside, so neither loses anything when the other is first.
            tokio::select! {
                received = receiving.as_mut() => {
                    match received {
                        Ok(Ok(())) => break,
                        Ok(Err(Gone)) => return Ok(()),
                        Err(error) => {
                            return Err(told(StreamError::Connect(format!("reading from the port: {error}"))));
                        }
                    }
                }
                () = sending.as_mut(), if !sent => sent = true,
            }
        }
    }
    sink.finish().await;
    if !sent {
        // It had its time, or the client closed it.
        tokio::select! {
            () = sending => {}
            () = sink.gone() => {}
            () = tokio::time::sleep(LINGER) => {}
        }
    }
    Ok(())
}

async fn send(mut source: Source, to: &mut (impl tokio::io::AsyncWrite + Unpin)) -> io::Result<()> {
    while let Some(bytes) = source.next().await {
        to.write_all(&bytes).await?;
    }
    to.shutdown().await
}

async fn receive(from: &mut (impl tokio::io::AsyncRead + Unpin), sink: &mut Sink) -> io::Result<Result<(), Gone>> {
    loop {
        let chunk = tokio::select! {
            chunk = Chunk::read(from) => chunk?,
            () = sink.gone() => return Ok(Err(Gone)),
        };
        let Some(chunk) = chunk else { return Ok(Ok(())) };
        if sink.send(chunk).await.is_err() {
            return Ok(Err(Gone));
        }
    }
}
