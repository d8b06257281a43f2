//! The node's addresses.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

/// An address of one of the node's links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Address {
    /// The link.
    pub interface: String,
    /// The address.
    pub ip: IpAddr,
}

/// Addresses by which others may reach the node: those of links that are up, without loopback and link-local ones.
/// Bridges of containers are among them; the caller knows which are its own.
pub fn addresses() -> io::Result<Vec<Address>> {
    let mut first = std::ptr::null_mut();
    // SAFETY: on success `first` points to a list that is ours until freeifaddrs.
    if unsafe { libc::getifaddrs(&mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = first;
    // SAFETY: `next` is null or an entry of the list, which is freed only afterwards; names are C strings.
    while let Some(entry) = unsafe { next.as_ref() } {
        let wanted = libc::IFF_UP as u32;
        if entry.ifa_flags & (wanted | libc::IFF_LOOPBACK as u32) == wanted
            && let Some(ip) = ip(entry.ifa_addr).filter(is_reachable)
        {
            // SAFETY: as above.
            let name = unsafe { CStr::from_ptr(entry.ifa_name) };
            found.push(Address { interface: name.to_string_lossy().into_owned(), ip });
        }
        next = entry.ifa_next;
    }
    // SAFETY: the list that getifaddrs made, freed once; nothing of it is used any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

fn ip(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: an address is null or as large as its family says.
    unsafe {
        match i32::from(address.as_ref()?.sa_family) {
            libc::AF_INET => {
                let v4 = &*address.cast::<libc::sockaddr_in>();
                Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => Some(Ipv6Addr::from((*address.cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr).into()),
            _ => None,
        }
    }
}

fn is_reachable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_loopback() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback() && !v6.is_unspecified(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_others_can_use() {
        for address in addresses().unwrap() {
            assert!(!address.ip.is_loopback() && address.interface != "lo", "{address:?}");
        }
        for (ip, reachable) in [("169.254.1.1", false), ("fe80::1", false), ("10.0.0.1", true), ("fd00::1", true)] {
            assert_eq!(is_reachable(&ip.parse().unwrap()), reachable, "{ip}");
        }
    }
}
