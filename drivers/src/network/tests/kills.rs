//! Killed after every effect of attaching and detaching: the next agent finds what is left, and nothing stays behind.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use serde::{Deserialize, Serialize};

use super::leaks::{traces, walk};
use super::world::*;
use crate::network::{
    AttachSpec, Driver, LinuxNetworks, MacvlanMode, Names, NetworkSpec, Networks, PublishedPort, Tunnel,
};

/// What the process that is killed reads its orders from.
const ORDERS: &str = "NODELET_TEST_ORDERS";

#[derive(Serialize, Deserialize)]
struct Orders {
    run_dir: PathBuf,
    network: NetworkSpec,
    wish: AttachSpec,
    ports: Vec<PublishedPort>,
}

/// Attaches a sandbox and detaches it again; this is what is killed.
#[test]
#[ignore = "run by the test below, in a process of its own"]
fn obey() {
    let Ok(text) = std::env::var(ORDERS) else { return };
    let Orders { run_dir, network, wish, ports } = serde_json::from_str(&text).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let networks = LinuxNetworks::new(&run_dir).unwrap();
        networks.ensure_network(&network).await.unwrap();
        networks.attach(&wish).await.unwrap();
        networks.set_ports(&wish.sandbox, &ports).await.unwrap();
        let names = Names { everywhere: vec!["a".to_owned()], ready: true, ..Names::default() };
        networks.set_names(&[(wish.sandbox.clone(), Some(names))]).await.unwrap();
        clear(&networks).await;
    });
}

/// As an agent without any desired state does it: removes whatever is on record.
async fn clear(networks: &LinuxNetworks) {
    for attachment in networks.list_attachments().await.unwrap() {
        networks.detach_all(&attachment.spec.sandbox).await.unwrap();
    }
    for (owner, ..) in networks.list_ports().await.unwrap() {
        networks.set_ports(&owner, &[]).await.unwrap();
    }
    for sandbox in networks.list_names().await.unwrap().into_keys() {
        networks.set_names(&[(sandbox, None)]).await.unwrap();
    }
    for network in networks.list_networks().await.unwrap() {
        networks.remove_network(&network.spec.key).await.unwrap();
    }
    networks.remove_rules().await.unwrap();
}

/// Everything that could be left: on the node, in the sandbox, and with the plugins.
fn left(world: &World, netns: &std::path::Path) -> Vec<String> {
    let mut left = traces(world);
    left.push(inside(netns, || run("ip", &["-o", "addr"])));
    // What an address or a route is like for a moment is nothing left.
    left.iter_mut().for_each(|trace| *trace = trace.replace(" tentative", "").replace(" linkdown", ""));
    let leases = walk(&world.run_dir().with_file_name("cni")).into_iter().filter(|path| path.contains("/10.77"));
    left.extend(leases);
    left
}

async fn survive(world: World, kind: &'static str) {
    world.outside();
    let netns = world.netns("a");
    let bridge = network("n", &["10.89.0.0/24", "fd00:89::/64"]);
    let spec = match kind {
        "bridge" => bridge,
        "macvlan" => {
            let parent = super::parents::uplink();
            super::parents::on_uplink("n", Driver::Macvlan { parent, mode: MacvlanMode::Bridge })
        }
        "vxlan" => {
            let peers = vec![ip("192.0.2.1"), ip("192.0.2.9")];
            NetworkSpec { driver: Driver::Vxlan(Tunnel { vni: 42, port: 4789, peers }), ..bridge }
        }
        _ => crate::network::cni::tests::by_bridge_plugin("n", &world.run_dir().with_file_name("cni")),
    };
    let ports = match spec.driver.has_bridge() {
        true => vec![published(None, 8080, "10.89.0.10", 80)],
        false => Vec::new(),
    };
    let addresses: &[&str] = if spec.driver.has_bridge() { &["10.89.0.10", "fd00:89::10"] } else { &[] };
    let wish = wish("a", "n", &netns, addresses);
    let orders = Orders { run_dir: world.run_dir(), network: spec, wish, ports };
    let text = serde_json::to_string(&orders).unwrap();
    let counter = world.run_dir().with_file_name("counter");
    let mut clean: Option<Vec<String>> = None;
    // The first run is not killed: what plugins leave of their own belongs to every later one.
    for number in 0.. {
        if number > 0 {
            std::fs::write(&counter, number.to_string()).unwrap();
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "network::tests::kills::obey", "--ignored", "--nocapture"])
            .env(ORDERS, &text)
            .env("NODELET_FAILPOINTS", &counter)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let point = format!("{kind}, {number}: {said}");
        if number > 0 && output.status.success() {
            assert!(number > 8, "{kind} was killed {} times only", number - 1);
            return;
        }
        assert!(number == 0 && output.status.success() || output.status.signal() == Some(9), "{point}");
        // Whatever was cut short can be done again, and undone.
        let networks = LinuxNetworks::new(&orders.run_dir).unwrap();
        networks.ensure_network(&orders.network).await.unwrap_or_else(|error| panic!("{point}: {error:?}"));
        networks.attach(&orders.wish).await.unwrap_or_else(|error| panic!("{point}: {error:?}"));
        let attached = networks.attachments_of(&orders.wish.sandbox).await.unwrap();
        assert!(attached.len() == 1 && attached[0].complete, "{point}: {attached:?}");
        clear(&networks).await;
        let now = left(&world, &netns);
        assert_eq!(clean.get_or_insert_with(|| now.clone()), &now, "{point}");
    }
}

#[test]
fn nothing_stays_behind_whatever_effect_was_the_last() {
    let kinds = ["bridge", "macvlan", "vxlan", "cni"];
    let threads = kinds.map(|kind| thread::spawn(move || on_a_node(move |world| survive(world, kind))));
    for thread in threads {
        thread.join().unwrap();
    }
}
