//! The network listener: TLS 1.3, known clients only.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use http::header;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Access, ServeError, connection};
use crate::pki::{Identity, Pki, PkiError, user_of_certificate};
use crate::request::User;
use crate::server::Server;
use crate::status::ApiError;

/// A client has this long to complete the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
/// The server's certificate and the kubeconfigs are made anew this often.
const RENEWAL: Duration = Duration::from_secs(30 * 24 * 3600);

impl Server {
    /// Serves TLS 1.3 at `listen` until `shutdown`. The authority and the bearer tokens are kept in `pki_dir`, and
    /// made there at the first start; `admin.kubeconfig` and `viewer.kubeconfig` are written into the directory
    /// above it. Clients show a certificate of that authority or a token; without one they are told about health and
    /// version and nothing else.
    ///
    /// `bound` is told the address once connections are accepted, which matters for port 0.
    ///
    /// # Errors
    /// When the address cannot be bound, or the access files cannot be read or made.
    pub async fn serve_tls(
        &self,
        listen: SocketAddr,
        pki_dir: &Path,
        bound: Option<tokio::sync::oneshot::Sender<SocketAddr>>,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let failed = |source| ServeError::Listen { listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let dir = pki_dir.to_owned();
        let names = self.inner.options.tls_names.clone();
        let prepare = move || prepare(&dir, address, &names);
        let (pki, certificate) = tokio::task::spawn_blocking(prepare)
            .await
            .map_err(|error| ServeError::Listen { listen, source: std::io::Error::other(error) })??;
        let config = config(&pki, certificate.clone())?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let connections = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        connections.spawn(renew(
            pki.clone(),
            certificate,
            address,
            self.inner.options.tls_names.clone(),
            shutdown.clone(),
        ));
        if let Some(bound) = bound {
            // Whoever asked may have given up since.
            let _ = bound.send(address);
        }
        loop {
            // Both are cancel-safe: a slot is given back, a connection stays in the queue.
            let accepted = tokio::select! {
                accepted = async { (slots.clone().acquire_owned().await, listener.accept().await) } => accepted,
                () = shutdown.cancelled() => break,
            };
            match accepted {
                (Ok(slot), Ok((stream, peer))) => {
                    let (server, acceptor, pki, shutdown) =
                        (self.clone(), acceptor.clone(), pki.clone(), shutdown.clone());
                    connections.spawn(async move {
                        serve(server, acceptor, pki, stream, peer, shutdown).await;
                        drop(slot);
                    });
                }
                (_, Err(error)) => {
                    tracing::warn!(%error, %address, "accepting a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                (Err(_), _) => break,
            }
        }
        connections.close();
        connections.wait().await;
        Ok(())
    }
}

fn prepare(dir: &Path, address: SocketAddr, names: &[String]) -> Result<(Arc<Pki>, Arc<Current>), PkiError> {
    let pki = Pki::open(dir)?;
    pki.write_kubeconfigs(address)?;
    let current = Current::new(pki.server(address, names)?)?;
    Ok((Arc::new(pki), Arc::new(current)))
}

fn config(pki: &Pki, certificate: Arc<Current>) -> Result<ServerConfig, PkiError> {
    let unusable = |detail: String| PkiError::Content { path: "ca.crt".into(), detail };
    let mut roots = RootCertStore::empty();
    roots.add(pki.authority()).map_err(|e| unusable(e.to_string()))?;
    let provider = Arc::new(ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| unusable(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| unusable(e.to_string()))?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The server's certificate of now.
struct Current(RwLock<Arc<CertifiedKey>>);

impl Current {
    fn new(identity: Identity) -> Result<Self, PkiError> {
        Ok(Self(RwLock::new(certified(identity)?)))
    }

    fn replace(&self, identity: Identity) -> Result<(), PkiError> {
        *self.0.write().unwrap_or_else(|p| p.into_inner()) = certified(identity)?;
        Ok(())
    }
}

fn certified(identity: Identity) -> Result<Arc<CertifiedKey>, PkiError> {
    let key = ring::sign::any_supported_type(&identity.key)
        .map_err(|e| PkiError::Content { path: "server key".into(), detail: e.to_string() })?;
    Ok(Arc::new(CertifiedKey::new(identity.chain, key)))
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(|p| p.into_inner()).clone())
    }
}

/// Makes certificates anew long before they end. Failing to is said and tried again next time.
async fn renew(
    pki: Arc<Pki>,
    current: Arc<Current>,
    address: SocketAddr,
    names: Vec<String>,
    shutdown: CancellationToken,
) {
    loop {
        // Both only wait.
        tokio::select! {
            () = tokio::time::sleep(RENEWAL) => {}
            () = shutdown.cancelled() => return,
        }
        let renewed = pki
            .server(address, &names)
            .and_then(|identity| current.replace(identity))
            .and_then(|()| pki.write_kubeconfigs(address));
        if let Err(error) = renewed {
            tracing::warn!(error = %error, "renewing certificates");
        }
    }
}

async fn serve(
    server: Server,
    acceptor: TlsAcceptor,
    pki: Arc<Pki>,
    stream: TcpStream,
    peer: SocketAddr,
    shutdown: CancellationToken,
) {
    // Watch events are small and wait for nothing.
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, %peer, "TLS handshake"),
        Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let user = certificate.and_then(user_of_certificate);
    connection(server, stream, Access::Network { user, pki }, shutdown).await;
}

/// The user behind a request on the network, or 401.
pub(super) fn authenticate(
    certified: Option<&User>,
    pki: &Pki,
    headers: &http::HeaderMap,
    path: &str,
) -> Result<User, ApiError> {
    if let Some(user) = certified {
        return Ok(user.clone());
    }
    let bearer = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = bearer.and_then(|v| v.strip_prefix("Bearer ").or_else(|| v.strip_prefix("bearer ")));
    if let Some(user) = token.and_then(|token| pki.user_of_token(token)) {
        return Ok(user);
    }
    if token.is_none() && matches!(path, "/healthz" | "/livez" | "/readyz" | "/version") {
        return Ok(User {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            read_only: true,
        });
    }
    Err(ApiError::new(401, "Unauthorized", "Unauthorized"))
}
