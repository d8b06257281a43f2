//! The servers that the cases run against.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nodelet_apiserver::{Options, Server};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

mod kubernetes;

/// Which server it is; expectations that differ name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The embedded server.
    Nodelet,
    /// A kube-apiserver.
    Kubernetes,
}

impl Kind {
    /// The name in the tables of cases.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nodelet => "nodelet",
            Self::Kubernetes => "kubernetes",
        }
    }
}

/// A server that listens on loopback. Dropping it ends it.
pub struct Subject {
    /// Which one it is.
    pub kind: Kind,
    /// Whether owners are followed and namespaces emptied: a kube-apiserver leaves that to its controller manager.
    pub controllers: bool,
    /// How to reach it, as an administrator.
    pub kubeconfig: PathBuf,
    /// A directory that ends with it.
    pub directory: TempDir,
    /// Where clients run.
    pub runtime: Runtime,
    shutdown: CancellationToken,
    _processes: Vec<kubernetes::Process>,
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Subject {
    /// The embedded server with nodelet's kinds, over TLS.
    pub fn nodelet() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let runtime = Runtime::new()?;
        let options = Options { store: directory.path().join("store.db"), ..Options::default() };
        let server = Server::open(options, nodelet_crds::crds())?;
        let shutdown = CancellationToken::new();
        let (bound, address) = tokio::sync::oneshot::channel();
        runtime.spawn({
            let (pki, shutdown) = (directory.path().join("pki"), shutdown.clone());
            async move { server.serve_tls(([127, 0, 0, 1], 0).into(), &pki, Some(bound), shutdown).await }
        });
        runtime.block_on(address).context("the server did not start")?;
        let kubeconfig = directory.path().join("admin.kubeconfig");
        Ok(Self {
            kind: Kind::Nodelet,
            controllers: true,
            kubeconfig,
            directory,
            runtime,
            shutdown,
            _processes: Vec::new(),
        })
    }

    /// A client for administrators.
    pub fn client(&self) -> Result<kube::Client> {
        use kube::config::{Config, KubeConfigOptions, Kubeconfig};
        let config = Kubeconfig::read_from(&self.kubeconfig)?;
        self.runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
            Ok(kube::Client::try_from(config)?)
        })
    }

    /// Makes a namespace for a case.
    pub fn namespace(&self, name: &str) -> Result<()> {
        use k8s_openapi::api::core::v1::Namespace;
        let client = self.client()?;
        let namespace: Namespace = serde_json::from_value(serde_json::json!({"metadata": {"name": name}}))?;
        let create = async { kube::Api::all(client).create(&kube::api::PostParams::default(), &namespace).await };
        self.runtime.block_on(create).map(drop).context("creating a namespace")
    }

    /// A kubeconfig whose default namespace is another.
    pub fn kubeconfig_for(&self, namespace: &str) -> Result<PathBuf> {
        let mut config = kube::config::Kubeconfig::read_from(&self.kubeconfig)?;
        for context in config.contexts.iter_mut().filter_map(|c| c.context.as_mut()) {
            context.namespace = Some(namespace.to_owned());
        }
        let path = self.directory.path().join(format!("{namespace}.kubeconfig"));
        fs::write(&path, serde_json::to_vec(&config)?)?;
        // Helm complains about files that others can read.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }
}
