//! Two hundred sandboxes on one network: each is found by its name and reached, and none has what another has.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::world::*;
use crate::network::Networks;
use crate::network::dns::tests::{look_up, named, with_names};

const CROWD: usize = 200;
/// How many ask at a time.
const ASKERS: usize = 8;

#[test]
fn two_hundred_sandboxes_find_and_reach_each_other() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&with_names("n", &["10.89.0.0/24", "fd00:89::/64"])).await.unwrap();
        let mut members = Vec::new();
        for n in 0..CROWD {
            let (netns, made) = attach(&world, &networks, &format!("s{n}"), "n", &[]).await;
            let of = |v6: bool| made.addresses.iter().map(|net| net.addr()).find(|address| address.is_ipv6() == v6);
            members.push((netns, of(false).unwrap(), of(true).unwrap(), made.mac));
        }
        let addresses: BTreeSet<IpAddr> = members.iter().flat_map(|(_, v4, v6, _)| [*v4, *v6]).collect();
        let macs: BTreeSet<&String> = members.iter().map(|(.., mac)| mac).collect();
        assert_eq!((addresses.len(), macs.len()), (2 * CROWD, CROWD));
        let names: Vec<_> = (0..CROWD).map(|n| (sandbox(&format!("s{n}")), Some(named(&format!("s{n}"))))).collect();
        networks.set_names(&names).await.unwrap();

        // Each asks for the name of its next and calls it by IPv6; all call the first by IPv4.
        let members = &members;
        let first = members[0].1.to_string();
        let first = first.as_str();
        thread::scope(|scope| {
            for asker in 0..ASKERS {
                scope.spawn(move || {
                    for n in (asker..CROWD).step_by(ASKERS) {
                        let (netns, v4, v6, _) = &members[n];
                        let next = (n + 1) % CROWD;
                        let name = format!("s{next}");
                        inside(netns, || {
                            let told = look_up("10.89.0.1", &name, RecordType::A);
                            assert_eq!(told, (ResponseCode::NoError, vec![members[next].1.to_string()]));
                            let told = look_up("fd00:89::1", &name, RecordType::AAAA);
                            assert_eq!(told, (ResponseCode::NoError, vec![members[next].2.to_string()]));
                            let said = ask((&members[next].2.to_string(), 80)).unwrap();
                            assert_eq!(said, format!("{name} {v6}"));
                            assert_eq!(ask((first, 80)).unwrap(), format!("s0 {v4}"));
                        });
                    }
                });
            }
        });
        assert!(networks.list_attachments().await.unwrap().iter().all(|attachment| attachment.complete));
        let together: Vec<_> = (0..CROWD)
            .map(|n| {
                let networks = networks.clone();
                tokio::spawn(async move { networks.detach_all(&sandbox(&format!("s{n}"))).await })
            })
            .collect();
        for departure in together {
            departure.await.unwrap().unwrap();
        }
        assert!(!run("ip", &["-o", "link"]).contains("nlv"));
    });
}
