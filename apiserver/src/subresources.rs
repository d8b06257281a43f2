//! Parts of objects that the server does not serve itself: logs, exec and whatever else concerns running things.

use async_trait::async_trait;
use axum::body::Body;
use http::Response;
use serde_json::Value;

/// A request for a part of an existing object.
#[derive(Debug)]
pub struct SubresourceRequest {
    /// Group of the object's kind; empty for core kinds.
    pub group: String,
    /// Plural name of the object's kind, as in the path.
    pub resource: String,
    /// Namespace of the object; empty if its kind is cluster-scoped.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// The object as it is now.
    pub object: Value,
    /// The part, such as `log`.
    pub subresource: String,
    /// Decoded query parameters in the order given; a name may appear several times.
    pub query: Vec<(String, String)>,
    /// The body, read in full; its size is limited.
    pub body: bytes::Bytes,
    /// Method, headers and extensions. For a connection that is to be upgraded, `hyper::upgrade::OnUpgrade` is among
    /// the extensions.
    pub parts: http::request::Parts,
}

/// Answers requests for parts of objects. The object's existence has been checked before.
#[async_trait]
pub trait Subresources: Send + Sync + 'static {
    /// Which parts there are: group, plural name of the kind, name of the part and the verbs, for discovery. A
    /// request for any other part is answered with 404 before it gets here.
    fn served(&self) -> Vec<(&'static str, &'static str, &'static str, &'static [&'static str])>;

    /// Answers one request. A streaming body is streamed to the client.
    async fn handle(&self, request: SubresourceRequest) -> Response<Body>;
}
