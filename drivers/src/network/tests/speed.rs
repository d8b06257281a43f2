//! How long things take, to be read and not judged; `nodelet-bench networks` compares with others.

use std::time::{Duration, Instant};

use super::world::*;
use crate::network::Networks;

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("{what}: median {median:?}, p99 {p99:?}, max {:?} of {}", times[times.len() - 1], times.len());
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
