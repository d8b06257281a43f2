//! Which capabilities a container has.

use std::str::FromStr as _;

use oci_spec::runtime::{Capabilities, Capability};

use crate::runtime::{Error, Security};

/// A set of capabilities.
pub(super) type Set = Capabilities;

/// What Docker leaves to an ordinary container.
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// All capabilities in the order of their numbers in the kernel (`uapi/linux/capability.h`).
const BY_NUMBER: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// The capabilities of a container on a node whose bounding set is `bounding`: `ALL` is what the node has, dropping
/// comes before adding, so that `drop: [ALL], add: [CHOWN]` leaves one.
pub(super) fn set(security: &Security, bounding: u64) -> Result<Set, Error> {
    let of_node = BY_NUMBER.iter().enumerate().filter(|(bit, _)| bounding & (1 << bit) != 0);
    let all: Set = of_node.map(|(_, capability)| *capability).collect();
    if security.privileged {
        return Ok(all);
    }
    let mut set: Set = DEFAULT.into_iter().collect();
    for name in &security.drop_capabilities {
        match parse(name, "securityContext.capabilities.drop")? {
            None => set.clear(),
            Some(capability) => {
                set.remove(&capability);
            }
        }
    }
    let dropped_by_name = |capability: &Capability| {
        security.drop_capabilities.iter().any(|name| matches!(parse(name, ""), Ok(Some(c)) if c == *capability))
    };
    for name in &security.add_capabilities {
        match parse(name, "securityContext.capabilities.add")? {
            // "All but": what is dropped by name stays dropped.
            None => set.extend(all.iter().filter(|capability| !dropped_by_name(capability))),
            Some(capability) => {
                set.insert(capability);
            }
        }
    }
    Ok(set)
}

/// `None` for `ALL`.
fn parse(name: &str, field: &str) -> Result<Option<Capability>, Error> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if short == "ALL" {
        return Ok(None);
    }
    Capability::from_str(short).map(Some).map_err(|_| Error::Invalid {
        field: field.to_owned(),
        message: format!("{name:?} is not a capability; see capabilities(7)"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(add: &[&str], drop: &[&str]) -> Result<Set, Error> {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let security = Security { add_capabilities: list(add), drop_capabilities: list(drop), ..Security::default() };
        set(&security, (1 << 41) - 1)
    }

    #[test]
    fn adding_and_dropping() {
        assert_eq!(of(&[], &[]).unwrap().len(), 14);
        assert_eq!(of(&["CHOWN"], &["ALL"]).unwrap(), Set::from([Capability::Chown]));
        assert_eq!(of(&["cap_net_admin"], &["KILL"]).unwrap().len(), 14);
        assert_eq!(of(&["ALL"], &[]).unwrap().len(), 41);
        assert_eq!(of(&["ALL"], &["SYS_ADMIN"]).unwrap().len(), 40);
        assert!(of(&["FLY"], &[]).unwrap_err().to_string().contains("capabilities.add"));
    }

    #[test]
    fn privileged_is_what_the_node_has() {
        let security = Security { privileged: true, ..Security::default() };
        assert_eq!(set(&security, 0b11).unwrap(), Set::from([Capability::Chown, Capability::DacOverride]));
    }
}
