//! The reconcilers: they read what is wanted through a `kube::Client`, what is there through the drivers, plan as
//! data, apply, and report.
//!
//! Each kind is a module whose file tells the story of one pass and whose folder holds the steps. [`run`] wires
//! them to watches and to the events of containerd and the kernel. Nothing here knows which API server is behind
//! the client, and nothing is ever removed before both sides have been read in full since the start.

pub mod attempts;
pub mod backoff;
pub mod context;
pub mod controller;
mod credentials;
mod defaults;
mod events;
pub mod eviction;
mod image;
mod image_checks;
pub mod image_collector;
mod image_signers;
mod image_users;
mod invalid;
pub mod metrics;
pub mod names;
mod network;
mod node_facts;
mod node_object;
pub mod node_state;
mod oom;
pub mod pulls;
mod resource_limit;
pub mod shutdown;
mod start;
mod volume;
pub mod workload;

pub use context::{Drivers, Settings};
pub use start::{Error, run};

/// Runs a short blocking call off the async threads.
pub(crate) async fn blocking<T, F>(call: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    match tokio::task::spawn_blocking(call).await {
        Ok(value) => value,
        // The call panicked: a bug, which continues here as it would without the thread.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
