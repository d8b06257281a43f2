//! What a sandbox can wish for its link: a hardware address of its own, and limits.

use super::world::*;
use crate::network::{AttachSpec, Driver, LinkWish, MacvlanMode, NetworkSpec, Networks};

fn with(wish: &AttachSpec, link: LinkWish) -> AttachSpec {
    AttachSpec { link, ..wish.clone() }
}

/// The rate of a link's token bucket as `tc` shows it, of the calling thread's namespace.
fn rate(link: &str) -> Option<String> {
    let shown = run("tc", &["qdisc", "show", "dev", link]);
    Some(shown.split("tbf").nth(1)?.split_whitespace().skip_while(|word| *word != "rate").nth(1)?.to_owned())
}

#[test]
fn limits_hold_change_in_place_and_are_put_back() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24"])).await.unwrap();
        let (a, made) = attach(&world, &networks, "a", "n", &["10.89.0.10"]).await;
        let host = made.host_link.as_str();
        assert_eq!((rate(host), inside(&a, || rate("eth0"))), (None, None));
        let index = || inside(&a, || std::fs::read_to_string("/proc/thread-self/net/if_inet6")).ok();
        let before = (run("ip", &["-o", "link", "show", host]), index());

        let wish = wish("a", "n", &a, &["10.89.0.10"]);
        let limited =
            with(&wish, LinkWish { ingress: Some(10_000_000), egress: Some(4_000_000), ..LinkWish::default() });
        let made = networks.attach(&limited).await.unwrap();
        assert_eq!(rate(host).as_deref(), Some("10Mbit"));
        assert_eq!(inside(&a, || rate("eth0")).as_deref(), Some("4Mbit"));
        let same = |text: &str| text.split(':').next().map(str::to_owned);
        assert_eq!(same(&run("ip", &["-o", "link", "show", host])), same(&before.0), "the link is the same");
        assert_eq!(networks.attachments_of(&sandbox("a")).await.unwrap(), [made]);
        assert_eq!(ask(("10.89.0.10", 80)).unwrap(), "a 10.89.0.1");

        // Somebody lifts it; the next look sees that, and it is put back.
        inside(&a, || run("tc", &["qdisc", "del", "dev", "eth0", "root"]));
        assert!(!networks.attachments_of(&sandbox("a")).await.unwrap()[0].complete);
        networks.attach(&limited).await.unwrap();
        assert_eq!(inside(&a, || rate("eth0")).as_deref(), Some("4Mbit"));
        run("tc", &["qdisc", "del", "dev", host, "root"]);
        assert!(!networks.attachments_of(&sandbox("a")).await.unwrap()[0].complete);

        // Rates beyond 32 bits, then none.
        let fast = with(&wish, LinkWish { ingress: Some(80_000_000_000), ..LinkWish::default() });
        networks.attach(&fast).await.unwrap();
        assert_eq!(rate(host).as_deref(), Some("80Gbit"));
        assert!(networks.attachments_of(&sandbox("a")).await.unwrap()[0].complete);
        networks.attach(&wish).await.unwrap();
        assert_eq!((rate(host), inside(&a, || rate("eth0"))), (None, None));
    });
}

#[test]
fn a_limit_is_kept_to_by_what_passes() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24"])).await.unwrap();
        let a = world.netns("a");
        let limit = LinkWish { egress: Some(8_000_000), ..LinkWish::default() };
        networks.attach(&with(&wish("a", "n", &a, &["10.89.0.10"]), limit)).await.unwrap();
        let listener = std::net::TcpListener::bind("10.89.0.1:7").unwrap();
        let received = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
        });
        // 2 MB at 1 MB/s: what may pass at once aside, it takes over a second. Without the limit it takes milliseconds.
        let start = std::time::Instant::now();
        inside(&a, || {
            let mut stream = std::net::TcpStream::connect("10.89.0.1:7").unwrap();
            std::io::Write::write_all(&mut stream, &vec![0; 2_000_000]).unwrap();
        });
        assert_eq!(received.join().unwrap(), 2_000_000);
        assert!(start.elapsed().as_millis() > 1000, "{:?}", start.elapsed());
    });
}

#[test]
fn another_mtu_takes_place_on_links_as_they_are() {
    on_a_node(|world| async move {
        world.outside();
        let networks = world.networks();
        let bridge = network("n", &["10.89.0.0/24"]);
        let driver = Driver::Macvlan { parent: super::parents::uplink(), mode: MacvlanMode::Bridge };
        for spec in [bridge, super::parents::on_uplink("m", driver)] {
            networks.ensure_network(&spec).await.unwrap();
            let name = format!("on-{}", spec.key);
            let (netns, made) = attach(&world, &networks, &name, spec.key.as_str(), &[]).await;
            let link = || inside(&netns, || run("ip", &["-o", "link", "show", "eth0"]));
            let of =
                |text: &str, word: &str| text.split(word).nth(1).map(|rest| rest.split(' ').nth(1).map(str::to_owned));
            let index = |text: &str| text.split(':').next().map(str::to_owned);
            let before = link();
            assert_eq!(of(&before, "mtu"), Some(Some("1500".to_owned())));
            networks.ensure_network(&NetworkSpec { mtu: Some(1400), ..spec.clone() }).await.unwrap();
            assert!(!networks.attachments_of(&made.spec.sandbox).await.unwrap()[0].complete, "{name}");
            assert_eq!(networks.attach(&made.spec).await.unwrap(), made, "{name}");
            assert_eq!(of(&link(), "mtu"), Some(Some("1400".to_owned())), "{name}");
            assert_eq!(index(&link()), index(&before), "{name}: the link is the same");
            assert!(networks.attachments_of(&made.spec.sandbox).await.unwrap()[0].complete, "{name}");
        }
    });
}

#[test]
fn a_hardware_address_is_given_once() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&network("n", &["10.89.0.0/24"])).await.unwrap();
        let (a, b) = (world.netns("a"), world.netns("b"));
        let mine = LinkWish { mac: Some([2, 0, 0, 0, 0, 7]), ..LinkWish::default() };
        let made = networks.attach(&with(&wish("a", "n", &a, &[]), mine.clone())).await.unwrap();
        assert_eq!(made.mac, "02:00:00:00:00:07");
        assert!(inside(&a, || run("ip", &["link", "show", "eth0"])).contains("02:00:00:00:00:07"));
        let twice = networks.attach(&with(&wish("b", "n", &b, &[]), mine)).await.unwrap_err().to_string();
        assert_eq!(twice, "network n: 02:00:00:00:00:07 is used by sandbox a");
    });
}

#[test]
fn who_finds_no_address_is_told_how_many_there_are() {
    on_a_node(|world| async move {
        let networks = world.networks();
        let mut small: NetworkSpec = network("n", &["10.89.0.0/28"]);
        small.subnets[0].exclude = vec![(ip("10.89.0.4"), ip("10.89.0.14"))];
        networks.ensure_network(&small).await.unwrap();
        for name in ["a", "b"] {
            attach(&world, &networks, name, "n", &[]).await;
        }
        let full = networks.attach(&wish("c", "n", &world.netns("c"), &[])).await.unwrap_err().to_string();
        assert_eq!(full, "network n: no free address in 10.89.0.0/28: 2 of 2 are used");
        attach(&world, &networks, "d", "n", &["10.89.0.9"]).await;
        // Where the node already goes elsewhere, there can be no network.
        run("ip", &["route", "add", "10.90.0.0/16", "via", "10.89.0.2"]);
        let overlap = networks.ensure_network(&network("m", &["10.90.7.0/24"])).await.unwrap_err().to_string();
        let bridge = crate::network::bridge_name(&key("n"));
        assert_eq!(overlap, format!("network m: subnet 10.90.7.0/24 overlaps route 10.90.0.0/16 on {bridge}"));
    });
}
