//! containerd's `hosts.toml`: which servers stand for a registry.

use std::path::{Path, PathBuf};
use std::time::Duration;

use indexmap::IndexMap;
use serde::Deserialize;

use super::reference::is_loopback;

/// Where a registry's API is, unless a file says otherwise.
const API: &str = "/v2";

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
    /// Host, with port if any: `mirror.example:5000`.
    pub host: String,
    /// Root of its API: `/v2`, below a prefix or not.
    pub path: String,
    /// May be asked what a tag means.
    pub resolve: bool,
    /// The registry itself: gets the credentials.
    pub origin: bool,
    /// More authorities to trust: PEM files.
    pub ca: Vec<PathBuf>,
    /// Our certificate, and its key unless that is in the same file: PEM files.
    pub client: Option<(PathBuf, Option<PathBuf>)>,
    /// Headers of every request; they may hold secrets.
    pub headers: Headers,
    /// Trust any certificate.
    pub skip_verify: bool,
    /// Longest wait for a connection.
    pub dial_timeout: Option<Duration>,
}

/// Names and values of headers. Values are never printed.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Headers(pub Vec<(String, String)>);

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Endpoint {
    /// The registry itself, as Docker reaches it.
    pub fn of_registry(registry: &str) -> Self {
        Self {
            https: !is_loopback(registry),
            host: registry.to_owned(),
            path: API.to_owned(),
            resolve: true,
            origin: true,
            ca: Vec::new(),
            client: None,
            headers: Headers::default(),
            skip_verify: false,
            dial_timeout: None,
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
    ca: Option<OneOrMany<PathBuf>>,
    skip_verify: Option<bool>,
    override_path: Option<bool>,
    client: Option<Client>,
    #[serde(default)]
    header: IndexMap<String, OneOrMany<String>>,
    dial_timeout: Option<String>,
}

/// One file with certificate and key, several of them, or pairs. Only the first can be shown to a server.
#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    One(PathBuf),
    Many(Vec<OneOrMany<PathBuf>>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T: Clone> OneOrMany<T> {
    fn all(&self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one.clone()],
            Self::Many(many) => many.clone(),
        }
    }
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
    let Host { capabilities, ca, skip_verify, override_path, client, header, dial_timeout } = host;
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
    let (name, prefix) = rest.split_once('/').map_or((rest, String::new()), |(name, p)| (name, format!("/{p}")));
    // With override_path the address is the root of the API, whatever it is called.
    let root = if override_path.unwrap_or_default() || prefix.ends_with(API) { prefix } else { prefix + API };
    let can = |what: &str| capabilities.as_ref().is_none_or(|all| all.iter().any(|c| c == what));
    let base = path.parent().unwrap_or(Path::new("/"));
    let client = match client {
        None => None,
        Some(Client::One(one)) => Some((base.join(one), None)),
        Some(Client::Many(many)) => {
            let first = many.first().ok_or_else(|| wrong(format!("{url}: client names no certificate")))?;
            match &first.all()[..] {
                [certificate] => Some((base.join(certificate), None)),
                [certificate, key] if key.as_os_str().is_empty() => Some((base.join(certificate), None)),
                [certificate, key] => Some((base.join(certificate), Some(base.join(key)))),
                _ => return Err(wrong(format!("{url}: client must be a certificate, or a certificate and a key"))),
            }
        }
    };
    let dial_timeout = match dial_timeout {
        None => None,
        Some(text) => {
            let span: jiff::SignedDuration =
                text.parse().map_err(|_| wrong(format!("{url}: dial_timeout {text:?} is not a duration")))?;
            Some(Duration::try_from(span).map_err(|_| wrong(format!("{url}: dial_timeout must not be negative")))?)
        }
    };
    Ok(can("pull").then(|| Endpoint {
        https,
        host: name.to_owned(),
        path: root,
        resolve: can("resolve"),
        origin,
        ca: ca.as_ref().map(OneOrMany::all).unwrap_or_default().iter().map(|one| base.join(one)).collect(),
        client,
        headers: Headers(header.iter().flat_map(|(k, v)| v.all().into_iter().map(move |v| (k.clone(), v))).collect()),
        skip_verify: skip_verify.unwrap_or_default(),
        dial_timeout,
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
        let seen: Vec<_> =
            found.iter().map(|e| (e.https, format!("{}{}", e.host, e.path), e.resolve, e.origin)).collect();
        assert_eq!(
            seen,
            [
                (false, "z.example:5000/v2".to_owned(), false, false),
                (true, "a.example/hub/v2".to_owned(), true, false),
                (true, "upstream.example/v2".to_owned(), true, true)
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
            "[host.\"https://x\".header]\na = 5\n",
            "[host.\"https://x\"]\nclient = []\n",
            "[host.\"https://x\"]\nclient = [[\"a\", \"b\", \"c\"]]\n",
            "[host.\"https://x\"]\ndial_timeout = \"long\"\n",
        ] {
            assert!(with("_default", bad, "r.example").is_err(), "{bad}");
        }
    }

    #[test]
    fn certificates_headers_and_paths_are_followed() {
        let text = r#"
            server = "https://upstream.example/mirror/v2"
            [host."https://a.example/api/x"]
            override_path = true
            client = [["a.crt", "a.key"], ["b.pem", ""]]
            dial_timeout = "1.5s"
            [host."https://a.example/api/x".header]
            x-one = "1"
            x-two = ["2", "3"]
            [host."https://b.example"]
            client = "/etc/b.pem"
        "#;
        let found = with("_default", text, "r.example").unwrap();
        let paths: Vec<_> = found.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["/api/x", "/v2", "/mirror/v2"]);
        let (certificate, key) = found[0].client.clone().unwrap();
        assert!(certificate.ends_with("_default/a.crt") && key.unwrap().ends_with("_default/a.key"));
        assert_eq!(found[1].client, Some(("/etc/b.pem".into(), None)));
        assert_eq!(found[0].dial_timeout, Some(Duration::from_millis(1500)));
        let headers: Vec<_> = found[0].headers.0.iter().map(|(k, v)| format!("{k}: {v}")).collect();
        assert_eq!(headers, ["x-one: 1", "x-two: 2", "x-two: 3"]);
    }
}
