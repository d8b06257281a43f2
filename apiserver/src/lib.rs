//! The embedded Kubernetes-compatible API of one node: a [`tower::Service`] over a SQLite store.
//!
//! It serves the custom resources it is given and the few core kinds that they need, with the behaviour of a real
//! kube-apiserver: discovery, list and watch, optimistic concurrency, every kind of patch, server-side apply,
//! schema validation with defaults, finalizers, garbage collection. It knows nothing of containers; what concerns
//! running things it hands to [`Subresources`] (logs) and [`Streams`] (exec, attach, port-forward).
//!
//! Reading a request's way through the crate: [`Server`] takes it apart (`request.rs`), `verbs/` does what it asks,
//! `admission.rs` makes objects well-formed, `apply/` keeps track of who set which field, `store.rs` makes changes
//! durable and tells watchers, `represent.rs` gives the answer its form.

mod access;
mod admission;
mod apply;
mod body;
mod cel;
mod core_kinds;
mod discovery;
mod garbage;
mod jsonpath;
mod limits;
mod openapi;
mod patch;
mod pki;
mod pods;
mod protobuf;
mod registry;
mod represent;
mod request;
mod schema;
mod selector;
mod serve;
mod server;
mod status;
mod store;
mod streams;
mod subresources;
mod table;
mod verbs;

pub use admission::{is_label_value, wrong_label_key};
pub use limits::Limits;
pub use pki::PkiError;
pub use registry::DefinitionError;
pub use request::{Trusted, User};
pub use serve::{CertificateState, ServeError};
pub use server::{Api, Options, Server, Validator};
pub use store::{BackupError, Copied, OpenError, Restored, backup, restore};
pub use streams::{
    Input, Output, PortConnection, Process, StdStreams, StreamError, StreamKind, StreamTarget, Streams, TerminalSize,
};
pub use subresources::{SubresourceRequest, Subresources};
