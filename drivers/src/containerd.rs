//! The connection to containerd: one channel for all drivers, its namespace headers, and the mapping of its answers.
//!
//! # Contract
//! - Nothing connects before the first call, and a lost connection is made anew by the next call: a restart of
//!   containerd costs the callers one error each at most.
//! - Every request bears our namespace; there is no way to send one without.
//! - Streams (events, content writes) end with the connection and are opened again by their owner.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::sandbox::store_client::StoreClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::ids::ContainerId;
use crate::runtime::Error;

/// Largest message we take from containerd. It sends up to 16 MiB by default; a list of containers carries each
/// container's whole OCI specification.
const MAX_MESSAGE: usize = 64 << 20;

/// One lazily connected channel to containerd, shared by all its clones.
#[derive(Clone, Debug)]
pub struct Containerd {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    address: PathBuf,
    namespace: String,
    namespace_header: MetadataValue<Ascii>,
    snapshotter: String,
    channel: Channel,
}

macro_rules! clients {
    ($($(#[$doc:meta])* $name:ident: $client:ident;)*) => {
        $(
            $(#[$doc])*
            pub fn $name(&self) -> $client<Channel> {
                $client::new(self.shared.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
            }
        )*
    };
}

impl Containerd {
    /// A connection to the socket at `address`, for everything in `namespace` and with `snapshotter`. Does not
    /// connect yet. Must be called within a tokio runtime, whose tasks the channel uses.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a name breaks containerd's rules for identifiers.
    pub fn new(address: impl Into<PathBuf>, namespace: &str, snapshotter: &str) -> Result<Self, Error> {
        let address = address.into();
        // Namespaces follow the same rule as the ids of containers.
        for (field, name) in [("runtime.namespace", namespace), ("runtime.snapshotter", snapshotter)] {
            if let Err(e) = ContainerId::new(name) {
                return Err(Error::Invalid {
                    field: field.to_owned(),
                    message: format!("{name:?} cannot be used: {}", e.expected),
                });
            }
        }
        let namespace_header = namespace.parse().map_err(|_| Error::Invalid {
            field: "runtime.namespace".to_owned(),
            message: format!("{namespace:?} cannot be sent as a header"),
        })?;
        let socket = address.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The URI is a formality: the connector goes to the socket.
        let channel = Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector);
        Ok(Self {
            shared: Arc::new(Shared {
                address,
                namespace: namespace.to_owned(),
                namespace_header,
                snapshotter: snapshotter.to_owned(),
                channel,
            }),
        })
    }

    /// The containerd namespace that all requests bear.
    pub fn namespace(&self) -> &str {
        &self.shared.namespace
    }

    /// The snapshotter in use.
    pub fn snapshotter(&self) -> &str {
        &self.shared.snapshotter
    }

    /// The socket.
    pub fn address(&self) -> &Path {
        &self.shared.address
    }

    /// `message` as a request in our namespace.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.shared.namespace_header.clone());
        request
    }

    /// `message` as a request in our namespace whose effects the lease protects from collection. `lease` must be a
    /// valid header value, as every containerd identifier is; another one is not sent.
    pub fn leased<T>(&self, message: T, lease: &str) -> Request<T> {
        let mut request = self.request(message);
        if let Ok(lease) = lease.parse() {
            request.metadata_mut().insert("containerd-lease", lease);
        }
        request
    }

    clients! {
        /// Container records.
        containers: ContainersClient;
        /// Tasks: running containers.
        tasks: TasksClient;
        /// Snapshots: root filesystems.
        snapshots: SnapshotsClient;
        /// Image records.
        images: ImagesClient;
        /// Blobs.
        content: ContentClient;
        /// Unpacking of layers.
        diff: DiffClient;
        /// Leases: protection from collection.
        leases: LeasesClient;
        /// Events of everything.
        events: EventsClient;
        /// containerd namespaces.
        namespaces: NamespacesClient;
        /// Records of sandboxes; since 1.7.
        sandboxes: StoreClient;
        /// containerd's version.
        version: VersionClient;
        /// Plugins and their capabilities.
        introspection: IntrospectionClient;
    }

    /// Maps an answer: [`Error::Unavailable`] when the daemon did not answer at all, else [`Error::Failed`] while
    /// `doing` ("preparing the snapshot of x"). Whoever can say more about an absent or existing object asks
    /// [`is_not_found`] or [`is_already_exists`] before.
    pub fn error(&self, doing: impl Into<String>, status: Status) -> Error {
        if is_unavailable(&status) {
            Error::Unavailable {
                address: self.shared.address.display().to_string(),
                source: Box::new(Answer::from(status)),
            }
        } else {
            Error::Failed { doing: doing.into(), source: Box::new(Answer::from(status)) }
        }
    }
}

/// What containerd answered instead of a result, in one readable line.
#[derive(Debug, thiserror::Error)]
#[error("{message} ({code:?})")]
pub struct Answer {
    /// The gRPC code. containerd uses `Unknown` for most failures of the OCI runtime.
    pub code: Code,
    /// containerd's own words.
    pub message: String,
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        let mut message = status.message().to_owned();
        // A transport error keeps its reason ("no such file", "connection refused") in its sources.
        let mut source = std::error::Error::source(&status);
        while let Some(cause) = source {
            let text = cause.to_string();
            if !message.contains(&text) {
                message = if message.is_empty() { text } else { format!("{message}: {text}") };
            }
            source = cause.source();
        }
        Self { code: status.code(), message }
    }
}

/// containerd says that the object is not there.
pub fn is_not_found(status: &Status) -> bool {
    status.code() == Code::NotFound
}

/// containerd says that the object exists.
pub fn is_already_exists(status: &Status) -> bool {
    status.code() == Code::AlreadyExists
}

/// The daemon did not answer: it is down, went down during the call, or its shim cannot be reached.
pub fn is_unavailable(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        // A connection lost in the middle of a call is reported as unknown or cancelled, with the transport's error.
        Code::Unknown | Code::Cancelled | Code::Internal => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

/// `result` with "not found" taken for nothing.
///
/// # Errors
/// Every other status.
pub fn absent_ok<T>(result: Result<tonic::Response<T>, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(response) => Ok(Some(response.into_inner())),
        Err(status) if is_not_found(&status) => Ok(None),
        Err(status) => Err(status),
    }
}

#[cfg(test)]
mod tests {
    use containerd_client::services::v1::ListContainersRequest;

    use super::*;

    #[tokio::test]
    async fn names_are_checked_and_sent() {
        assert!(matches!(Containerd::new("/x", "a/b", "overlayfs"), Err(Error::Invalid { .. })));
        let containerd = Containerd::new("/x", "nodelet", "overlayfs").unwrap();
        let request = containerd.leased((), "pull-1");
        assert_eq!(request.metadata().get("containerd-namespace").unwrap(), "nodelet");
        assert_eq!(request.metadata().get("containerd-lease").unwrap(), "pull-1");
    }

    #[tokio::test]
    async fn a_missing_daemon_is_unavailable_and_says_why() {
        let containerd = Containerd::new("/nonexistent/containerd.sock", "nodelet", "overlayfs").unwrap();
        let request = containerd.request(ListContainersRequest::default());
        let status = containerd.containers().list(request).await.unwrap_err();
        let error = containerd.error("listing containers", status);
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("No such file"), "{cause}");
    }
}
