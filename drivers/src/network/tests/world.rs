//! A node of its own for one test: a thread in new network and mount namespaces, and further network namespaces that
//! play sandboxes and the outside. Everything ends with the thread.
#![allow(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::ids::{IfName, NetworkKey, SandboxId};
use crate::network::link::{Links, Request, add_address, create_veth, set_default_route, set_up};
use crate::network::netns::Netns;
use crate::network::{
    AttachSpec, Attachment, DnsSpec, Driver, LinkWish, LinuxNetworks, NetworkSpec, Networks, Protocol, PublishedPort,
    Subnet,
};

/// How long an answer that should come may take: more than a lost first packet costs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long is waited for an answer that should not come.
const DOUBT: Duration = Duration::from_millis(300);

fn unshare(flags: UnshareFlags) {
    // SAFETY: file descriptor tables are not among the flags used here.
    unsafe { unshare_unsafe(flags) }.expect("tests of the network run as root");
}

/// Runs a test on a node of its own.
pub(crate) fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce(World) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS);
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        lo_up();
        let dir = tempfile::tempdir().unwrap();
        runtime.block_on(test(World { dir }));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn lo_up() {
    let mut links = Links::open().unwrap();
    let lo = links.find("lo").unwrap().unwrap().index;
    links.apply(vec![set_up(lo, true)]).unwrap();
}

/// The node of one test.
pub(crate) struct World {
    dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        // Its own view of what is mounted, the latest first.
        let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
        let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
        for point in points.filter(|point| Path::new(point).starts_with(self.dir.path())) {
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
}

impl World {
    /// The run directory.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The real implementation on this node.
    pub(crate) fn networks(&self) -> LinuxNetworks {
        LinuxNetworks::new(&self.run_dir()).unwrap()
    }

    /// A pinned network namespace with `lo` up.
    pub(crate) fn netns(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, "").unwrap();
        let pin = path.clone();
        let pinned = std::thread::spawn(move || {
            unshare(UnshareFlags::NEWNET);
            lo_up();
            mount_bind("/proc/thread-self/ns/net", &pin).unwrap();
        });
        pinned.join().unwrap();
        path
    }

    /// Lets a pinned namespace go.
    pub(crate) fn drop_netns(&self, path: &Path) {
        unmount(path, UnmountFlags::DETACH).unwrap();
        std::fs::remove_file(path).unwrap();
    }

    /// Another host on the node's link `uplink`: the node is 192.0.2.1 and fd00:2::1, it is 192.0.2.9 and fd00:2::9.
    pub(crate) fn outside(&self) -> PathBuf {
        let path = self.netns("outside");
        let netns = Netns::open(&path).unwrap();
        let mut links = Links::open().unwrap();
        links.apply(vec![create_veth("uplink", "eth0", netns.fd(), [2, 0, 0, 0, 0, 9], 1500)]).unwrap();
        address("uplink", &["192.0.2.1/24", "fd00:2::1/64", "fe80::1/64"], &[]);
        inside(&path, || {
            // It knows the way to every sandbox, so only rules can keep it out.
            address("eth0", &["192.0.2.9/24", "fd00:2::9/64", "fe80::9/64"], &["192.0.2.1", "fd00:2::1"]);
        });
        path
    }
}

/// Gives a link of the calling thread's namespace addresses and default routes, and takes it up. Its IPv6 addresses are
/// in use at once, as those of a link that has been up for a while.
fn address(link: &str, addresses: &[&str], gateways: &[&str]) {
    let mut links = Links::open().unwrap();
    let index = links.find(link).unwrap().unwrap().index;
    let mut requests: Vec<Request> = vec![set_up(index, false)];
    requests.extend(addresses.iter().map(|address| add_address(index, address.parse().unwrap())));
    requests.extend(gateways.iter().map(|gateway| set_default_route(index, gateway.parse().unwrap())));
    links.apply(requests).unwrap();
}

/// Runs something inside a pinned namespace.
pub(crate) fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    Netns::open(netns).unwrap().run(|| Ok(work())).unwrap()
}

/// Runs a program of the test's node, such as `nft`, and returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Says that the kernel lacks what a test is about, so that it is left out; fails where everything has to be tried, as in
/// the virtual machine of `make vm`.
pub(crate) fn leave_out(what: &str) {
    assert!(
        std::env::var_os("NODELET_NETWORK_MODULES").is_none_or(|wish| wish != "required"),
        "{what}: not in this kernel"
    );
    println!("{what}: left out, this kernel does not have it");
}

/// Serves TCP and UDP in a namespace: tells every client its name and the client's address.
pub(crate) fn serve(netns: &Path, name: &str, port: u16) {
    let (tcp, udp) =
        inside(netns, || (TcpListener::bind(("::", port)).unwrap(), UdpSocket::bind(("::", port)).unwrap()));
    let answer = move |name: &str, peer: SocketAddr| format!("{name} {}", peer.ip().to_canonical());
    let tcp_name = name.to_owned();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap();
            let _ = stream.write_all(answer(&tcp_name, peer).as_bytes());
        }
    });
    let udp_name = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(answer(&udp_name, peer).as_bytes(), peer);
        }
    });
}

/// Asks a server over TCP, from the calling thread's namespace: its name and our address as it sees it.
pub(crate) fn ask(to: (&str, u16)) -> io::Result<String> {
    ask_within(to, PATIENCE)
}

/// [`ask`], where there may be nobody.
pub(crate) fn ask_shortly(to: (&str, u16)) -> io::Result<String> {
    ask_within(to, DOUBT)
}

/// Nobody answers there over TCP, from the calling thread's namespace.
pub(crate) fn is_closed(to: (&str, u16)) -> bool {
    ask_within(to, DOUBT).is_err()
}

fn ask_within(to: (&str, u16), patience: Duration) -> io::Result<String> {
    let to = SocketAddr::new(to.0.parse().unwrap(), to.1);
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Asks a server over UDP.
pub(crate) fn ask_udp(to: (&str, u16)) -> io::Result<String> {
    let to = SocketAddr::new(to.0.parse().unwrap(), to.1);
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE / 10))?;
    let mut buffer = [0; 64];
    for _ in 0..10 {
        socket.send_to(b"?", to)?;
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            assert_eq!(from, to, "an answer comes from where the question went");
            return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn key(name: &str) -> NetworkKey {
    NetworkKey::new(name).unwrap()
}

pub(crate) fn sandbox(name: &str) -> SandboxId {
    SandboxId::new(name).unwrap()
}

/// A network of these subnets, isolated and with a way out.
pub(crate) fn network(name: &str, subnets: &[&str]) -> NetworkSpec {
    NetworkSpec {
        key: key(name),
        driver: Driver::Bridge,
        subnets: subnets
            .iter()
            .map(|cidr| Subnet { cidr: cidr.parse().unwrap(), gateway: None, range: None, exclude: Vec::new() })
            .collect(),
        internal: false,
        isolated: true,
        mtu: None,
        dns: DnsSpec::default(),
        vlan: None,
    }
}

/// A wish for `eth0` with the default route and these addresses.
pub(crate) fn wish(name: &str, network: &str, netns: &Path, addresses: &[&str]) -> AttachSpec {
    AttachSpec {
        network: key(network),
        sandbox: sandbox(name),
        netns: netns.to_owned(),
        ifname: IfName::new("eth0").unwrap(),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        default_route: true,
        link: LinkWish::default(),
    }
}

/// A sandbox with a namespace of its name, attached, that serves its name on port 80.
pub(crate) async fn attach(
    world: &World,
    networks: &impl Networks,
    name: &str,
    network: &str,
    addresses: &[&str],
) -> (PathBuf, Attachment) {
    let netns = world.netns(name);
    let attachment = networks.attach(&wish(name, network, &netns, addresses)).await.unwrap();
    serve(&netns, name, 80);
    (netns, attachment)
}

/// A published TCP port.
pub(crate) fn published(host_ip: Option<&str>, host_port: u16, target: &str, target_port: u16) -> PublishedPort {
    PublishedPort { host_ip: host_ip.map(ip), host_port, protocol: Protocol::Tcp, target_ip: ip(target), target_port }
}
