//! Names that have been checked once and can be trusted from then on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name was not usable for what it should name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {what}: {expected}")]
pub struct InvalidId {
    /// What the value should have been, for example "container id".
    pub what: &'static str,
    /// The offending value.
    pub value: String,
    /// The rule it breaks.
    pub expected: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `value` and wraps it.
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidId> {
                let value = value.into();
                let check: fn(&str) -> bool = $check;
                if check(&value) { Ok(Self(value)) } else { Err(InvalidId { what: $what, value, expected: $expected }) }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(s: &str) -> Result<Self, InvalidId> {
                Self::new(s)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(s: String) -> Result<Self, InvalidId> {
                Self::new(s)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

/// containerd's identifier rule: `[A-Za-z0-9]+([._-][A-Za-z0-9]+)*`, at most 76 characters.
fn is_containerd_identifier(s: &str) -> bool {
    !s.is_empty()
        && s.len() <= 76
        && s.split(['.', '_', '-']).all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric()))
}

fn is_cgroup_path(s: &str) -> bool {
    s.len() > 1
        && s.len() <= 2048
        && s.starts_with('/')
        && s[1..].split('/').all(|part| !part.is_empty() && part != "." && part != ".." && part.len() <= 255)
        && !s.contains('\0')
}

id!(
    /// The id of a container in containerd.
    ContainerId,
    "container id",
    "letters and digits, joined by single '.', '_' or '-', at most 76 characters",
    is_containerd_identifier
);
id!(
    /// The id of a workload's sandbox: its pinned namespaces, attachments and cgroup. One per workload instance.
    SandboxId,
    "sandbox id",
    "letters and digits, joined by single '.', '_' or '-', at most 64 characters",
    |s| is_containerd_identifier(s) && s.len() <= 64
);
id!(
    /// The key of a network on this node, unique among all networks (the caller puts the namespace into it).
    NetworkKey,
    "network key",
    "1 to 253 characters of letters, digits, '.', '_', '-' or '/'",
    |s| !s.is_empty() && s.len() <= 253 && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b))
);
id!(
    /// The key of a volume on this node, unique among all volumes: `<namespace>/<name>`.
    VolumeKey,
    "volume key",
    "<namespace>/<name> of letters, digits, '.' and '-'",
    |s| {
        s.len() <= 253
            && s.split('/').count() == 2
            && s.split('/').all(|p| {
                !p.is_empty()
                    && !p.starts_with('.')
                    && p.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b))
            })
    }
);
id!(
    /// The name of a network link: at most 15 bytes, no '/', no white space (`dev_valid_name` in the kernel).
    IfName,
    "interface name",
    "1 to 15 bytes without '/', ':' or white space",
    |s| !s.is_empty()
        && s.len() <= 15
        && s != "."
        && s != ".."
        && !s.bytes().any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace() || b == 0)
);
id!(
    /// An absolute path of a cgroup below the hierarchy's root, such as `/nodelet/default_web/main`.
    CgroupPath,
    "cgroup path",
    "an absolute path without empty, '.' or '..' parts",
    is_cgroup_path
);

impl CgroupPath {
    /// The cgroup `name` below this one.
    pub fn join(&self, name: &str) -> Result<CgroupPath, InvalidId> {
        CgroupPath::new(format!("{}/{}", self.0, name))
    }
}
