//! What of this node would stand in the way of networks, each with what to do about it.

use netlink_packet_route::link::InfoKind;
use rustix::net::{AddressFamily, SocketType, ipproto};

use super::link::Links;
use super::nft::foreign::{Dropping, dropping};
use super::sysctl;
use crate::host::checks::{Check, Level};

/// Kinds of links that not every kernel has: what they are for, their module, and the kernel's option.
const KINDS: [(&str, InfoKind, &str, &str); 4] = [
    ("macvlan links", InfoKind::MacVlan, "macvlan", "CONFIG_MACVLAN"),
    ("ipvlan links", InfoKind::IpVlan, "ipvlan", "CONFIG_IPVLAN"),
    ("vxlan links", InfoKind::Vxlan, "vxlan", "CONFIG_VXLAN"),
    ("VLANs", InfoKind::Vlan, "8021q", "CONFIG_VLAN_8021Q"),
];

/// All checks, of the calling thread's network namespace. They change nothing, but may load modules.
pub(crate) fn run() -> Vec<Check> {
    let bridged = matches!(sysctl::read("bridge/bridge-nf-call-iptables"), Ok(Some(value)) if value == "1");
    let mut checks: Vec<Check> = KINDS.into_iter().map(kind).collect();
    checks.push(sctp());
    checks.push(match dropping() {
        Ok(found) => firewalls(&found, bridged),
        Err(error) => warning(FIREWALLS, error.to_string(), "run as root; in a container, as privileged"),
    });
    checks
}

const FIREWALLS: &str = "other firewalls";

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, level: Level::Ok, found: found.into(), remedy: String::new() }
}

fn warning(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, level: Level::Warn, found: found.into(), remedy: remedy.into() }
}

fn kind((name, kind, module, option): (&'static str, InfoKind, &str, &str)) -> Check {
    let possible = Links::open().map_err(|error| error.to_string());
    match possible.and_then(|mut links| links.can_make(kind).map_err(|error| error.to_string())) {
        Ok(true) => ok(name, "work"),
        Ok(false) => warning(
            name,
            "not in this kernel: Networks that need them are not ready",
            format!("load the module: modprobe {module}, or use a kernel with {option}"),
        ),
        Err(error) => warning(name, error, "run as root; in a container, as privileged"),
    }
}

fn sctp() -> Check {
    const NAME: &str = "SCTP";
    match rustix::net::socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP)) {
        Ok(_) => ok(NAME, "works"),
        Err(error) => warning(
            NAME,
            format!("{error}: whether a program of the node has a port is not known before it is published"),
            "load the module: modprobe sctp, if Workloads publish ports of SCTP",
        ),
    }
}

/// `bridged` says that packets between neighbours pass the rules for IP, too.
fn firewalls(found: &[Dropping], bridged: bool) -> Check {
    let strangers: Vec<&Dropping> = found.iter().filter(|chain| !chain.knows_us).collect();
    if strangers.is_empty() {
        return ok(FIREWALLS, if found.is_empty() { "none drops what is forwarded" } else { "let the networks pass" });
    }
    let names: Vec<String> =
        strangers.iter().map(|Dropping { family, table, chain, .. }| format!("{family} {table} {chain}")).collect();
    let affected = match bridged {
        true => "ways out, published ports from outside, and neighbours (bridge-nf-call-iptables is on)",
        false => "ways out and published ports from outside",
    };
    let mut remedies: Vec<String> = strangers.iter().map(|chain| remedy(chain)).collect();
    remedies.dedup();
    if bridged {
        remedies.push("unless something needs it: sysctl -w net.bridge.bridge-nf-call-iptables=0".to_owned());
    }
    warning(FIREWALLS, format!("{} drops what is forwarded: {affected}", names.join(", ")), remedies.join("; "))
}

fn remedy(Dropping { family, table, chain, for_users, .. }: &Dropping) -> String {
    if table == "firewalld" {
        return "firewall-cmd --permanent --zone=trusted --add-source=SUBNET && firewall-cmd --reload, for each Network"
            .to_owned();
    }
    let chain = for_users.unwrap_or(chain);
    if *family == "bridge" {
        return format!("let frames between ports named nlv* pass in bridge {table} {chain}");
    }
    // What came by another program is best changed by it.
    if *family != "inet" && table == "filter" {
        let program = if *family == "ip6" { "ip6tables" } else { "iptables" };
        return format!("{program} -I {chain} -i nl+ -j ACCEPT; {program} -I {chain} -o nl+ -j ACCEPT");
    }
    format!(
        "nft insert rule {family} {table} {chain} iifname 'nl*' accept; nft insert rule {family} {table} {chain} oifname \
         'nl*' accept"
    )
}
