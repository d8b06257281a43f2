//! Networks of plugins: the distribution's own, and a program that writes down what it is asked.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::CniConfig;
use crate::network::tests::world::*;
use crate::network::{Driver, Error, NetworkSpec, Networks};

/// Where the distribution has its plugins.
const INSTALLED: &str = "/usr/lib/cni";

fn by_plugins(name: &str, config: &Path, dirs: &[&Path]) -> NetworkSpec {
    let plugin_dirs = dirs.iter().map(PathBuf::from).collect();
    NetworkSpec { driver: Driver::Cni(CniConfig { config: config.to_owned(), plugin_dirs }), ..network(name, &[]) }
}

fn write(dir: &Path, name: &str, list: &Value) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    let path = dir.join(name);
    std::fs::write(&path, list.to_string()).unwrap();
    path
}

/// A network that the distribution's plugin makes with a bridge `cni0` of its own: 10.77.0.0/24 and fd00:77::/64.
pub(crate) fn by_bridge_plugin(name: &str, dir: &Path) -> NetworkSpec {
    let config = json!({
        "name": "site", "cniVersion": "1.0.0",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": dir.join("leases"),
                     "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]],
                     "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]},
        }],
    });
    by_plugins(name, &write(dir, "10-site.conflist", &config), &[Path::new(INSTALLED)])
}

#[test]
fn the_plugins_of_the_distribution_make_a_network() {
    on_a_node(|world| async move {
        let dir = world.run_dir().with_file_name("cni");
        let leases = dir.join("leases");
        let config = write(
            &dir,
            "10-site.conflist",
            &json!({
                "name": "site", "cniVersion": "1.0.0",
                "plugins": [
                    {"type": "bridge", "bridge": "cni0", "isGateway": true, "capabilities": {"ips": true, "mac": true},
                     "ipam": {"type": "host-local", "dataDir": leases, "ranges": [[{"subnet": "10.77.0.0/24"}]],
                              "routes": [{"dst": "0.0.0.0/0"}]}},
                    {"type": "tuning", "sysctl": {"net.ipv4.conf.all.log_martians": "1"}},
                ],
            }),
        );
        let networks = world.networks();
        let spec = by_plugins("n", &config, &[Path::new("/nowhere"), Path::new(INSTALLED)]);
        networks.ensure_network(&spec).await.unwrap();
        let (a, first) = attach(&world, &networks, "a", "n", &[]).await;
        let (b, second) = attach(&world, &networks, "b", "n", &["10.77.0.50"]).await;
        let mine = first.addresses[0].addr().to_string();
        assert_eq!(second.addresses[0].to_string(), "10.77.0.50/24");
        assert_eq!(inside(&a, || ask(("10.77.0.50", 80))).unwrap(), format!("b {mine}"));
        assert_eq!(ask((&mine, 80)).unwrap(), "a 10.77.0.1", "the node reaches it by the plugin's bridge");
        assert!(inside(&a, || run("ip", &["link", "show", "eth0"])).contains(&first.mac));
        assert_eq!(networks.attach(&wish("a", "n", &a, &[])).await.unwrap(), first, "asked for again, nothing runs");

        // Another agent knows it, and what breaks inside is seen and made anew.
        let networks = world.networks();
        assert!(networks.list_attachments().await.unwrap().iter().all(|attachment| attachment.complete));
        inside(&b, || run("ip", &["addr", "flush", "dev", "eth0"]));
        assert!(!networks.attachments_of(&sandbox("b")).await.unwrap()[0].complete);
        networks.attach(&wish("b", "n", &b, &["10.77.0.50"])).await.unwrap();
        assert_eq!(inside(&a, || ask(("10.77.0.50", 80))).unwrap(), format!("b {mine}"));
        // What only the plugins see, they are asked.
        inside(&a, || run("ip", &["route", "del", "default"]));
        assert!(networks.attachments_of(&sandbox("a")).await.unwrap()[0].complete);
        networks.ensure_network(&spec).await.unwrap();
        assert!(!networks.attachments_of(&sandbox("a")).await.unwrap()[0].complete, "CHECK found it");
        networks.attach(&wish("a", "n", &a, &[])).await.unwrap();
        assert!(inside(&a, || run("ip", &["route"])).contains("default"));

        // They leave by the configuration they came by, though it is gone, and though a namespace is.
        std::fs::remove_file(&config).unwrap();
        world.drop_netns(&b);
        for name in ["a", "b"] {
            networks.detach_all(&sandbox(name)).await.unwrap();
        }
        let left: Vec<_> = std::fs::read_dir(leases.join("site")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("10.77")), "{left:?}");
        assert!(!inside(&a, || run("ip", &["-br", "link"])).contains("eth0"));
        networks.remove_network(&key("n")).await.unwrap();
        assert!(networks.list_networks().await.unwrap().is_empty());
        let gone = networks.ensure_network(&spec).await.unwrap_err().to_string();
        assert!(gone.contains("10-site.conflist cannot be read: No such file"), "{gone}");
        assert_eq!(run("nft", &["list", "ruleset"]), "", "rules are the plugins' business");
    });
}

/// Writes down command, sandbox and input; answers with the file of its command's name, and fails if there is one for that.
const SCRIBE: &str = r#"#!/bin/sh
dir=$(dirname "$0")
{ printf '%s %s ' "$CNI_COMMAND" "$CNI_CONTAINERID"; cat; echo; } >>"$dir/calls"
if [ -e "$dir/fail-$CNI_COMMAND" ]; then cat "$dir/fail-$CNI_COMMAND"; exit 1; fi
[ ! -e "$dir/$CNI_COMMAND" ] || cat "$dir/$CNI_COMMAND"
"#;

#[test]
fn plugins_are_asked_as_the_specification_says() {
    on_a_node(|world| async move {
        let dir = world.run_dir().with_file_name("cni");
        let config = write(
            &dir,
            "list",
            &json!({"name": "n", "cniVersion": "1.1.0", "plugins": [{"type": "one"}, {"type": "two"}]}),
        );
        let networks = world.networks();
        let spec = by_plugins("n", &config, &[&dir]);
        let chain = async |spec: &NetworkSpec| {
            let error = networks.ensure_network(spec).await.unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {source}")
        };
        let missing = chain(&spec).await;
        assert!(missing.contains("plugin one failed to VERSION: it is not in "), "{missing}");
        for name in ["one", "two"] {
            let script = dir.join(name);
            std::fs::write(&script, SCRIBE).unwrap();
            std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        write(&dir, "VERSION", &json!({"supportedVersions": ["0.4.0", "1.0.0"]}));
        let old = chain(&spec).await;
        assert!(old.contains("it speaks CNI 0.4.0, 1.0.0, and the configuration asks for 1.1.0"), "{old}");
        write(&dir, "VERSION", &json!({"supportedVersions": ["1.0.0", "1.1.0"]}));
        networks.ensure_network(&spec).await.unwrap();

        // A refusal is told in the plugin's words, and what was begun is undone.
        let a = world.netns("a");
        write(&dir, "fail-ADD", &json!({"code": 11, "msg": "try again", "details": "no carrier"}));
        let refused = networks.attach(&wish("a", "n", &a, &[])).await.unwrap_err();
        let Error::Plugin { command: "ADD", source, .. } = &refused else { panic!("{refused}") };
        assert_eq!(source.to_string(), "try again: no carrier (code 11)");
        assert!(networks.list_attachments().await.unwrap().is_empty());
        std::fs::remove_file(dir.join("fail-ADD")).unwrap();
        let asked = networks.attach(&wish("a", "n", &a, &["10.0.0.9"])).await.unwrap_err().to_string();
        assert!(asked.contains("no plugin of the list has the capability ips"), "{asked}");

        // `lo` stands in for a link that the plugins make.
        let result =
            json!({"cniVersion": "1.1.0", "ips": [{"address": "127.0.0.1/8"}], "dns": {"nameservers": ["10.0.0.1"]}});
        write(&dir, "ADD", &result);
        std::fs::remove_file(dir.join("calls")).unwrap();
        let wish =
            crate::network::AttachSpec { ifname: crate::ids::IfName::new("lo").unwrap(), ..wish("a", "n", &a, &[]) };
        let made = networks.attach(&wish).await.unwrap();
        assert_eq!(made.resolvers, [ip("10.0.0.1")]);
        networks.ensure_network(&spec).await.unwrap();
        networks.detach_all(&sandbox("a")).await.unwrap();
        let calls: Vec<(String, Value)> = std::fs::read_to_string(dir.join("calls"))
            .unwrap()
            .lines()
            .filter(|line| !line.starts_with("VERSION"))
            .map(|line| {
                let (call, input) = line.split_at(line.find('{').unwrap());
                (call.trim().to_owned(), serde_json::from_str(input).unwrap())
            })
            .collect();
        let base = |name: &str| json!({"name": "n", "cniVersion": "1.1.0", "type": name});
        let with = |name: &str, key: &str, value: &Value| {
            let mut input = base(name);
            input[key] = value.clone();
            input
        };
        let (valid, key) = (json!([{"containerID": "a", "ifname": "lo"}]), "cni.dev/valid-attachments");
        let expected = [
            ("ADD a", base("one")),
            ("ADD a", with("two", "prevResult", &result)),
            ("GC", with("one", key, &valid)),
            ("GC", with("two", key, &valid)),
            ("CHECK a", with("one", "prevResult", &result)),
            ("CHECK a", with("two", "prevResult", &result)),
            ("DEL a", with("two", "prevResult", &result)),
            ("DEL a", with("one", "prevResult", &result)),
        ];
        assert_eq!(calls, expected.map(|(call, input)| (call.to_owned(), input)));
        assert!(networks.list_attachments().await.unwrap().is_empty());
    });
}
