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
        networks.ensure_network(&network("n", &["10.89.0.0/16"])).await.unwrap();
        let namespaces: Vec<_> = (0..100).map(|n| world.netns(&format!("s{n}"))).collect();
        let (mut attaching, mut publishing, mut detaching) = (Vec::new(), Vec::new(), Vec::new());
        for (n, netns) in namespaces.iter().enumerate() {
            let start = Instant::now();
            let attachment = networks.attach(&wish(&format!("s{n}"), "n", netns, &[])).await.unwrap();
            attaching.push(start.elapsed());
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
        for n in 0..100 {
            let start = Instant::now();
            networks.detach_all(&sandbox(&format!("s{n}"))).await.unwrap();
            detaching.push(start.elapsed());
        }
        let attach = report("attach", attaching);
        let publish = report("set_ports", publishing);
        report("detach_all", detaching);
        assert!(attach < Duration::from_millis(20) && publish < Duration::from_millis(10));
    });
}
