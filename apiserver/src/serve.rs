//! Listeners: how the API is reached from outside the process.

mod pace;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use pace::{Paced, Phase};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::limits::Limits;
use crate::pki::{Pki, PkiError};
use crate::request::User;
use crate::server::Server;
use crate::streams::Stopping;
pub use tls::CertificateState;

/// Connections get this long to finish their requests when the server stops; watches never would.
const DRAIN: Duration = Duration::from_secs(2);
/// A known client may leave a connection unused for so long. Go clients close theirs after 90 seconds; one that closes
/// first never meets a request on its way.
const IDLE: Duration = Duration::from_secs(100);
/// Headers of a request, all together, and what is buffered for a connection. Real servers take 1 MiB.
const BUFFER: usize = 128 << 10;

/// A listener that cannot be made or kept.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody answers at the socket.
    #[error("{path} is served by another process: stop it, or choose another runDir")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Making the socket or its directory.
    #[error("listening at {path}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Listening on the network.
    #[error("listening at {listen}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Keys and certificates.
    #[error("keys and certificates of the API")]
    Pki(#[from] PkiError),
}

/// How the senders on a connection are known.
#[derive(Clone)]
pub(crate) enum Access {
    /// Opening the socket took root.
    Root,
    /// By certificate or token.
    Network { user: Option<User>, pki: Arc<Pki> },
}

impl Server {
    /// Serves at a unix socket until `shutdown`, then gives running requests a moment and removes the socket. Only
    /// root, or whoever owns the process, can open it. A socket left by a process that is gone is replaced.
    ///
    /// # Errors
    /// When somebody else serves there, or the socket cannot be made.
    pub async fn serve_unix(&self, path: &Path, shutdown: CancellationToken) -> Result<(), ServeError> {
        let failed = |source| ServeError::Socket { path: path.into(), source };
        if let Some(parent) = path.parent() {
            tokio::fs::create_dir_all(parent).await.map_err(failed)?;
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(ServeError::InUse { path: path.into() });
        }
        let listener = bind(path).map_err(failed)?;
        let connections = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(self.inner.options.limits.connections));
        loop {
            // Both are cancel-safe: a slot is given back, a connection that was not returned stays in the queue.
            let accepted = tokio::select! {
                accepted = async { (slots.clone().acquire_owned().await, listener.accept().await) } => accepted,
                () = shutdown.cancelled() => break,
            };
            match accepted {
                (slot, Ok((stream, _))) => {
                    let served = connection(self.clone(), stream, Access::Root, shutdown.clone());
                    connections.spawn(async move {
                        served.await;
                        drop(slot);
                    });
                }
                // Out of descriptors, most likely: those that are open have to go first.
                (_, Err(error)) => {
                    tracing::warn!(%error, path = %path.display(), "accepting a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        let _ = tokio::fs::remove_file(path).await;
        connections.close();
        connections.wait().await;
        Ok(())
    }
}

/// Makes the socket under a name of its own, closed to others before anybody can find it, and moves it into place.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Serves one connection until it ends, or for a moment after `shutdown`.
pub(crate) async fn connection<S>(server: Server, stream: S, access: Access, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stopping = Stopping(shutdown.clone());
    let Limits { receive, send, .. } = server.inner.options.limits;
    // Whoever has not said who they are does not keep a connection for nothing.
    let idle = if matches!(access, Access::Network { user: None, .. }) { receive } else { IDLE };
    let phase = Arc::new(Phase::default());
    let stream = Paced::new(stream, phase.clone(), receive, send);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let (server, phase) = (server.clone(), phase.clone());
        phase.begin();
        let is_log = request.uri().path().ends_with("/log");
        request.extensions_mut().insert(stopping.clone());
        let user = match &access {
            Access::Root => Ok(User::root()),
            Access::Network { user, pki } => {
                tls::authenticate(user.as_ref(), pki, request.headers(), request.uri().path())
            }
        };
        async move {
            let response = match user {
                Ok(user) => {
                    request.extensions_mut().insert(user);
                    server.handle(request).await
                }
                Err(refused) => refused.into_response(),
            };
            if is_log || response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
                phase.be_patient();
            } else {
                phase.end();
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    // The connection is polled again after either arm, so nothing is lost.
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = shutdown.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
