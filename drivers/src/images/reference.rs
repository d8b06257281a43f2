//! References as Docker understands them. Pure.

use std::net::IpAddr;

use oci_spec::distribution::Reference;

use super::Error;

/// Parses and checks a reference.
///
/// # Errors
/// [`Error::InvalidReference`]. On top of the grammar that is: upper case in the name (which would name a registry
/// that nobody meant), a name of 64 hexadecimal digits (which is an image id) and digests other than sha256 (which
/// containerd cannot store).
pub fn parse(reference: &str) -> Result<Reference, Error> {
    let invalid = |message: String| Error::InvalidReference { reference: reference.to_owned(), message };
    let expected = "expected [registry/]name[:tag][@sha256:…] with a lower-case name";
    let parsed: Reference = reference.parse().map_err(|e| invalid(format!("{e}; {expected}")))?;
    if parsed.repository().bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(invalid(format!("the name must be lower-case; {expected}")));
    }
    let name = reference.split(['@', ':']).next().unwrap_or_default();
    if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(invalid(format!("64 hexadecimal digits are an image id, not a name; {expected}")));
    }
    if let Some(digest) = parsed.digest() {
        super::manifest::Digest::new(digest).map_err(|e| invalid(format!("{e}; {expected}")))?;
    }
    Ok(parsed)
}

/// Whether the registry runs on this node, and so is spoken to without TLS, as Docker does; except on port 443.
pub fn is_loopback(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !port.is_empty() => (host, port),
        _ => (registry, ""),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    port != "443" && (host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::super::normalize;
    use super::*;

    const HEX: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = format!("sha256:{HEX}");
        for (given, full) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".to_owned()),
            ("user/app", "docker.io/user/app:latest".to_owned()),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("localhost:5000/x", "localhost:5000/x:latest".to_owned()),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c".to_owned()),
            ("registry.example/web:1.4", "registry.example/web:1.4".to_owned()),
            ("test.com:5000", "docker.io/library/test.com:5000".to_owned()),
            ("nginx:V1.0_rc", "docker.io/library/nginx:V1.0_rc".to_owned()),
            (&format!("nginx@{digest}"), format!("docker.io/library/nginx@{digest}")),
            (&format!("nginx:1@{digest}"), format!("docker.io/library/nginx:1@{digest}")),
        ] {
            assert_eq!(normalize(given).unwrap(), full);
            assert_eq!(normalize(&full).unwrap(), full, "a full name stays as it is");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for bad in [
            "",
            " ",
            "Nginx",
            "User/app",
            "registry.example/App",
            "nginx:",
            ":x",
            "nginx@sha256:abc",
            "a//b",
            "../x",
            "-x",
            "http://registry.example/x",
            "nginx:tag with space",
            "nginx:",
            HEX,
            &format!("nginx@sha256:{}", HEX.to_uppercase()),
            &format!("nginx@sha512:{HEX}{HEX}"),
        ] {
            assert!(matches!(normalize(bad), Err(Error::InvalidReference { .. })), "{bad:?}");
        }
    }

    #[test]
    fn loopback_registries_are_plain() {
        for yes in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000"] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in ["registry.example", "localhost:443", "10.0.0.1:5000", "localhost.example", "128.0.0.1"] {
            assert!(!is_loopback(no), "{no}");
        }
    }
}
