//! The server: opening it, and leading each request to what answers it.

use std::convert::Infallible;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak, mpsc};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::{Buf, Bytes};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::limits::{Gate, Limits};
use crate::registry::{Class, Registry, Resource, served_definition};
use crate::request::{Context, Target, Trusted, User, segments};
use crate::serve::CertificateState;
use crate::status::ApiError;
use crate::store::{self, BackupError, Copied, Expect, Key, OpenError, Store, Write};
use crate::streams::{self, StreamServer, Streams};
use crate::subresources::{SubresourceRequest, Subresources};
use crate::{access, admission, body, discovery, garbage, represent, verbs};

/// A check beyond schema and rules: given an object, the path and message of everything wrong with it.
pub type Validator = Arc<dyn Fn(&Value) -> Vec<(String, String)> + Send + Sync>;

/// How the server is set up.
#[derive(Clone)]
pub struct Options {
    /// The database file. Its directory is made if it is missing.
    pub store: PathBuf,
    /// The version that `/version` names, such as `1.2.3`.
    pub version: String,
    /// How long an Event is kept after its last change, as told by the monotonic clock.
    pub event_ttl: Duration,
    /// Names and addresses by which remote clients reach the TLS listener, besides the one it listens at.
    pub tls_names: Vec<String>,
    /// Checks beyond the schemas.
    pub validators: Vec<Validator>,
    /// What clients may take.
    pub limits: Limits,
    /// How long the certificates that are issued are valid. They are renewed when a third of that is left.
    pub certificate_lifetime: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            store: PathBuf::from("/var/lib/nodelet/store.db"),
            version: env!("CARGO_PKG_VERSION").into(),
            event_ttl: Duration::from_secs(3600),
            tls_names: Vec::new(),
            validators: Vec::new(),
            limits: Limits::default(),
            certificate_lifetime: Duration::from_secs(365 * 24 * 3600),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, version, event_ttl, tls_names, validators, limits, certificate_lifetime } = self;
        f.debug_struct("Options")
            .field("store", store)
            .field("version", version)
            .field("event_ttl", event_ttl)
            .field("tls_names", tls_names)
            .field("validators", &validators.len())
            .field("limits", limits)
            .field("certificate_lifetime", certificate_lifetime)
            .finish()
    }
}

/// What all handles of one server share.
pub(crate) struct Inner {
    pub(crate) options: Options,
    pub(crate) registry: Arc<Registry>,
    pub(crate) store: Store,
    pub(crate) gate: Arc<Gate>,
    pub(crate) certificates: watch::Sender<CertificateState>,
}

/// The server. Clones share everything; when the last one is gone, waiting writes are finished and the store closes.
#[derive(Clone)]
pub struct Server {
    pub(crate) inner: Arc<Inner>,
    pub(crate) subresources: Option<Arc<dyn Subresources>>,
    pub(crate) streams: Option<StreamServer>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

impl Server {
    /// Opens or creates the store and serves the built-in kinds and the given ones.
    ///
    /// # Errors
    /// Definitions that cannot be served, and a store that is damaged, newer, in use or not accessible; each says
    /// what to do.
    pub fn open(options: Options, resources: Vec<CustomResourceDefinition>) -> Result<Self, OpenError> {
        // Checking the database and compiling the schemas take the most time of a start, and need nothing of each other.
        let (registry, opened) = std::thread::scope(|scope| {
            let opening = scope.spawn(|| store::open(&options.store));
            let registry = Registry::new(&resources);
            (registry, opening.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let (registry, opened) = (Arc::new(registry?), opened?);
        let names = registry.all().iter().map(|r| r.qualified()).collect();
        let (changes, changed) = mpsc::channel();
        let schemas = registry.clone();
        let store = Store::start(opened, names, move |table, object| complete(&schemas, table, object), changes)?;
        let gate = Gate::new(options.limits.clone());
        let certificates = watch::Sender::new(CertificateState::default());
        let inner = Arc::new(Inner { options, registry, store, gate, certificates });
        inner.seed(&resources)?;
        let weak: Weak<Inner> = Arc::downgrade(&inner);
        std::thread::Builder::new()
            .name("store-garbage".into())
            .spawn(move || garbage::run(&weak, &changed))
            .map_err(|source| OpenError::Thread { source })?;
        Ok(Self { inner, subresources: None, streams: None })
    }

    /// Lets `subresources` answer what concerns running things.
    #[must_use]
    pub fn with_subresources(mut self, subresources: Arc<dyn Subresources>) -> Self {
        self.subresources = Some(subresources);
        self
    }

    /// Lets `streams` reach what runs: serves `exec`, `attach` and `portforward` of Workloads and Pods.
    #[must_use]
    pub fn with_streams(mut self, streams: Arc<dyn Streams>) -> Self {
        self.streams = Some(StreamServer::new(streams));
        self
    }

    /// Writes a copy of the store as it is now to a new file, while everything goes on. Blocks; not for async tasks.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn backup(&self, to: &Path) -> Result<Copied, BackupError> {
        crate::store::backup(&self.inner.options.store, to, false)
    }

    /// How the certificates of the TLS listener are, and whenever that changes.
    pub fn certificates(&self) -> watch::Receiver<CertificateState> {
        self.inner.certificates.subscribe()
    }

    /// The API as a service. Requests are root's unless a [`User`] is among their extensions, so whoever exposes the
    /// service to others has to set it.
    pub fn service(&self) -> Api {
        Api { server: self.clone() }
    }

    /// A client whose transport is this server: no socket, no TLS. Its requests are [`Trusted`].
    pub fn client(&self, default_namespace: &str) -> kube::Client {
        let api = self.service();
        let service = tower::service_fn(move |mut request: Request<kube::client::Body>| {
            request.extensions_mut().insert(Trusted);
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.server.handle(request).await) }
        });
        kube::Client::new(service, default_namespace)
    }

    /// Answers one request.
    pub(crate) async fn handle<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body + Send,
        B::Data: Buf + Send,
        B::Error: Into<tower::BoxError>,
    {
        let (parts, body) = request.into_parts();
        if parts.extensions.get::<Trusted>().is_some() {
            let bytes = match Limited::new(body, body::LIMIT).collect().await {
                Ok(collected) => collected.to_bytes(),
                Err(error) if error.is::<LengthLimitError>() => {
                    return ApiError::too_large(body::LIMIT).into_response();
                }
                Err(error) => return ApiError::bad_request(format!("reading the body: {error}")).into_response(),
            };
            return self.answer(parts, bytes).await;
        }
        let gate = &self.inner.gate;
        let limited = async {
            let place = gate.enter(&parts)?;
            let (bytes, held) = gate.receive(&parts, std::pin::pin!(body)).await?;
            let response = self.answer(parts, bytes).await;
            drop(held);
            gate.send(place, response).await
        };
        limited.await.unwrap_or_else(ApiError::into_response)
    }

    async fn answer(&self, parts: http::request::Parts, bytes: Bytes) -> Response<Body> {
        // Boxed: the futures of the verbs are large, and most requests are short-lived.
        // A panic is a bug, and the one who met it is told; everybody else goes on.
        let answered = AssertUnwindSafe(Box::pin(self.route(parts, bytes))).catch_unwind().await;
        let answered = answered.unwrap_or_else(|_| Err(ApiError::internal("a bug; the log has more")));
        answered.unwrap_or_else(ApiError::into_response)
    }

    async fn route(&self, parts: http::request::Parts, bytes: Bytes) -> Result<Response<Body>, ApiError> {
        let segments = segments(parts.uri.path())?;
        if let Some(response) = discovery::answer(self, &parts, &segments)? {
            return Ok(response);
        }
        if let Some(response) = access::review(&parts, &segments, &bytes)? {
            return Ok(response);
        }
        let registry = self.inner.registry.clone();
        let target = Target::parse(&registry, &segments)?;
        if let Some(subresource) = target.subresource.as_deref().filter(|s| !matches!(*s, "status" | "finalize")) {
            let subresource = subresource.to_owned();
            return self.subresource(parts, bytes, &target, subresource).await;
        }
        let context = Context::new(&parts)?;
        let mut response = self.verb(&parts.method, &context, &target, &bytes).await?;
        for warning in context.take_warnings() {
            let quoted = warning.replace('\\', r"\\").replace('"', r#"\""#);
            if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
                response.headers_mut().append(header::WARNING, value);
            }
        }
        Ok(response)
    }

    async fn verb(
        &self,
        method: &Method,
        context: &Context,
        target: &Target<'_>,
        bytes: &[u8],
    ) -> Result<Response<Body>, ApiError> {
        let inner = &self.inner;
        let is_write = !matches!(*method, Method::GET | Method::HEAD);
        access::authorize(context, target, method, is_write)?;
        match target.subresource.as_deref() {
            Some("status") if target.resource.has_status => {}
            None => {}
            Some(_) => return Err(ApiError::no_such_path()),
        }
        match (method.as_str(), &target.name, &target.subresource) {
            ("GET" | "HEAD", Some(_), _) if !context.query.flag("watch") => verbs::get::get(inner, context, target),
            ("GET" | "HEAD", None, _) if !context.query.flag("watch") => verbs::list::list(inner, context, target),
            ("GET", _, None) => verbs::watch::watch(inner, context, target),
            ("POST", None, None) => verbs::create::create(inner, context, target, bytes).await,
            ("PUT", Some(_), _) => verbs::update::update(inner, context, target, bytes).await,
            ("PATCH", Some(_), _) => verbs::patch::patch(inner, context, target, bytes).await,
            ("DELETE", Some(_), None) => verbs::delete::delete(inner, context, target, bytes).await,
            ("DELETE", None, None) => verbs::delete::delete_collection(inner, context, target, bytes).await,
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn subresource(
        &self,
        parts: http::request::Parts,
        body: Bytes,
        target: &Target<'_>,
        subresource: String,
    ) -> Result<Response<Body>, ApiError> {
        let resource = target.resource;
        // Whoever answers for a Workload's log answers for that of the Pod too.
        let original = self.inner.registry.original(resource);
        let stream = self.stream_server(original).zip(streams::kind_of(&subresource));
        let handler = self.subresources.as_ref().filter(|handler| {
            handler.served().iter().any(|(group, plural, part, _)| {
                *group == original.group && *plural == original.plural && *part == subresource
            })
        });
        let served = stream.is_some() || handler.is_some();
        let Some(name) = target.name.as_deref().filter(|_| served) else {
            return Err(ApiError::no_such_path());
        };
        if parts.extensions.get::<User>().is_some_and(|user| user.read_only) && subresource != "log" {
            return Err(ApiError::forbidden(resource, name, "this user may only read"));
        }
        let namespace = target.namespace.clone().unwrap_or_default();
        let stored = self.inner.store.get(resource.table, &Key::new(&namespace, name));
        let stored = stored.ok_or_else(|| ApiError::not_found(resource, name))?;
        let object = represent::view(original, &stored);
        if let Some((server, kind)) = stream {
            return server.answer(kind, parts, (namespace, name.to_owned()), object).await;
        }
        let Some(handler) = handler else { return Err(ApiError::no_such_path()) };
        let query = crate::request::Query::parse(parts.uri.query().unwrap_or_default()).into_pairs();
        let request = SubresourceRequest {
            group: original.group.clone(),
            resource: original.plural.clone(),
            namespace,
            name: name.to_owned(),
            object,
            subresource,
            query,
            body,
            parts,
        };
        Ok(handler.handle(request).await)
    }

    /// Who serves streams into the objects of a resource, if anybody does: Workloads alone run.
    pub(crate) fn stream_server(&self, resource: &Resource) -> Option<&StreamServer> {
        self.streams.as_ref().filter(|_| resource.group == "nodelet.dev" && resource.plural == "workloads")
    }
}

/// Gives a stored object the defaults that its schema has gained since, as a server of custom resources does when it
/// reads. Its version stays: nobody changed it.
fn complete(registry: &Registry, table: usize, json: &[u8]) -> Option<Bytes> {
    let resource = registry.all().iter().find(|r| r.table == table && r.class == Class::Custom)?;
    let before: Value = serde_json::from_slice(json).ok()?;
    let mut object = before.clone();
    resource.schema.apply_defaults(&mut object);
    (object != before).then(|| Bytes::from(object.to_string()))
}

impl Inner {
    /// Writes what has to exist from the start: the namespaces, and the definitions as objects.
    fn seed(&self, definitions: &[CustomResourceDefinition]) -> Result<(), OpenError> {
        let mut writes = Vec::new();
        let namespaces = self.registry.class(Class::Namespace);
        for name in ["default", "kube-system"] {
            let key = Key::new("", name);
            if self.store.get(namespaces.table, &key).is_some() {
                continue;
            }
            let mut object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            admission::fill_in(namespaces, &mut object);
            writes.push(Write {
                table: namespaces.table,
                key,
                expect: Expect::Absent,
                object,
                remove: false,
                namespaces: None,
            });
        }
        if let Some(crds) = self.registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions") {
            self.seed_definitions(crds, definitions, &mut writes);
        }
        // Together, so that they share a sync of the disk.
        let written = self.store.write_all_blocking(writes);
        written.map_err(|error| OpenError::First { detail: error.to_string() })
    }

    /// Collects what it takes for the definitions to be there as objects, and no others.
    fn seed_definitions(&self, crds: &Resource, definitions: &[CustomResourceDefinition], writes: &mut Vec<Write>) {
        let wanted: Vec<Value> = definitions.iter().map(served_definition).collect();
        for stored in self.store.read().list(crds.table, None) {
            if !wanted.iter().any(|w| w["metadata"]["name"] == *stored.key.name) {
                writes.push(Write {
                    table: crds.table,
                    key: stored.key.clone(),
                    expect: Expect::Version(stored.rv),
                    object: stored.value(),
                    remove: true,
                    namespaces: None,
                });
            }
        }
        for mut object in wanted {
            let key = Key::new("", object["metadata"]["name"].as_str().unwrap_or_default());
            let live = self.store.get(crds.table, &key);
            if let Some(live) = &live {
                let old = live.value();
                object["metadata"] = old["metadata"].clone();
                if old == object {
                    continue;
                }
            } else {
                admission::fill_in(crds, &mut object);
            }
            let expect = live.map_or(Expect::Absent, |live| Expect::Version(live.rv));
            writes.push(Write { table: crds.table, key, expect, object, remove: false, namespaces: None });
        }
    }
}

/// The API as a [`tower::Service`]: never fails, always ready.
#[derive(Debug, Clone)]
pub struct Api {
    server: Server,
}

impl<B> tower::Service<Request<B>> for Api
where
    B: http_body::Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<tower::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = self.server.clone();
        Box::pin(async move { Ok(server.handle(request).await) })
    }
}

/// The code of an answer to a request that made something.
pub(crate) const CREATED: StatusCode = StatusCode::CREATED;
