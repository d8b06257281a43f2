//! Registries: manifests, blobs from any offset, digests of tags; through mirrors and with credentials.
//!
//! The protocol is spoken here, over a kept HTTP library: `Retry-After`, ranges, headers and certificates of
//! `hosts.toml` and a token that expires in the middle of a layer are then ours to handle. See docs/decisions/0011.

mod answer;
mod client;
mod tokens;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use http::{Method, StatusCode, header};
use oci_spec::distribution::Reference;
use reqwest::{Client, Response};

use super::hosts::{Endpoint, endpoints};
use super::manifest::{ACCEPTED, Descriptor, Digest, MAX_DOCUMENT};
use super::{Credentials, Error};
use answer::{classify, unreachable};
pub(super) use tokens::TOKEN_USER;
use tokens::Tokens;

/// Connections and tokens are kept for so many servers and credentials.
const KEPT_CLIENTS: usize = 64;

/// The registries that this node pulls from. Clones share connections and tokens.
#[derive(Clone)]
pub(super) struct Registries {
    dir: Option<PathBuf>,
    stall: Duration,
    clients: Arc<Mutex<HashMap<Endpoint, Client>>>,
    tokens: Tokens,
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registries").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Whether trying again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// It cannot.
    No,
    /// The network or the server may do better next time.
    Soon,
    /// The server wants fewer requests, and may say when it takes more.
    Later(Option<Duration>),
}

/// A failure, and whether trying again may help.
#[derive(Debug)]
pub(super) struct Failure {
    /// What to report.
    pub(super) error: Error,
    /// Whether to try again.
    pub(super) retry: Retry,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, retry: Retry::No }
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
        Self { dir, stall, clients: Arc::default(), tokens: Tokens::default() }
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

    fn client(&self, endpoint: &Endpoint) -> Result<Client, Error> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(endpoint) {
            return Ok(client.clone());
        }
        let client = client::build(endpoint, self.stall)?;
        if clients.len() >= KEPT_CLIENTS {
            clients.clear();
        }
        clients.insert(endpoint.clone(), client.clone());
        Ok(client)
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

/// One request to a repository.
struct Ask<'a> {
    method: Method,
    /// Below the repository: `manifests/latest`.
    path: &'a str,
    /// First byte wanted.
    from: u64,
    /// Asks what a tag means.
    resolve: bool,
}

impl Repository {
    /// `<registry>` and `<repository>`, for the label that tells where a blob came from.
    pub(super) fn source(&self) -> (&str, &str) {
        (self.reference.registry(), self.reference.repository())
    }

    /// The digest that the reference has now.
    pub(super) async fn digest(&self) -> Result<String, Failure> {
        let path = format!("manifests/{}", self.wanted());
        let (_, answer) = self.ask(&Ask { method: Method::HEAD, path: &path, from: 0, resolve: true }).await?;
        // Some registries answer HEAD without a digest, or with one of another algorithm.
        match content_digest(&answer) {
            Some(digest) => Ok(digest.to_string()),
            None => Ok(Digest::of(&self.root().await?).to_string()),
        }
    }

    /// The raw manifest or index that the reference points at, verified if the reference has a digest.
    pub(super) async fn root(&self) -> Result<Bytes, Failure> {
        let digest = self.reference.digest().and_then(|digest| Digest::new(digest).ok());
        self.document(&format!("manifests/{}", self.wanted()), digest, true).await
    }

    /// The raw manifest of that digest, verified.
    pub(super) async fn manifest(&self, digest: &Digest) -> Result<Bytes, Failure> {
        self.document(&format!("manifests/{digest}"), Some(digest.clone()), false).await
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
        #[derive(Default, serde::Deserialize)]
        struct Listed {
            #[serde(default)]
            manifests: Vec<Entry>,
        }
        #[derive(serde::Deserialize)]
        struct Entry {
            digest: String,
        }
        let bytes = match self.document(&format!("referrers/{digest}"), None, false).await {
            Ok(bytes) => bytes,
            // Registries that do not know the question answer with one or the other.
            Err(Failure { error: Error::NotFound { .. } | Error::Failed { .. }, .. }) => {
                self.at_tag(&format!("sha256-{}", digest.hex())).root().await?
            }
            Err(failure) => return Err(failure),
        };
        let listed: Listed = serde_json::from_slice(&bytes).unwrap_or_default();
        Ok(listed.manifests.into_iter().filter_map(|entry| Digest::new(entry.digest).ok()).collect())
    }

    fn wanted(&self) -> &str {
        self.reference.digest().or_else(|| self.reference.tag()).unwrap_or("latest")
    }

    async fn document(&self, path: &str, digest: Option<Digest>, resolve: bool) -> Result<Bytes, Failure> {
        let (server, answer) = self.ask(&Ask { method: Method::GET, path, from: 0, resolve }).await?;
        // What the server says it sends is a check of the way here, not of the server.
        let digest = digest.or_else(|| content_digest(&answer));
        let doing = || format!("getting {path} of {} from {server}", self.reference.repository());
        let mut bytes = BytesMut::new();
        let mut stream = answer.bytes_stream();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk.map_err(|e| unreachable(doing(), e))?);
            if bytes.len() as u64 > MAX_DOCUMENT {
                let source = std::io::Error::other(format!("{path} has more than {MAX_DOCUMENT} bytes"));
                let reference = self.reference.whole();
                return Err(Error::Unusable { reference, source: Arc::new(source) }.into());
            }
        }
        match digest {
            Some(wanted) if Digest::of(&bytes) != wanted => {
                let source = std::io::Error::other(format!("{server} sent other content, {}", Digest::of(&bytes)));
                let error = Error::Corrupt { digest: wanted.to_string(), source: Arc::new(source) };
                Err(Failure { error, retry: Retry::Soon })
            }
            _ => Ok(bytes.freeze()),
        }
    }

    /// The bytes of a blob from `offset` on.
    pub(super) async fn blob(&self, blob: &Descriptor, offset: u64) -> Result<BlobStream, Failure> {
        let path = format!("blobs/{}", blob.digest);
        let (server, answer) =
            self.ask(&Ask { method: Method::GET, path: &path, from: offset, resolve: false }).await?;
        let start =
            if answer.status() == StatusCode::PARTIAL_CONTENT { range_start(&answer).unwrap_or(offset) } else { 0 };
        let promised = answer.content_length().map(|length| length.saturating_add(start));
        let wrong = if start > offset {
            Some(format!("{server} was asked for what follows byte {offset} and begins at {start}"))
        } else {
            promised
                .filter(|promised| *promised != blob.size)
                .map(|promised| format!("{server} has {promised} bytes of it, its manifest says {}", blob.size))
        };
        if let Some(message) = wrong {
            let source = Arc::new(std::io::Error::other(message));
            let error = Error::Corrupt { digest: blob.digest.to_string(), source };
            return Err(Failure { error, retry: Retry::Soon });
        }
        let bytes = answer.bytes_stream().map_err(|e| std::io::Error::other(e.without_url())).boxed();
        Ok(BlobStream { start, bytes })
    }

    /// Asks the servers in order until one answers, and tells which.
    async fn ask(&self, ask: &Ask<'_>) -> Result<(String, Response), Failure> {
        let mut last = None;
        // A digest says what to get, whoever is asked; a tag only a server that may resolve it.
        let by_tag = ask.resolve && self.reference.digest().is_none();
        for endpoint in self.endpoints.iter().filter(|e| !by_tag || e.resolve) {
            match self.ask_one(endpoint, ask).await {
                Ok(answer) => return Ok((endpoint.host.clone(), answer)),
                Err(failure) => {
                    tracing::debug!(server = endpoint.host, error = %failure.error, "a registry did not answer");
                    last = Some(failure);
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            let error = std::io::Error::other("no server in its hosts.toml may be asked");
            failed(format!("asking for {}", self.reference), error).into()
        }))
    }

    /// Asks one server, with a new token if the old one is refused.
    async fn ask_one(&self, endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Response, Failure> {
        let client = self.registries.client(endpoint)?;
        let credentials = self.credentials.as_ref().filter(|_| endpoint.origin);
        let key = tokens::Key::new(endpoint, self.reference.repository(), credentials);
        let mut renewed = false;
        loop {
            let mut request = client.request(ask.method.clone(), self.url(endpoint, ask.path));
            for kind in ACCEPTED.iter().filter(|_| !ask.path.starts_with("blobs/")) {
                request = request.header(header::ACCEPT, *kind);
            }
            if ask.from > 0 {
                request = request.header(header::RANGE, format!("bytes={}-", ask.from));
            }
            // A header in hosts.toml stands for credentials of its own.
            if let Some(token) = self.registries.tokens.known(&key)
                && !endpoint.headers.0.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"))
            {
                request = request.header(header::AUTHORIZATION, token);
            }
            let doing = || format!("getting {} of {} from {}", ask.path, self.reference.repository(), endpoint.host);
            let answer = request.send().await.map_err(|e| unreachable(doing(), e))?;
            if answer.status() == StatusCode::UNAUTHORIZED && !renewed {
                renewed = true;
                if self.registries.tokens.renew(&client, &key, credentials, &answer, &self.reference).await? {
                    continue;
                }
            }
            return classify(answer, &self.reference, &endpoint.host).await;
        }
    }

    fn url(&self, endpoint: &Endpoint, path: &str) -> String {
        let scheme = if endpoint.https { "https" } else { "http" };
        let url = format!("{scheme}://{}{}/{}/{path}", endpoint.host, endpoint.path, self.reference.repository());
        // A mirror for several registries must know whose repository is meant.
        if endpoint.origin { url } else { format!("{url}?ns={}", self.reference.registry()) }
    }
}

fn content_digest(answer: &Response) -> Option<Digest> {
    Digest::new(answer.headers().get("docker-content-digest")?.to_str().ok()?).ok()
}

/// `bytes 100-199/200`.
fn range_start(answer: &Response) -> Option<u64> {
    let text = answer.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// [`Error::Failed`] with its cause.
pub(super) fn failed(doing: String, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Failed { doing, source: Arc::new(source) }
}
