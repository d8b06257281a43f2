//! Names that are not ours: asked of the servers that a network declares, or of the node's.
//!
//! hickory's resolver does the asking: with a cache, EDNS, TCP after a cut answer, several servers at once and the
//! quicker ones first. It does it in the node's network namespace, so a server on the node's loopback is fine, except
//! systemd-resolved's stub: behind that, the real servers are asked.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::{DnsError, NetError};
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::Record;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};

/// Before another server, or the same one again, is asked.
const TIMEOUT: Duration = Duration::from_millis(1500);
const ATTEMPTS: usize = 2;
/// Clients ask again after five seconds: by then they have been told that nobody answers.
const PATIENCE: Duration = Duration::from_millis(4500);
const CACHED: u64 = 4096;
/// A failure of a moment is not remembered for longer.
const NEGATIVE_TTL: Duration = Duration::from_secs(30);
/// The node's file is looked at again after this long, when there is a question.
const FRESH: Duration = Duration::from_secs(2);
/// Sets of servers with a cache of their own; all are dropped when there are more.
const RESOLVERS: usize = 64;

/// The loopback address of systemd-resolved's stub.
const STUB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 53));

/// What a server elsewhere said.
pub(super) struct Told {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
}

/// Those who are asked.
pub(super) struct Upstreams {
    resolv_conf: PathBuf,
    behind_stub: PathBuf,
    node: Mutex<NodeServers>,
    resolvers: Mutex<HashMap<Vec<IpAddr>, TokioResolver>>,
}

#[derive(Default)]
struct NodeServers {
    looked: Option<Instant>,
    changed: [Option<SystemTime>; 2],
    servers: Vec<IpAddr>,
}

impl Upstreams {
    /// With the node's own files.
    pub(super) fn new() -> Self {
        Self::with_files("/etc/resolv.conf".into(), "/run/systemd/resolve/resolv.conf".into())
    }

    pub(super) fn with_files(resolv_conf: PathBuf, behind_stub: PathBuf) -> Self {
        Self { resolv_conf, behind_stub, node: Mutex::default(), resolvers: Mutex::default() }
    }

    /// Asks `servers`, or the node's if there are none, but never `own`: that would be ourselves again.
    pub(super) async fn ask(&self, servers: &[IpAddr], own: &[IpAddr], query: &Query) -> Told {
        let mut servers = if servers.is_empty() { self.node_servers() } else { servers.to_vec() };
        servers.retain(|server| !own.contains(server));
        let failed = || Told { code: ResponseCode::ServFail, answers: vec![], authorities: vec![] };
        let Some(resolver) = self.resolver(servers) else { return failed() };
        let asked = resolver.lookup(query.name().clone(), query.query_type());
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(lookup)) => {
                Told { code: ResponseCode::NoError, answers: lookup.answers().to_vec(), authorities: Vec::new() }
            }
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => Told {
                code: none.response_code,
                answers: vec![],
                authorities: none.soa.map(|soa| soa.into_record_of_rdata()).into_iter().collect(),
            },
            Ok(Err(NetError::Dns(DnsError::ResponseCode(code)))) => Told { code, ..failed() },
            Ok(Err(error)) => {
                tracing::debug!(name = %query.name(), %error, "asking upstream name servers");
                failed()
            }
            Err(_) => failed(),
        }
    }

    fn resolver(&self, servers: Vec<IpAddr>) -> Option<TokioResolver> {
        if servers.is_empty() {
            return None;
        }
        let mut resolvers = self.resolvers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resolver) = resolvers.get(&servers) {
            return Some(resolver.clone());
        }
        let all = servers.iter().map(|server| NameServerConfig::udp_and_tcp(*server)).collect();
        let mut options = ResolverOpts::default();
        options.timeout = TIMEOUT;
        options.attempts = ATTEMPTS;
        options.edns0 = true;
        options.cache_size = CACHED;
        options.negative_max_ttl = Some(NEGATIVE_TTL);
        options.use_hosts_file = ResolveHosts::Never;
        options.try_tcp_on_error = true;
        let config = ResolverConfig::from_name_servers(all);
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let resolver = match builder.with_options(options).build() {
            Ok(resolver) => resolver,
            Err(error) => {
                tracing::warn!(?servers, %error, "these name servers cannot be asked");
                return None;
            }
        };
        if resolvers.len() >= RESOLVERS {
            resolvers.clear();
        }
        resolvers.insert(servers, resolver.clone());
        Some(resolver)
    }

    /// The node's servers; its files are small and in memory, so they are read where they are needed.
    fn node_servers(&self) -> Vec<IpAddr> {
        let mut node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        if node.looked.is_none_or(|looked| looked.elapsed() > FRESH) {
            node.looked = Some(Instant::now());
            let changed = [&self.resolv_conf, &self.behind_stub].map(|path| changed_at(path));
            if changed != node.changed || node.servers.is_empty() {
                node.changed = changed;
                let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
                node.servers = servers(&read(&self.resolv_conf), || read(&self.behind_stub));
            }
        }
        node.servers.clone()
    }
}

fn changed_at(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// The servers of a resolv.conf; behind the stub of systemd-resolved, those of its real file.
fn servers(resolv_conf: &str, behind_stub: impl FnOnce() -> String) -> Vec<IpAddr> {
    let listed = |text: &str| -> Vec<IpAddr> {
        let values = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        // A scope after `%` names a link; without it a link-local server cannot be reached.
        values.filter_map(|value| value.trim().parse().ok()).filter(|ip: &IpAddr| !ip.is_unspecified()).collect()
    };
    let mut found = listed(resolv_conf);
    if found.contains(&STUB) {
        let stub = found.iter().position(|ip| *ip == STUB).unwrap_or_default();
        found.retain(|ip| *ip != STUB);
        for (offset, server) in listed(&behind_stub()).into_iter().filter(|ip| *ip != STUB).enumerate() {
            found.insert((stub + offset).min(found.len()), server);
        }
    }
    let mut unique = Vec::new();
    for server in found {
        if !unique.contains(&server) {
            unique.push(server);
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn servers_are_read_from_the_nodes_file() {
        let text = "# nameserver 1.1.1.1\nsearch lan\nnameserver 192.0.2.9\n nameserver\tfd00::9 \nnameserver x\n";
        assert_eq!(servers(text, String::new), ips(&["192.0.2.9", "fd00::9"]));
        assert_eq!(servers("", String::new), ips(&[]));
        assert_eq!(servers("nameserver 9.9.9.9\nnameserver 9.9.9.9", String::new), ips(&["9.9.9.9"]));
    }

    #[test]
    fn the_stub_stands_for_the_servers_behind_it() {
        let stub = "nameserver 127.0.0.53\noptions edns0";
        let real = || "nameserver 192.0.2.9\nnameserver 192.0.2.10\n".to_owned();
        assert_eq!(servers(stub, real), ips(&["192.0.2.9", "192.0.2.10"]));
        assert_eq!(servers(stub, || stub.to_owned()), ips(&[]));
        let both = "nameserver 9.9.9.9\nnameserver 127.0.0.53";
        assert_eq!(servers(both, real), ips(&["9.9.9.9", "192.0.2.9", "192.0.2.10"]));
    }
}
