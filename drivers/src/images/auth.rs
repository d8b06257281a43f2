//! Credentials out of `kubernetes.io/dockerconfigjson` Secrets and Docker's own `config.json`. Pure.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use super::Credentials;
use super::registry::TOKEN_USER;

/// Why a credentials file cannot be used. Never holds any of its secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not the expected JSON. The parser's own message could quote the content.
    #[error("it is not a Docker configuration: JSON error in line {line}, column {column}")]
    Json {
        /// Line of the error.
        line: usize,
        /// Column of the error.
        column: usize,
    },
    /// The entry for the registry is broken.
    #[error("its entry {entry:?} is unusable: {message}")]
    Entry {
        /// Key below `auths`.
        entry: String,
        /// What is wrong.
        message: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

/// A program that knows credentials: `docker-credential-<name>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Helper {
    /// The end of the program's name.
    pub(super) name: String,
    /// What it is asked for.
    pub(super) server: String,
    /// It is for this registry, not the store for all.
    pub(super) own: bool,
}

/// The helper that a configuration names for a reference.
///
/// # Errors
/// [`Error`] when the file is broken, or the helper's name is not that of a program in the path.
pub(super) fn helper_for(reference: &str, docker_config: &[u8]) -> Result<Option<Helper>, Error> {
    let Ok(reference) = super::reference::parse(reference) else { return Ok(None) };
    let config = parse(docker_config)?;
    let registry = reference.registry();
    let own = config.cred_helpers.iter().find(|(host, _)| canonical(host) == canonical(registry));
    let (name, server, own) = match own {
        Some((host, name)) => (name.clone(), host.clone(), true),
        None if config.creds_store.is_empty() => return Ok(None),
        None if canonical(registry) == "docker.io" => (config.creds_store, DOCKER_HUB.to_owned(), false),
        None => (config.creds_store, registry.to_owned(), false),
    };
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(Error::Entry { entry: server, message: "its helper must be the end of a program's name" });
    }
    Ok(Some(Helper { name, server, own }))
}

/// By this name Docker's tools keep the credentials of Docker Hub.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

fn parse(docker_config: &[u8]) -> Result<DockerConfig, Error> {
    serde_json::from_slice(docker_config).map_err(|e| Error::Json { line: e.line(), column: e.column() })
}

#[derive(Deserialize, Default)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default, rename = "identitytoken")]
    identity_token: Option<String>,
}

/// The credentials for a reference in the bytes of a `.dockerconfigjson`; `None` when it has none for the registry.
///
/// Keys are matched as the kubelet does: a scheme and a trailing `/v1/` or `/v2/` are ignored, a path narrows the
/// entry to repositories below it, `*` stands for one label's part of the host, and the longest match wins. Docker
/// Hub goes by all its names.
///
/// # Errors
/// [`Error`] when the file, or the one entry that matches best, is broken. A reference that is none has no
/// credentials.
pub fn credentials_for(reference: &str, docker_config: &[u8]) -> Result<Option<Credentials>, Error> {
    let Ok(reference) = super::reference::parse(reference) else { return Ok(None) };
    let config = parse(docker_config)?;
    let best = config
        .auths
        .iter()
        .filter_map(|(key, entry)| {
            rank(key, reference.registry(), reference.repository()).map(|rank| (rank, key, entry))
        })
        .max_by_key(|(rank, ..)| *rank);
    match best {
        None => Ok(None),
        Some((_, key, entry)) => read(key, entry).map(Some),
    }
}

/// How exactly `key` names the repository: exact hosts before patterns, longer paths before shorter; `None` does not.
fn rank(key: &str, registry: &str, repository: &str) -> Option<(bool, usize)> {
    let bare = key.split_once("://").map_or(key, |(_, rest)| rest).trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let exact = canonical(host) == canonical(registry);
    if !exact && !host_matches(host, registry) {
        return None;
    }
    let below = path.is_empty() || repository == path || repository.strip_prefix(path)?.starts_with('/');
    below.then_some((exact, path.len()))
}

fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io",
        other => other,
    }
}

/// Host patterns: label by label, `*` for any run of characters within one label; ports must be equal.
fn host_matches(pattern: &str, host: &str) -> bool {
    if !pattern.contains('*') {
        return false;
    }
    let split = |text: &str| -> (Vec<String>, String) {
        let (name, port) = text.rsplit_once(':').unwrap_or((text, ""));
        (name.split('.').map(str::to_owned).collect(), port.to_owned())
    };
    let ((patterns, pattern_port), (labels, port)) = (split(pattern), split(host));
    pattern_port == port
        && patterns.len() == labels.len()
        && patterns.iter().zip(&labels).all(|(pattern, label)| label_matches(pattern, label))
}

fn label_matches(pattern: &str, label: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = label.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn read(key: &str, entry: &Entry) -> Result<Credentials, Error> {
    let broken = |message| Error::Entry { entry: key.to_owned(), message };
    let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    if let Some(token) = given(&entry.identity_token) {
        return Ok(Credentials { username: TOKEN_USER.to_owned(), password: token });
    }
    if let (Some(username), Some(password)) = (given(&entry.username), given(&entry.password)) {
        return Ok(Credentials { username, password });
    }
    if let Some(auth) = given(&entry.auth) {
        let text = STANDARD
            .decode(auth.trim())
            .or_else(|_| STANDARD_NO_PAD.decode(auth.trim()))
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| broken("auth is not base64 of text"))?;
        let (username, password) = text.split_once(':').ok_or_else(|| broken("auth has no ':' after decoding"))?;
        // Docker pads the password with NUL bytes in old files.
        let password = password.trim_matches('\0');
        return Ok(Credentials { username: username.to_owned(), password: password.to_owned() });
    }
    Err(broken("it has neither auth nor username and password"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(reference: &str, keys: &[&str]) -> Option<String> {
        let auths: serde_json::Map<String, serde_json::Value> =
            keys.iter().map(|key| ((*key).to_owned(), serde_json::json!({"username": key, "password": "p"}))).collect();
        let json = serde_json::json!({ "auths": auths }).to_string();
        credentials_for(reference, json.as_bytes()).unwrap().map(|c| c.username)
    }

    #[test]
    fn the_most_exact_entry_wins() {
        for (reference, keys, expected) in [
            ("nginx", &["https://index.docker.io/v1/"][..], Some("https://index.docker.io/v1/")),
            ("nginx", &["docker.io"], Some("docker.io")),
            ("registry.example/a/b", &["registry.example", "registry.example/a"], Some("registry.example/a")),
            ("registry.example/ab", &["registry.example/a"], None),
            ("registry.example/a", &["https://registry.example/v2/"], Some("https://registry.example/v2/")),
            ("registry.example:5000/a", &["registry.example"], None),
            ("registry.example:5000/a", &["http://registry.example:5000"], Some("http://registry.example:5000")),
            ("eu.registry.example/a", &["*.registry.example"], Some("*.registry.example")),
            ("eu.registry.example/a", &["*.registry.example", "eu.registry.example"], Some("eu.registry.example")),
            ("a.b.registry.example/a", &["*.registry.example"], None),
            ("eu-1.registry.example/a", &["e*-1.registry.example"], Some("e*-1.registry.example")),
            ("us-1.registry.example/a", &["e*-1.registry.example"], None),
            ("other.example/a", &["registry.example"], None),
            ("Not A Reference", &["registry.example"], None),
        ] {
            assert_eq!(find(reference, keys).as_deref(), expected, "{reference} {keys:?}");
        }
    }

    #[test]
    fn auth_is_decoded() {
        let config = |auth: &str| format!(r#"{{"auths":{{"r.example":{{"auth":"{auth}"}}}}}}"#);
        let found = credentials_for("r.example/x", config("dXNlcjpwYTpzcw==").as_bytes()).unwrap().unwrap();
        assert_eq!((found.username.as_str(), found.password.as_str()), ("user", "pa:ss"));
        for bad in ["!!!", "dXNlcg==", "gICA", ""] {
            let error = credentials_for("r.example/x", config(bad).as_bytes()).unwrap_err();
            assert!(matches!(error, Error::Entry { .. }), "{bad}: {error}");
            assert_eq!(credentials_for("other.example/x", config(bad).as_bytes()), Ok(None));
        }
    }

    #[test]
    fn broken_files_say_where_without_quoting() {
        let error = credentials_for("x", br#"{"auths": {"a": "topsecret"}}"#).unwrap_err();
        assert!(matches!(error, Error::Json { line: 1, .. }));
        assert!(!error.to_string().contains("topsecret"));
        assert_eq!(credentials_for("x", b"{}"), Ok(None));
    }

    #[test]
    fn printing_hides_the_password() {
        let credentials = Credentials { username: "u".to_owned(), password: "topsecret".to_owned() };
        assert!(!format!("{credentials:?}").contains("topsecret"));
    }
}
