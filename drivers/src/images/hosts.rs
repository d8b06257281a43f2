//! containerd's `hosts.toml`: which servers stand for a registry.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde::Deserialize;

use super::reference::is_loopback;

/// Why the file for a registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Unreadable.
    #[error("reading {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML of the expected form.
    #[error("{} is not a valid hosts file", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: toml::de::Error,
    },
    /// A server's address or capability is wrong or asks for something that is not supported.
    #[error("{}: {message}", path.display())]
    Host {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with the server.
        message: String,
    },
}

/// One server that may be asked for a registry's content.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// TLS or not.
    pub https: bool,
    /// Host, with port and path prefix if any: `mirror.example:5000/hub`. `/v2/…` is appended.
    pub host: String,
    /// May be asked what a tag means.
    pub resolve: bool,
    /// The registry itself: gets the credentials.
    pub origin: bool,
    /// More authorities to trust: PEM files.
    pub ca: Vec<PathBuf>,
    /// Trust any certificate.
    pub skip_verify: bool,
}

impl Endpoint {
    /// The registry itself, as Docker reaches it.
    pub fn of_registry(registry: &str) -> Self {
        Self {
            https: !is_loopback(registry),
            host: registry.to_owned(),
            resolve: true,
            origin: true,
            ca: Vec::new(),
            skip_verify: false,
        }
    }
}

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(default)]
    host: IndexMap<String, Host>,
    #[serde(flatten)]
    own: Host,
}

#[derive(Deserialize, Default)]
struct Host {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    skip_verify: Option<bool>,
    override_path: Option<bool>,
    client: Option<toml::Value>,
    header: Option<toml::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// The servers for a registry, in the order to try them: those of its `hosts.toml` below `dir`, then the registry.
/// Read anew for every pull, so an edit needs no restart. `name` is what users write, such as `docker.io`; `registry`
/// where that is served.
///
/// # Errors
/// [`Error`] when there is a file that cannot be followed to the letter: silently going elsewhere would be worse.
pub fn endpoints(dir: Option<&Path>, name: &str, registry: &str) -> Result<Vec<Endpoint>, Error> {
    let Some(path) = dir.and_then(|dir| find(dir, name)) else { return Ok(vec![Endpoint::of_registry(registry)]) };
    let text = std::fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let file: File = toml::from_str(&text).map_err(|source| Error::Parse { path: path.clone(), source })?;
    let mut found = Vec::new();
    for (url, host) in &file.host {
        found.extend(endpoint(&path, url, host, false)?);
    }
    match &file.server {
        Some(url) => found.extend(endpoint(&path, url, &file.own, true)?),
        None => found.push(Endpoint::of_registry(registry)),
    }
    Ok(found)
}

/// The file of the first directory that exists, in containerd's order.
fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let mut names = Vec::new();
    if let Some((host, port)) = name.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([name.to_owned(), "_default".to_owned()]);
    names.into_iter().map(|n| dir.join(n)).find(|d| d.is_dir()).map(|d| d.join("hosts.toml")).filter(|f| f.exists())
}

/// `None` for a server that may not be pulled from.
fn endpoint(path: &Path, url: &str, host: &Host, origin: bool) -> Result<Option<Endpoint>, Error> {
    let Host { capabilities, ca, skip_verify, override_path, client, header } = host;
    let wrong = |message: String| Error::Host { path: path.to_owned(), message };
    let (https, rest) = match url.split_once("://") {
        Some(("https", rest)) => (true, rest),
        Some(("http", rest)) => (false, rest),
        Some((scheme, _)) => return Err(wrong(format!("{url}: the scheme {scheme} is not supported"))),
        None => (!is_loopback(url.split('/').next().unwrap_or_default()), url),
    };
    let rest = rest.trim_end_matches('/');
    if rest.is_empty() || rest.starts_with('/') || rest.contains(['@', '?', '#', ' ']) {
        return Err(wrong(format!("{url:?} is not the address of a server")));
    }
    for (present, field) in [
        (override_path.unwrap_or_default() && rest.contains('/') && !rest.ends_with("/v2"), "override_path"),
        (client.is_some(), "client"),
        (header.is_some(), "header"),
    ] {
        if present {
            return Err(wrong(format!("{url}: {field} is not supported yet")));
        }
    }
    // With override_path the version is part of the given path.
    let rest = if override_path.unwrap_or_default() { rest.strip_suffix("/v2").unwrap_or(rest) } else { rest };
    let can = |what: &str| capabilities.as_ref().is_none_or(|all| all.iter().any(|c| c == what));
    let base = path.parent().unwrap_or(Path::new("/"));
    let ca = match ca {
        None => Vec::new(),
        Some(OneOrMany::One(one)) => vec![base.join(one)],
        Some(OneOrMany::Many(many)) => many.iter().map(|one| base.join(one)).collect(),
    };
    Ok(can("pull").then(|| Endpoint {
        https,
        host: rest.to_owned(),
        resolve: can("resolve"),
        origin,
        ca,
        skip_verify: skip_verify.unwrap_or_default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, text: &str, registry: &str) -> Result<Vec<Endpoint>, Error> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("hosts.toml"), text).unwrap();
        endpoints(Some(dir.path()), registry, registry)
    }

    #[test]
    fn without_a_file_the_registry_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let found = endpoints(Some(dir.path()), "docker.io", "index.docker.io").unwrap();
        assert_eq!(found, [Endpoint::of_registry("index.docker.io")]);
        assert!(!endpoints(None, "x", "localhost:5000").unwrap()[0].https);
    }

    #[test]
    fn mirrors_keep_their_order_and_the_server_comes_last() {
        let text = r#"
            server = "https://upstream.example"
            [host."http://z.example:5000"]
            capabilities = ["pull"]
            [host."https://a.example/hub"]
            skip_verify = true
            ca = "a.pem"
            [host."https://push.example"]
            capabilities = ["push"]
        "#;
        let found = with("r.example_5000_", text, "r.example:5000").unwrap();
        let seen: Vec<_> = found.iter().map(|e| (e.https, e.host.as_str(), e.resolve, e.origin)).collect();
        assert_eq!(
            seen,
            [
                (false, "z.example:5000", false, false),
                (true, "a.example/hub", true, false),
                (true, "upstream.example", true, true)
            ]
        );
        assert!(found[1].skip_verify && found[1].ca[0].ends_with("r.example_5000_/a.pem"));
    }

    #[test]
    fn the_default_directory_serves_all_others() {
        let found = with("_default", "[host.\"https://m.example\"]\n", "r.example").unwrap();
        let hosts: Vec<_> = found.iter().map(|e| e.host.as_str()).collect();
        assert_eq!(hosts, ["m.example", "r.example"]);
    }

    #[test]
    fn what_cannot_be_followed_is_an_error() {
        for bad in [
            "server = 5",
            "[host.\"ftp://x\"]\n",
            "[host.\"https://\"]\n",
            "[host.\"https://u:p@x\"]\n",
            "[host.\"https://x\".header]\na = \"b\"\n",
            "[host.\"https://x/y\"]\noverride_path = true\n",
            "[host.\"https://x\"]\nclient = \"c.pem\"\n",
        ] {
            assert!(with("_default", bad, "r.example").is_err(), "{bad}");
        }
    }
}
