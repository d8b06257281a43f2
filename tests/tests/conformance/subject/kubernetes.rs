//! etcd and kube-apiserver from `$KUBEBUILDER_ASSETS`, with nodelet's kinds installed.

use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::wait::until;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::{Kind, Subject};

/// The administrator's token.
const TOKEN: &str = "conformance";
/// How long such a server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process of ours, killed when dropped.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn spawn(program: &Path, log: &Path, words: &[impl AsRef<OsStr>]) -> Result<Process> {
    let log = fs::File::create(log)?;
    let child = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    Ok(Process(child))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

impl Subject {
    /// A kube-apiserver; nothing if `$KUBEBUILDER_ASSETS` has none. With a kube-controller-manager beside it, owners are
    /// followed and namespaces emptied too.
    pub fn kubernetes() -> Result<Option<Self>> {
        let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) else { return Ok(None) };
        let [etcd, apiserver, manager] =
            ["etcd", "kube-apiserver", "kube-controller-manager"].map(|program| assets.join(program));
        if !etcd.exists() || !apiserver.exists() {
            return Ok(None);
        }
        let directory = tempfile::tempdir()?;
        let file = |name: &str| directory.path().join(name);
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());

        let store = free_port()?;
        let mut processes = vec![spawn(
            &etcd,
            &file("etcd.log"),
            &[
                flag("data-dir", &file("etcd")),
                format!("--listen-client-urls=http://127.0.0.1:{store}"),
                format!("--advertise-client-urls=http://127.0.0.1:{store}"),
                "--listen-peer-urls=http://127.0.0.1:0".to_owned(),
                "--unsafe-no-fsync".to_owned(),
            ],
        )?];

        let authority = write_certificates(directory.path())?;
        fs::write(file("tokens.csv"), format!("{TOKEN},admin,admin,system:masters\n"))?;
        let port = free_port()?;
        processes.push(spawn(
            &apiserver,
            &file("kube-apiserver.log"),
            &[
                format!("--etcd-servers=http://127.0.0.1:{store}"),
                flag("cert-dir", &file("certificates")),
                flag("tls-cert-file", &file("server.crt")),
                flag("tls-private-key-file", &file("server.key")),
                flag("service-account-key-file", &file("accounts.key")),
                flag("service-account-signing-key-file", &file("accounts.key")),
                flag("token-auth-file", &file("tokens.csv")),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
                "--authorization-mode=RBAC".to_owned(),
                "--disable-admission-plugins=ServiceAccount".to_owned(),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={port}"),
            ],
        )?);

        let kubeconfig = file("admin.kubeconfig");
        let server = format!("https://127.0.0.1:{port}");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority-data": authority}}],
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin", "namespace": "default"}}],
        });
        fs::write(&kubeconfig, config.to_string())?;
        let controllers = manager.exists();
        if controllers {
            let words = [
                flag("kubeconfig", &kubeconfig),
                flag("service-account-private-key-file", &file("accounts.key")),
                "--leader-elect=false".to_owned(),
                "--controllers=garbage-collector-controller,namespace-controller".to_owned(),
                "--secure-port=0".to_owned(),
            ];
            // It tries again until the server answers.
            processes.push(spawn(&manager, &file("kube-controller-manager.log"), &words)?);
        }
        let subject = Self {
            kind: Kind::Kubernetes,
            controllers,
            kubeconfig,
            runtime: Runtime::new()?,
            shutdown: CancellationToken::new(),
            _processes: processes,
            directory,
        };
        subject.until_ready().with_context(|| {
            fs::read_to_string(subject.directory.path().join("kube-apiserver.log")).unwrap_or_default()
        })?;
        subject.install_kinds()?;
        Ok(Some(subject))
    }

    fn until_ready(&self) -> Result<()> {
        let client = self.client()?;
        until(PATIENCE, "kube-apiserver to be ready", || {
            let ask = http::Request::get("/readyz").body(Vec::new())?;
            let answer = self.runtime.block_on(client.request_text(ask));
            Ok(answer.is_ok_and(|text| text == "ok").then_some(()))
        })?;
        until(PATIENCE, "the default namespace", || {
            let ask = http::Request::get("/api/v1/namespaces/default").body(Vec::new())?;
            Ok(self.runtime.block_on(client.request_text(ask)).ok())
        })?;
        Ok(())
    }

    fn install_kinds(&self) -> Result<()> {
        use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
        use kube::runtime::conditions::is_crd_established;
        use kube::runtime::wait::await_condition;
        let api: kube::Api<CustomResourceDefinition> = kube::Api::all(self.client()?);
        for definition in nodelet_crds::crds() {
            let name = definition.metadata.name.clone().context("a definition without a name")?;
            self.runtime.block_on(async {
                api.create(&kube::api::PostParams::default(), &definition).await?;
                let established = await_condition(api.clone(), &name, is_crd_established());
                tokio::time::timeout(PATIENCE, established).await??;
                anyhow::Ok(())
            })?;
        }
        // Established is not yet served, nor in the document that kubectl explains from.
        let client = self.client()?;
        until(PATIENCE, "nodelet's kinds in the API's document", || {
            let ask = http::Request::get("/openapi/v3").body(Vec::new())?;
            let paths = self.runtime.block_on(client.request_text(ask))?;
            Ok(paths.contains("apis/nodelet.dev/v1alpha1").then_some(()))
        })
    }
}

/// Writes the server's certificate and key and a key for service accounts; answers the authority in base64.
fn write_certificates(directory: &Path) -> Result<String> {
    use base64::Engine as _;
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let mut server = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = server.signed_by(&key, &authority)?;
    for (name, text) in [
        ("server.crt", certificate.pem()),
        ("server.key", key.serialize_pem()),
        ("accounts.key", KeyPair::generate()?.serialize_pem()),
    ] {
        fs::write(directory.join(name), text)?;
    }
    let pem = authority.pem();
    ensure!(pem.contains("CERTIFICATE"), "a certificate in PEM");
    Ok(base64::engine::general_purpose::STANDARD.encode(pem))
}
