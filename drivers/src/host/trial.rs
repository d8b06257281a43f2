//! Trying out what the kernel can do, in namespaces that end with the trial.
#![allow(unsafe_code)]

use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `trial` in a thread with new namespaces, which go when it ends.
fn in_new<T: Send + 'static>(
    namespaces: UnshareFlags,
    trial: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("trial".to_owned()).spawn(move || {
        // SAFETY: affects this thread only, which runs nothing but the trial and then ends.
        unsafe { unshare_unsafe(namespaces)? };
        trial()
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the trial panicked")))
}

/// Mounts an overlay of three directories; loads the module where that is allowed.
pub(super) fn overlay() -> io::Result<()> {
    in_new(UnshareFlags::NEWNS, || {
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        // Covers /proc for this thread alone: the one directory that is surely there.
        mount("trial", "/proc", "tmpfs", MountFlags::empty(), None)?;
        for name in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir(format!("/proc/{name}"))?;
        }
        let options = c"lowerdir=/proc/lower,upperdir=/proc/upper,workdir=/proc/work";
        Ok(mount("trial", "/proc/merged", "overlay", MountFlags::empty(), Some(options))?)
    })
}

/// Makes a link of this kind: `bridge`, `veth`.
pub(super) fn link(kind: &'static str) -> io::Result<()> {
    in_new(UnshareFlags::NEWNET, move || {
        let mut body = vec![0; 16]; // struct ifinfomsg
        body.extend(attribute(3, b"trial0\0")); // IFLA_IFNAME
        let info_kind = attribute(1, kind.as_bytes()); // IFLA_INFO_KIND
        body.extend(attribute(18, &info_kind)); // IFLA_LINKINFO
        exchange(NETLINK_ROUTE, &message(libc::RTM_NEWLINK, CREATE | ACK, 1, &body), 1)
    })
}

/// `NFPROTO_INET`, the family of tables for IP.
pub(super) const INET: u8 = 1;
/// `NFPROTO_BRIDGE`, the family of tables for frames on bridges.
pub(super) const BRIDGE: u8 = 7;

/// Makes a table of nftables of this family with a chain as ours have it.
pub(super) fn nftables(family: u8) -> io::Result<()> {
    in_new(UnshareFlags::NEWNET, move || {
        let name = attribute(1, b"trial\0"); // NFTA_TABLE_NAME, NFTA_CHAIN_TABLE
        let hook = [attribute(1, &0_u32.to_be_bytes()), attribute(2, &(-100_i32).to_be_bytes())].concat();
        let kind: &[u8] = if family == INET { b"nat\0" } else { b"filter\0" };
        let chain = [name.clone(), attribute(3, b"trial\0"), attribute(4, &hook), attribute(7, kind)].concat();
        let nft = libc::NFNL_SUBSYS_NFTABLES as u16;
        let of = |family: u8, subsystem: u16| {
            let [high, low] = subsystem.to_be_bytes();
            vec![family, 0, high, low]
        };
        let request = [
            message(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, 1, &of(0, nft)),
            message(nft << 8, CREATE | ACK, 2, &[of(family, 0), name].concat()), // NFT_MSG_NEWTABLE
            message(nft << 8 | 3, CREATE | ACK, 3, &[of(family, 0), chain].concat()), // NFT_MSG_NEWCHAIN
            message(libc::NFNL_MSG_BATCH_END as u16, 0, 4, &of(0, nft)),
        ];
        exchange(NETLINK_NETFILTER, &request.concat(), 2)
    })
}

const CREATE: u16 = libc::NLM_F_CREATE as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len() + 8);
    bytes.extend(((value.len() + 4) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + 16);
    bytes.extend(((body.len() + 16) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(body);
    bytes
}

/// Sends the request and reads `answers` acknowledgements; the first refusal is the error.
fn exchange(protocol: isize, request: &[u8], mut answers: usize) -> io::Result<()> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(std::time::Duration::from_secs(5)),
    )?;
    socket.send(request, 0)?;
    while answers > 0 {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let Some(header) = rest.first_chunk::<4>() {
            let length = (u32::from_ne_bytes(*header) as usize).next_multiple_of(4).max(16);
            // struct nlmsgerr begins with the error, 0 for an acknowledgement.
            if let Some(Ok(code)) = rest.get(16..20).map(<[u8; 4]>::try_from) {
                let code = i32::from_ne_bytes(code);
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
            }
            answers = answers.saturating_sub(1);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_kernel_has_is_found_and_what_it_has_not_is_not() {
        overlay().unwrap();
        link("bridge").unwrap();
        link("veth").unwrap();
        nftables(INET).unwrap();
        nftables(BRIDGE).unwrap();
        assert!(link("no-such-kind").is_err());
        assert!(!std::path::Path::new("/proc/lower").exists(), "only the thread saw it");
    }
}
