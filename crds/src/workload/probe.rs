//! Probes and lifecycle handlers: what is asked of, or done in, a running container.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A question asked again and again of a running container. Exactly one of `exec`, `httpGet`, `tcpSocket`, `grpc`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "(has(self.exec) ? 1 : 0) + (has(self.httpGet) ? 1 : 0) + (has(self.tcpSocket) ? 1 : 0) + (has(self.grpc) ? 1 : 0) == 1",
        "exactly one handler is needed: exec, httpGet, tcpSocket or grpc"
    )
)]
pub struct Probe {
    /// Run a command in the container; exit code 0 is success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecAction>,
    /// Send a GET request; a status from 200 to 399 is success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpGetAction>,
    /// Open a TCP connection; being accepted is success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_socket: Option<TcpSocketAction>,
    /// Ask the gRPC health service; `SERVING` is success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcAction>,
    /// Seconds from the container's start to the first probe.
    #[serde(default)]
    pub initial_delay_seconds: u32,
    /// Seconds from one probe to the next.
    #[serde(default = "ten")]
    #[schemars(range(min = 1))]
    pub period_seconds: u32,
    /// Seconds after which an answer is too late.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub timeout_seconds: u32,
    /// Successes in a row after which a failing container is well again. Must be 1 for liveness and startup.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub success_threshold: u32,
    /// Failures in a row after which a container counts as failed.
    #[serde(default = "three")]
    #[schemars(range(min = 1))]
    pub failure_threshold: u32,
    /// For liveness and startup: seconds to end in before the container is killed, instead of the Workload's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub termination_grace_period_seconds: Option<u32>,
}

impl Default for Probe {
    fn default() -> Self {
        Probe {
            exec: None,
            http_get: None,
            tcp_socket: None,
            grpc: None,
            initial_delay_seconds: 0,
            period_seconds: ten(),
            timeout_seconds: one(),
            success_threshold: one(),
            failure_threshold: three(),
            termination_grace_period_seconds: None,
        }
    }
}

/// The one handler of a [`Probe`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ProbeHandler<'a> {
    /// Run a command.
    Exec(&'a ExecAction),
    /// Send a GET request.
    HttpGet(&'a HttpGetAction),
    /// Open a TCP connection.
    TcpSocket(&'a TcpSocketAction),
    /// Ask the gRPC health service.
    Grpc(&'a GrpcAction),
}

impl Probe {
    /// The handler; `None` unless there is exactly one, which the schema's rules prevent.
    pub fn handler(&self) -> Option<ProbeHandler<'_>> {
        let mut handlers = [
            self.exec.as_ref().map(ProbeHandler::Exec),
            self.http_get.as_ref().map(ProbeHandler::HttpGet),
            self.tcp_socket.as_ref().map(ProbeHandler::TcpSocket),
            self.grpc.as_ref().map(ProbeHandler::Grpc),
        ]
        .into_iter()
        .flatten();
        let first = handlers.next();
        if handlers.next().is_none() { first } else { None }
    }
}

/// A command run in the container, not by a shell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecAction {
    /// The program and its arguments.
    #[schemars(length(min = 1, max = 256), extend("x-kubernetes-list-type" = "atomic"))]
    pub command: Vec<String>,
}

/// A GET request to the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpGetAction {
    /// Path and query.
    #[serde(default = "root")]
    #[schemars(length(max = 4096), regex(pattern = "^/"))]
    pub path: String,
    /// Number or name of the port.
    pub port: IntOrString,
    /// Host to connect to. Default: the Workload's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub host: Option<String>,
    /// `HTTP` or `HTTPS`; a certificate is not checked.
    #[serde(default)]
    pub scheme: HttpScheme,
    /// Headers to send.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub http_headers: Vec<HttpHeader>,
}

/// How a GET request is carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpScheme {
    /// In the clear.
    #[default]
    Http,
    /// By TLS.
    Https,
}

/// One header of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HttpHeader {
    /// Its name.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[-A-Za-z0-9!#$%&'*+.^_`|~]+$"))]
    pub name: String,
    /// Its value.
    #[schemars(length(max = 4096))]
    pub value: String,
}

/// A TCP connection to the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TcpSocketAction {
    /// Number or name of the port.
    pub port: IntOrString,
    /// Host to connect to. Default: the Workload's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub host: Option<String>,
}

/// A call of the gRPC health service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GrpcAction {
    /// Number of the port.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Name of the service asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub service: Option<String>,
}

/// What is done at a container's beginning and end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    /// Done right after the start; the container is stopped if it fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_start: Option<LifecycleHandler>,
    /// Done before the stop signal is sent; its time counts against the grace period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_stop: Option<LifecycleHandler>,
    /// The signal that asks the container to end, by name. Default: the image's, or `SIGTERM`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = r"^SIG[A-Z0-9]+([+-][0-9]+)?$"))]
    pub stop_signal: Option<String>,
}

/// One thing to do. Exactly one of `exec`, `httpGet`, `sleep`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "(has(self.exec) ? 1 : 0) + (has(self.httpGet) ? 1 : 0) + (has(self.sleep) ? 1 : 0) == 1",
        "exactly one handler is needed: exec, httpGet or sleep"
    )
)]
pub struct LifecycleHandler {
    /// Run a command in the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecAction>,
    /// Send a GET request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpGetAction>,
    /// Wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sleep: Option<SleepAction>,
}

/// A pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SleepAction {
    /// How long, in seconds.
    pub seconds: u32,
}

fn one() -> u32 {
    1
}

fn three() -> u32 {
    3
}

fn ten() -> u32 {
    10
}

fn root() -> String {
    "/".to_owned()
}
