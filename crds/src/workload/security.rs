//! What containers may do. Without a word the protective defaults hold: seccomp `RuntimeDefault`, the usual reduced
//! capability set, masked paths, no new privileges.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What one container may do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "!has(self.runAsNonRoot) || !self.runAsNonRoot || !has(self.runAsUser) || self.runAsUser != 0",
        "runAsNonRoot forbids runAsUser 0"
    ),
    validation = (
        "!has(self.privileged) || !self.privileged || !has(self.allowPrivilegeEscalation) || self.allowPrivilegeEscalation",
        "a privileged container cannot have allowPrivilegeEscalation false"
    )
)]
pub struct SecurityContext {
    /// User id of the first process. Default: the image's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 2147483647))]
    pub run_as_user: Option<u32>,
    /// Group id of the first process. Default: the image's group.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 2147483647))]
    pub run_as_group: Option<u32>,
    /// Refuse to start as user 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as_non_root: Option<bool>,
    /// All capabilities and devices, no masked paths, no seccomp: root of the node in all but name. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub privileged: Option<bool>,
    /// Make the root filesystem read-only. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only_root_filesystem: Option<bool>,
    /// Let a process gain more than its parent had, as set-user-id programs do. Default: false, unless privileged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_privilege_escalation: Option<bool>,
    /// Changes to the default capability set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// System calls that are allowed. Default: the Workload's, or `RuntimeDefault`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp_profile: Option<SecurityProfile>,
    /// AppArmor profile. Default: `RuntimeDefault` where the node has AppArmor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_armor_profile: Option<SecurityProfile>,
    /// `Default` masks the dangerous parts of `/proc`, `Unmasked` shows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ProcMount")]
    pub proc_mount: Option<ProcMount>,
}

/// Changes to the default capability set. Names are written without `CAP_`; `ALL` is every capability.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "(!has(self.add) || self.add.all(c, !c.startsWith('CAP_'))) && (!has(self.drop) || self.drop.all(c, !c.startsWith('CAP_')))",
        "capabilities are named without CAP_, such as NET_ADMIN"
    )
)]
pub struct Capabilities {
    /// Capabilities to add.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 32), regex(pattern = "^[A-Z][A-Z0-9_]*$")), extend("x-kubernetes-list-type" = "atomic"))]
    pub add: Vec<String>,
    /// Capabilities to take away; done before adding, so `drop: [ALL]` with a short `add` is the safe form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 32), regex(pattern = "^[A-Z][A-Z0-9_]*$")), extend("x-kubernetes-list-type" = "atomic"))]
    pub drop: Vec<String>,
}

/// A seccomp or AppArmor profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "(self.type == 'Localhost') == has(self.localhostProfile)",
        "localhostProfile is needed for type Localhost, and for no other"
    )
)]
pub struct SecurityProfile {
    /// `RuntimeDefault`, `Unconfined`, or `Localhost` for a profile of the node.
    #[serde(rename = "type")]
    pub type_: SecurityProfileType,
    /// For seccomp the profile's file below `/var/lib/nodelet/seccomp`; for AppArmor the loaded
    /// profile's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub localhost_profile: Option<String>,
}

/// Where a profile comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SecurityProfileType {
    /// nodelet's own protective profile.
    RuntimeDefault,
    /// No profile: everything is allowed.
    Unconfined,
    /// A profile of the node.
    Localhost,
}

/// How much of `/proc` a container sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ProcMount {
    /// The dangerous parts are masked or read-only.
    #[default]
    Default,
    /// Everything.
    Unmasked,
}

/// What holds for all containers of a Workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSecurityContext {
    /// Group that owns the Workload's volumes; all processes belong to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 2147483647))]
    pub fs_group: Option<u32>,
    /// Further groups that all processes belong to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub supplemental_groups: Vec<u32>,
    /// Kernel parameters of the Workload's own namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub sysctls: Vec<Sysctl>,
    /// System calls that are allowed, for containers that say nothing themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp_profile: Option<SecurityProfile>,
}

/// One kernel parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sysctl {
    /// Its name, with dots. Only parameters of the network and IPC namespaces: `net.*`, `kernel.shm*`, `kernel.msg*`,
    /// `kernel.sem`, `fs.mqueue.*`.
    #[schemars(
        length(max = 253),
        regex(pattern = r"^(net\.[-a-zA-Z0-9_./]+|kernel\.(shm|msg)[a-z_]+|kernel\.sem|fs\.mqueue\.[a-z_]+)$")
    )]
    pub name: String,
    /// Its value.
    #[schemars(length(max = 1024))]
    pub value: String,
}
