//! The Kubernetes API as the command line and the manifest sources use it: any kind, as JSON.
//!
//! Controllers have typed clients; here the kind is only known at run time, so requests are plain paths and objects
//! are [`Value`]s. Works alike against the embedded API and a cluster's.

pub mod connect;
mod error;
mod kinds;

use futures::{AsyncBufRead, Stream, StreamExt};
use http::{Method, Request};
use serde_json::{Value, json};

pub use error::{Cause, Error};
pub use kinds::{Kind, Kinds};

/// `Accept` that asks for rows and columns made by the server.
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// A client for any kind.
#[derive(Clone)]
pub struct Client {
    kube: kube::Client,
}

/// How an object is applied.
#[derive(Debug, Clone, Copy)]
pub struct Apply<'a> {
    /// Who owns the fields from then on.
    pub manager: &'a str,
    /// Take fields over from other managers.
    pub force: bool,
    /// Check and answer, change nothing.
    pub dry_run: bool,
}

impl Client {
    /// A client on top of `kube`.
    pub fn new(kube: kube::Client) -> Self {
        Self { kube }
    }

    /// The client underneath.
    pub fn kube(&self) -> &kube::Client {
        &self.kube
    }

    /// The namespace for objects that name none.
    pub fn default_namespace(&self) -> &str {
        self.kube.default_namespace()
    }

    /// One object; `None` when absent.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn get(&self, kind: &Kind, namespace: Option<&str>, name: &str) -> Result<Option<Value>, Error> {
        match self.send(Method::GET, &kind.path(namespace, Some(name)), &[], Value::Null).await {
            Err(error) if error.is_not_found() => Ok(None),
            other => other.map(Some),
        }
    }

    /// The list object of `kind`; `namespace` `None` is all of them.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn list(&self, kind: &Kind, namespace: Option<&str>, query: &[(&str, &str)]) -> Result<Value, Error> {
        let mut list = self.send(Method::GET, &kind.path(namespace, None), query, Value::Null).await?;
        // Items of a list do not carry their type; shown on their own they should.
        for item in list["items"].as_array_mut().into_iter().flatten() {
            if let Some(item) = item.as_object_mut() {
                item.entry("apiVersion").or_insert_with(|| json!(kind.api_version()));
                item.entry("kind").or_insert_with(|| json!(kind.kind));
            }
        }
        Ok(list)
    }

    /// A `Table` of `path`'s object or list; the object or list itself from a server that makes none.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn table(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, Error> {
        let request = request(Method::GET, path, query, Vec::new(), &[("accept", TABLE)])?;
        self.kube.request(request).await.map_err(Error::from)
    }

    /// Watch events of `path`, from `query`'s `resourceVersion` on.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn watch(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<impl Stream<Item = Result<Value, Error>> + use<>, Error> {
        self.watch_as(path, query, "application/json").await
    }

    /// [`Client::watch`] in `Table` form.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn watch_table(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<impl Stream<Item = Result<Value, Error>> + use<>, Error> {
        self.watch_as(path, query, TABLE).await
    }

    async fn watch_as(
        &self,
        path: &str,
        query: &[(&str, &str)],
        accept: &str,
    ) -> Result<impl Stream<Item = Result<Value, Error>> + use<>, Error> {
        let mut query = query.to_vec();
        query.push(("watch", "true"));
        let request = request(Method::GET, path, &query, Vec::new(), &[("accept", accept)])?;
        let lines = futures::io::AsyncBufReadExt::lines(self.kube.request_stream(request).await.map_err(Error::from)?);
        Ok(lines.map(|line| {
            let line = line.map_err(Error::Stream)?;
            serde_json::from_str(&line).map_err(Error::Answer)
        }))
    }

    /// Server-side apply with strict validation.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Refused`] names the fields.
    pub async fn apply(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        object: &Value,
        how: Apply<'_>,
    ) -> Result<Value, Error> {
        let mut query = vec![("fieldManager", how.manager), ("fieldValidation", "Strict")];
        if how.force {
            query.push(("force", "true"));
        }
        if how.dry_run {
            query.push(("dryRun", "All"));
        }
        let headers = [("content-type", "application/apply-patch+yaml"), ("accept", "application/json")];
        let path = kind.path(namespace, Some(name));
        let request = request(Method::PATCH, &path, &query, object.to_string().into_bytes(), &headers)?;
        self.kube.request(request).await.map_err(Error::from)
    }

    /// Merge patch of an object, or of its subresource.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn merge(&self, path: &str, manager: &str, patch: &Value) -> Result<Value, Error> {
        let headers = [("content-type", "application/merge-patch+json"), ("accept", "application/json")];
        let query = [("fieldManager", manager), ("fieldValidation", "Strict")];
        let request = request(Method::PATCH, path, &query, patch.to_string().into_bytes(), &headers)?;
        self.kube.request(request).await.map_err(Error::from)
    }

    /// Creates an object.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn create(&self, kind: &Kind, namespace: Option<&str>, object: &Value) -> Result<Value, Error> {
        self.send(Method::POST, &kind.path(namespace, None), &[("fieldValidation", "Strict")], object.clone()).await
    }

    /// Replaces an object.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn replace(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        name: &str,
        object: &Value,
    ) -> Result<Value, Error> {
        let query = [("fieldManager", "nodelet-cli"), ("fieldValidation", "Strict")];
        self.send(Method::PUT, &kind.path(namespace, Some(name)), &query, object.clone()).await
    }

    /// Deletes an object; `false` when it was not there.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn delete(&self, kind: &Kind, namespace: Option<&str>, name: &str) -> Result<bool, Error> {
        match self.send(Method::DELETE, &kind.path(namespace, Some(name)), &[], Value::Null).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The body of `path` as it comes.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn stream(&self, path: &str, query: &[(&str, &str)]) -> Result<impl AsyncBufRead + use<>, Error> {
        let request = request(Method::GET, path, query, Vec::new(), &[("accept", "*/*")])?;
        self.kube.request_stream(request).await.map_err(Error::from)
    }

    /// The answer to a request for `path`.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn send(&self, method: Method, path: &str, query: &[(&str, &str)], body: Value) -> Result<Value, Error> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let headers = [("content-type", "application/json"), ("accept", "application/json")];
        self.kube.request(request(method, path, query, body, &headers)?).await.map_err(Error::from)
    }
}

fn request(
    method: Method,
    path: &str,
    query: &[(&str, &str)],
    body: Vec<u8>,
    headers: &[(&str, &str)],
) -> Result<Request<Vec<u8>>, Error> {
    let query: Vec<String> = query.iter().map(|(key, value)| format!("{key}={}", percent(value))).collect();
    let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body).map_err(Error::Request)
}

/// Percent-encodes everything that is not unreserved in a URI.
fn percent(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
