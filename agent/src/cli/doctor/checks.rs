//! What the drivers' checks of the node do not know: our own files and programs.

use std::path::{Path, PathBuf};

use nodelet_drivers::cgroups::{Driver, Version, detect, systemd};
use nodelet_drivers::host::checks::{self, Check, Level, Places};

use super::{Finding, Verdict};
use crate::config::NodeletConfiguration;

/// All checks that need neither containerd nor the agent. Blocking.
pub(super) fn all(configuration: &NodeletConfiguration) -> Vec<Finding> {
    let places = Places {
        cgroup_root: "/sys/fs/cgroup".into(),
        data_dir: configuration.data_dir.clone(),
        run_dir: configuration.run_dir.clone(),
    };
    let mut findings: Vec<Finding> = checks::run(&places).into_iter().map(finding).collect();
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    findings.push(run_dir(&mounts, &configuration.run_dir));
    let version = detect(Path::new("/sys/fs/cgroup"));
    findings.push(cgroup_driver(configuration.runtime.cgroup_driver, version, systemd::is_running()));
    findings.push(log_writer());
    findings
}

fn finding(check: Check) -> Finding {
    let Check { name, level, found, remedy } = check;
    let verdict = match level {
        Level::Ok => Verdict::Ok,
        Level::Warn => Verdict::Warning,
        Level::Fail => Verdict::Failed,
    };
    Finding { check: name, verdict, message: found, remedy }
}

fn run_dir(mounts: &str, run_dir: &Path) -> Finding {
    const CHECK: &str = "runDir on tmpfs";
    let of = |line: &str| {
        let mut fields = line.split(' ');
        let (point, type_) = (fields.nth(1)?.to_owned(), fields.next()?.to_owned());
        run_dir.starts_with(&point).then_some((point.len(), type_))
    };
    let holder = mounts.lines().filter_map(of).max();
    match holder {
        Some((_, type_)) if type_ != "tmpfs" => {
            let message = format!("{} is on {type_}: what a reboot must forget would survive it", run_dir.display());
            Finding::warning(CHECK, message, "choose a directory below /run")
        }
        _ => Finding::ok(CHECK, run_dir.display().to_string()),
    }
}

/// Version 2 has one tree, in which systemd wants to be the only one that makes cgroups at the top.
fn cgroup_driver(driver: Driver, version: Version, has_systemd: bool) -> Finding {
    const CHECK: &str = "cgroup driver";
    match (driver, version, has_systemd) {
        (Driver::Systemd, _, false) => {
            let remedy =
                "set runtime.cgroupDriver: cgroupfs; in a container, mount the node's /run/systemd and /run/dbus";
            Finding::failed(CHECK, "systemd, which does not run this node (there is no /run/systemd/system)", remedy)
        }
        (Driver::Cgroupfs, Version::V2, true) => {
            let message = "cgroupfs, beside systemd, which takes the tree of version 2 for its own";
            let remedy =
                "runtime.cgroupDriver: systemd makes slices and scopes of them; a change replaces all containers";
            Finding::warning(CHECK, message, remedy)
        }
        (Driver::Systemd, _, true) => Finding::ok(CHECK, "systemd"),
        (Driver::Cgroupfs, _, _) => Finding::ok(CHECK, "cgroupfs"),
    }
}

fn log_writer() -> Finding {
    const CHECK: &str = "nodelet-logger";
    let beside = std::env::current_exe().unwrap_or_default().with_file_name("nodelet-logger");
    let path = std::env::var_os("NODELET_LOGGER").map_or(beside, PathBuf::from);
    if path.is_file() {
        return Finding::ok(CHECK, path.display().to_string());
    }
    Finding::failed(CHECK, format!("missing at {}", path.display()), "install it beside nodelet, or set NODELET_LOGGER")
}

/// Whether a program is in `$PATH`.
pub(super) fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// containerd 1.6 and newer.
pub(super) fn is_supported(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default()) >= (1, 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_belongs_on_a_tmpfs() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n";
        assert_eq!(run_dir(mounts, Path::new("/run/nodelet")).verdict, Verdict::Ok);
        assert_eq!(run_dir(mounts, Path::new("/var/run-x")).verdict, Verdict::Warning);
    }

    #[test]
    fn the_driver_of_cgroups_fits_the_node() {
        for (driver, version, has_systemd, verdict) in [
            (Driver::Cgroupfs, Version::V1, false, Verdict::Ok),
            (Driver::Cgroupfs, Version::V1, true, Verdict::Ok),
            (Driver::Cgroupfs, Version::V2, false, Verdict::Ok),
            (Driver::Cgroupfs, Version::V2, true, Verdict::Warning),
            (Driver::Systemd, Version::V2, true, Verdict::Ok),
            (Driver::Systemd, Version::V2, false, Verdict::Failed),
        ] {
            assert_eq!(cgroup_driver(driver, version, has_systemd).verdict, verdict, "{driver:?} {version:?}");
        }
    }

    #[test]
    fn versions_of_containerd() {
        for (version, supported) in [("1.6.20", true), ("v2.1.0", true), ("1.5.9", false), ("", false)] {
            assert_eq!(is_supported(version), supported, "{version}");
        }
    }
}
