//! SPDY/3.1, as much of it as Kubernetes' clients speak, on the server's side only: streams that the client opens.
//!
//! `frames` takes bytes apart, `headers` undoes and does their compression, `connection` keeps streams and windows,
//! `serve` does with streams what `exec`, `attach` and `portforward` mean. Nothing is trusted: every length is limited
//! before anything is allocated for it, and what is not understood ends the connection with GOAWAY.

mod connection;
mod dictionary;
mod frames;
mod headers;
mod serve;
#[cfg(test)]
mod tests;

pub(super) use connection::{Credit, StreamSink};
pub(super) use serve::{forward, remote};
