//! Who reaches whom, by every driver and both address families: a table of what is expected, tried with real packets.
//!
//! Two sandboxes `a` and `b` are on the network of the row, `c` is on a bridge network beside it, and `a` publishes its port
//! 80 as 8080 of the node where the driver can; on the network `host` it has port 80 of the node itself. In the row `networkOf`
//! it is `a` that is asked and asks in the sandbox of another one, which is on a bridge. Every cell is one question, by TCP and, where an answer is expected, by UDP
//! too, and says whom the answerer saw asking:
//!
//! | word | seen |
//! | --- | --- |
//! | `own` | the asker's own address |
//! | `gate` | the gateway of `a`'s network: the node in the asker's place |
//! | `node` | the node's address outside |
//! | `loop` | the loopback address |
//! | `-` | nobody: there is no answer |

use std::path::PathBuf;
use std::thread;

use super::world::*;
use crate::ids::SandboxId;
use crate::network::{
    Driver, IpvlanMode, LinuxNetworks, MacvlanMode, NetworkSpec, Networks, Protocol, PublishedPort, Tunnel,
};
use crate::sandbox::linux::LinuxSandboxes;
use crate::sandbox::{NetNamespace, SandboxSpec, Sandboxes};

/// The columns: a name, who asks, and whom: a server's name, or `published` or `localhost` for its port by the node.
const WAYS: [(&str, &str, &str); 12] = [
    ("same network", "b", "a"),
    ("other network", "c", "a"),
    ("from the host", "host", "a"),
    ("to the host", "a", "host"),
    ("to outside", "a", "outside"),
    ("from outside", "outside", "a"),
    ("published port", "outside", "published"),
    ("published port from the host", "host", "published"),
    ("hairpin", "b", "published"),
    ("hairpin to itself", "a", "published"),
    ("hairpin of another network", "c", "published"),
    ("localhost", "host", "localhost"),
];

/// The rows: a kind of network, then for IPv4 and IPv6 what each way leads to. `::1` cannot be routed back, so that it is
/// never published.
const EXPECTED: [(&str, [&str; 2]); 14] = [
    //             same other host→ →host →out out→ pub host-pub hairpin itself other-pub localhost
    (
        "bridge",
        ["own - gate own node - own gate gate gate gate gate", "own - gate own node - own gate gate gate gate -"],
    ),
    (
        "open",
        ["own own gate own node - own gate gate gate gate gate", "own own gate own node - own gate gate gate gate -"],
    ),
    ("internal", ["own - gate - - - - gate - - - gate", "own - gate - - - - gate - - - -"]),
    (
        "vxlan",
        ["own - gate own node - own gate gate gate gate gate", "own - gate own node - own gate gate gate gate -"],
    ),
    ("macvlan bridge", ["own - - - own own - - - - - -", "own - - - own own - - - - - -"]),
    ("macvlan private", ["- - - - own own - - - - - -", "- - - - own own - - - - - -"]),
    ("ipvlan l2", ["own - - - own own - - - - - -", "own - - - own own - - - - - -"]),
    ("macvlan vepa", ["- - - - own own - - - - - -", "- - - - own own - - - - - -"]),
    ("ipvlan l3", ["own - - - own own - - - - - -", "own - - - own own - - - - - -"]),
    ("ipvlan l3s", ["own - - - own own - - - - - -", "own - - - own own - - - - - -"]),
    ("cni", ["own gate gate own own own - - - - - -", "own gate gate own own own - - - - - -"]),
    (
        "networkOf",
        ["own - gate own node - own gate gate gate gate gate", "own - gate own node - own gate gate gate gate -"],
    ),
    ("host", ["own own own own own own own own own own own loop", "own own own own own own own own own own own loop"]),
    ("none", ["- - - - - - - - - - - -", "- - - - - - - - - - - -"]),
];

const NODE: [&str; 2] = ["192.0.2.1", "fd00:2::1"];
const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];
const OUTSIDE: [&str; 2] = ["192.0.2.9", "fd00:2::9"];

/// The network of a row, and one beside it.
fn networks_of(kind: &str, world: &World) -> (NetworkSpec, NetworkSpec) {
    let bridge = network("n", &["10.89.0.0/24", "fd00:89::/64"]);
    let beside = network("beside", &["10.90.0.0/24", "fd00:90::/64"]);
    let parent = super::parents::uplink();
    let on_parent = |driver| super::parents::on_uplink("n", driver);
    let made = match kind {
        // On the networks `host` and `none` it is there, and nobody is on it.
        "bridge" | "networkOf" | "host" | "none" => bridge,
        "open" => return [bridge, beside].map(|spec| NetworkSpec { isolated: false, ..spec }).into(),
        "internal" => return [bridge, beside].map(|spec| NetworkSpec { internal: true, ..spec }).into(),
        "vxlan" => {
            let peers = vec![ip(NODE[0]), ip(OUTSIDE[0])];
            NetworkSpec { driver: Driver::Vxlan(Tunnel { vni: 42, port: 4789, peers }), ..bridge }
        }
        "macvlan bridge" => on_parent(Driver::Macvlan { parent, mode: MacvlanMode::Bridge }),
        "macvlan vepa" => on_parent(Driver::Macvlan { parent, mode: MacvlanMode::Vepa }),
        "macvlan private" => on_parent(Driver::Macvlan { parent, mode: MacvlanMode::Private }),
        "ipvlan l2" => on_parent(Driver::Ipvlan { parent, mode: IpvlanMode::L2 }),
        "ipvlan l3" => on_parent(Driver::Ipvlan { parent, mode: IpvlanMode::L3 }),
        "ipvlan l3s" => on_parent(Driver::Ipvlan { parent, mode: IpvlanMode::L3s }),
        "cni" => crate::network::cni::tests::by_bridge_plugin("n", &world.run_dir().with_file_name("cni")),
        other => panic!("{other} is no kind of network"),
    };
    (made, beside)
}

/// Everybody of one row.
struct Players {
    namespaces: Vec<(&'static str, PathBuf)>,
    /// IPv4 and IPv6 addresses of those that have their own.
    addresses: Vec<(&'static str, [String; 2])>,
    gateways: [String; 2],
    /// Where `a` is to be reached by the node.
    published: u16,
}

impl Players {
    fn find<'a, T>(list: &'a [(&str, T)], name: &str) -> &'a T {
        &list.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name} plays no part")).1
    }

    /// What the answerer of a way should say; `None` for no answer.
    fn expected(&self, way: usize, family: usize, word: &str) -> Option<String> {
        let (_, asker, to) = WAYS[way];
        let server = if to == "host" || to == "outside" { to } else { "a" };
        let seen = match word {
            "-" => return None,
            "own" => &Self::find(&self.addresses, asker)[family],
            "gate" => &self.gateways[family],
            "node" => NODE[family],
            "loop" => LOOPBACK[family],
            other => panic!("{other} is no expectation"),
        };
        Some(format!("{server} {seen}"))
    }

    /// Asks, and tells what was answered where that is not what is expected.
    fn ask(&self, way: usize, family: usize, word: &str) -> Option<String> {
        let (_, asker, to) = WAYS[way];
        let (address, port) = match to {
            "published" => (NODE[family], self.published),
            "localhost" => (LOOPBACK[family], self.published),
            "host" => (NODE[family], 7001),
            "outside" => (OUTSIDE[family], 7000),
            server => (Self::find(&self.addresses, server)[family].as_str(), 80),
        };
        let expected = self.expected(way, family, word);
        let from = Self::find(&self.namespaces, asker);
        let to = (address, port);
        let tell = |answer: std::io::Result<String>| match answer {
            Ok(said) if Some(&said) == expected.as_ref() => None,
            Ok(said) => Some(format!("answered {said:?} instead of {expected:?}")),
            Err(_) if expected.is_none() => None,
            Err(error) => Some(format!("{error} instead of {expected:?}")),
        };
        if expected.is_none() {
            return tell(inside(from, || ask_shortly(to)));
        }
        let by_tcp = tell(inside(from, || ask(to)));
        // A host with several addresses answers a datagram by another one, unless its program sees to that.
        let by_node = WAYS[way].2 == "host" || *Self::find(&self.addresses, "a") == NODE;
        if by_tcp.is_some() || (by_node && WAYS[way].2 != "outside") {
            return by_tcp;
        }
        tell(inside(from, || ask_udp(to))).map(|wrong| format!("by UDP {wrong}"))
    }
}

fn both(port: PublishedPort) -> [PublishedPort; 2] {
    [PublishedPort { protocol: Protocol::Udp, ..port.clone() }, port]
}

/// A sandbox on a network that serves its name, and its addresses.
async fn member(world: &World, networks: &LinuxNetworks, name: &str, network: &str) -> (PathBuf, [String; 2]) {
    let (netns, made) = attach(world, networks, name, network, &[]).await;
    let of = |v6: bool| made.addresses.iter().find(|net| net.addr().is_ipv6() == v6).unwrap().addr().to_string();
    (netns, [of(false), of(true)])
}

/// A sandbox as the agent makes it for a Workload that has no network of its own.
async fn settle(world: &World, networks: &LinuxNetworks, kind: &str, name: &str) -> (PathBuf, [String; 2]) {
    let sandboxes = LinuxSandboxes::new(world.run_dir()).unwrap();
    let usual = crate::sandbox::conformance::spec(name);
    let spec = |net| SandboxSpec { net, sysctls: Default::default(), ..usual.clone() };
    let (net, addresses) = match kind {
        "host" => (NetNamespace::Host, NODE.map(str::to_owned)),
        // Nobody has these.
        "none" => (NetNamespace::New, ["10.89.0.10", "fd00:89::10"].map(str::to_owned)),
        _ => {
            let owner = SandboxSpec { id: SandboxId::new("owner").unwrap(), ..spec(NetNamespace::New) };
            let netns = sandboxes.ensure(&owner).await.unwrap().netns.unwrap();
            let made = networks.attach(&wish("owner", "n", &netns, &[])).await.unwrap();
            let of = |v6: bool| made.addresses.iter().find(|net| net.addr().is_ipv6() == v6).unwrap().addr();
            (NetNamespace::Of(owner.id), [of(false), of(true)].map(|address| address.to_string()))
        }
    };
    let made = sandboxes.ensure(&spec(net)).await.unwrap();
    let netns = made.netns.unwrap_or_else(|| PathBuf::from("/proc/thread-self/ns/net"));
    // On the node there is one port 80 for all.
    if (kind, name) != ("host", "b") {
        serve(&netns, name, 80);
    }
    (netns, addresses)
}

/// Tries one row; returns the cells that are not as expected.
async fn failures(world: World, kind: &'static str, expected: [&'static str; 2]) -> Vec<String> {
    let outside = world.outside();
    // The plugins' gateway is to be a source at once, without being checked for a second.
    std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
    let networks = world.networks();
    let (spec, beside) = networks_of(kind, &world);
    networks.ensure_network(&beside).await.unwrap();
    if matches!(spec.driver, Driver::Ipvlan { .. }) && !super::parents::is_possible(&spec.driver) {
        leave_out(kind);
        return Vec::new();
    }
    networks.ensure_network(&spec).await.unwrap();
    let host = PathBuf::from("/proc/thread-self/ns/net");
    serve(&outside, "outside", 7000);
    serve(&host, "host", 7001);
    let mut players = Players {
        namespaces: vec![("outside", outside), ("host", host)],
        addresses: vec![("outside", OUTSIDE.map(str::to_owned)), ("host", NODE.map(str::to_owned))],
        gateways: match kind {
            "cni" => ["10.77.0.1", "fd00:77::1"].map(str::to_owned),
            _ => ["10.89.0.1", "fd00:89::1"].map(str::to_owned),
        },
        published: if kind == "host" { 80 } else { 8080 },
    };
    for (name, network) in [("a", "n"), ("b", "n"), ("c", "beside")] {
        let (netns, addresses) = match (kind, name) {
            ("host" | "none", "a" | "b") | ("networkOf", "a") => settle(&world, &networks, kind, name).await,
            _ => member(&world, &networks, name, network).await,
        };
        players.namespaces.push((name, netns));
        players.addresses.push((name, addresses));
    }
    if spec.driver.has_bridge() && !matches!(kind, "host" | "none") {
        let targets = Players::find(&players.addresses, "a");
        let ports: Vec<_> = targets.iter().flat_map(|to| both(published(None, 8080, to, 80))).collect();
        let owner = if kind == "networkOf" { "owner" } else { "a" };
        networks.set_ports(&sandbox(owner), &ports).await.unwrap();
    }
    let cells = expected.iter().enumerate().flat_map(|(family, row)| {
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words.len(), WAYS.len(), "{kind}: {row}");
        words.into_iter().enumerate().map(move |(way, word)| (way, family, word))
    });
    let players = &players;
    // All at once: what is closed takes its time to be known so.
    thread::scope(|scope| {
        let ask = |(way, family, word): (usize, usize, &'static str)| {
            let name = format!("{kind}, {}, {}", ["IPv4", "IPv6"][family], WAYS[way].0);
            scope.spawn(move || players.ask(way, family, word).map(|wrong| format!("{name}: {wrong}")))
        };
        let asking: Vec<_> = cells.map(ask).collect();
        asking.into_iter().filter_map(|asked| asked.join().unwrap()).collect()
    })
}

#[test]
fn every_driver_reaches_what_it_should_and_nothing_else() {
    let rows = EXPECTED.map(|(kind, expected)| {
        thread::spawn(move || {
            let (sender, failed) = std::sync::mpsc::channel();
            on_a_node(move |world| async move {
                sender.send(failures(world, kind, expected).await).unwrap();
            });
            failed.recv().unwrap()
        })
    });
    let failed: Vec<String> = rows.into_iter().flat_map(|row| row.join().unwrap()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
