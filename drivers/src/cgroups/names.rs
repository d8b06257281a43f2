//! What cgroups are called. The path itself says which driver it belongs to, so everything that has one can work with it.
//!
//! - `cgroupfs`: `/nodelet/limit-<namespace>.<name>/<sandbox>/<container>[.<attempt>]`, made as directories.
//! - `systemd`: `/nodelet.slice/nodelet-limit_<namespace>.<name>.slice/…-<sandbox>.slice/nodelet-<sandbox>-<container>[.<attempt>].scope`,
//!   made as units. The name of a slice holds those of all above, joined by `-`; so a `-` within becomes `_`, and what else
//!   cannot be in a name becomes `\xNN`. A unit's name has at most 255 bytes: where a ResourceLimit's would leave too little
//!   for those below, a hash stands for it. A sandbox's is always whole, and is read from a path again.
//!
//! Facts: `systemd.unit(5)`, `systemd.slice(5)`; `cgroupsPath` in runc's `docs/systemd.md`.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ids::{CgroupPath, InvalidId, SandboxId};

const SLICE: &str = ".slice";
const SCOPE: &str = ".scope";
/// Of a slice's name without its suffix, in bytes.
const LONGEST: usize = 255 - SLICE.len();
/// Of that, what is left for a sandbox and its dash.
const SANDBOX: usize = 65;
/// What a ResourceLimit takes at least: a dash, `l.` and sixteen digits.
const SHORT: usize = 19;
/// ResourceLimits that may be nested.
const NESTED: usize = 8;
/// Of the parent's name.
const LONGEST_PARENT: usize = LONGEST - SANDBOX - NESTED * SHORT;

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// nodelet and the OCI runtime, as directories.
    #[default]
    Cgroupfs,
    /// systemd, as slices and scopes.
    Systemd,
}

impl Driver {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Cgroupfs => Self::Systemd,
            Self::Systemd => Self::Cgroupfs,
        }
    }

    /// The cgroup of everything that is ours, as configured: with systemd `/nodelet` stands for `/nodelet.slice`.
    ///
    /// # Errors
    /// With systemd, a path of several parts or a long name; with cgroupfs a slice, which is systemd's.
    pub fn parent(self, configured: &CgroupPath) -> Result<CgroupPath, InvalidId> {
        let invalid = |expected| InvalidId { what: "parent", value: configured.to_string(), expected };
        match self {
            Self::Cgroupfs if configured.is_systemd() => {
                Err(invalid("with cgroupDriver cgroupfs, no slice: systemd alone changes those"))
            }
            Self::Cgroupfs => Ok(configured.clone()),
            Self::Systemd => {
                let name = configured.as_str().trim_start_matches('/');
                let name = escape(name.strip_suffix(SLICE).unwrap_or(name), false);
                if configured.as_str().matches('/').count() > 1 || name.len() > LONGEST_PARENT || name.is_empty() {
                    return Err(invalid("with cgroupDriver systemd, / and one name of at most 32 characters"));
                }
                CgroupPath::new(format!("/{name}{SLICE}"))
            }
        }
    }
}

/// Whether a cgroup with this name, its path's last part, could be a ResourceLimit's.
pub(super) fn may_be_limit(name: &str) -> bool {
    match name.strip_suffix(SLICE) {
        Some(slice) => slice.contains('.'),
        None => name.starts_with("limit-"),
    }
}

/// Whether it is a slice of a sandbox, whose name holds those of the ResourceLimits above.
pub(super) fn is_slice_of_sandbox(path: &CgroupPath) -> bool {
    path.last().ends_with(SLICE) && path.as_sandbox().is_some()
}

impl CgroupPath {
    /// It is a slice or a scope: systemd makes and removes it.
    pub fn is_systemd(&self) -> bool {
        self.last().ends_with(SLICE) || self.is_scope()
    }

    fn is_scope(&self) -> bool {
        self.last().ends_with(SCOPE)
    }

    /// The last part: with systemd the unit's name.
    pub(crate) fn last(&self) -> &str {
        self.as_str().rsplit('/').next().unwrap_or_default()
    }

    /// The cgroup above; `None` at the top.
    pub fn above(&self) -> Option<CgroupPath> {
        CgroupPath::new(self.as_str().rsplit_once('/')?.0).ok()
    }

    /// A group `name` below this one, which is no container's.
    pub fn below(&self, name: &str) -> Result<CgroupPath, InvalidId> {
        if self.is_systemd() { self.slice(&escape(name, false)) } else { self.join(name) }
    }

    /// The cgroup of a ResourceLimit below this one (ours, or that of its own parent).
    pub fn limit(&self, namespace: &str, name: &str) -> Result<CgroupPath, InvalidId> {
        if !self.is_systemd() {
            return self.join(&format!("limit-{namespace}.{name}"));
        }
        let own = self.last().strip_suffix(SLICE).unwrap_or_default();
        let (level, readable) =
            (own.matches('-').count() + 1, format!("limit_{}.{}", escape(namespace, false), escape(name, true)));
        // Those that may follow find room.
        let most = LONGEST - SANDBOX - NESTED.saturating_sub(level) * SHORT;
        if own.len() + 1 + readable.len() <= most {
            return self.slice(&readable);
        }
        let digest = Sha256::digest(format!("{namespace}/{name}").as_bytes());
        let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        self.slice(&format!("l.{hash}"))
    }

    /// Whether it is the cgroup of this ResourceLimit.
    pub fn is_limit(&self, namespace: &str, name: &str) -> bool {
        self.above().and_then(|above| above.limit(namespace, name).ok()).as_ref() == Some(self)
    }

    /// The cgroup of a sandbox below this one.
    pub fn sandbox(&self, id: &SandboxId) -> Result<CgroupPath, InvalidId> {
        self.below(id.as_str())
    }

    /// The sandbox whose cgroup it could be, by its name.
    pub fn as_sandbox(&self) -> Option<SandboxId> {
        let Some(slice) = self.last().strip_suffix(SLICE) else {
            return SandboxId::new(self.last()).ok().filter(|_| !self.is_scope());
        };
        let (_, name) = slice.rsplit_once('-')?;
        // Only ResourceLimits' have a dot.
        if name.contains('.') { None } else { SandboxId::new(unescape(name)?).ok() }
    }

    /// The cgroup of a container of the sandbox whose cgroup this is: `name` and, of a successor, a dot and its number.
    pub fn container(&self, name: &str) -> Result<CgroupPath, InvalidId> {
        if !self.is_systemd() {
            return self.join(name);
        }
        let missing =
            || InvalidId { what: "cgroup of a sandbox", value: self.to_string(), expected: "a slice of a sandbox" };
        let sandbox = self.as_sandbox().ok_or_else(missing)?;
        self.join(&format!("{}-{sandbox}-{name}{SCOPE}", self.root()))
    }

    /// The cgroup of what is nobody's below this one: with systemd a scope.
    pub(crate) fn leaf(&self, name: &str) -> Result<CgroupPath, InvalidId> {
        if self.is_systemd() { self.join(&format!("{}-{name}{SCOPE}", self.root())) } else { self.join(name) }
    }

    /// Beside that of a container, for what belongs to the same sandbox.
    pub(crate) fn beside(&self, name: &str) -> Option<CgroupPath> {
        self.above()?.container(name).ok()
    }

    /// The sandbox and the name of the container whose cgroup it is; also of what the OCI runtime made below that.
    pub fn as_container(&self) -> Option<(SandboxId, &str)> {
        let above = self.above()?;
        if above.is_scope() {
            let at = self.as_str().len() - self.last().len() - 1;
            let name = &self.as_str()[..at];
            let start = name.rfind('/')? + 1;
            return above.above()?.as_sandbox().and_then(|sandbox| {
                let name = scope_name(&name[start..], above.root(), &sandbox)?;
                Some((sandbox, name))
            });
        }
        let sandbox = above.as_sandbox()?;
        let name =
            if self.is_scope() { scope_name(self.last(), self.root(), &sandbox)? } else { without_number(self.last()) };
        Some((sandbox, name))
    }

    /// As `linux.cgroupsPath` wants it: with systemd `slice:prefix:name`.
    pub(crate) fn oci(&self) -> String {
        match (self.is_scope(), self.above(), self.last().split_once('-')) {
            (true, Some(slice), Some((prefix, name))) => {
                format!("{}:{prefix}:{}", slice.last(), name.strip_suffix(SCOPE).unwrap_or(name))
            }
            _ => self.to_string(),
        }
    }

    /// The reverse of [`CgroupPath::oci`].
    pub(crate) fn from_oci(text: &str) -> Option<CgroupPath> {
        let mut parts = text.split(':');
        let (Some(slice), Some(prefix), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return CgroupPath::new(text).ok();
        };
        let slice = slice.strip_suffix(SLICE)?;
        let ends = slice.match_indices('-').map(|(at, _)| at).chain([slice.len()]);
        let path: String = ends.map(|end| format!("/{}{SLICE}", &slice[..end])).collect();
        CgroupPath::new(format!("{path}/{prefix}-{name}{SCOPE}")).ok()
    }

    /// The slice `part`, which is escaped, below this one.
    fn slice(&self, part: &str) -> Result<CgroupPath, InvalidId> {
        let own = self.last().strip_suffix(SLICE).unwrap_or_default();
        let name = format!("{own}-{part}");
        if part.is_empty() || name.len() > LONGEST {
            let expected = "at most 255 characters with those of all above";
            return Err(InvalidId { what: "name of a slice", value: name, expected });
        }
        self.join(&format!("{name}{SLICE}"))
    }

    /// Of the parent's name: what all of ours begin with.
    fn root(&self) -> &str {
        let first = self.as_str()[1..].split('/').next().unwrap_or_default();
        first.strip_suffix(SLICE).unwrap_or(first)
    }
}

fn scope_name<'a>(scope: &'a str, root: &str, sandbox: &SandboxId) -> Option<&'a str> {
    let name = scope.strip_suffix(SCOPE)?.strip_prefix(root)?.strip_prefix('-')?;
    Some(without_number(name.strip_prefix(sandbox.as_str())?.strip_prefix('-')?))
}

fn without_number(name: &str) -> &str {
    name.split_once('.').map_or(name, |(name, _)| name)
}

fn escape(text: &str, dots: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'-' => escaped.push('_'),
            b'.' if dots => escaped.push('.'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("\\x{byte:02x}")),
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'_' => bytes.push(b'-'),
            b'\\' => {
                let digits = tail.strip_prefix(b"x")?.get(..2)?;
                bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = tail.get(3..)?;
            }
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
