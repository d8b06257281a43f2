//! Finding and reaching the API: a unix socket, an address, or a kubeconfig.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::net::UnixStream;
use tower::{BoxError, ServiceBuilder};

/// Where the API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// A unix socket.
    Socket(PathBuf),
    /// `http://host:port`, without credentials.
    Address(String),
    /// A kubeconfig file and, if not its current one, a context.
    Kubeconfig(PathBuf),
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "unix://{}", path.display()),
            Self::Address(address) => f.write_str(address),
            Self::Kubeconfig(path) => write!(f, "the server of {}", path.display()),
        }
    }
}

/// The API cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be used.
    #[error("reading the kubeconfig {path}", path = path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// A client for the address cannot be made.
    #[error("making a client for {server}")]
    Client {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// `--server` is neither a socket nor an address.
    #[error("--server {given:?} is not an address; expected unix:///path/api.sock, a path, or http(s)://host:port")]
    Address {
        /// What was given.
        given: String,
    },
    /// Nobody listens.
    #[error("no API at {server}; is the agent running (`nodelet run`, `systemctl status nodelet`)?")]
    NoAgent {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// `--server`, else `$KUBECONFIG`, else `socket`.
///
/// # Errors
/// [`Error::Address`]
pub fn choose(server: Option<&str>, kubeconfig: Option<&Path>, socket: PathBuf) -> Result<Server, Error> {
    if let Some(given) = server {
        if let Some(path) = given.strip_prefix("unix://") {
            return Ok(Server::Socket(path.into()));
        }
        if given.starts_with('/') {
            return Ok(Server::Socket(given.into()));
        }
        if given.starts_with("http://") || given.starts_with("https://") {
            return Ok(Server::Address(given.trim_end_matches('/').to_owned()));
        }
        return Err(Error::Address { given: given.to_owned() });
    }
    Ok(match kubeconfig {
        Some(path) if !path.as_os_str().is_empty() => Server::Kubeconfig(path.to_owned()),
        _ => Server::Socket(socket),
    })
}

/// A client for `server`. A socket is tried at once, so that "no agent runs" is told as such.
///
/// # Errors
/// [`Error`]
pub async fn connect(server: &Server) -> Result<kube::Client, Error> {
    match server {
        Server::Socket(path) => {
            UnixStream::connect(path).await.map_err(|source| Error::NoAgent { server: server.to_string(), source })?;
            Ok(over_socket(path))
        }
        Server::Address(address) => {
            let uri: Uri = address.parse().map_err(|_| Error::Address { given: address.clone() })?;
            kube::Client::try_from(kube::Config::new(uri))
                .map_err(|source| Error::Client { server: address.clone(), source })
        }
        Server::Kubeconfig(path) => {
            let failed = |source| Error::Kubeconfig { path: path.clone(), source };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            let config =
                kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(failed)?;
            kube::Client::try_from(config).map_err(|source| Error::Client { server: server.to_string(), source })
        }
    }
}

/// A client over the unix socket `path`; connects when it is used.
pub fn over_socket(path: &Path) -> kube::Client {
    let path: Arc<Path> = path.into();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        Box::pin(async move { Ok::<_, std::io::Error>(SocketStream(TokioIo::new(UnixStream::connect(&*path).await?))) })
    });
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    // The host is a mere formality: the socket is the server.
    let config = kube::Config::new(Uri::from_static("http://nodelet"));
    let service = ServiceBuilder::new().layer(config.base_uri_layer()).map_err(BoxError::from).service(http);
    kube::Client::new(service, "default")
}

/// A unix socket's stream, in the form that hyper's client wants.
struct SocketStream(TokioIo<UnixStream>);

impl Connection for SocketStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for SocketStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for SocketStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_chosen_in_order() {
        let socket = || PathBuf::from("/run/nodelet/api.sock");
        let chosen = |server, kubeconfig: Option<&str>| {
            choose(server, kubeconfig.map(Path::new), socket()).map(|server| server.to_string())
        };
        assert_eq!(chosen(Some("unix:///x.sock"), Some("/k")).ok().as_deref(), Some("unix:///x.sock"));
        assert_eq!(chosen(Some("/x.sock"), None).ok().as_deref(), Some("unix:///x.sock"));
        assert_eq!(chosen(Some("http://127.0.0.1:1/"), None).ok().as_deref(), Some("http://127.0.0.1:1"));
        assert_eq!(chosen(None, Some("/k")).ok().as_deref(), Some("the server of /k"));
        assert_eq!(chosen(None, Some("")).ok().as_deref(), Some("unix:///run/nodelet/api.sock"));
        assert!(chosen(Some("localhost:6440"), None).is_err());
    }
}
