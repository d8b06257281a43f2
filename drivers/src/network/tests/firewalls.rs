//! Beside other firewalls: a packet has to pass every table, so what another one drops is lost, and what it accepts is
//! still subject to our isolation.

use super::world::*;
use crate::network::Networks;

/// As Docker and iptables-nft leave it: nothing is forwarded but what some rule accepts.
const DROPPING: &str = "
table ip filter {
    chain DOCKER-USER { }
    chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }
}
table ip6 filter {
    chain DOCKER-USER { }
    chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }
}";

/// Whether what stays on a bridge passes the rules for IP, too, in a kernel with `br_netfilter`.
fn bridged_frames_pass_rules(value: &str) {
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let _ = std::fs::write(format!("/proc/sys/net/bridge/{name}"), value);
    }
}

#[test]
fn a_forward_policy_of_drop_spares_what_is_not_forwarded_and_the_rest_with_two_rules() {
    on_a_node(|world| async move {
        let outside = world.outside();
        serve(&outside, "outside", 7000);
        let rules = world.run_dir().with_file_name("rules");
        std::fs::write(&rules, DROPPING).unwrap();
        run("nft", &["-f", rules.to_str().unwrap()]);
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24", "fd00:89::/64"])).await.unwrap();
        networks.ensure_network(&network("other", &["10.89.1.0/24"])).await.unwrap();
        let (a, _) = attach(&world, &networks, "a", "n", &["10.89.0.10", "fd00:89::10"]).await;
        let (b, _) = attach(&world, &networks, "b", "n", &["10.89.0.11", "fd00:89::11"]).await;
        let (c, _) = attach(&world, &networks, "c", "other", &["10.89.1.10"]).await;
        let ports = [published(None, 8080, "10.89.0.10", 80), published(None, 8080, "fd00:89::10", 80)];
        networks.set_ports(&sandbox("a"), &ports).await.unwrap();

        bridged_frames_pass_rules("0");

        // Neighbours, the node, and the node through the published port: nothing of it is forwarded.
        assert_eq!(inside(&b, || ask(("10.89.0.10", 80))).unwrap(), "a 10.89.0.11");
        assert_eq!(inside(&b, || ask(("fd00:89::10", 80))).unwrap(), "a fd00:89::11");
        assert_eq!(ask(("10.89.0.10", 80)).unwrap(), "a 10.89.0.1");
        assert_eq!(ask(("127.0.0.1", 8080)).unwrap(), "a 10.89.0.1");
        assert!(inside(&outside, || is_closed(("192.0.2.1", 8080))));
        assert!(inside(&a, || is_closed(("192.0.2.9", 7000))));

        // The rules that docs/networks.md names.
        for family in ["ip", "ip6"] {
            for way in ["iifname", "oifname"] {
                run("nft", &["insert", "rule", family, "filter", "DOCKER-USER", way, "nl*", "accept"]);
            }
        }
        assert_eq!(inside(&outside, || ask(("192.0.2.1", 8080))).unwrap(), "a 192.0.2.9");
        assert_eq!(inside(&outside, || ask(("fd00:2::1", 8080))).unwrap(), "a fd00:2::9");
        assert_eq!(inside(&a, || ask(("192.0.2.9", 7000))).unwrap(), "outside 192.0.2.1");
        assert_eq!(inside(&a, || ask(("fd00:2::9", 7000))).unwrap(), "outside fd00:2::1");
        bridged_frames_pass_rules("1");
        assert_eq!(inside(&b, || ask(("10.89.0.10", 80))).unwrap(), "a 10.89.0.11");
        // Isolation is as before, whatever others accept.
        assert!(inside(&outside, || is_closed(("10.89.0.10", 80))));
        assert!(inside(&c, || is_closed(("10.89.0.10", 80))));

        // Neither is in the other's way when rules change or go.
        assert!(!networks.repair_rules().await.unwrap());
        for name in ["a", "b", "c"] {
            networks.detach_all(&sandbox(name)).await.unwrap();
        }
        for name in ["n", "other"] {
            networks.remove_network(&key(name)).await.unwrap();
        }
        networks.remove_rules().await.unwrap();
        let left = run("nft", &["list", "ruleset"]);
        assert!(left.contains("DOCKER-USER") && !left.contains("nodelet"), "{left}");
    });
}

/// As firewalld leaves it: the policy is to accept, and the last rule rejects the rest.
const REJECTING: &str = "
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        counter reject with icmpx admin-prohibited
    }
}";

#[test]
fn the_doctor_names_who_drops_and_what_to_do() {
    on_a_node(|world| async move {
        use crate::host::checks::Level;
        let look = || crate::network::checks::run().into_iter().find(|check| check.name == "other firewalls").unwrap();
        let load = |rules: &str| {
            let path = world.run_dir().with_file_name("rules");
            std::fs::write(&path, rules).unwrap();
            run("nft", &["-f", path.to_str().unwrap()]);
        };
        bridged_frames_pass_rules("0");
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24"])).await.unwrap();
        load(
            "table inet mine { chain f { type filter hook forward priority 0; policy accept; ct state new accept; }; }",
        );
        assert_eq!((look().level, look().found.as_str()), (Level::Ok, "none drops what is forwarded"));

        load(DROPPING);
        let found = look();
        assert_eq!(found.level, Level::Warn);
        assert!(found.found.starts_with("ip filter FORWARD, ip6 filter FORWARD drops"), "{found:?}");
        assert!(found.remedy.starts_with("iptables -I DOCKER-USER -i nl+ -j ACCEPT"), "{found:?}");
        assert!(!found.found.contains("neighbours"), "{found:?}");
        bridged_frames_pass_rules("1");
        assert!(look().found.contains("neighbours") && look().remedy.contains("bridge-nf-call-iptables=0"));
        for family in ["ip", "ip6"] {
            run("nft", &["insert", "rule", family, "filter", "DOCKER-USER", "iifname", "nl*", "accept"]);
        }
        assert_eq!((look().level, look().found.as_str()), (Level::Ok, "let the networks pass"));

        load(REJECTING);
        let found = look();
        assert!(found.found.starts_with("inet firewalld filter_FORWARD drops"), "{found:?}");
        assert!(found.remedy.starts_with("firewall-cmd --permanent"), "{found:?}");
        run("nft", &["flush", "ruleset"]);
        load("table inet own { chain f { type filter hook forward priority 0; policy drop; }; }");
        assert!(look().remedy.starts_with("nft insert rule inet own f iifname 'nl*' accept"), "{:?}", look());
    });
}
