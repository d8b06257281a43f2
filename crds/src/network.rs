//! Network: what Workloads attach to.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{Condition, NodeSelector, conditions_schema, yes};

/// A network that exists on each selected node.
///
/// `default` of the namespace `default`, a bridge, exists from the start; `host` and `none` exist in every namespace.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "nodelet.dev",
    version = "v1alpha1",
    kind = "Network",
    namespaced,
    shortname = "net",
    category = "nodelet",
    status = "NetworkStatus",
    derive = "PartialEq",
    doc = "A network of the selected nodes that Workloads attach to.",
    validation = (
        "!(self.metadata.name in ['host', 'none']) || self.spec.driver == self.metadata.name",
        "the names host and none belong to the networks of these drivers"
    ),
    printcolumn(name = "Driver", type_ = "string", json_path = ".spec.driver", description = "What makes the network."),
    printcolumn(name = "Subnet", type_ = "string", json_path = ".spec.subnets[0].cidr", description = "The first subnet, if one was asked for."),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether every selected node has it."),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is ready or not."),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.readyNodes", description = "Nodes that have it."),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.failedNodes", priority = 1, description = "Nodes that failed to make it."),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1, description = "The reason in a sentence."),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Since when the object exists.")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.driver == oldSelf.driver", "the driver cannot be changed: create another Network"),
    validation = (
        "has(self.parent) == (self.driver in ['macvlan', 'ipvlan'] || has(self.vlan))",
        "parent is needed for the drivers macvlan and ipvlan and with vlan, and otherwise has no meaning"
    ),
    validation = ("!has(self.vlan) || self.driver == 'bridge'", "vlan has a meaning for the driver bridge only"),
    validation = (
        "has(self.vlan) == has(oldSelf.vlan) && (!has(self.vlan) || self.vlan == oldSelf.vlan)",
        "vlan cannot be changed: create another Network"
    ),
    validation = (
        "!has(self.vlan) || (has(self.subnets) && size(self.subnets) > 0)",
        "subnets are needed with vlan: that of the VLAN, with a gateway and a range that nobody else there has"
    ),
    validation = (
        "!has(self.mode) || (self.driver == 'macvlan' && self.mode in ['bridge', 'private', 'vepa', 'passthru']) || (self.driver == 'ipvlan' && self.mode in ['l2', 'l3', 'l3s'])",
        "mode is bridge, private, vepa or passthru for macvlan; l2, l3 or l3s for ipvlan; and nothing for other drivers"
    ),
    validation = (
        "has(self.cni) == (self.driver == 'cni')",
        "cni is needed for the driver cni, and for no other"
    ),
    validation = (
        "has(self.vxlan) == (self.driver == 'vxlan')",
        "vxlan is needed for the driver vxlan, and for no other"
    ),
    validation = (
        "self.driver != 'vxlan' || (has(self.subnets) && size(self.subnets) > 0)",
        "subnets are needed for the driver vxlan: the same on all nodes, each with a gateway and a range of its own"
    ),
    validation = (
        "!has(self.subnets) || size(self.subnets) == 0 || !(self.driver in ['host', 'none', 'cni'])",
        "subnets have no meaning for the drivers host, none and cni"
    ),
    validation = (
        "!has(self.mtu) || !(self.driver in ['host', 'none', 'cni'])",
        "mtu has no meaning for the drivers host, none and cni"
    ),
    validation = (
        "!self.internal || self.driver in ['bridge', 'vxlan']",
        "internal has a meaning for the drivers bridge and vxlan only"
    )
)]
pub struct NetworkSpec {
    /// What makes the network: `bridge`, `macvlan`, `ipvlan`, `vxlan`, `host` (the node's own), `none` (loopback
    /// only) or `cni` (a CNI configuration of the node).
    #[serde(default)]
    pub driver: NetworkDriver,
    /// The address ranges, at most one of each family for a bridge. Empty: a free private /24, chosen once and kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["cidr"]))]
    pub subnets: Vec<Subnet>,
    /// The node's link that macvlan and ipvlan build on, and that `vlan` is a VLAN of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[^\s/:]+$"))]
    pub parent: Option<String>,
    /// A VLAN of `parent` that the bridge is joined to, by 802.1Q.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4094))]
    pub vlan: Option<u16>,
    /// How the driver forwards. macvlan: `bridge` (default), `private`, `vepa`, `passthru`; ipvlan: `l2` (default),
    /// `l3`, `l3s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NetworkMode")]
    pub mode: Option<NetworkMode>,
    /// No way out of the node, and no way in through published ports.
    #[serde(default)]
    pub internal: bool,
    /// No traffic to or from other nodelet networks of the node.
    #[serde(default = "yes")]
    pub isolated: bool,
    /// Largest packet in bytes. Default: 1500, or that of the parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 576, max = 65535))]
    pub mtu: Option<u32>,
    /// Name resolution of the attached Workloads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<NetworkDns>,
    /// The tunnel to the other nodes, for the driver `vxlan`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vxlan: Option<VxlanTunnel>,
    /// The CNI configuration, for the driver `cni`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni: Option<CniSource>,
    /// The nodes that have the network. Empty: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<NodeSelector>,
}

impl Default for NetworkSpec {
    fn default() -> Self {
        NetworkSpec {
            driver: NetworkDriver::default(),
            subnets: Vec::new(),
            parent: None,
            vlan: None,
            mode: None,
            internal: false,
            isolated: true,
            mtu: None,
            dns: None,
            vxlan: None,
            cni: None,
            node_selector: None,
        }
    }
}

/// What makes a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkDriver {
    /// A bridge of the node; the way out is translated to the node's address.
    #[default]
    Bridge,
    /// Links of their own hardware address on a parent link.
    Macvlan,
    /// Links that share the parent's hardware address.
    Ipvlan,
    /// A bridge that reaches the same network of other nodes.
    Vxlan,
    /// The node's own network.
    Host,
    /// Loopback only.
    None,
    /// A CNI configuration of the node.
    Cni,
}

impl NetworkDriver {
    /// The name as the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            NetworkDriver::Bridge => "bridge",
            NetworkDriver::Macvlan => "macvlan",
            NetworkDriver::Ipvlan => "ipvlan",
            NetworkDriver::Vxlan => "vxlan",
            NetworkDriver::Host => "host",
            NetworkDriver::None => "none",
            NetworkDriver::Cni => "cni",
        }
    }
}

/// How macvlan and ipvlan forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// macvlan: endpoints of one parent reach each other.
    Bridge,
    /// macvlan: endpoints of one parent do not reach each other.
    Private,
    /// macvlan: all traffic goes through the switch behind the parent.
    Vepa,
    /// macvlan: one endpoint takes the parent over.
    Passthru,
    /// ipvlan: switching.
    L2,
    /// ipvlan: routing.
    L3,
    /// ipvlan: routing, with the node's connection tracking.
    L3s,
}

/// An address range of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("isCIDR(self.cidr) && cidr(self.cidr).masked() == cidr(self.cidr)", "cidr must be a network such as 10.89.1.0/24 or fd00:89::/64, with no bits set behind the prefix"),
    validation = ("!has(self.gateway) || (isCIDR(self.cidr) && isIP(self.gateway) && cidr(self.cidr).containsIP(self.gateway))", "gateway must be an address within cidr"),
    validation = ("!has(self.exclude) || self.exclude.all(e, e.split('-').size() <= 2 && e.split('-').all(a, isIP(a) && cidr(self.cidr).containsIP(a)))", "exclude must be addresses within cidr, or ranges of them as first-last"),
    validation = ("!has(self.range) || (isCIDR(self.cidr) && self.range.split('-').size() == 2 && self.range.split('-').all(a, isIP(a) && cidr(self.cidr).containsIP(a)))", "range must be two addresses within cidr, as first-last")
)]
pub struct Subnet {
    /// The range as `address/prefix`.
    #[schemars(length(min = 1, max = 49))]
    pub cidr: String,
    /// The node's own address in it. Default: the first of the range.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 45))]
    pub gateway: Option<String>,
    /// The part that addresses are assigned from, as `first-last`. Default: all of it. An address that a Workload
    /// asks for may lie outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 91))]
    pub range: Option<String>,
    /// Parts that are not assigned unless a Workload asks for them: addresses, or ranges as `first-last`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 2, max = 91)), extend("x-kubernetes-list-type" = "atomic"))]
    pub exclude: Vec<String>,
}

/// Name resolution of the attached Workloads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkDns {
    /// Answer names of Workloads of the network.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Addresses of the servers that answer all other names. Default: the node's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 2, max = 45), regex(pattern = "^[0-9a-fA-F:.]+$")), extend("x-kubernetes-list-type" = "atomic"))]
    pub upstreams: Vec<String>,
    /// Domains that short names are tried in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "atomic"))]
    pub searches: Vec<String>,
}

impl Default for NetworkDns {
    fn default() -> Self {
        NetworkDns { enabled: true, upstreams: Vec::new(), searches: Vec::new() }
    }
}

/// A VXLAN tunnel between nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VxlanTunnel {
    /// The network's number, the same on all nodes, and used for nothing else there.
    #[schemars(range(min = 1, max = 16_777_215))]
    pub vni: u32,
    /// UDP port of the tunnel, the same on all nodes. Default: 4789.
    #[serde(default = "vxlan_port")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
    /// Addresses of the nodes, all of one family. A node leaves out its own, so that all can have the same list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 2, max = 45), regex(pattern = "^[0-9a-fA-F:.]+$")), extend("x-kubernetes-list-type" = "atomic"))]
    pub peers: Vec<String>,
}

fn vxlan_port() -> u16 {
    4789
}

/// A CNI configuration of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CniSource {
    /// Absolute path of the configuration list.
    #[schemars(length(min = 1, max = 4096), regex(pattern = "^/"))]
    pub config: String,
    /// Absolute paths of the directories with plugins. Default: `/opt/cni/bin`, `/usr/lib/cni`, `/usr/libexec/cni`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 4096), regex(pattern = "^/")), extend("x-kubernetes-list-type" = "atomic"))]
    pub plugin_dirs: Vec<String>,
}

/// What became of a [`Network`] on all nodes together. Each node's part is in its NodeState.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Nodes that the selector matches.
    #[serde(default)]
    pub desired_nodes: u32,
    /// Nodes that have the network.
    #[serde(default)]
    pub ready_nodes: u32,
    /// Nodes that failed to make the network and try again.
    #[serde(default)]
    pub failed_nodes: u32,
    /// `Ready`: every selected node has the network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}
