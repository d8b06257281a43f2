//! Facts about the node (kernel, memory, CPUs, addresses, disk), and checks of what nodelet needs of it.
//!
//! Everything is read when asked. The calls are synchronous and take well under a millisecond, except for
//! [`checks::run`], which tries things out in throwaway namespaces.

use std::io;
use std::path::Path;

use serde::Serialize;

mod addresses;
pub mod checks;
mod trial;

pub use addresses::{Address, addresses};

/// What kind of node this is. What cannot be read is empty or zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Host name.
    pub hostname: String,
    /// Operating system in OCI terms: `linux`.
    pub os: String,
    /// Architecture in OCI terms: `amd64`, `arm64`, `arm`, `riscv64`, …
    pub arch: String,
    /// The distribution, such as `Debian GNU/Linux 12 (bookworm)`.
    pub os_image: String,
    /// Kernel release, such as `6.1.0-18-amd64`.
    pub kernel: String,
    /// CPUs that are online.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Different after every boot.
    pub boot_id: String,
    /// The same as long as the system is installed.
    pub machine_id: String,
}

/// Reads the facts of this node.
pub fn facts() -> Facts {
    let uname = rustix::system::uname();
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    Facts {
        hostname: uname.nodename().to_string_lossy().into_owned(),
        os: std::env::consts::OS.to_owned(),
        arch: oci_arch(std::env::consts::ARCH).to_owned(),
        os_image: os_image(&read("/etc/os-release")),
        kernel: uname.release().to_string_lossy().into_owned(),
        cpus: count_cpus(&read("/sys/devices/system/cpu/online")),
        memory_bytes: meminfo(&read("/proc/meminfo"), "MemTotal"),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        machine_id: read("/etc/machine-id"),
    }
}

/// Memory that can be had without swapping, in bytes.
pub fn available_memory() -> u64 {
    meminfo(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable")
}

/// Room on the file system that holds a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Its size in bytes.
    pub capacity_bytes: u64,
    /// Bytes that can still be written without privileges.
    pub available_bytes: u64,
    /// Number of files it can hold; 0 when it has no such limit.
    pub inodes: u64,
    /// How many of them are free.
    pub inodes_free: u64,
}

/// Room on the file system that holds `path`.
pub fn disk(path: &Path) -> io::Result<Disk> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(Disk {
        capacity_bytes: stat.f_blocks * stat.f_frsize,
        available_bytes: stat.f_bavail * stat.f_frsize,
        inodes: stat.f_files,
        inodes_free: stat.f_favail,
    })
}

/// Go's name, which OCI uses, for Rust's.
fn oci_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        same => same,
    }
}

fn os_image(os_release: &str) -> String {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
}

/// Counts a list such as `0-3,6`.
fn count_cpus(list: &str) -> u32 {
    let count = |part: &str| -> Option<u32> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(last.trim().parse::<u32>().ok()?.checked_sub(first.trim().parse().ok()?)? + 1)
    };
    list.split(',').filter_map(count).sum()
}

fn meminfo(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_there() {
        let facts = facts();
        assert!(facts.cpus >= 1 && facts.memory_bytes > 1 << 20 && available_memory() <= facts.memory_bytes);
        for text in [&facts.hostname, &facts.kernel, &facts.boot_id, &facts.arch] {
            assert!(!text.is_empty(), "{facts:?}");
        }
        assert_eq!(facts.os, "linux");
        let disk = disk(Path::new("/")).unwrap();
        assert!(disk.capacity_bytes >= disk.available_bytes);
        assert!(disk.inodes >= disk.inodes_free);
    }

    #[test]
    fn texts_are_parsed() {
        assert_eq!(count_cpus("0-3,6\n"), 5);
        assert_eq!(count_cpus("0"), 1);
        assert_eq!(count_cpus(""), 0);
        assert_eq!(meminfo("MemTotal:   16 kB\nMemFree: 1 kB\n", "MemTotal"), 16384);
        assert_eq!(meminfo("", "MemTotal"), 0);
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!((oci_arch("x86_64"), oci_arch("aarch64"), oci_arch("riscv64")), ("amd64", "arm64", "riscv64"));
    }
}
