//! Connections to an API server, one request at a time on each.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// `Accept` of a client that reads objects.
pub(super) const JSON: &str = "application/json";
/// `Accept` of `kubectl get`.
pub(super) const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// Where a server is, and how it knows us.
#[derive(Clone)]
pub(super) enum Endpoint {
    Unix(PathBuf),
    Tls { address: SocketAddr, ca: PathBuf, token: String },
}

/// One connection.
pub(super) struct Client {
    sender: SendRequest<Full<Bytes>>,
    authorization: Option<HeaderValue>,
}

impl Endpoint {
    pub(super) async fn connect(&self) -> Result<Client> {
        match self {
            Self::Unix(path) => Client::over(UnixStream::connect(path).await?, None).await,
            Self::Tls { address, ca, token } => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::IpAddress(address.ip().into());
                let stream = tls(ca)?.connect(name, stream).await?;
                Client::over(stream, Some(HeaderValue::from_str(&format!("Bearer {token}"))?)).await
            }
        }
    }
}

fn tls(ca: &PathBuf) -> Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).with_context(|| ca.display().to_string())? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Client {
    async fn over<S>(stream: S, authorization: Option<HeaderValue>) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with the sender; what breaks it is what the next request reports.
        tokio::spawn(connection);
        Ok(Self { sender, authorization })
    }

    /// Sends a request; an answer that is not a success is an error.
    pub(super) async fn send(
        &mut self,
        method: Method,
        path: &str,
        accept: &'static str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::ACCEPT, accept)
            .header(header::CONTENT_TYPE, JSON);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        self.sender.ready().await?;
        let response = self.sender.send_request(request.body(Full::new(body))?).await?;
        if !response.status().is_success() {
            let status = response.status();
            let text = response.into_body().collect().await?.to_bytes();
            bail!("{path}: {status} {}", String::from_utf8_lossy(&text));
        }
        Ok(response)
    }

    /// Sends a request and reads the answer to its end.
    pub(super) async fn fetch(&mut self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        Ok(self.send(method, path, JSON, body).await?.into_body().collect().await?.to_bytes())
    }
}
