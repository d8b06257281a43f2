//! One probe, once: exec through the runtime; HTTP(S), TCP and gRPC from within the workload's network namespace.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use nodelet_crds::workload::probe::HttpScheme;
use nodelet_crds::workload::{HttpGetAction, Probe, ProbeHandler};
use nodelet_drivers::ids::ContainerId;
use nodelet_drivers::runtime::ExecSpec;
use nodelet_drivers::sandbox::connect::connect;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::context::{Context, chain};

mod grpc;
mod tls;

/// What is probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The container.
    pub container: ContainerId,
    /// Its network namespace; `None` is the node's.
    pub netns: Option<PathBuf>,
    /// Its first address; without one, loopback within its namespace.
    pub address: Option<IpAddr>,
    /// Its named ports.
    pub ports: Vec<(String, u16)>,
}

/// Succeeds, or says why not.
pub async fn check(ctx: &Context, target: &Target, probe: &Probe, limit: Duration) -> Result<(), String> {
    match probe.handler() {
        Some(ProbeHandler::Exec(action)) => exec(ctx, target, &action.command, limit).await,
        Some(ProbeHandler::TcpSocket(action)) => stream(target, action.host.as_deref(), &action.port).await.map(|_| ()),
        Some(ProbeHandler::HttpGet(action)) => http_get(target, action).await,
        Some(ProbeHandler::Grpc(action)) => {
            let stream = stream(target, None, &IntOrString::Int(i32::from(action.port))).await?;
            grpc::health(stream, action.service.as_deref().unwrap_or_default()).await
        }
        None => Err("a probe needs exactly one handler".to_owned()),
    }
}

async fn exec(ctx: &Context, target: &Target, command: &[String], limit: Duration) -> Result<(), String> {
    let spec = ExecSpec { command: command.to_vec(), timeout: Some(limit) };
    match ctx.drivers.runtime.exec(&target.container, &spec).await {
        Ok(result) if result.code == 0 => Ok(()),
        Ok(result) => Err(format!("exit code {}", result.code)),
        Err(error) => Err(chain(&error)),
    }
}

async fn stream(target: &Target, host: Option<&str>, port: &IntOrString) -> Result<TcpStream, String> {
    let port = match port {
        IntOrString::Int(number) => u16::try_from(*number).map_err(|_| format!("{number} is not a port"))?,
        IntOrString::String(name) => target
            .ports
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, port)| *port)
            .ok_or_else(|| format!("there is no port named {name:?}"))?,
    };
    let ip = match host {
        Some(host) => host.parse().map_err(|_| format!("host {host:?} is not an IP address"))?,
        None => target.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    };
    connect(target.netns.as_deref(), SocketAddr::new(ip, port)).await.map_err(|error| error.to_string())
}

/// Any status from 200 to 399 is a success, as in Kubernetes. Redirects are not followed.
pub async fn http_get(target: &Target, action: &HttpGetAction) -> Result<(), String> {
    let stream = stream(target, action.host.as_deref(), &action.port).await?;
    let peer = stream.peer_addr().map_err(|error| error.to_string())?;
    match action.scheme {
        HttpScheme::Http => get(stream, peer, action).await,
        HttpScheme::Https => get(tls::unchecked(stream, peer).await?, peer, action).await,
    }
}

async fn get<S>(stream: S, peer: SocketAddr, action: &HttpGetAction) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
    let path = if action.path.starts_with('/') { action.path.clone() } else { format!("/{}", action.path) };
    let mut request = hyper::Request::get(path).header("user-agent", "nodelet-probe").header("connection", "close");
    if !action.http_headers.iter().any(|h| h.name.eq_ignore_ascii_case("host")) {
        request = request.header("host", peer.to_string());
    }
    for header in &action.http_headers {
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| chain(&error))?;
        match response.status().as_u16() {
            200..400 => Ok(()),
            status => Err(format!("status {status}")),
        }
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        // The connection may end as soon as the answer is read, and before we have looked at it.
        result = &mut exchange => result,
        _ = connection => exchange.await,
    }
}
