//! System calls that a container may make.
//!
//! The default profile allows what Docker's does: everything that ordinary programs need, without the calls that
//! reach into the kernel or make new namespaces. Some are added with the capability that governs them, since the
//! kernel checks that one anyway. Everything else fails with EPERM. Facts: `syscalls(2)`, `capabilities(7)`, and
//! Docker's page on its seccomp profile.

use std::path::Path;

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator,
    LinuxSyscall,
};
use serde::Deserialize;

use super::Inputs;
use super::capabilities::Set;
use crate::runtime::{Error, Seccomp};

mod calls;

use calls::{EVERYWHERE, HAS_WIDE_CALLS_ONLY, OF_32_BITS, OF_MACHINE, WITH_CAPABILITY};

/// `CLONE_NEW*` for all namespaces but time, which has no flag of its own here.
const NEW_NAMESPACES: u64 = 0x7E02_0000;
/// AF_VSOCK reaches the hypervisor past every network namespace.
const AF_VSOCK: u64 = 40;
/// Execution domains that only change how the process sees itself: Linux, 32-bit `uname`, with or without
/// UNAME26, and "ask".
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];

/// The profile of a container, `None` for none.
pub(super) fn profile(inputs: &Inputs<'_>, capabilities: &Set) -> Option<LinuxSeccomp> {
    let security = &inputs.spec.security;
    match &security.seccomp {
        _ if security.privileged => None,
        Seccomp::Unconfined => None,
        Seccomp::Localhost(_) => inputs.profile.clone(),
        Seccomp::RuntimeDefault => Some(default(capabilities, inputs.foreign_architectures)),
    }
}

/// The default profile for a container with these capabilities.
fn default(capabilities: &Set, foreign_architectures: bool) -> LinuxSeccomp {
    let mut names: Vec<&str> = EVERYWHERE.concat();
    names.extend(OF_MACHINE);
    if foreign_architectures || !HAS_WIDE_CALLS_ONLY {
        names.extend(OF_32_BITS);
    }
    for (capability, calls) in WITH_CAPABILITY {
        if capabilities.contains(capability) {
            names.extend(*calls);
        }
    }
    names.sort_unstable();
    names.dedup();
    let mut rules = vec![allow(names)];
    rules.push(allow_if(&["socket"], argument(0, AF_VSOCK, None, LinuxSeccompOperator::ScmpCmpNe)));
    for persona in PERSONALITIES {
        rules.push(allow_if(&["personality"], argument(0, persona, None, LinuxSeccompOperator::ScmpCmpEq)));
    }
    if !capabilities.contains(&Capability::SysAdmin) {
        // On s390x the flags come second.
        let flags = if cfg!(target_arch = "s390x") { 1 } else { 0 };
        let no_namespace = argument(flags, NEW_NAMESPACES, Some(0), LinuxSeccompOperator::ScmpCmpMaskedEq);
        rules.push(allow_if(&["clone"], no_namespace));
        // Its flags are behind a pointer, where no filter sees them; C libraries fall back to clone on ENOSYS.
        let mut clone3 = rule(&["clone3"], LinuxSeccompAction::ScmpActErrno);
        clone3.set_errno_ret(Some(libc::ENOSYS.unsigned_abs()));
        rules.push(clone3);
    }
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno);
    profile.set_default_errno_ret(Some(libc::EPERM.unsigned_abs()));
    profile.set_architectures(Some(architectures(foreign_architectures)));
    profile.set_syscalls(Some(rules));
    profile
}

/// The machine's own, and those it can run besides.
fn architectures(foreign: bool) -> Vec<Arch> {
    let (native, others): (Option<Arch>, &[Arch]) = match std::env::consts::ARCH {
        "x86_64" => (Some(Arch::ScmpArchX86_64), &[Arch::ScmpArchX86, Arch::ScmpArchX32]),
        "aarch64" => (Some(Arch::ScmpArchAarch64), &[Arch::ScmpArchArm]),
        "arm" => (Some(Arch::ScmpArchArm), &[]),
        "riscv64" => (Some(Arch::ScmpArchRiscv64), &[]),
        "powerpc64" => (Some(Arch::ScmpArchPpc64le), &[]),
        "s390x" => (Some(Arch::ScmpArchS390x), &[Arch::ScmpArchS390]),
        // Empty: the OCI runtime takes the native one.
        _ => (None, &[]),
    };
    native.into_iter().chain(others.iter().filter(|_| foreign).copied()).collect()
}

fn rule(names: &[&str], action: LinuxSeccompAction) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|name| (*name).to_owned()).collect());
    rule.set_action(action);
    rule
}

fn allow(names: Vec<&str>) -> LinuxSyscall {
    rule(&names, LinuxSeccompAction::ScmpActAllow)
}

fn allow_if(names: &[&str], argument: LinuxSeccompArg) -> LinuxSyscall {
    let mut rule = rule(names, LinuxSeccompAction::ScmpActAllow);
    rule.set_args(Some(vec![argument]));
    rule
}

fn argument(index: usize, value: u64, value_two: Option<u64>, op: LinuxSeccompOperator) -> LinuxSeccompArg {
    let argument = LinuxSeccompArgBuilder::default().index(index).value(value).op(op);
    let argument = match value_two {
        Some(value) => argument.value_two(value),
        None => argument,
    };
    argument.build().expect("every field has a default")
}

/// Reads a profile file in the OCI or Docker form. Blocking.
///
/// Docker's form adds conditions on capabilities, architectures and kernels to rules, and a map of architectures;
/// such a file is refused with its reason rather than half obeyed.
pub(in crate::runtime) fn read_profile(path: &Path) -> Result<LinuxSeccomp, Error> {
    let invalid = |message: String| Error::Invalid {
        field: "securityContext.seccompProfile.localhostProfile".to_owned(),
        message: format!("{}: {message}", path.display()),
    };
    let text = std::fs::read(path).map_err(|e| invalid(e.to_string()))?;
    let conditions: Conditions = serde_json::from_slice(&text).map_err(|e| invalid(e.to_string()))?;
    if let Some(rule) = conditions.syscalls.iter().find(|rule| rule.is_conditional()) {
        let names = rule.names.first().map_or("?", String::as_str);
        return Err(invalid(format!(
            "the rule for {names} has conditions (includes, excludes), which only Docker resolves; write it out"
        )));
    }
    let mut profile: LinuxSeccomp = serde_json::from_slice(&text).map_err(|e| invalid(e.to_string()))?;
    if profile.architectures().is_none() {
        profile.set_architectures(Some(architectures(true)));
    }
    Ok(profile)
}

#[derive(Deserialize)]
struct Conditions {
    #[serde(default)]
    syscalls: Vec<ConditionalRule>,
}

#[derive(Deserialize)]
struct ConditionalRule {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    includes: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    excludes: serde_json::Map<String, serde_json::Value>,
}

impl ConditionalRule {
    fn is_conditional(&self) -> bool {
        !self.includes.is_empty() || !self.excludes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(profile: &LinuxSeccomp, call: &str) -> bool {
        profile.syscalls().iter().flatten().any(|rule| {
            rule.action() == LinuxSeccompAction::ScmpActAllow
                && rule.args().is_none()
                && rule.names().iter().any(|name| name == call)
        })
    }

    #[test]
    fn calls_come_with_their_capability() {
        let plain = default(&Set::new(), false);
        assert!(allowed(&plain, "openat") && allowed(&plain, "futex"));
        for call in ["mount", "unshare", "setns", "bpf", "keyctl", "io_uring_setup", "reboot", "kexec_load", "clone3"] {
            assert!(!allowed(&plain, call), "{call}");
        }
        let admin = default(&Set::from([Capability::SysAdmin]), false);
        assert!(allowed(&admin, "mount") && allowed(&admin, "clone") && allowed(&admin, "clone3"));
        assert_eq!(plain.architectures().as_ref().unwrap().len(), 1);
        let foreign = default(&Set::new(), true);
        assert!(allowed(&foreign, "fstat64") && allowed(&foreign, "openat") && allowed(&foreign, "clock_gettime64"));
        #[cfg(target_arch = "x86_64")]
        assert!(!allowed(&plain, "fstat64") && allowed(&plain, "fstat") && allowed(&plain, "fchmodat2"));
        // A rule twice, once conditional, would make the condition void.
        for call in ["clone", "socket", "personality"] {
            assert!(!allowed(&plain, call), "{call}");
        }
    }

    #[test]
    fn profiles_are_read_whole_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.json");
        std::fs::write(
            &file,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}"#,
        )
        .unwrap();
        let profile = read_profile(&file).unwrap();
        assert_eq!(profile.default_action(), LinuxSeccompAction::ScmpActAllow);
        std::fs::write(
            &file,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["bpf"],"action":"SCMP_ACT_ALLOW",
                "includes":{"caps":["CAP_BPF"]}}]}"#,
        )
        .unwrap();
        assert!(read_profile(&file).unwrap_err().to_string().contains("bpf"));
        assert!(read_profile(&dir.path().join("none")).unwrap_err().to_string().contains("No such file"));
    }
}
