//! The node that is measured: the driver itself, in this process.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nodelet_drivers::ids::{IfName, NetworkKey, SandboxId};
use nodelet_drivers::network::{
    AttachSpec, DnsSpec, Driver, LinkWish, LinuxNetworks, Names, NetworkEvent, NetworkSpec, Networks, Protocol,
    PublishedPort, Subnet,
};

use super::throughput::{self, Way};
use super::{Options, names};

/// Where the first published port is.
pub(super) const FIRST_PORT: u16 = 20_000;
/// How often the rules are flushed.
const FLUSHES: usize = 20;

/// What was measured.
pub(super) struct Figures {
    pub(super) attach: Vec<Duration>,
    /// Of publishing one port while there are none, some, many, in order.
    pub(super) publish: Vec<Duration>,
    /// From a flush of all rules to the first connection through a published port.
    pub(super) flush: Vec<Duration>,
    pub(super) names: names::Figures,
    /// Without iperf3 nothing is known.
    pub(super) throughput: Option<Vec<Way>>,
}

/// A program that is ended with this value.
pub(super) struct Ended(pub(super) Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end.
pub(super) fn run(words: &str) -> Result<()> {
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    let status = command.args(words).stdout(Stdio::null()).status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Measures everything but the report.
pub(super) async fn figures(options: &Options) -> Result<Figures> {
    let count = options.attachments.max(3);
    let networks = LinuxNetworks::new("/run/nodelet".as_ref())?;
    let key = NetworkKey::new("bench")?;
    let subnet = Subnet { cidr: "10.89.0.0/16".parse()?, gateway: None, range: None, exclude: Vec::new() };
    let spec = NetworkSpec {
        key: key.clone(),
        driver: Driver::Bridge,
        subnets: vec![subnet],
        internal: false,
        isolated: true,
        mtu: None,
        dns: DnsSpec { enabled: true, upstreams: Vec::new() },
        vlan: None,
    };
    networks.ensure_network(&spec).await?;
    let (mut attach, mut publish, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..count {
        let (name, sandbox) = (format!("s{n}"), SandboxId::new(format!("s{n}"))?);
        run(&format!("ip netns add {name}"))?;
        run(&format!("ip -n {name} link set lo up"))?;
        let wish = AttachSpec {
            network: key.clone(),
            sandbox: sandbox.clone(),
            netns: PathBuf::from(format!("/run/netns/{name}")),
            ifname: IfName::new("eth0")?,
            addresses: Vec::new(),
            default_route: true,
            link: LinkWish::default(),
        };
        let start = Instant::now();
        let attachment = networks.attach(&wish).await?;
        attach.push(start.elapsed());
        let address = attachment.addresses.first().context("an address")?.addr();
        let port = PublishedPort {
            host_ip: None,
            host_port: FIRST_PORT + n,
            protocol: Protocol::Tcp,
            target_ip: address,
            target_port: 5201,
        };
        let start = Instant::now();
        networks.set_ports(&sandbox, &[port]).await?;
        publish.push(start.elapsed());
        let called = Names { everywhere: vec![name.clone()], ready: true, ..Names::default() };
        networks.set_names(&[(sandbox, Some(called))]).await?;
        addresses.push(address);
    }
    let flush = flushes(&networks).await?;
    let names = names::measure(options.seconds, count)?;
    let throughput = throughput::measure(options, &addresses)?;
    Ok(Figures { attach, publish, flush, names, throughput })
}

/// Flushes all rules and waits for the first published port, as the agent's listener puts them back.
async fn flushes(networks: &LinuxNetworks) -> Result<Vec<Duration>> {
    let server = Command::new("ip")
        .args(["netns", "exec", "s0", "busybox", "nc", "-ll", "-p", "5201", "-e", "true"])
        .spawn()
        .context("running a server in a sandbox")?;
    let _server = Ended(server);
    let mut events = networks.events();
    let repairing = networks.clone();
    let repairs = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if event == NetworkEvent::Table {
                let _ = repairing.repair_rules().await;
            }
        }
    });
    let times = tokio::task::spawn_blocking(|| {
        let to = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), FIRST_PORT);
        let answers = |patience: Duration| -> Result<()> {
            let start = Instant::now();
            while TcpStream::connect_timeout(&to, Duration::from_millis(50)).is_err() {
                ensure!(start.elapsed() < patience, "port {FIRST_PORT} does not answer");
            }
            Ok(())
        };
        answers(Duration::from_secs(10))?;
        let mut times = Vec::new();
        for _ in 0..FLUSHES {
            run("nft flush ruleset")?;
            let start = Instant::now();
            answers(Duration::from_secs(10))?;
            times.push(start.elapsed());
        }
        anyhow::Ok(times)
    })
    .await??;
    repairs.abort();
    Ok(times)
}
