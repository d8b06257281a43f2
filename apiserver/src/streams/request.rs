//! What a client asks for: which program or ports, in which protocol. Everything that can be wrong is found here, before
//! the connection becomes something else.

use http::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, Method};
use serde_json::Value;

use super::websocket::Encoding;
use super::{StdStreams, StreamKind, StreamTarget};
use crate::request::Query;
use crate::status::ApiError;

/// Ports of one request; each has two of the 255 channels.
const PORTS: usize = 64;
/// Streams of `exec` and `attach` in SPDY, the best first; the older ones tell the end in words.
const SPDY_REMOTE: [&str; 3] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io"];
const SPDY_FORWARD: &str = "portforward.k8s.io";
/// SPDY inside a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const WEBSOCKET_FORWARD: [&str; 2] = ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
const WEBSOCKET_REMOTE: [&str; 5] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"];

/// A request that can be fulfilled, as far as its form goes.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) target: StreamTarget,
    pub(super) asked: Asked,
    /// The channels that the client will use, whatever the program has.
    pub(super) announced: StdStreams,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Exec {
        command: Vec<String>,
        streams: StdStreams,
    },
    Attach {
        streams: StdStreams,
    },
    /// The ports are known from the start in the WebSocket protocol only.
    PortForward {
        ports: Vec<u16>,
    },
}

/// The part of an object that a path names, if it is one of ours.
pub(crate) fn kind_of(subresource: &str) -> Option<StreamKind> {
    match subresource {
        "exec" => Some(StreamKind::Exec),
        "attach" => Some(StreamKind::Attach),
        "portforward" => Some(StreamKind::PortForward),
        _ => None,
    }
}

/// What the connection becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Channels in messages; `name` is empty if the client named none.
    WebSocket { name: &'static str, key: String },
    /// SPDY in binary messages.
    Tunnel { key: String },
    /// SPDY itself.
    Spdy { name: &'static str },
}

impl Protocol {
    /// How channels are written.
    pub(super) fn encoding(&self) -> Encoding {
        let name = self.name();
        Encoding { base64: name.contains("base64"), closes: name.starts_with("v5") }
    }

    /// Whether the end of a program is told as a `Status`.
    pub(super) fn has_status(&self) -> bool {
        matches!(self.name().get(..2), Some("v4" | "v5"))
    }

    /// Whether a terminal's size can be told.
    pub(super) fn has_resize(&self) -> bool {
        self.name() != "v2.channel.k8s.io"
    }

    /// Whether clients were used to an empty message once the program's streams are open.
    pub(super) fn greets(&self) -> bool {
        !matches!(self, Self::WebSocket { name: "v5.channel.k8s.io", .. })
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::WebSocket { name, .. } | Self::Spdy { name } => name,
            Self::Tunnel { .. } => TUNNEL,
        }
    }
}

/// Reads the query.
pub(super) fn read(
    kind: StreamKind,
    query: &Query,
    namespace: String,
    name: String,
    object: Value,
) -> Result<Request, ApiError> {
    let tty = query.flag("tty");
    let announced = StdStreams {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr") && !tty,
        tty,
    };
    let (asked, container) = asked(kind, query, announced, &object)?;
    Ok(Request { target: StreamTarget { namespace, name, object, container }, asked, announced })
}

fn asked(
    kind: StreamKind,
    query: &Query,
    given: StdStreams,
    object: &Value,
) -> Result<(Asked, Option<String>), ApiError> {
    if kind == StreamKind::PortForward {
        return Ok((Asked::PortForward { ports: ports(query)? }, None));
    }
    let container = container(query.text("container"), object)?;
    if !given.stdin && !given.stdout && !given.stderr {
        return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let name = container["name"].as_str().map(str::to_owned);
    if kind == StreamKind::Attach {
        // A program that runs has a terminal or has none, whatever the client would like.
        let tty = container["tty"] == true;
        return Ok((Asked::Attach { streams: StdStreams { stderr: given.stderr && !tty, tty, ..given } }, name));
    }
    let command: Vec<String> = query.all("command").map(str::to_owned).collect();
    if command.first().is_none_or(String::is_empty) {
        return Err(ApiError::bad_request("you must specify at least one command for the container"));
    }
    Ok((Asked::Exec { command, streams: given }, name))
}

/// The container of that name, or the only one.
fn container<'a>(wanted: &str, object: &'a Value) -> Result<&'a Value, ApiError> {
    let all = |field: &str| object["spec"][field].as_array().map(Vec::as_slice).unwrap_or_default();
    let (containers, first) = (all("containers"), all("initContainers"));
    let pod = object["metadata"]["name"].as_str().unwrap_or_default();
    if !wanted.is_empty() {
        let found = containers.iter().chain(first).find(|container| container["name"] == wanted);
        return found.ok_or_else(|| ApiError::bad_request(format!("container {wanted} is not valid for pod {pod}")));
    }
    let names = |of: &[Value]| of.iter().filter_map(|c| c["name"].as_str()).collect::<Vec<_>>().join(" ");
    match containers {
        [only] => Ok(only),
        [] => Err(ApiError::bad_request(format!("a container name must be specified for pod {pod}"))),
        several => {
            let mut message =
                format!("a container name must be specified for pod {pod}, choose one of: [{}]", names(several));
            if !first.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", names(first)));
            }
            Err(ApiError::bad_request(message))
        }
    }
}

fn ports(query: &Query) -> Result<Vec<u16>, ApiError> {
    let given = query.all("ports").chain(query.all("port")).flat_map(|list| list.split(','));
    let mut ports = Vec::new();
    for text in given.map(str::trim).filter(|text| !text.is_empty()) {
        match text.parse::<u16>() {
            Ok(port) if port > 0 => ports.push(port),
            _ => return Err(ApiError::bad_request(format!("{text:?} is not a port"))),
        }
        if ports.len() > PORTS {
            return Err(ApiError::bad_request(format!("at most {PORTS} ports can be forwarded at once")));
        }
    }
    Ok(ports)
}

/// Which protocol the client wants and the server has.
pub(super) fn protocol(method: &Method, headers: &HeaderMap, asked: &Asked) -> Result<Protocol, ApiError> {
    if !matches!(*method, Method::GET | Method::POST) {
        return Err(ApiError::method_not_allowed());
    }
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !words(headers, CONNECTION.as_str()).any(|word| word.eq_ignore_ascii_case("upgrade")) {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    if upgrade.eq_ignore_ascii_case("websocket") {
        websocket(method, headers, asked)
    } else if upgrade.eq_ignore_ascii_case("SPDY/3.1") {
        spdy(headers, asked)
    } else {
        Err(ApiError::bad_request(format!("unable to upgrade: {upgrade:?} is neither websocket nor SPDY/3.1")))
    }
}

fn websocket(method: &Method, headers: &HeaderMap, asked: &Asked) -> Result<Protocol, ApiError> {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok()).unwrap_or_default();
    if *method != Method::GET {
        return Err(ApiError::bad_request("a WebSocket begins with GET"));
    }
    if text(SEC_WEBSOCKET_VERSION) != "13" {
        return Err(ApiError::bad_request("only version 13 of the WebSocket protocol is spoken"));
    }
    let key = text(SEC_WEBSOCKET_KEY).to_owned();
    if key.len() != 24 {
        return Err(ApiError::bad_request("Sec-WebSocket-Key is missing or has the wrong length"));
    }
    let offered: Vec<&str> = words(headers, SEC_WEBSOCKET_PROTOCOL.as_str()).collect();
    let known: &[&'static str] = match asked {
        Asked::PortForward { .. } if offered.contains(&TUNNEL) => return Ok(Protocol::Tunnel { key }),
        Asked::PortForward { .. } => &WEBSOCKET_FORWARD,
        _ => &WEBSOCKET_REMOTE,
    };
    let chosen = offered.iter().find_map(|name| known.iter().find(|k| *k == name));
    let name = match chosen {
        Some(name) => name,
        None if offered.is_empty() => "",
        None => {
            let message = format!("requested protocol(s) are not supported: {offered:?}; supports {known:?}");
            return Err(ApiError::bad_request(message));
        }
    };
    if matches!(asked, Asked::PortForward { ports } if ports.is_empty()) {
        return Err(ApiError::bad_request("query parameter \"ports\" is required"));
    }
    Ok(Protocol::WebSocket { name, key })
}

fn spdy(headers: &HeaderMap, asked: &Asked) -> Result<Protocol, ApiError> {
    let offered: Vec<&str> = words(headers, "x-stream-protocol-version").collect();
    let known: &[&'static str] = match asked {
        Asked::PortForward { .. } => &[SPDY_FORWARD],
        _ => &SPDY_REMOTE,
    };
    match known.iter().find(|name| offered.contains(name)) {
        Some(name) => Ok(Protocol::Spdy { name }),
        None => {
            let message = format!(
                "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}"
            );
            Err(ApiError::new(403, "Forbidden", message))
        }
    }
}

/// The comma-separated words of all headers of a name.
fn words<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(kind: StreamKind, query: &str) -> Result<Request, String> {
        let object = json!({"metadata": {"name": "web"}, "spec": {
            "initContainers": [{"name": "prepare"}],
            "containers": [{"name": "a", "tty": true, "stdin": true}, {"name": "b"}]}});
        super::read(kind, &Query::parse(query), "default".into(), "web".into(), object).map_err(|error| error.message)
    }

    #[test]
    fn queries_are_read_or_refused() {
        let streams = |stdin, stdout, stderr, tty| StdStreams { stdin, stdout, stderr, tty };
        let exec = |command: &[&str], streams| Asked::Exec {
            command: command.iter().map(|c| (*c).to_owned()).collect(),
            streams,
        };
        for (query, expected) in [
            (
                "container=b&command=sh&command=-c&command=&stdout=true&stderr=1",
                exec(&["sh", "-c", ""], streams(false, true, true, false)),
            ),
            (
                "container=prepare&command=x&stdin=true&tty=true&stderr=true",
                exec(&["x"], streams(true, false, false, true)),
            ),
        ] {
            assert_eq!(read(StreamKind::Exec, query).unwrap().asked, expected, "{query}");
        }
        let attach = read(StreamKind::Attach, "container=a&stdout=true&stderr=true").unwrap();
        assert_eq!(attach.asked, Asked::Attach { streams: streams(false, true, false, true) });
        assert_eq!(attach.announced, streams(false, true, true, false));
        assert_eq!(attach.target.container.as_deref(), Some("a"));
        assert_eq!(
            read(StreamKind::PortForward, "ports=80,81&ports=82").unwrap().asked,
            Asked::PortForward { ports: vec![80, 81, 82] }
        );
        for (kind, query, says) in [
            (StreamKind::Exec, "container=a&command=x", "at least 1 of stdin, stdout, stderr"),
            (StreamKind::Exec, "container=a&stdout=true", "at least one command"),
            (StreamKind::Exec, "container=c&command=x&stdout=true", "container c is not valid for pod web"),
            (
                StreamKind::Exec,
                "command=x&stdout=true",
                "choose one of: [a b] or one of the init containers: [prepare]",
            ),
            (StreamKind::PortForward, "ports=80,0", "\"0\" is not a port"),
            (StreamKind::PortForward, "ports=65536", "is not a port"),
        ] {
            let refused = read(kind, query).unwrap_err();
            assert!(refused.contains(says), "{query}: {refused}");
        }
    }

    #[test]
    fn the_protocol_is_one_that_both_know() {
        let forward = || Asked::PortForward { ports: vec![80] };
        let attach = || Asked::Attach { streams: StdStreams { stdin: true, stdout: true, stderr: false, tty: false } };
        let choose = |asked: &Asked, upgrade: &'static str, offered: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONNECTION, http::HeaderValue::from_static("keep-alive, Upgrade"));
            headers.insert(UPGRADE, http::HeaderValue::from_static(upgrade));
            headers.insert(SEC_WEBSOCKET_VERSION, http::HeaderValue::from_static("13"));
            headers.insert(SEC_WEBSOCKET_KEY, http::HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
            let name = if upgrade != "SPDY/3.1" { "sec-websocket-protocol" } else { "x-stream-protocol-version" };
            if !offered.is_empty() {
                headers.insert(name, http::HeaderValue::from_static(offered));
            }
            protocol(&Method::GET, &headers, asked).map(|p| p.name()).map_err(|e| (e.code, e.message))
        };
        assert_eq!(choose(&attach(), "websocket", "v5.channel.k8s.io, v4.channel.k8s.io"), Ok("v5.channel.k8s.io"));
        assert_eq!(choose(&forward(), "websocket", "v5.channel.k8s.io,v4.channel.k8s.io"), Ok("v4.channel.k8s.io"));
        assert_eq!(choose(&forward(), "WebSocket", TUNNEL), Ok(TUNNEL));
        assert_eq!(choose(&attach(), "websocket", ""), Ok(""));
        assert_eq!(choose(&attach(), "SPDY/3.1", "v2.channel.k8s.io, v4.channel.k8s.io"), Ok("v4.channel.k8s.io"));
        assert_eq!(choose(&forward(), "SPDY/3.1", SPDY_FORWARD), Ok(SPDY_FORWARD));
        assert_eq!(choose(&attach(), "websocket", "nonsense").unwrap_err().0, 400);
        assert_eq!(choose(&attach(), "SPDY/3.1", "nonsense").unwrap_err().0, 403);
        assert_eq!(choose(&attach(), "h2c", "").unwrap_err().0, 400);
        assert_eq!(
            protocol(&Method::GET, &HeaderMap::new(), &attach()).unwrap_err().message,
            "Upgrade request required"
        );
        assert_eq!(protocol(&Method::PUT, &HeaderMap::new(), &attach()).unwrap_err().code, 405);
    }
}
