//! Names as programs in sandboxes see them: real packets between real namespaces.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;

use super::answer::{Reply, answer};
use super::view::View;
use crate::ids::NetworkKey;
use crate::network::tests::world::*;
use crate::network::{DnsSpec, Names, NetworkSpec, Networks, Protocol, PublishedPort, Service};

const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn with_names(name: &str, subnets: &[&str]) -> NetworkSpec {
    NetworkSpec { dns: DnsSpec { enabled: true, upstreams: vec![] }, ..network(name, subnets) }
}

pub(crate) fn named(name: &str) -> Names {
    Names { everywhere: vec![format!("{name}.shop"), name.to_owned()], ready: true, ..Names::default() }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message.metadata.recursion_desired = true;
    message
}

/// Sends bytes by UDP and waits for an answer.
fn exchange(server: &str, bytes: &[u8]) -> Option<Message> {
    let server = SocketAddr::new(ip(server), 53);
    let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(bytes, server).unwrap();
    let mut buffer = [0; 65_535];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(from, server);
    Some(Message::from_vec(&buffer[..length]).unwrap())
}

fn exchange_tcp(server: &str, bytes: &[u8]) -> Message {
    let mut stream = TcpStream::connect((server, 53)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(bytes).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    Message::from_vec(&answer).unwrap()
}

fn told(answer: Option<Message>) -> (ResponseCode, Vec<String>) {
    let answer = answer.expect("an answer");
    assert_eq!(answer.metadata.id, 7);
    (answer.metadata.response_code, answer.answers.iter().map(|record| record.data.to_string()).collect())
}

/// Asks from the calling thread's namespace.
pub(crate) fn look_up(server: &str, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    told(exchange(server, &question(name, kind).to_vec().unwrap()))
}

fn yes(data: &[&str]) -> (ResponseCode, Vec<String>) {
    (ResponseCode::NoError, data.iter().map(|&text| text.to_owned()).collect())
}

fn no(code: ResponseCode) -> (ResponseCode, Vec<String>) {
    (code, vec![])
}

#[test]
fn sandboxes_know_those_they_share_a_network_with() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&with_names("front", &["10.89.0.0/24", "fd00:89::/64"])).await.unwrap();
        let back = NetworkSpec { internal: true, ..with_names("back", &["10.89.1.0/24"]) };
        networks.ensure_network(&back).await.unwrap();
        let web = world.netns("web");
        networks.attach(&wish("web", "front", &web, &["10.89.0.10", "fd00:89::10"])).await.unwrap();
        let second = crate::network::AttachSpec {
            ifname: crate::ids::IfName::new("eth1").unwrap(),
            default_route: false,
            ..wish("web", "back", &web, &["10.89.1.10"])
        };
        networks.attach(&second).await.unwrap();
        let (proxy, db) = (world.netns("proxy"), world.netns("db"));
        let at_proxy = networks.attach(&wish("proxy", "front", &proxy, &["10.89.0.11"])).await.unwrap();
        assert_eq!(at_proxy.resolvers, [ip("10.89.0.1")]);
        networks.attach(&wish("db", "back", &db, &["10.89.1.11"])).await.unwrap();
        let http = Service { name: "http".to_owned(), protocol: Protocol::Tcp, port: 8080 };
        let aliases = [(key("front"), vec!["www".to_owned()])].into();
        let names_of_web = Names { services: vec![http], aliases, ..named("web") };
        let all = [("web", names_of_web), ("proxy", named("proxy")), ("db", named("db"))];
        let all: Vec<_> = all.map(|(name, names)| (sandbox(name), Some(names))).to_vec();
        networks.set_names(&all).await.unwrap();
        use RecordType::{A, AAAA, MX, PTR, SRV};
        let from = |netns: &Path, server: &str, name: &str, kind| inside(netns, || look_up(server, name, kind));

        for name in ["web", "WEB.shop", "www"] {
            assert_eq!(from(&proxy, "10.89.0.1", name, A), yes(&["10.89.0.10"]), "{name}");
        }
        assert_eq!(from(&proxy, "fd00:89::1", "web", AAAA), yes(&["fd00:89::10"]));
        assert_eq!(from(&proxy, "10.89.0.1", "web", MX), yes(&[]), "it is there, but has none");
        let reverse = Name::from(ip("10.89.0.10")).to_ascii();
        assert_eq!(from(&proxy, "10.89.0.1", &reverse, PTR), yes(&["web.shop."]));
        let services =
            inside(&proxy, || exchange("10.89.0.1", &question("_http._tcp.web", SRV).to_vec().unwrap())).unwrap();
        assert_eq!(services.answers[0].data.to_string(), "0 0 8080 web.shop.");
        assert!(services.additionals.iter().any(|record| record.data.to_string() == "10.89.0.10"));
        assert_eq!(from(&proxy, "10.89.0.1", "_smtp._tcp.web", SRV), no(ResponseCode::NXDomain));

        // In two networks one server tells of both; from the outside of a network nobody learns about it.
        assert_eq!(from(&web, "10.89.0.1", "db", A), yes(&["10.89.1.11"]));
        assert_eq!(from(&db, "10.89.1.1", "web", A), yes(&["10.89.1.10"]));
        assert_eq!(from(&db, "10.89.1.1", "www", A), no(ResponseCode::NXDomain), "an alias of the other network");
        assert_eq!(from(&db, "10.89.1.1", "proxy", A), no(ResponseCode::NXDomain));
        assert_eq!(from(&db, "10.89.1.1", "example.com", A), no(ResponseCode::NXDomain), "internal: no way out");
        assert_eq!(from(&proxy, "10.89.1.1", "db", A), no(ResponseCode::Refused));
        let reverse = Name::from(ip("10.89.1.11")).to_ascii();
        assert_eq!(from(&proxy, "10.89.0.1", &reverse, PTR), no(ResponseCode::NXDomain));
        // The node may ask too, and TCP is as good.
        assert_eq!(look_up("10.89.0.1", "web", A), yes(&["10.89.0.10"]));
        let bytes = question("web", A).to_vec().unwrap();
        assert_eq!(told(Some(inside(&proxy, || exchange_tcp("10.89.0.1", &bytes)))), yes(&["10.89.0.10"]));

        // Who is not ready is known and left out; who is gone is not known.
        networks.set_names(&[(sandbox("web"), Some(Names { ready: false, ..named("web") }))]).await.unwrap();
        assert_eq!(from(&proxy, "10.89.0.1", "web", A), no(ResponseCode::NXDomain));
        networks.detach_all(&sandbox("db")).await.unwrap();
        assert_eq!(from(&web, "10.89.1.1", "db", A).1, Vec::<String>::new());
        assert_eq!(networks.list_names().await.unwrap().len(), 2);
    });
}

#[test]
fn instances_take_turns_and_large_answers_are_cut() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&with_names("n", &["10.89.0.0/24"])).await.unwrap();
        let client = world.netns("client");
        networks.attach(&wish("client", "n", &client, &[])).await.unwrap();
        let mut changes = Vec::new();
        for number in 0..40 {
            let name = format!("w{number}");
            let netns = world.netns(&name);
            networks.attach(&wish(&name, "n", &netns, &[&format!("10.89.0.{}", 100 + number)])).await.unwrap();
            let aliases = vec!["all".to_owned(), if number < 3 { "three" } else { "many" }.to_owned()];
            changes.push((sandbox(&name), Some(Names { aliases: [(key("n"), aliases)].into(), ..named(&name) })));
        }
        networks.set_names(&changes).await.unwrap();
        let firsts: Vec<String> =
            (0..6).map(|_| inside(&client, || look_up("10.89.0.1", "three", RecordType::A)).1[0].clone()).collect();
        assert_eq!(firsts[..3], firsts[3..]);
        let mut each = firsts[..3].to_vec();
        each.sort();
        assert_eq!(each, ["10.89.0.100", "10.89.0.101", "10.89.0.102"]);

        let mut message = question("all", RecordType::A);
        let small = inside(&client, || exchange("10.89.0.1", &message.to_vec().unwrap())).unwrap();
        assert!(small.metadata.truncation && small.answers.len() < 40);
        let whole = inside(&client, || exchange_tcp("10.89.0.1", &message.to_vec().unwrap()));
        assert!(!whole.metadata.truncation && whole.answers.len() == 40);
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        message.set_edns(edns);
        let large = inside(&client, || exchange("10.89.0.1", &message.to_vec().unwrap())).unwrap();
        assert!(!large.metadata.truncation && large.answers.len() == 40 && large.edns.is_some());
    });
}

/// A name server outside: answers A with 203.0.113.7, `long` by TCP only, and `slow` never. Counts questions.
fn serve_outside(netns: &Path, asked: Arc<AtomicUsize>) {
    let (udp, tcp) =
        inside(netns, || (UdpSocket::bind("192.0.2.9:53").unwrap(), TcpListener::bind("192.0.2.9:53").unwrap()));
    let reply = |bytes: &[u8], by_udp: bool| -> Option<Vec<u8>> {
        let message = Message::from_vec(bytes).ok()?;
        let query = message.queries.first()?.clone();
        let name = query.name().to_ascii().to_lowercase();
        let mut reply = message.into_response();
        match name.as_str() {
            "slow.test." => return None,
            "long.test." if by_udp => reply.metadata.truncation = true,
            "absent.test." => reply.metadata.response_code = ResponseCode::NXDomain,
            _ => {
                let data = RData::A("203.0.113.7".parse().unwrap());
                reply.add_answer(Record::from_rdata(query.name().clone(), 300, data));
            }
        }
        reply.to_vec().ok()
    };
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
            asked.fetch_add(1, Ordering::Relaxed);
            if let Some(bytes) = reply(&buffer[..length], true) {
                let _ = udp.send_to(&bytes, peer);
            }
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            if stream.read_exact(&mut length).is_err() {
                continue;
            }
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
            if stream.read_exact(&mut bytes).is_ok()
                && let Some(reply) = reply(&bytes, false)
            {
                let whole = [&u16::try_from(reply.len()).unwrap().to_be_bytes()[..], &reply].concat();
                let _ = stream.write_all(&whole);
            }
        }
    });
}

#[test]
fn other_names_are_asked_for_outside() {
    on_a_node(|world| async move {
        let outside = world.outside();
        let asked = Arc::new(AtomicUsize::new(0));
        serve_outside(&outside, asked.clone());
        let networks = world.networks();
        let dns = DnsSpec { enabled: true, upstreams: vec![ip("192.0.2.9")] };
        networks.ensure_network(&NetworkSpec { dns, ..network("n", &["10.89.0.0/24"]) }).await.unwrap();
        let client = world.netns("client");
        networks.attach(&wish("client", "n", &client, &[])).await.unwrap();
        networks.set_names(&[(sandbox("client"), Some(named("client")))]).await.unwrap();
        let from = |name: &str| inside(&client, || look_up("10.89.0.1", name, RecordType::A));
        assert_eq!(from("some.test"), yes(&["203.0.113.7"]));
        let before = asked.load(Ordering::Relaxed);
        assert_eq!(from("some.test"), yes(&["203.0.113.7"]));
        assert_eq!(asked.load(Ordering::Relaxed), before, "from the cache");
        assert_eq!(from("long.test"), yes(&["203.0.113.7"]), "by TCP");
        assert_eq!(from("absent.test"), no(ResponseCode::NXDomain));

        // While nobody answers elsewhere, names of ours come first.
        inside(&client, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            for number in 0..300u16 {
                let mut message = question("slow.test", RecordType::A);
                message.metadata.id = 1000 + number;
                socket.send_to(&message.to_vec().unwrap(), "10.89.0.1:53").unwrap();
            }
            for _ in 0..100 {
                assert_eq!(look_up("10.89.0.1", "client", RecordType::A).0, ResponseCode::NoError);
            }
            // At last they are told so.
            let mut buffer = [0; 4096];
            let (length, _) = socket.recv_from(&mut buffer).unwrap();
            let message = Message::from_vec(&buffer[..length]).unwrap();
            assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
        });
    });
}

#[test]
fn no_question_is_lost_while_names_change() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&with_names("n", &["10.89.0.0/24"])).await.unwrap();
        let (client, old, new) = (world.netns("client"), world.netns("old"), world.netns("new"));
        networks.attach(&wish("client", "n", &client, &[])).await.unwrap();
        networks.attach(&wish("old", "n", &old, &["10.89.0.10"])).await.unwrap();
        networks.attach(&wish("new", "n", &new, &["10.89.0.11"])).await.unwrap();
        networks.set_names(&[(sandbox("old"), Some(named("web")))]).await.unwrap();
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let asking = std::thread::spawn({
            let (stop, count) = (stop.clone(), count.clone());
            move || {
                inside(&client, || {
                    while !stop.load(Ordering::Relaxed) {
                        let (code, addresses) = look_up("10.89.0.1", "web", RecordType::A);
                        assert!(code == ResponseCode::NoError && addresses.len() == 1, "{code} {addresses:?}");
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        for round in 0..1000 {
            let (from, to) = if round % 2 == 0 { ("old", "new") } else { ("new", "old") };
            networks.set_names(&[(sandbox(from), None), (sandbox(to), Some(named("web")))]).await.unwrap();
        }
        while count.load(Ordering::Relaxed) < 100 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.store(true, Ordering::Relaxed);
        asking.join().unwrap();
    });
}

#[test]
fn a_new_agent_and_a_new_bridge_answer_as_before() {
    on_a_node(|world| async move {
        let spec = with_names("n", &["10.89.0.0/24", "fd00:89::/64"]);
        let networks = world.networks();
        networks.ensure_network(&spec).await.unwrap();
        let web = world.netns("web");
        networks.attach(&wish("web", "n", &web, &["10.89.0.10", "fd00:89::10"])).await.unwrap();
        networks.set_names(&[(sandbox("web"), Some(named("web")))]).await.unwrap();
        let ask = |server| inside(&web, || look_up(server, "web", RecordType::A));
        assert_eq!(ask("10.89.0.1"), yes(&["10.89.0.10"]));
        // The sockets of the old agent are closed by its threads, here a little later than by the kernel.
        drop(networks);
        while UdpSocket::bind("10.89.0.1:53").is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let networks = world.networks();
        assert_eq!(ask("10.89.0.1"), yes(&["10.89.0.10"]));
        assert_eq!(ask("fd00:89::1"), yes(&["10.89.0.10"]));
        run("ip", &["link", "del", crate::network::bridge_name(&spec.key).as_str()]);
        networks.ensure_network(&spec).await.unwrap();
        assert_eq!(ask("10.89.0.1"), yes(&["10.89.0.10"]));
        assert_eq!(ask("fd00:89::1"), yes(&["10.89.0.10"]));
        // Off and on again.
        networks.ensure_network(&NetworkSpec { dns: DnsSpec::default(), ..spec.clone() }).await.unwrap();
        assert!(UdpSocket::bind("10.89.0.1:53").is_ok());
        networks.ensure_network(&spec).await.unwrap();
        assert_eq!(ask("10.89.0.1"), yes(&["10.89.0.10"]));
    });
}

#[test]
fn a_sandbox_may_publish_port_53_and_another_server_is_named() {
    on_a_node(|world| async move {
        let outside = world.outside();
        let networks = world.networks();
        networks.ensure_network(&with_names("n", &["10.89.0.0/24"])).await.unwrap();
        let (resolver, _) = attach(&world, &networks, "resolver", "n", &["10.89.0.10"]).await;
        serve(&resolver, "resolver", 53);
        networks.set_names(&[(sandbox("resolver"), Some(named("resolver")))]).await.unwrap();
        let ports: Vec<PublishedPort> = [Protocol::Tcp, Protocol::Udp]
            .map(|protocol| PublishedPort { protocol, ..published(None, 53, "10.89.0.10", 53) })
            .to_vec();
        networks.set_ports(&sandbox("resolver"), &ports).await.unwrap();
        assert_eq!(inside(&outside, || ask_udp(("192.0.2.1", 53))).unwrap(), "resolver 192.0.2.9");
        assert_eq!(inside(&resolver, || look_up("10.89.0.1", "resolver", RecordType::A)), yes(&["10.89.0.10"]));

        let _other = UdpSocket::bind("0.0.0.0:1053").unwrap();
        let taken = UdpSocket::bind("10.89.0.1:53").unwrap_err();
        assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
        run("ip", &["addr", "add", "10.89.7.1/32", "dev", "lo"]);
        let _other = UdpSocket::bind("10.89.7.1:53").unwrap();
        let refused = networks.ensure_network(&with_names("m", &["10.89.7.0/24"])).await.unwrap_err();
        assert!(refused.to_string().contains("listening on 10.89.7.1 port 53"), "{refused}");
        assert_eq!(networks.list_networks().await.unwrap().len(), 1, "it is not half made");
    });
}

#[test]
fn nonsense_breaks_nothing() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&with_names("n", &["10.89.0.0/24"])).await.unwrap();
        let client = world.netns("client");
        networks.attach(&wish("client", "n", &client, &["10.89.0.10"])).await.unwrap();
        networks.set_names(&[(sandbox("client"), Some(named("client")))]).await.unwrap();
        inside(&client, || {
            use rand::{Rng, RngCore, SeedableRng};
            let mut random = rand::rngs::StdRng::seed_from_u64(53);
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let sound = question("client", RecordType::A).to_vec().unwrap();
            for round in 0..5000 {
                let mut bytes = if round % 2 == 0 { sound.clone() } else { vec![0; random.random_range(0..600)] };
                if round % 2 == 0 {
                    for _ in 0..random.random_range(1..6) {
                        let at = random.random_range(0..bytes.len());
                        bytes[at] = random.random();
                    }
                } else {
                    random.fill_bytes(&mut bytes);
                }
                socket.send_to(&bytes, "10.89.0.1:53").unwrap();
                if round % 100 == 0 {
                    let mut stream = TcpStream::connect("10.89.0.1:53").unwrap();
                    let _ = stream.write_all(&bytes);
                    assert_eq!(look_up("10.89.0.1", "client", RecordType::A), yes(&["10.89.0.10"]), "round {round}");
                }
            }
            assert_eq!(look_up("10.89.0.1", "client", RecordType::A), yes(&["10.89.0.10"]));
        });
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn whatever_comes_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), udp: bool) {
        let client = SocketAddr::new(IpAddr::from([10, 0, 0, 1]), 5353);
        let reply = answer(&View::default(), &NetworkKey::new("n").unwrap(), client, &bytes, udp);
        if let Reply::Send(answer) = reply {
            prop_assert!(bytes[2] & 0x80 == 0 && answer[2] & 0x80 != 0, "an answer to a question");
            prop_assert_eq!(&answer[..2], &bytes[..2], "its own id");
            prop_assert!(!udp || answer.len() <= 1232);
        }
    }
}

/// Measured, not part of the suite: `cargo nextest run -p nodelet-drivers --run-ignored all measured_names`.
#[test]
#[ignore = "measures"]
fn measured_names() {
    on_a_node(|world| async move {
        let networks = world.networks();
        networks.ensure_network(&with_names("n", &["10.89.0.0/24"])).await.unwrap();
        let client = world.netns("client");
        networks.attach(&wish("client", "n", &client, &["10.89.0.10"])).await.unwrap();
        let mut changes = vec![(sandbox("client"), Some(named("client")))];
        for number in 0..200 {
            let other = Names { at: Some(sandbox("client")), ..named(&format!("w{number}")) };
            changes.push((sandbox(&format!("w{number}")), Some(other)));
        }
        networks.set_names(&changes).await.unwrap();
        inside(&client, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("10.89.0.1:53").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let receiver = socket.try_clone().unwrap();
            const COUNT: usize = 50_000;
            let begun = std::time::Instant::now();
            let sent: Arc<Vec<AtomicUsize>> = Arc::new((0..COUNT).map(|_| AtomicUsize::new(0)).collect());
            let times = std::thread::spawn({
                let sent = sent.clone();
                move || {
                    let mut times = Vec::new();
                    let mut buffer = [0; 512];
                    while times.len() < COUNT && receiver.recv(&mut buffer).is_ok() {
                        let now = begun.elapsed().as_micros() as usize;
                        let id = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
                        times.push(now - sent[id].load(Ordering::Relaxed));
                    }
                    times
                }
            });
            let mut bytes = question("w150", RecordType::A).to_vec().unwrap();
            // Ten each millisecond.
            for (id, at) in sent.iter().enumerate() {
                while begun.elapsed() < Duration::from_micros(id as u64 * 100) {
                    std::hint::spin_loop();
                }
                bytes[..2].copy_from_slice(&u16::try_from(id).unwrap().to_be_bytes());
                at.store(begun.elapsed().as_micros() as usize, Ordering::Relaxed);
                socket.send(&bytes).unwrap();
            }
            let spent = begun.elapsed();
            let mut times = times.join().unwrap();
            times.sort_unstable();
            let at = |share: usize| times[times.len() * share / 1000];
            #[allow(clippy::print_stdout, reason = "a measurement is printed")]
            {
                println!(
                    "{COUNT} questions in {spent:?}, {} answered; median {} us, p99 {} us, p99.9 {} us",
                    times.len(),
                    at(500),
                    at(990),
                    at(999)
                );
            }
        });
    });
}
