//! `/metrics`, `/healthz` and `/readyz`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{StatusCode, header};
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The endpoint cannot be made or kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not ours.
    #[error("listening at {listen} (observability.listen); choose another address, or \"\" for none")]
    Listen {
        /// The address.
        listen: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Accepting failed.
    #[error("serving metrics")]
    Serve(#[source] std::io::Error),
}

/// What has to be true before the agent calls itself ready.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Readiness {
    /// All sources had a first look at their directory.
    pub(super) sources: bool,
}

impl Readiness {
    fn checks(&self, containerd: bool) -> BTreeMap<&'static str, bool> {
        BTreeMap::from([("api", true), ("containerd", containerd), ("sources", self.sources)])
    }
}

/// The bound endpoint.
pub(super) struct Http {
    listener: TcpListener,
    router: Router,
}

#[derive(Clone)]
struct Shared {
    registry: Registry,
    readiness: watch::Receiver<Readiness>,
    containerd: watch::Receiver<bool>,
}

impl Http {
    pub(super) async fn bind(
        listen: &str,
        registry: Registry,
        readiness: watch::Receiver<Readiness>,
        containerd: watch::Receiver<bool>,
    ) -> Result<Self, Error> {
        let failed = |source| Error::Listen { listen: listen.to_owned(), source };
        let address: SocketAddr = listen.parse().map_err(|error| failed(std::io::Error::other(error)))?;
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .with_state(Shared { registry, readiness, containerd });
        Ok(Self { listener, router })
    }

    pub(super) async fn serve(self, shutdown: CancellationToken) -> Result<(), Error> {
        axum::serve(self.listener, self.router)
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await
            .map_err(Error::Serve)
    }
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&shared.registry.gather(), &mut text) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text),
        Err(error) => {
            let text = format!("{error}\n").into_bytes();
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], text)
        }
    }
}

async fn readyz(State(shared): State<Shared>) -> impl IntoResponse {
    let checks = shared.readiness.borrow().checks(*shared.containerd.borrow());
    let status = if checks.values().all(|ok| *ok) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let lines: String = checks.iter().map(|(name, ok)| format!("[{}]{name}\n", if *ok { '+' } else { '-' })).collect();
    (status, lines)
}
