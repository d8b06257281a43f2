//! Keys, certificates and tokens: who the server is, and who its clients are.
//!
//! Only the authority is kept on disk. The server's own certificate is made anew at every start and when a third of its
//! time is left, so it never expires. Client certificates name their role as a DNS name in the `users` domain below; kubeconfigs
//! with fresh ones are written beside the store at every start, and those handed out before stay valid until they
//! end. Validity starts at the epoch, so a clock that is wrong at boot locks nobody out.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};

use crate::request::User;

/// Domain of the names by which client certificates say their role.
const USERS: &str = "users.nodelet.dev";

/// 2026-11-21 and the start of 2199, in seconds since the epoch.
const WRITTEN: i64 = 1_795_219_200;
const END: i64 = 7_226_582_400;

/// The access files cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or directory.
    #[error("access file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} is not usable ({detail}): remove the directory to get new keys, and hand out new kubeconfigs")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A certificate cannot be made.
    #[error("making a certificate")]
    Certificate(#[from] rcgen::Error),
}

/// The roles that clients have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// May do everything.
    Admin,
    /// May read, but no Secrets.
    Viewer,
}

impl Role {
    const ALL: [Self; 2] = [Self::Admin, Self::Viewer];

    fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Viewer => "viewer",
        }
    }

    pub(crate) fn user(self) -> User {
        let group = match self {
            Self::Admin => "system:masters",
            Self::Viewer => "nodelet:viewers",
        };
        User {
            name: format!("nodelet:{}", self.name()),
            groups: vec![group.into(), "system:authenticated".into()],
            read_only: self == Self::Viewer,
        }
    }

    fn of_dns_name(name: &str) -> Option<Self> {
        let name = name.strip_suffix(USERS)?.strip_suffix('.')?;
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// The authority, and the tokens it accepts.
pub(crate) struct Pki {
    dir: PathBuf,
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    ca_key: KeyPair,
    tokens: Vec<(Role, [u8; 32])>,
    /// How long what is issued is valid.
    lifetime: Duration,
}

/// A certificate chain with its key, ready for TLS.
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    chain_pem: String,
    key_pem: String,
}

impl Pki {
    /// Reads the authority from `dir`, or makes it. What it issues is valid for `lifetime`.
    pub(crate) fn open(dir: &Path, lifetime: Duration) -> Result<Self, PkiError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| PkiError::File { path: dir.into(), source })?;
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        if !key_path.exists() {
            let key = KeyPair::generate()?;
            let certificate = authority().self_signed(&key)?;
            // The key last: with it in place, both are.
            write_private(&cert_path, certificate.pem().as_bytes(), Lasts::Always)?;
            write_private(&key_path, key.serialize_pem().as_bytes(), Lasts::Always)?;
        }
        let unusable = |path: &Path, detail: String| PkiError::Content { path: path.into(), detail };
        let ca_key = KeyPair::from_pem(&read(&key_path)?).map_err(|e| unusable(&key_path, e.to_string()))?;
        let ca_pem = read(&cert_path)?;
        let ca_der =
            CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| unusable(&cert_path, format!("{e:?}")))?;
        let mut pki = Self { dir: dir.into(), ca_pem, ca_der, ca_key, tokens: Vec::new(), lifetime };
        for role in Role::ALL {
            let token = pki.token(role)?;
            pki.tokens.push((role, Sha256::digest(token.trim()).into()));
        }
        Ok(pki)
    }

    pub(crate) fn authority(&self) -> CertificateDer<'static> {
        self.ca_der.clone()
    }

    /// When a certificate ends that is issued now, in seconds since the epoch. A clock from before this was written is
    /// not believed: it would make certificates that end as soon as it is set.
    pub(crate) fn end(&self) -> i64 {
        let lifetime = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX);
        // Beyond the authority's own end there is nothing to be had.
        jiff::Timestamp::now().as_second().max(WRITTEN).saturating_add(lifetime).min(END)
    }

    fn token(&self, role: Role) -> Result<String, PkiError> {
        let path = self.dir.join(format!("{}.token", role.name()));
        if !path.exists() {
            let secret: [u8; 32] = rand::random();
            write_private(&path, URL_SAFE_NO_PAD.encode(secret).as_bytes(), Lasts::Always)?;
        }
        read(&path)
    }

    /// The user with a bearer token.
    pub(crate) fn user_of_token(&self, token: &str) -> Option<User> {
        // Digests are compared, so the time it takes tells nothing about the token.
        let digest: [u8; 32] = Sha256::digest(token.trim()).into();
        self.tokens.iter().find(|(_, known)| *known == digest).map(|(role, _)| role.user())
    }

    fn issue(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Result<Identity, PkiError> {
        params.not_before = date_time_ymd(1970, 1, 1);
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(self.end().unsigned_abs());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &Issuer::new(authority(), &self.ca_key))?;
        Ok(Identity {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            chain_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// A certificate for a server that listens at an address and is called by these names too.
    pub(crate) fn server(&self, listen: SocketAddr, names: &[String]) -> Result<Identity, PkiError> {
        let mut all: Vec<String> =
            ["localhost", "kubernetes", "kubernetes.default", "127.0.0.1", "::1"].map(Into::into).to_vec();
        if !listen.ip().is_unspecified() {
            all.push(listen.ip().to_string());
        }
        all.extend(names.iter().cloned());
        all.sort();
        all.dedup();
        let mut params = CertificateParams::new(all)?;
        params.distinguished_name = named("nodelet", None);
        self.issue(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn client(&self, role: Role) -> Result<Identity, PkiError> {
        let mut params = CertificateParams::new(vec![format!("{}.{USERS}", role.name())])?;
        let user = role.user();
        params.distinguished_name = named(&user.name, user.groups.first().map(String::as_str));
        self.issue(params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// Writes `admin.kubeconfig` and `viewer.kubeconfig` into the directory above.
    pub(crate) fn write_kubeconfigs(&self, listen: SocketAddr) -> Result<(), PkiError> {
        let above = self.dir.parent().unwrap_or(&self.dir);
        for role in Role::ALL {
            let config = self.kubeconfig(role, listen)?;
            // Made anew at every start, so it need not survive a power cut.
            write_private(&above.join(format!("{}.kubeconfig", role.name())), config.as_bytes(), Lasts::UntilRestart)?;
        }
        Ok(())
    }

    fn kubeconfig(&self, role: Role, listen: SocketAddr) -> Result<String, PkiError> {
        let ip = match listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
            ip => ip,
        };
        let server = SocketAddr::new(ip, listen.port());
        let Identity { chain_pem, key_pem, .. } = self.client(role)?;
        let (ca, certificate, key) =
            (STANDARD.encode(&self.ca_pem), STANDARD.encode(chain_pem), STANDARD.encode(key_pem));
        let user = role.name();
        Ok(format!(
            "apiVersion: v1
kind: Config
clusters:
- name: nodelet
  cluster:
    server: https://{server}
    certificate-authority-data: {ca}
users:
- name: {user}
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: nodelet
  context:
    cluster: nodelet
    user: {user}
    namespace: default
current-context: nodelet
"
        ))
    }
}

/// The role that a verified client certificate gives.
pub(crate) fn user_of_certificate(certificate: &CertificateDer<'_>) -> Option<User> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    certificate.valid_dns_names().find_map(Role::of_dns_name).map(Role::user)
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("nodelet-ca", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(2199, 1, 1);
    params
}

fn named(name: &str, organisation: Option<&str>) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    if let Some(organisation) = organisation {
        distinguished.push(DnType::OrganizationName, organisation);
    }
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn read(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| PkiError::File { path: path.into(), source })
}

/// How long a file is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasts {
    Always,
    UntilRestart,
}

/// Writes a file that only its owner may read, whole or not at all.
fn write_private(path: &Path, content: &[u8], lasts: Lasts) -> Result<(), PkiError> {
    let failed = |source| PkiError::File { path: path.into(), source };
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let _ = std::fs::remove_file(&fresh);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    if lasts == Lasts::Always {
        file.sync_all().map_err(failed)?;
    }
    std::fs::rename(&fresh, path).map_err(failed)
}
