//! One HTTP client for each server: certificates, headers, proxies and patience as its `hosts.toml` says.

use std::path::Path;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Identity};

use super::failed;
use crate::images::Error;
use crate::images::hosts::Endpoint;
use crate::images::reference::is_loopback;

/// Longest wait for a connection, unless `hosts.toml` says otherwise.
const CONNECT: Duration = Duration::from_secs(15);

/// A client for that server. Proxies come from the environment; loopback is never reached through one.
///
/// A node without any authorities (a minimal image without `ca-certificates`) still speaks plain HTTP, and HTTPS with
/// the authorities of `hosts.toml`.
pub(super) fn build(endpoint: &Endpoint, stall: Duration) -> Result<Client, Error> {
    // One provider of cryptography for the process; somebody may have installed it before.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let doing = || format!("preparing the connection to {}", endpoint.host);
    let mut authorities = Vec::new();
    for authority in rustls_native_certs::load_native_certs().certs {
        authorities.extend(Certificate::from_der(&authority));
    }
    for path in &endpoint.ca {
        let bundle = Certificate::from_pem_bundle(&read(path, "authority")?);
        authorities.extend(bundle.map_err(|e| failed(format!("reading the authority {}", path.display()), e))?);
    }
    let mut builder = Client::builder()
        .user_agent(concat!("nodelet/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(endpoint.dial_timeout.unwrap_or(CONNECT).min(stall))
        .read_timeout(stall)
        .pool_idle_timeout(Duration::from_secs(30))
        .tls_certs_only(authorities)
        .tls_danger_accept_invalid_certs(endpoint.skip_verify)
        .default_headers(headers(endpoint)?);
    if let Some((certificate, key)) = &endpoint.client {
        let mut pem = read(certificate, "client certificate")?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(read(key, "client key")?);
        }
        let identity = Identity::from_pem(&pem)
            .map_err(|e| failed(format!("reading the client certificate {}", certificate.display()), e))?;
        builder = builder.identity(identity);
    }
    if is_loopback(&endpoint.host) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|e| failed(doing(), e))
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|e| failed(format!("reading the {what} {}", path.display()), e))
}

fn headers(endpoint: &Endpoint) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    for (name, value) in &endpoint.headers.0 {
        // The value may be a secret and is not repeated.
        let doing = || format!("setting the header {name:?} for {}", endpoint.host);
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|e| failed(doing(), e))?;
        let mut value = HeaderValue::from_str(value).map_err(|e| failed(doing(), e))?;
        value.set_sensitive(true);
        headers.append(key, value);
    }
    Ok(headers)
}
