//! How long things take. The bounds are generous: they catch a mistake, not a slow machine.

use std::time::{Duration, Instant};

use super::world::*;
use crate::network::Networks;

fn report(what: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("{what}: median {median:?}, p99 {p99:?}, max {:?} of {}", times[times.len() - 1], times.len());
    median
}

#[test]
fn attaching_and_publishing_is_quick_and_does_not_slow_down() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/16", "fd00:89::/64"])).await.unwrap();
        let gateway = std::net::TcpListener::bind("[::]:7").unwrap();
        std::thread::spawn(move || gateway.incoming().for_each(drop));
        let namespaces: Vec<_> = (0..100).map(|n| world.netns(&format!("s{n}"))).collect();
        let (mut attaching, mut connecting) = (Vec::new(), Vec::new());
        let (mut publishing, mut detaching) = (Vec::new(), Vec::new());
        for (n, netns) in namespaces.iter().enumerate() {
            let start = Instant::now();
            let attachment = networks.attach(&wish(&format!("s{n}"), "n", netns, &[])).await.unwrap();
            attaching.push(start.elapsed());
            // The first packet of each family arrives: a lost one would cost a second.
            for to in ["10.89.0.1:7", "[fd00:89::1]:7"] {
                let start = Instant::now();
                let connected = inside(netns, || std::net::TcpStream::connect(to));
                connected.unwrap();
                connecting.push(start.elapsed());
            }
            let target = attachment.addresses[0].addr().to_string();
            let port = published(None, 20_000 + u16::try_from(n).unwrap(), &target, 80);
            let start = Instant::now();
            networks.set_ports(&attachment.spec.sandbox, &[port]).await.unwrap();
            publishing.push(start.elapsed());
        }
        let start = Instant::now();
        assert!(networks.list_attachments().await.unwrap().iter().all(|attachment| attachment.complete));
        println!("list_attachments of 100: {:?}", start.elapsed());
        let start = Instant::now();
        assert!(!networks.repair_rules().await.unwrap());
        println!("repair_rules with nothing to do: {:?}", start.elapsed());
        run("nft", &["flush", "ruleset"]);
        let start = Instant::now();
        assert!(networks.repair_rules().await.unwrap());
        println!("repair_rules after a flush, 100 ports: {:?}", start.elapsed());
        for n in 0..50 {
            let start = Instant::now();
            networks.detach_all(&sandbox(&format!("s{n}"))).await.unwrap();
            detaching.push(start.elapsed());
        }
        let start = Instant::now();
        let together: Vec<_> = (50..100)
            .map(|n| {
                let networks = networks.clone();
                tokio::spawn(async move { networks.detach_all(&sandbox(&format!("s{n}"))).await })
            })
            .collect();
        for departure in together {
            departure.await.unwrap().unwrap();
        }
        println!("detach_all of 50 at once: {:?}", start.elapsed());
        let attach = report("attach", attaching);
        let slowest = connecting.iter().max().copied().unwrap_or_default();
        report("first connection after attach", connecting);
        let publish = report("set_ports", publishing);
        report("detach_all", detaching);
        assert!(attach < Duration::from_millis(20) && publish < Duration::from_millis(10));
        assert!(slowest < Duration::from_millis(900), "a lost packet costs a second");
    });
}

/// The figures of `docs/decisions/0006-network.md`: the same change by netlink and by the program.
#[test]
#[ignore = "a measurement, not a check: run with --run-ignored all"]
fn netlink_against_the_program() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/16"])).await.unwrap();
        let (mut ours, mut program) = (Vec::new(), Vec::new());
        for n in 0..200u16 {
            let owner = sandbox(&format!("s{n}"));
            let start = Instant::now();
            networks.set_ports(&owner, &[published(None, 20_000 + n, "10.89.0.10", 80)]).await.unwrap();
            ours.push(start.elapsed());
        }
        for n in 0..200 {
            let json = format!(
                r#"{{"nftables":[{{"add":{{"element":{{"family":"inet","table":"nodelet","name":"ports4","elem":
                [[{{"concat":["tcp",{}]}},{{"concat":["10.89.0.10",80]}}]]}}}}}}]}}"#,
                30_000 + n
            );
            let start = Instant::now();
            let mut child = std::process::Command::new("nft")
                .args(["-j", "-f", "-"])
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), json.as_bytes()).unwrap();
            assert!(child.wait().unwrap().success());
            program.push(start.elapsed());
        }
        report("set_ports, one port, record on disk included", ours);
        report("nft -j -f -, one element", program);
        let many: Vec<_> = (0..10_000).map(|n| published(None, 10_000 + n, "10.89.0.10", 80)).collect();
        networks.repair_rules().await.unwrap();
        for n in 0..200 {
            networks.set_ports(&sandbox(&format!("s{n}")), &[]).await.unwrap();
        }
        let start = Instant::now();
        networks.set_ports(&sandbox("many"), &many).await.unwrap();
        println!("set_ports of 10,000 ports: {:?}", start.elapsed());
        run("nft", &["flush", "ruleset"]);
        let start = Instant::now();
        assert!(networks.repair_rules().await.unwrap());
        println!("repair_rules after a flush, 10,000 ports: {:?}", start.elapsed());
    });
}
