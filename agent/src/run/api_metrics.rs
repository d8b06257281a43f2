//! Metrics of the API's listeners.

use nodelet_apiserver::CertificateState;
use prometheus::{IntGauge, Registry};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What is told of the certificates.
pub(super) struct Certificates {
    expires: IntGauge,
    failures: IntGauge,
}

impl Certificates {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let expires = IntGauge::new(
            "nodelet_api_certificate_expiry_timestamp_seconds",
            "When the certificate of the API's TLS listener ends; 0 without one.",
        )?;
        let failures = IntGauge::new(
            "nodelet_api_certificate_renewal_failures",
            "Renewals of the API's certificates that failed since the start.",
        )?;
        registry.register(Box::new(expires.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        Ok(Self { expires, failures })
    }

    /// Follows the state until `shutdown`.
    pub(super) async fn follow(self, mut state: watch::Receiver<CertificateState>, shutdown: CancellationToken) {
        loop {
            {
                let state = state.borrow_and_update();
                self.expires.set(state.expires);
                self.failures.set(i64::try_from(state.failures).unwrap_or(i64::MAX));
            }
            // Both only wait.
            tokio::select! {
                changed = state.changed() => if changed.is_err() { return },
                () = shutdown.cancelled() => return,
            }
        }
    }
}
