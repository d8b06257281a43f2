//! The servers that are measured, each in processes of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::Method;
use tokio_util::sync::CancellationToken;

use super::client::Endpoint;
use super::process::busy;

/// Where all objects are made.
pub(super) const NAMESPACE: &str = "bench";
/// A server that is not ready by then never will be.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that can be started.
pub(super) trait Subject {
    fn name(&self) -> &'static str;
    /// Starts it with its state in `directory`; does not wait for it.
    fn start(&self, directory: &Path) -> Result<Running>;
}

/// A server that runs; it is killed when this is dropped.
pub(super) struct Running {
    processes: Vec<Process>,
    pub(super) tls: Endpoint,
    unix: Option<Endpoint>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is collected.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().map(|process| process.0.id())
    }

    /// How clients reach it, by name.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = (&'static str, &Endpoint)> {
        [("TLS", &self.tls)].into_iter().chain(self.unix.as_ref().map(|unix| ("unix socket", unix)))
    }

    /// Processor time of all its processes so far.
    pub(super) fn busy(&self) -> Result<Duration> {
        self.pids().map(busy).sum()
    }

    /// Waits until it says it is ready, over TLS.
    pub(super) async fn ready(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let answer = async { self.tls.connect().await?.fetch(Method::GET, "/readyz", Bytes::new()).await };
            match answer.await {
                Ok(_) => return Ok(()),
                Err(error) if begin.elapsed() > PATIENCE => return Err(error.context("it does not become ready")),
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    pub(super) async fn make_namespace(&self) -> Result<()> {
        let body = format!(r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{NAMESPACE}"}}}}"#);
        self.tls.connect().await?.fetch(Method::POST, "/api/v1/namespaces", body.into()).await?;
        Ok(())
    }

    /// Kills it. What was acknowledged has to be there at the next start.
    pub(super) fn stop(self) -> Result<()> {
        for mut process in self.processes {
            if let Some(status) = process.0.try_wait()? {
                bail!("the server ended by itself: {status}");
            }
        }
        Ok(())
    }
}

fn spawn(command: &mut Command, log: &Path) -> Result<Process> {
    let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
    let program = command.get_program().to_owned();
    let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
    Ok(Process(child.with_context(|| program.display().to_string())?))
}

/// A port that was free a moment ago.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The embedded server.
pub(super) struct Nodelet;

impl Subject for Nodelet {
    fn name(&self) -> &'static str {
        "nodelet"
    }

    fn start(&self, directory: &Path) -> Result<Running> {
        let pki = directory.join("pki");
        let address = free()?;
        // Known before the first start, so that waiting for it does not wait for its files too.
        let token = "0123456789abcdef0123456789abcdef0123456789a";
        fs::create_dir_all(&pki)?;
        fs::write(pki.join("admin.token"), token)?;
        let process = spawn(
            Command::new(std::env::current_exe()?).arg("api-server").arg(directory).arg(address.to_string()),
            &directory.join("log"),
        )?;
        Ok(Running {
            processes: vec![process],
            tls: Endpoint::Tls { address, ca: pki.join("ca.crt"), token: token.into() },
            unix: Some(Endpoint::Unix(directory.join("api.sock"))),
        })
    }
}

/// What the process under test does: as the agent, on threads like its own.
pub(super) fn serve(directory: &Path, listen: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let options = nodelet_apiserver::Options { store: directory.join("store.db"), ..Default::default() };
        let server = nodelet_apiserver::Server::open(options, nodelet_crds::crds())?;
        let (shutdown, pki, socket) = (CancellationToken::new(), directory.join("pki"), directory.join("api.sock"));
        tokio::try_join!(
            server.serve_tls(listen, &pki, None, shutdown.clone()),
            server.serve_unix(&socket, shutdown.clone()),
        )?;
        Ok(())
    })
}

/// kube-apiserver with an etcd of its own.
pub(super) struct Kube {
    apiserver: PathBuf,
    etcd: PathBuf,
}

impl Kube {
    /// Where `$KUBEBUILDER_ASSETS` has both.
    pub(super) fn find() -> Option<Self> {
        Self::find_in(Path::new(&std::env::var_os("KUBEBUILDER_ASSETS")?))
    }

    fn find_in(assets: &Path) -> Option<Self> {
        let found = Self { apiserver: assets.join("kube-apiserver"), etcd: assets.join("etcd") };
        (found.apiserver.exists() && found.etcd.exists()).then_some(found)
    }

    /// What makes an API server of a directory and three addresses, as envtest does.
    fn flags(directory: &Path, address: SocketAddr, etcd: SocketAddr) -> Vec<String> {
        let file = |name: &str| directory.join(name).display().to_string();
        vec![
            format!("--etcd-servers=http://{etcd}"),
            format!("--secure-port={}", address.port()),
            format!("--bind-address={}", address.ip()),
            format!("--cert-dir={}", file("certificates")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--service-account-issuer=https://{address}"),
            format!("--service-account-key-file={}", file("accounts.pem")),
            format!("--service-account-signing-key-file={}", file("accounts.pem")),
            "--service-cluster-ip-range=10.0.0.0/24".into(),
            "--authorization-mode=RBAC".into(),
            "--disable-admission-plugins=ServiceAccount".into(),
            "--allow-privileged=true".into(),
        ]
    }
}

impl Subject for Kube {
    fn name(&self) -> &'static str {
        "kube-apiserver with etcd"
    }

    fn start(&self, directory: &Path) -> Result<Running> {
        let (address, etcd, peers) = (free()?, free()?, free()?);
        let token = "bench";
        fs::write(directory.join("tokens.csv"), format!("{token},bench,1,\"system:masters\"\n"))?;
        let accounts = directory.join("accounts.pem");
        if !accounts.exists() {
            fs::write(accounts, rcgen::KeyPair::generate()?.serialize_pem())?;
        }
        let store = spawn(
            Command::new(&self.etcd)
                .arg(format!("--data-dir={}", directory.join("etcd").display()))
                .arg(format!("--listen-client-urls=http://{etcd}"))
                .arg(format!("--advertise-client-urls=http://{etcd}"))
                .arg(format!("--listen-peer-urls=http://{peers}")),
            &directory.join("etcd.log"),
        )?;
        let server =
            spawn(Command::new(&self.apiserver).args(Self::flags(directory, address, etcd)), &directory.join("log"))?;
        let ca = directory.join("certificates/apiserver.crt");
        Ok(Running {
            processes: vec![store, server],
            tls: Endpoint::Tls { address, ca, token: token.into() },
            unix: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_both_programs_kubernetes_is_left_out() {
        let assets = tempfile::tempdir().unwrap();
        assert!(Kube::find_in(assets.path()).is_none());
        fs::write(assets.path().join("kube-apiserver"), "").unwrap();
        assert!(Kube::find_in(assets.path()).is_none(), "etcd is missing");
        fs::write(assets.path().join("etcd"), "").unwrap();
        assert!(Kube::find_in(assets.path()).is_some());
    }

    #[test]
    fn a_server_that_ends_by_itself_is_an_error_and_its_log_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let program = |name: &str, script: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            let path = directory.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let kube = Kube { apiserver: program("kube-apiserver", "echo \"$@\""), etcd: program("etcd", "sleep 100") };
        let mut running = kube.start(directory.path()).unwrap();
        running.processes[1].0.wait().unwrap();
        assert!(running.stop().is_err());
        let log = fs::read_to_string(directory.path().join("log")).unwrap();
        assert!(log.contains("--bind-address=127.0.0.1") && log.contains("--etcd-servers=http://127.0.0.1:"), "{log}");
    }
}
