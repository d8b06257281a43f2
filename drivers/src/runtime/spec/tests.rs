use std::collections::BTreeMap;

use oci_spec::image::ConfigBuilder;
use serde_json::{Value, json};

use super::*;
use crate::runtime::accounts::Accounts;
use crate::runtime::{DeviceWish, LogTarget, Mount, MountSource, Namespaces, Security};

fn baseline() -> ContainerSpec {
    ContainerSpec {
        id: "c1".parse().unwrap(),
        sandbox: "s1".parse().unwrap(),
        labels: BTreeMap::new(),
        image: "img".to_owned(),
        command: vec![],
        args: vec![],
        working_dir: None,
        env: vec![],
        tty: false,
        stdin: false,
        namespaces: Namespaces {
            net: Namespace::Path("/run/net".into()),
            ipc: Namespace::Private,
            uts: Namespace::Host,
            pid: Namespace::Private,
            user: None,
        },
        hostname: Some("web".to_owned()),
        mounts: vec![],
        cgroup: "/nodelet/s1/c1".parse().unwrap(),
        limits: Default::default(),
        ulimits: vec![],
        devices: vec![],
        security: Security::default(),
        sysctls: BTreeMap::new(),
        oom_score_adj: None,
        log: LogTarget::None,
        stop_signal: None,
        stdin_once: false,
        anonymous_volumes: None,
    }
}

fn build_json(spec: &ContainerSpec) -> Result<Value, Error> {
    let image = ConfigBuilder::default()
        .entrypoint(vec!["/entry".to_owned()])
        .cmd(vec!["default".to_owned()])
        .env(vec!["PATH=/bin".to_owned(), "A=image".to_owned()])
        .working_dir("/work".to_owned())
        .build()
        .unwrap();
    let mut node = Node::observe(std::path::Path::new("/nonexistent"));
    node.lowest_oom_score_adj = 0;
    let identity = Accounts::default().resolve(&spec.security, "").unwrap();
    let inputs = Inputs {
        spec,
        shared_pid: None,
        image: &image,
        identity: &identity,
        hostname: "host",
        node: &node,
        foreign_architectures: false,
        recursive_read_only: true,
        apparmor: None,
        shim: "s1",
        devices: &given(spec)?,
        profile: None,
    };
    build(&inputs).map(|spec| serde_json::to_value(spec).unwrap())
}

#[test]
fn the_image_gives_defaults() {
    let spec = build_json(&baseline()).unwrap();
    assert_eq!(spec["process"]["args"], json!(["/entry", "default"]));
    assert_eq!(spec["process"]["cwd"], "/work");
    assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "HOSTNAME=host", "A=image", "HOME=/"]));
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert_eq!(spec["process"]["user"], json!({"uid": 0, "gid": 0, "additionalGids": [0]}));
    assert_eq!(spec["root"], json!({"path": "rootfs", "readonly": false}));
    assert_eq!(spec["annotations"]["io.containerd.runc.v2.group"], "s1");
    assert_eq!(spec["linux"]["cgroupsPath"], "/nodelet/s1/c1");
    assert_eq!(
        spec["linux"]["namespaces"],
        json!([{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/run/net"}, {"type": "ipc"}])
    );
    assert!(spec.get("hostname").is_none());
}

#[test]
fn a_host_name_is_set_in_an_own_namespace_only() {
    let mut wanted = baseline();
    wanted.namespaces.uts = Namespace::Path("/run/uts".into());
    assert!(build_json(&wanted).unwrap().get("hostname").is_none(), "it is the others' as well");
    wanted.namespaces.uts = Namespace::Private;
    assert_eq!(build_json(&wanted).unwrap()["hostname"], "web");
}

#[test]
fn commands_follow_kubernetes() {
    let run = |command: &[&str], args: &[&str]| {
        let list = |items: &[&str]| items.iter().map(|i| (*i).to_owned()).collect();
        let spec = ContainerSpec { command: list(command), args: list(args), ..baseline() };
        build_json(&spec).unwrap()["process"]["args"].clone()
    };
    assert_eq!(run(&[], &["x"]), json!(["/entry", "x"]));
    assert_eq!(run(&["c"], &[]), json!(["c"]));
    assert_eq!(run(&["c"], &["x"]), json!(["c", "x"]));
}

#[test]
fn own_environment_wins_and_keeps_its_order() {
    let env = vec![("B".to_owned(), "1".to_owned()), ("A".to_owned(), "own=x".to_owned())];
    let spec = build_json(&ContainerSpec { env, tty: true, ..baseline() }).unwrap();
    assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "HOSTNAME=host", "TERM=xterm", "A=own=x", "B=1", "HOME=/"]));
}

#[test]
fn privileged_lifts_the_protection() {
    let security = Security { privileged: true, ..Security::default() };
    let spec = build_json(&ContainerSpec { security, ..baseline() }).unwrap();
    assert_eq!(spec["process"]["noNewPrivileges"], false);
    assert!(spec["linux"].get("seccomp").is_none());
    assert!(spec["linux"].get("maskedPaths").is_none());
    assert_eq!(spec["linux"]["resources"]["devices"], json!([{"allow": true, "access": "rwm"}]));
}

#[test]
fn devices_are_given_under_their_path_and_may_be_opened() {
    let wish = |path: &str| DeviceWish::File {
        path: path.to_owned(),
        container_path: "/dev/sink".to_owned(),
        permissions: "rw".to_owned(),
    };
    let of = |path: &str| build_json(&ContainerSpec { devices: vec![wish(path)], ..baseline() });
    let spec = of("/dev/null").unwrap();
    let device = &spec["linux"]["devices"][0];
    assert_eq!((&device["path"], &device["type"]), (&json!("/dev/sink"), &json!("c")));
    assert_eq!((&device["major"], &device["minor"]), (&json!(1), &json!(3)));
    let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
    let expected = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"});
    assert_eq!(rules.last(), Some(&expected));
    for (path, words) in [("/dev/absent", "devices: /dev/absent: No such"), ("/dev", "devices: /dev: is not a device")]
    {
        let error = of(path).unwrap_err().to_string();
        assert!(error.starts_with(words), "{error}");
    }
}

#[test]
fn mounts_replace_the_usual_ones_and_nest() {
    let bind = |destination: &str| Mount {
        destination: destination.to_owned(),
        source: MountSource::Bind("/host".into()),
        read_only: true,
        propagation: String::new(),
    };
    let spec = build_json(&ContainerSpec { mounts: vec![bind("/a/b"), bind("/a"), bind("/dev/shm")], ..baseline() });
    let spec = spec.unwrap();
    let mounts: Vec<&str> =
        spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
    assert_eq!(
        mounts,
        ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/a", "/a/b", "/dev/shm"]
    );
    assert_eq!(spec["mounts"][6]["options"], json!(["rbind", "rprivate", "rro"]));
}

#[test]
fn a_scope_is_named_and_has_no_limit_of_systemd() {
    let cgroup = "/nodelet.slice/nodelet-s1.slice/nodelet-s1-c1.scope".parse().unwrap();
    let spec = build_json(&ContainerSpec { cgroup, ..baseline() }).unwrap();
    assert_eq!(spec["linux"]["cgroupsPath"], "nodelet-s1.slice:nodelet:s1-c1");
    assert_eq!(spec["linux"]["resources"]["pids"]["limit"], -1);
    assert_eq!(spec["annotations"][NO_INNER_CGROUP], "");
}

#[test]
fn what_the_node_cannot_give_is_left_out() {
    let lower = build_json(&ContainerSpec { oom_score_adj: Some(-5), ..baseline() }).unwrap();
    assert!(lower["process"].get("oomScoreAdj").is_none());
    assert_eq!(build_json(&baseline()).unwrap()["process"]["oomScoreAdj"], 0, "not that of containerd");
    let higher = build_json(&ContainerSpec { oom_score_adj: Some(5), ..baseline() }).unwrap();
    assert_eq!(higher["process"]["oomScoreAdj"], 5);
}

#[test]
fn mistakes_name_their_field() {
    let ulimits = vec![("nofiles".to_owned(), 1, 1)];
    let error = build_json(&ContainerSpec { ulimits, ..baseline() }).unwrap_err();
    assert!(error.to_string().starts_with("resources.ulimits: \"nofiles\""));
    let error = build_json(&ContainerSpec { working_dir: Some("x".to_owned()), ..baseline() }).unwrap_err();
    assert!(error.to_string().starts_with("workingDir: "));
}
