use serde_json::json;

use super::load::read;
use super::{NodeletConfiguration, from_environment, from_flag};

fn faults(text: &str) -> String {
    let faults = read("config.yaml", text, &[]).expect_err("must be refused");
    faults.iter().map(|fault| fault.to_string()).collect::<Vec<_>>().join("\n")
}

#[test]
fn defaults_round_trip() {
    let defaults = NodeletConfiguration::default();
    assert_eq!(read("x", "", &[]).as_ref(), Ok(&defaults));
    assert_eq!(read("x", &serde_saphyr::to_string(&defaults).expect("writes"), &[]), Ok(defaults));
}

#[test]
fn the_contract_of_the_api_page_is_accepted() {
    let text = "\
apiVersion: nodelet.dev/v1alpha1
kind: NodeletConfiguration
nodeName: edge-1
nodeLabels: {zone: west}
dataDir: /var/lib/nodelet
runDir: /run/nodelet
api: {mode: embedded, listen: 127.0.0.1:6440, kubeconfig: \"\"}
runtime: {address: /run/containerd/containerd.sock, managed: false, namespace: nodelet, snapshotter: overlayfs, handler: io.containerd.runc.v2,
  ociRuntime: \"\", shimPool: 0}
sources: [{directory: /etc/nodelet/manifests}]
images: {parallelPulls: 3, parallelLayers: 4, gc: {highPercent: 85, lowPercent: 80, minAgeSeconds: 120}, registriesDir: /etc/containerd/certs.d}
observability: {listen: 127.0.0.1:9440, logFormat: text, logLevel: info, otlpEndpoint: \"\"}
";
    let read = read("config.yaml", text, &[]).expect("valid");
    assert_eq!(read.node_name, "edge-1");
    assert_eq!(
        NodeletConfiguration { node_name: String::new(), node_labels: Default::default(), ..read },
        Default::default()
    );
}

#[test]
fn faults_name_place_key_expectation_and_remedy() {
    let cases = [
        "runtime:\n  adress: /run/x.sock\n",
        "nodeNames: x\n",
        "runtime:\n  managed: maybe\n",
        "images:\n  parallelPulls: many\n",
        "images:\n  parallelPulls: -1\n",
        "images:\n  parallelPulls: 0\n",
        "images:\n  stallSeconds: 0\n",
        "images:\n  gc:\n    lowPercent: 90\n",
        "images:\n  gc: {highPercent: 300}\n",
        "nodeLabels:\n  rack: 3\n",
        "nodeLabels: {a b: c, zone: -x}\n",
        "api:\n  mode: cluster\n",
        "api: {mode: remote}\n",
        "api:\n  listen: localhost\nobservability:\n  logLevel: a=b=c\n",
        "sources:\n- directory: manifests\n- dir: /x\n",
        "sources:\n- {}\n",
        "dataDir: data\n",
        "runtime: overlayfs\n",
        "runtime:\n",
        "runtime: {crashLoopBackOff: [1, 2, 3]}\nsources: [/etc/x, {directory: /y}]\n",
        "runtime: {cgroupDriver: 3}\n",
        "runtime: {shimPool: \"10\"}\n",
        "runtime: {shimPool: 1.5}\n",
        "runtime: {shimPool: -1}\n",
        "runtime: {shimPool:, managed: \"true\"}\n",
        "runtime: {auditSeconds: 18446744073709551615}\n",
        "systemReserved: {cpu: 500x}\n",
        "eviction: {memory: {available: 101%}}\n",
        "- a\n",
        "api: {listen: x\n",
        "nodeName: a\nnodeName: b\n",
        "kind: Pod\n---\nkind: Pod\n",
        "kind: Pod\n",
        "runtime: {shimPool: 400, ociRuntime: /usr/bin/crun, auditSeconds: 1, cgroupParent: nodelet}\n",
        "runtime: {cgroupDriver: cgroup, cgroupParent: /a/b}\n",
        "runtime: {cgroupDriver: systemd, cgroupParent: /a/b}\n",
    ];
    let golden: String = cases.iter().map(|text| format!("{text}=> {}\n\n", faults(text))).collect();
    insta::assert_snapshot!(golden);
}

#[test]
fn environment_and_flags_win_and_are_named() {
    let variables = |pairs: &[(&str, &str)]| {
        from_environment(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    };
    let overrides = variables(&[
        ("NODELET_DATA_DIR", "/data"),
        ("NODELET_API_LISTEN", ""),
        ("NODELET_RUNTIME_CGROUP_PARENT", "/test"),
        ("NODELET_RUNTIME_MANAGED", "true"),
        ("NODELET_NODE_NAME", "7"),
        ("NODELET_NODE_LABELS", "zone=west,rack=3"),
        ("NODELET_SOURCES", "/a,/b"),
        ("NODELET_IMAGES_GC_HIGH_PERCENT", "99"),
        ("NODELET_PORT", "tcp://10.0.0.1:80"),
        ("PATH", "/bin"),
    ]);
    let mut all = overrides.clone();
    all.push(from_flag("--data-dir", "dataDir", "/flag"));
    let read_back = read("config.yaml", "dataDir: /file\nnodeName: file\n", &all).expect("valid");
    assert_eq!(read_back.data_dir.to_str(), Some("/flag"));
    assert_eq!(read_back.api.listen, "");
    assert!(read_back.runtime.managed);
    assert_eq!(read_back.node_name, "7");
    assert_eq!(json!(read_back.node_labels), json!({"zone": "west", "rack": "3"}));
    assert_eq!(json!(read_back.sources), json!([{"directory": "/a"}, {"directory": "/b"}]));
    assert_eq!((read_back.images.gc.high_percent, read_back.runtime.cgroup_parent.as_str()), (99, "/test"));

    let refused = |overrides: &[super::Override]| {
        read("config.yaml", "", overrides).expect_err("refused").iter().map(|f| f.to_string()).collect::<String>()
    };
    insta::assert_snapshot!(refused(&variables(&[("NODELET_RUNTIME_MANAGED", "maybe")])));
    insta::assert_snapshot!(refused(&[from_flag("--set runtime.adress", "runtime.adress", "x")]));
}
