//! References as Docker understands them. Pure.

use std::net::IpAddr;

use oci_spec::distribution::Reference;

use super::Error;

/// The registry of names that name none, and how it was called before.
const HUB: &str = "docker.io";
const HUB_BEFORE: &str = "index.docker.io";
/// Longest name without its registry, and longest tag, of the distribution specification.
const LONGEST_NAME: usize = 255;
const LONGEST_TAG: usize = 128;

/// Parses and checks a reference, and completes it.
///
/// The grammar is that of the distribution project's reference package. It is read by hand: the regular expression
/// of `oci-spec` knows all letters of Unicode and takes 15 MiB to compile.
///
/// # Errors
/// [`Error::InvalidReference`], which says which part is wrong. On top of the grammar that is: a name of 64
/// hexadecimal digits (which is an image id) and digests other than sha256 (which containerd cannot store).
pub fn parse(reference: &str) -> Result<Reference, Error> {
    read(reference).map_err(|wrong| Error::InvalidReference {
        reference: reference.to_owned(),
        message: format!("{wrong}; expected [registry/]name[:tag][@sha256:…] with a lower-case name"),
    })
}

fn read(reference: &str) -> Result<Reference, String> {
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (reference, None),
    };
    // A colon before the last slash is that of a port.
    let after_slash = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[after_slash..].find(':') {
        Some(colon) => (&rest[..after_slash + colon], Some(&rest[after_slash + colon + 1..])),
        None => (rest, None),
    };
    if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("64 hexadecimal digits are an image id, not a name".to_owned());
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (first, path),
        _ => (HUB, name),
    };
    if !is_registry(registry) {
        return Err(format!("{registry:?} is not a host with an optional port"));
    }
    check_path(path)?;
    let registry = if registry == HUB_BEFORE { HUB } else { registry };
    let path = if registry == HUB && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
        return Err(format!("the tag {tag:?} is not of up to {LONGEST_TAG} letters, digits, `_`, `.` and `-`"));
    }
    let digest = digest.map(|digest| super::manifest::Digest::new(digest).map(|_| digest.to_owned()));
    let digest = digest.transpose().map_err(|e| e.to_string())?;
    let registry = registry.to_owned();
    Ok(match (tag, digest) {
        (Some(tag), Some(digest)) => Reference::with_tag_and_digest(registry, path, tag.to_owned(), digest),
        (None, Some(digest)) => Reference::with_digest(registry, path, digest),
        (tag, None) => Reference::with_tag(registry, path, tag.unwrap_or("latest").to_owned()),
    })
}

/// A name of labels or an IPv6 address in brackets, with an optional port.
fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    let is_label = |label: &str| {
        let alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        alphanumeric(bytes.first())
            && alphanumeric(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(is_label),
    };
    is_host && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Components of lower-case letters and digits, parted by slashes, and within by one dot, one or two underscores or
/// any number of dashes.
fn check_path(path: &str) -> Result<(), String> {
    if path.len() > LONGEST_NAME {
        return Err(format!("the name has more than {LONGEST_NAME} characters"));
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the name must be lower-case".to_owned());
    }
    let is_word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_separator = |text: &[u8]| matches!(text, b"." | b"_" | b"__") || text.iter().all(|b| *b == b'-');
    let is_component = |component: &str| {
        let bytes = component.as_bytes();
        bytes.first().is_some_and(is_word)
            && bytes.last().is_some_and(is_word)
            && bytes.split(is_word).filter(|between| !between.is_empty()).all(is_separator)
    };
    match path.split('/').find(|component| !is_component(component)) {
        Some(component) => Err(format!("{component:?} is not a part of a name")),
        None => Ok(()),
    }
}

fn is_tag(tag: &str) -> bool {
    let is_word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    tag.len() <= LONGEST_TAG
        && tag.as_bytes().first().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(&b) || matches!(b, b'.' | b'-'))
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
    use proptest::prelude::*;

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
            ("foo_bar.com:8080", "docker.io/library/foo_bar.com:8080".to_owned()),
            ("a__b/c---d.e:1", "docker.io/a__b/c---d.e:1".to_owned()),
            ("Registry.Example:443/x", "Registry.Example:443/x:latest".to_owned()),
            ("[fd00::1]:5000/x", "[fd00::1]:5000/x:latest".to_owned()),
            ("xn--n3h.com/my:xn--n3h.com", "xn--n3h.com/my:xn--n3h.com".to_owned()),
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
            "nginx:-x",
            "nginx:ünicode",
            "nginx@",
            "nginx@sha256",
            "a___b",
            "a..b",
            "a-/b",
            "a/",
            "/a",
            "registry.example:port/x",
            "registry.example:/x",
            "registry..example/x",
            "-registry.example/x",
            "[fd00::zz]:5000/x",
            "b\u{fc}cher.example/x",
            &format!("nginx:{}", "x".repeat(129)),
            &"x".repeat(256),
            HEX,
            &format!("nginx@sha256:{}", HEX.to_uppercase()),
            &format!("nginx@sha512:{HEX}{HEX}"),
        ] {
            assert!(matches!(normalize(bad), Err(Error::InvalidReference { .. })), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_stays_as_it_was_completed(text in "[a-zA-Z0-9ü./:@_\\[\\]-]{0,40}") {
            if let Ok(full) = normalize(&text) {
                prop_assert_eq!(normalize(&full).unwrap(), full);
            }
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
