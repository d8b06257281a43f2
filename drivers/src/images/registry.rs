//! Registries: manifests, blobs from any offset, digests of tags; through mirrors and with credentials.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use oci_client::client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

use super::hosts::{Endpoint, endpoints};
use super::manifest::{ACCEPTED, Descriptor, Digest};
use super::{Credentials, Error};

/// Connections and tokens are kept for so many servers and credentials.
const KEPT_CLIENTS: usize = 64;

/// The registries that this node pulls from. Clones share connections and tokens.
#[derive(Clone)]
pub(super) struct Registries {
    dir: Option<PathBuf>,
    stall: Duration,
    clients: Arc<Mutex<Clients>>,
}

/// Connections with their tokens, by server and who asks.
type Clients = HashMap<(Endpoint, Option<Credentials>), Client>;

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registries").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// A failure, and whether trying again may help.
#[derive(Debug)]
pub(super) struct Failure {
    /// What to report.
    pub(super) error: Error,
    /// The network or the server may do better next time.
    pub(super) transient: bool,
    /// The server wants fewer requests.
    pub(super) busy: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, transient: false, busy: false }
    }
}

/// The bytes of a blob, from `start` on.
pub(super) struct BlobStream {
    /// Offset of the first byte: what was asked for, or 0 from a server that cannot do better.
    pub(super) start: u64,
    /// The bytes.
    pub(super) bytes: BoxStream<'static, std::io::Result<Bytes>>,
}

impl Registries {
    /// `dir` holds containerd's `hosts.toml` files; a connection that is silent for `stall` is given up.
    pub(super) fn new(dir: Option<PathBuf>, stall: Duration) -> Self {
        Self { dir, stall, clients: Arc::default() }
    }

    /// The servers for one reference.
    ///
    /// # Errors
    /// [`Error::Failed`] for a `hosts.toml` that cannot be followed.
    pub(super) fn repository(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<Repository, Error> {
        let endpoints = endpoints(self.dir.as_deref(), reference.registry(), reference.resolve_registry())
            .map_err(|e| failed(format!("looking up the servers of {}", reference.registry()), e))?;
        Ok(Repository { registries: self.clone(), reference: reference.clone(), credentials, endpoints })
    }

    fn client(&self, endpoint: &Endpoint, credentials: Option<&Credentials>) -> Result<(Client, bool), Failure> {
        let key = (endpoint.clone(), credentials.cloned());
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok((client.clone(), true));
        }
        let mut authorities = Vec::new();
        for path in &endpoint.ca {
            let data =
                std::fs::read(path).map_err(|e| failed(format!("reading the authority {}", path.display()), e))?;
            authorities.push(Certificate { encoding: CertificateEncoding::Pem, data });
        }
        // One provider of cryptography for the process; somebody may have installed it before.
        let _installed = rustls::crypto::ring::default_provider().install_default();
        // Loopback is never reached through a proxy, whatever the environment says.
        let local = super::reference::is_loopback(&endpoint.host);
        let config = ClientConfig {
            protocol: if endpoint.https { ClientProtocol::Https } else { ClientProtocol::Http },
            accept_invalid_certificates: endpoint.skip_verify,
            extra_root_certificates: authorities,
            read_timeout: Some(self.stall),
            connect_timeout: Some(self.stall.min(Duration::from_secs(15))),
            user_agent: concat!("nodelet/", env!("CARGO_PKG_VERSION")),
            http_proxy: local.then(|| "http://127.0.0.1:9".to_owned()),
            no_proxy: local.then(|| "localhost,127.0.0.0/8,::1".to_owned()),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config)
            .map_err(|e| failed(format!("preparing the connection to {}", endpoint.host), e))?;
        if clients.len() >= KEPT_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok((client, false))
    }

    fn forget(&self, endpoint: &Endpoint, credentials: Option<&Credentials>) {
        let key = (endpoint.clone(), credentials.cloned());
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

/// One repository with the servers that may have it.
#[derive(Debug, Clone)]
pub(super) struct Repository {
    registries: Registries,
    reference: Reference,
    credentials: Option<Credentials>,
    endpoints: Vec<Endpoint>,
}

impl Repository {
    /// `<registry>` and `<repository>`, for the label that tells where a blob came from.
    pub(super) fn source(&self) -> (&str, &str) {
        (self.reference.registry(), self.reference.repository())
    }

    /// The digest that the reference has now.
    pub(super) async fn digest(&self) -> Result<String, Failure> {
        self.ask(true, |client, reference, auth| async move { client.fetch_manifest_digest(&reference, &auth).await })
            .await
    }

    /// The raw manifest or index that the reference points at.
    pub(super) async fn root(&self) -> Result<Bytes, Failure> {
        self.manifest_of(self.reference.clone(), true).await
    }

    /// The raw manifest of that digest, verified.
    pub(super) async fn manifest(&self, digest: &Digest) -> Result<Bytes, Failure> {
        let reference = self.reference.clone_with_digest(digest.to_string());
        let bytes = self.manifest_of(reference, false).await?;
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(failed(
                format!("getting the manifest {digest} of {}", self.reference),
                std::io::Error::other(format!("the registry sent other content, {actual}")),
            )
            .into());
        }
        Ok(bytes)
    }

    /// The same repository at another tag.
    pub(super) fn at_tag(&self, tag: &str) -> Self {
        let (registry, repository) = self.source();
        let reference = Reference::with_tag(registry.to_owned(), repository.to_owned(), tag.to_owned());
        Self { reference, ..self.clone() }
    }

    /// Manifests of the repository that say that they refer to that digest: signatures among them. Registries without
    /// that question are asked for the tag that stands for its answer.
    pub(super) async fn referrers(&self, digest: &Digest) -> Result<Vec<Digest>, Failure> {
        let wanted = self.reference.clone_with_digest(digest.to_string());
        let index = self
            .ask(false, move |client, endpoint_reference, auth| {
                let reference = aim(&wanted, endpoint_reference.resolve_registry());
                async move {
                    client.store_auth_if_needed(reference.resolve_registry(), &auth).await;
                    client.pull_referrers(&reference, None).await
                }
            })
            .await?;
        Ok(index.manifests.into_iter().filter_map(|entry| Digest::new(entry.digest).ok()).collect())
    }

    async fn manifest_of(&self, reference: Reference, resolve: bool) -> Result<Bytes, Failure> {
        let wanted = reference.clone();
        let bytes = self
            .ask(resolve, move |client, endpoint_reference, auth| {
                let reference = aim(&wanted, endpoint_reference.resolve_registry());
                async move { client.pull_manifest_raw(&reference, &auth, ACCEPTED).await.map(|(bytes, _)| bytes) }
            })
            .await?;
        if bytes.len() as u64 > super::manifest::MAX_DOCUMENT {
            let error = std::io::Error::other(format!("{} bytes are too many for a manifest", bytes.len()));
            return Err(failed(format!("getting the manifest of {reference}"), error).into());
        }
        Ok(bytes)
    }

    /// The bytes of a blob from `offset` on.
    pub(super) async fn blob(&self, blob: &Descriptor, offset: u64) -> Result<BlobStream, Failure> {
        let digest = blob.digest.clone();
        self.ask(false, move |client, reference, auth| {
            let digest = digest.clone();
            async move {
                client.store_auth_if_needed(reference.resolve_registry(), &auth).await;
                // Asking for a range, even for all, spares hashing here what containerd hashes anyway.
                let answer = client.pull_blob_stream_partial(&reference, digest.as_str(), offset, None).await?;
                Ok(match answer {
                    BlobResponse::Partial(stream) => BlobStream { start: offset, bytes: stream.into_stream().boxed() },
                    BlobResponse::Full(stream) => BlobStream { start: 0, bytes: stream.into_stream().boxed() },
                })
            }
        })
        .await
    }

    /// Asks the servers in order until one answers. An expired token is renewed once for each.
    async fn ask<T, F, Fut>(&self, resolve: bool, ask: F) -> Result<T, Failure>
    where
        F: Fn(Client, Reference, RegistryAuth) -> Fut,
        Fut: Future<Output = Result<T, OciDistributionError>>,
    {
        let mut last = None;
        // A digest says what to get, whoever is asked; a tag only a server that may resolve it.
        let by_tag = resolve && self.reference.digest().is_none();
        for endpoint in self.endpoints.iter().filter(|e| !by_tag || e.resolve) {
            let credentials = self.credentials.as_ref().filter(|_| endpoint.origin);
            let auth = credentials
                .map_or(RegistryAuth::Anonymous, |c| RegistryAuth::Basic(c.username.clone(), c.password.clone()));
            let reference = aim(&self.reference, &endpoint.host);
            for fresh in [false, true] {
                let (client, known) = self.registries.client(endpoint, credentials)?;
                match ask(client, reference.clone(), auth.clone()).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => {
                        let failure = self.classify(&endpoint.host, error);
                        let expired = matches!(failure.error, Error::Unauthorized { .. });
                        if expired {
                            self.registries.forget(endpoint, credentials);
                        }
                        tracing::debug!(server = endpoint.host, error = %failure.error, "a registry did not answer");
                        last = Some(failure);
                        if !expired || !known || fresh {
                            break;
                        }
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            let error = std::io::Error::other("no server in its hosts.toml may be asked");
            failed(format!("asking for {}", self.reference), error).into()
        }))
    }

    fn classify(&self, server: &str, error: OciDistributionError) -> Failure {
        use OciDistributionError as E;
        let reference = self.reference.whole();
        let status = match &error {
            E::ServerError { code, .. } => *code,
            E::UnauthorizedError { .. } | E::AuthenticationFailure(_) => 401,
            E::ImageManifestNotFoundError(_) => 404,
            E::RegistryError { envelope, .. } => {
                let has = |codes: &[OciErrorCode]| envelope.errors.iter().any(|e| codes.contains(&e.code));
                if has(&[OciErrorCode::Unauthorized, OciErrorCode::Denied]) {
                    401
                } else if has(&[OciErrorCode::ManifestUnknown, OciErrorCode::NameUnknown, OciErrorCode::NotFound]) {
                    404
                } else if has(&[OciErrorCode::Toomanyrequests]) {
                    429
                } else {
                    400
                }
            }
            _ => 0,
        };
        let network = matches!(error, E::RequestError(_) | E::IoError(_));
        let error = match status {
            401 | 403 => Error::Unauthorized { reference, source: Arc::new(error) },
            404 => Error::NotFound { reference },
            _ => failed(format!("getting {reference} from {server}"), error),
        };
        let busy = matches!(status, 429 | 503);
        Failure { error, transient: network || busy || status == 408 || status >= 500, busy }
    }
}

/// The reference, to be asked from that server.
fn aim(reference: &Reference, host: &str) -> Reference {
    let mut reference = reference.clone();
    if host != reference.resolve_registry() {
        reference.set_mirror_registry(host.to_owned());
    }
    reference
}

/// [`Error::Failed`] with its cause.
pub(super) fn failed(doing: String, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Failed { doing, source: Arc::new(source) }
}
