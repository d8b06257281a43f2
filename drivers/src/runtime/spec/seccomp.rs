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

/// Calls that every container may make, by what they are for. Names that the machine does not have are skipped by
/// the OCI runtime.
const FILES: &[&str] = &[
    "access",
    "chdir",
    "chmod",
    "chown",
    "close",
    "close_range",
    "copy_file_range",
    "creat",
    "dup",
    "dup2",
    "dup3",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fallocate",
    "fanotify_mark",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchownat",
    "fcntl",
    "fdatasync",
    "flock",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "futimesat",
    "getcwd",
    "getdents",
    "getdents64",
    "inotify_add_watch",
    "inotify_init",
    "inotify_init1",
    "inotify_rm_watch",
    "ioctl",
    "lchown",
    "link",
    "linkat",
    "lseek",
    "lstat",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "name_to_handle_at",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readahead",
    "readlink",
    "readlinkat",
    "readv",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "sendfile",
    "splice",
    "stat",
    "statfs",
    "statx",
    "symlink",
    "symlinkat",
    "sync",
    "sync_file_range",
    "syncfs",
    "tee",
    "truncate",
    "umask",
    "unlink",
    "unlinkat",
    "utime",
    "utimensat",
    "utimes",
    "vmsplice",
    "write",
    "writev",
];
const EXTENDED_ATTRIBUTES: &[&str] = &[
    "fgetxattr",
    "flistxattr",
    "fremovexattr",
    "fsetxattr",
    "getxattr",
    "getxattrat",
    "lgetxattr",
    "listxattr",
    "listxattrat",
    "llistxattr",
    "lremovexattr",
    "lsetxattr",
    "removexattr",
    "removexattrat",
    "setxattr",
    "setxattrat",
];
const WAITING: &[&str] = &[
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "eventfd",
    "eventfd2",
    "futex",
    "futex_requeue",
    "futex_wait",
    "futex_waitv",
    "futex_wake",
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_pgetevents",
    "io_setup",
    "io_submit",
    "pipe",
    "pipe2",
    "poll",
    "ppoll",
    "pselect6",
    "select",
    "get_robust_list",
    "set_robust_list",
];
const NETWORK: &[&str] = &[
    "accept",
    "accept4",
    "bind",
    "connect",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    "socketpair",
];
const MEMORY: &[&str] = &[
    "brk",
    "cachestat",
    "madvise",
    "map_shadow_stack",
    "membarrier",
    "memfd_create",
    "memfd_secret",
    "mincore",
    "mlock",
    "mlock2",
    "mlockall",
    "mmap",
    "mprotect",
    "mremap",
    "mseal",
    "msync",
    "munlock",
    "munlockall",
    "munmap",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    "process_mrelease",
    "remap_file_pages",
];
const MESSAGES: &[&str] = &[
    "mq_getsetattr",
    "mq_notify",
    "mq_open",
    "mq_timedreceive",
    "mq_timedsend",
    "mq_unlink",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
];
const PROCESSES: &[&str] = &[
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "fork",
    "getcpu",
    "getpgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getpriority",
    "getrlimit",
    "getrusage",
    "getsid",
    "gettid",
    "get_thread_area",
    "ioprio_get",
    "ioprio_set",
    "pidfd_open",
    "prctl",
    "prlimit64",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "restart_syscall",
    "rseq",
    "sched_getaffinity",
    "sched_getattr",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "sched_getparam",
    "sched_getscheduler",
    "sched_rr_get_interval",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
    "sched_yield",
    "setpgid",
    "setpriority",
    "setrlimit",
    "setsid",
    "set_thread_area",
    "set_tid_address",
    "sysinfo",
    "uname",
    "vfork",
    "wait4",
    "waitid",
];
const SIGNALS: &[&str] = &[
    "kill",
    "pause",
    "pidfd_send_signal",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigqueueinfo",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "rt_tgsigqueueinfo",
    "sigaltstack",
    "signalfd",
    "signalfd4",
    "tgkill",
    "tkill",
];
const IDENTITY: &[&str] = &[
    "capget",
    "capset",
    "getegid",
    "geteuid",
    "getgid",
    "getgroups",
    "getresgid",
    "getresuid",
    "getuid",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "seccomp",
    "setfsgid",
    "setfsuid",
    "setgid",
    "setgroups",
    "setregid",
    "setresgid",
    "setresuid",
    "setreuid",
    "setuid",
];
const TIME: &[&str] = &[
    "adjtimex",
    "alarm",
    "clock_adjtime",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "getitimer",
    "getrandom",
    "gettimeofday",
    "nanosleep",
    "setitimer",
    "time",
    "timer_create",
    "timer_delete",
    "timer_getoverrun",
    "timer_gettime",
    "timer_settime",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_settime",
    "times",
];
const EVERYWHERE: &[&[&str]] =
    &[FILES, EXTENDED_ATTRIBUTES, WAITING, NETWORK, MEMORY, MESSAGES, PROCESSES, SIGNALS, IDENTITY, TIME];

/// Calls that 32-bit programs make in place of others: for wider numbers, or by an older convention. A rule costs the
/// same whether the kernel has the call or not, so a filter for 64-bit programs alone does without.
const OF_32_BITS: &[&str] = &[
    "_llseek",
    "_newselect",
    "chown32",
    "clock_adjtime64",
    "clock_getres_time64",
    "clock_gettime64",
    "clock_nanosleep_time64",
    "fadvise64_64",
    "fchown32",
    "fcntl64",
    "fstat64",
    "fstatat64",
    "fstatfs64",
    "ftruncate64",
    "futex_time64",
    "getegid32",
    "geteuid32",
    "getgid32",
    "getgroups32",
    "getresgid32",
    "getresuid32",
    "getuid32",
    "io_pgetevents_time64",
    "ipc",
    "lchown32",
    "lstat64",
    "mmap2",
    "mq_timedreceive_time64",
    "mq_timedsend_time64",
    "ppoll_time64",
    "pselect6_time64",
    "recv",
    "recvmmsg_time64",
    "rt_sigtimedwait_time64",
    "sched_rr_get_interval_time64",
    "semtimedop_time64",
    "send",
    "sendfile64",
    "setfsgid32",
    "setfsuid32",
    "setgid32",
    "setgroups32",
    "setregid32",
    "setresgid32",
    "setresuid32",
    "setreuid32",
    "setuid32",
    "sigprocmask",
    "sigreturn",
    "socketcall",
    "stat64",
    "statfs64",
    "timer_gettime64",
    "timer_settime64",
    "timerfd_gettime64",
    "timerfd_settime64",
    "truncate64",
    "ugetrlimit",
    "utimensat_time64",
    "waitpid",
];

/// Machines whose 64-bit programs know none of [`OF_32_BITS`]; those of PowerPC and S/390 have some.
const HAS_WIDE_CALLS_ONLY: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"));

/// Calls of one processor family.
const OF_MACHINE: &[&str] = if cfg!(target_arch = "x86_64") {
    &["arch_prctl", "modify_ldt", "uretprobe"]
} else if cfg!(any(target_arch = "aarch64", target_arch = "arm")) {
    &["arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush", "set_tls", "sync_file_range2"]
} else if cfg!(target_arch = "riscv64") {
    &["riscv_flush_icache", "riscv_hwprobe"]
} else if cfg!(target_arch = "powerpc64") {
    &["swapcontext", "sync_file_range2"]
} else if cfg!(target_arch = "s390x") {
    &["s390_pci_mmio_read", "s390_pci_mmio_write", "s390_runtime_instr"]
} else {
    &[]
};

/// Calls that come with a capability.
const WITH_CAPABILITY: &[(Capability, &[&str])] = &[
    (Capability::Bpf, &["bpf"]),
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (Capability::Perfmon, &["perf_event_open"]),
    (
        Capability::SysAdmin,
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "listmount",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "statmount",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::SysModule, &["delete_module", "finit_module", "init_module"]),
    (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &["kcmp", "pidfd_getfd", "process_madvise"]),
    (Capability::SysRawio, &["ioperm", "iopl"]),
    (Capability::SysTime, &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (Capability::SysTtyConfig, &["vhangup"]),
    (Capability::Syslog, &["syslog"]),
];

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
