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
/// How often the certificates are looked at, at most: a clock that is set may bring their end near.
const LOOK: Duration = Duration::from_secs(3600);

/// How the certificates of the TLS listener are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateState {
    /// When the certificate in use ends, in seconds since the epoch; 0 before there is one.
    pub expires: i64,
    /// Certificates issued since the start.
    pub issued: u64,
    /// Renewals that failed since the start. The certificate in use stays in use.
    pub failures: u64,
    /// What went wrong with the last renewal, if it failed.
    pub failure: Option<String>,
}

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
        let options = &self.inner.options;
        let (names, lifetime) = (options.tls_names.clone(), options.certificate_lifetime);
        let prepare = move || prepare(&dir, address, &names, lifetime);
        let (pki, certificate) = tokio::task::spawn_blocking(prepare)
            .await
            .map_err(|error| ServeError::Listen { listen, source: std::io::Error::other(error) })??;
        let config = config(&pki, certificate.clone())?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let connections = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(options.limits.connections));
        self.inner.certificates.send_modify(|state| {
            state.expires = pki.end();
            state.issued += 1;
        });
        connections.spawn(renew(self.clone(), pki.clone(), certificate, address, shutdown.clone()));
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

fn prepare(
    dir: &Path,
    address: SocketAddr,
    names: &[String],
    lifetime: Duration,
) -> Result<(Arc<Pki>, Arc<Current>), PkiError> {
    let pki = Pki::open(dir, lifetime)?;
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

/// Makes certificates anew long before they end. Failing to is said, shown and tried again; the one in use stays.
async fn renew(server: Server, pki: Arc<Pki>, current: Arc<Current>, address: SocketAddr, shutdown: CancellationToken) {
    let options = server.inner.options.clone();
    let left = options.certificate_lifetime / 3;
    loop {
        // Both only wait.
        tokio::select! {
            () = tokio::time::sleep(LOOK.min(left / 4)) => {}
            () = shutdown.cancelled() => return,
        }
        let CertificateState { expires, failure, .. } = server.inner.certificates.borrow().clone();
        // The clock may be years behind or ahead; what counts is what it says to clients.
        if failure.is_none() && i128::from(expires) - i128::from(now()) > i128::from(left.as_secs()) {
            continue;
        }
        let (pki, current, names) = (pki.clone(), current.clone(), options.tls_names.clone());
        let renewed = tokio::task::spawn_blocking(move || {
            let expires = pki.end();
            current.replace(pki.server(address, &names)?)?;
            Ok::<_, PkiError>((expires, pki.write_kubeconfigs(address)))
        });
        let renewed = renewed
            .await
            .unwrap_or_else(|error| Err(PkiError::Content { path: "certificate".into(), detail: error.to_string() }));
        let failure = match &renewed {
            Ok((_, Ok(()))) => None,
            Ok((_, Err(error))) | Err(error) => Some(said(error)),
        };
        if let Some(failure) = &failure {
            tracing::warn!(error = failure, "renewing certificates; what is in use stays in use");
        }
        server.inner.certificates.send_modify(|state| {
            // The server's own certificate is new even if the kubeconfigs could not be written.
            if let Ok((expires, _)) = &renewed {
                state.expires = *expires;
                state.issued += 1;
            }
            state.failures += u64::from(failure.is_some());
            state.failure = failure;
        });
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn said(error: &PkiError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
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
