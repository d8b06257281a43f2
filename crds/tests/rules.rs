//! Every rule, by a spec that is right but for one thing, against the message that names the way out.

// Test code throughout, also in the functions that tests share.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use kube::core::cel::{ErrorKind, Validator};
use serde_json::{Value, json};

/// The schemas of all kinds.
static SCHEMAS: LazyLock<BTreeMap<String, Value>> = LazyLock::new(|| {
    let schemas = nodelet_crds::crds().into_iter().map(|mut crd| {
        let schema = crd.spec.versions.remove(0).schema.unwrap().open_api_v3_schema.unwrap();
        (crd.spec.names.kind, serde_json::to_value(schema).unwrap())
    });
    schemas.collect()
});

fn object(kind: &str, name: &str, spec: &str) -> Value {
    let spec: Value = serde_saphyr::from_str(spec).unwrap_or_else(|error| panic!("{error}: {spec}"));
    json!({ "apiVersion": "nodelet.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec })
}

/// Messages of the rules that refuse the object.
fn refusals(kind: &str, name: &str, spec: &str, old: Option<&str>) -> Vec<String> {
    let old = old.map(|old| object(kind, name, old));
    let Err(errors) = Validator::new().validate(&SCHEMAS[kind], &object(kind, name, spec), old.as_ref()) else {
        return Vec::new();
    };
    let messages = errors.into_iter().map(|error| {
        assert_eq!(error.kind, ErrorKind::ValidationFailure, "{}: {}", error.rule, error.message);
        error.message
    });
    messages.collect()
}

/// Kind, spec, and how the one message begins.
const REFUSED: &[(&str, &str, &str)] = &[
    ("Image", "{reference: a, archive: {path: /a.tar}, pullSecrets: [{name: x}]}", "an image from an archive needs no"),
    (
        "Image",
        "{reference: a, archive: {path: /a.tar}, refreshSeconds: 60}",
        "an image from an archive is not refreshed",
    ),
    ("Image", "{reference: 'a@sha256:0', refreshSeconds: 60}", "a reference by digest never changes"),
    ("Image", "{reference: a, pullPolicy: Never, refreshSeconds: 60}", "pullPolicy Never and refreshSeconds"),
    (
        "Image",
        "{reference: a, nodeSelector: {matchExpressions: [{key: a, operator: In}]}}",
        "values are required for the operators",
    ),
    (
        "Image",
        "{reference: a, nodeSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
        "values are required for the operators",
    ),
    ("Volume", "{}", "exactly one source is needed: local"),
    ("Volume", "{local: {}, tmpfs: {}}", "exactly one source is needed: local"),
    ("Volume", "{block: {}}", "a block volume needs a capacity"),
    ("Volume", "{nfs: {server: a, path: /}, capacity: 1Gi}", "capacity has a meaning for"),
    ("Volume", "{hostPath: {path: /a}, owner: {uid: 1}}", "owner has a meaning for"),
    ("Network", "{driver: macvlan}", "parent is needed for the drivers"),
    ("Network", "{driver: bridge, parent: eth0}", "parent is needed for the drivers"),
    ("Network", "{driver: bridge, vlan: 5, subnets: [{cidr: 10.0.0.0/24}]}", "parent is needed for the drivers"),
    (
        "Network",
        "{driver: macvlan, parent: eth0, vlan: 5, subnets: [{cidr: 10.0.0.0/24}]}",
        "vlan has a meaning for the driver bridge",
    ),
    ("Network", "{driver: bridge, parent: eth0, vlan: 5}", "subnets are needed with vlan"),
    ("Network", "{driver: macvlan, parent: eth0, mode: l2}", "mode is bridge, private, vepa"),
    ("Network", "{driver: ipvlan, parent: eth0, mode: vepa}", "mode is bridge, private, vepa"),
    ("Network", "{mode: bridge}", "mode is bridge, private, vepa"),
    ("Network", "{driver: vxlan, subnets: [{cidr: 10.0.0.0/24}]}", "vxlan is needed for the driver"),
    ("Network", "{vxlan: {vni: 1}}", "vxlan is needed for the driver"),
    ("Network", "{driver: vxlan, vxlan: {vni: 1}}", "subnets are needed for the driver vxlan"),
    ("Network", "{driver: cni}", "cni is needed for the driver"),
    ("Network", "{cni: {config: /a}}", "cni is needed for the driver"),
    ("Network", "{driver: none, subnets: [{cidr: 10.0.0.0/24}]}", "subnets have no meaning"),
    ("Network", "{driver: host, mtu: 1500}", "mtu has no meaning"),
    ("Network", "{driver: host, internal: true}", "internal has a meaning"),
    ("Network", "{subnets: [{cidr: 10.0.0.0}]}", "cidr must be a network"),
    ("Network", "{subnets: [{cidr: 10.0.0.1/24}]}", "cidr must be a network"),
    ("Network", "{subnets: [{cidr: 10.0.0.0/24, gateway: 10.0.1.1}]}", "gateway must be an address within"),
    ("Network", "{subnets: [{cidr: 10.0.0.0/24, gateway: first}]}", "gateway must be an address within"),
    ("Network", "{subnets: [{cidr: 10.0.0.0/24, exclude: [10.0.1.9]}]}", "exclude must be addresses within"),
    ("Network", "{subnets: [{cidr: 10.0.0.0/24, range: 10.0.0.9}]}", "range must be two addresses"),
    ("Network", "{subnets: [{cidr: 10.0.0.0/24, range: 10.0.0.9-10.0.1.9}]}", "range must be two addresses"),
    ("ResourceLimit", "{parent: it}", "a ResourceLimit cannot be its own parent"),
    ("ResourceLimit", "{memory: {max: 512Mi, high: 1Gi}}", "memory.high must not be above"),
    (
        "ResourceLimit",
        "{cpu: {realtime: {runtimeMicroseconds: 5001, periodMicroseconds: 5000}}}",
        "runtimeMicroseconds must not be above periodMicroseconds",
    ),
    ("ResourceLimit", "{memory: {max: 1024, low: 1Ki}}", ""),
    ("ResourceLimit", "{memory: {max: 1023, low: 1Ki}}", "memory.low must not be above"),
    ("ResourceLimit", "{io: [{device: /dev/vda}]}", "name at least one limit"),
    ("Workload", "{networkOf: it, containers: [{name: a, image: b}]}", "a Workload cannot join its own"),
    ("Workload", "{dependsOn: [{name: it}], containers: [{name: a, image: b}]}", "a Workload cannot depend on itself"),
    ("Workload", "{networkOf: b, networks: [{name: c}], containers: [{name: a, image: b}]}", "networks and networkOf"),
    (
        "Workload",
        "{networks: [{name: host}, {name: b}], containers: [{name: a, image: b}]}",
        "the networks host and none",
    ),
    (
        "Workload",
        "{networkOf: b, containers: [{name: a, image: b, ports: [{containerPort: 1, hostPort: 1}]}]}",
        "with networkOf, ports are published",
    ),
    (
        "Workload",
        "{containers: [{name: a, image: b}], initContainers: [{name: a, image: b}]}",
        "container names must be unique",
    ),
    ("Workload", "{containers: [{name: a, image: b, restartPolicy: Always}]}", "restartPolicy of a single container"),
    (
        "Workload",
        "{containers: [{name: a, image: b}], initContainers: [{name: i, image: b, lifecycle: {}}]}",
        "initContainers have no probes",
    ),
    (
        "Workload",
        "{containers: [{name: a, image: b, volumeMounts: [{name: v, mountPath: /v}]}]}",
        "every volumeMount must name",
    ),
    (
        "Workload",
        "{containers: [{name: a, image: b}], volumes: [{name: w, emptyDir: {}}], \
          initContainers: [{name: i, image: b, volumeMounts: [{name: v, mountPath: /v}]}]}",
        "every volumeMount must name",
    ),
    (
        "Workload",
        "{shareProcessNamespace: true, hostPID: true, containers: [{name: a, image: b}]}",
        "shareProcessNamespace and hostPID",
    ),
    (
        "Workload",
        "{networks: [{name: a, ip: one}], containers: [{name: a, image: b}]}",
        "ip must be an IPv4 or IPv6 address",
    ),
    (
        "Workload",
        "{hostAliases: [{ip: one, hostnames: [a]}], containers: [{name: a, image: b}]}",
        "ip must be an IPv4 or IPv6 address",
    ),
    ("Workload", "{containers: [{name: a, image: b}], volumes: [{name: v}]}", "exactly one source is needed: volume"),
    (
        "Workload",
        "{containers: [{name: a, image: b}], volumes: [{name: v, emptyDir: {}, image: {reference: a}}]}",
        "exactly one source is needed: volume",
    ),
    (
        "Workload",
        "{containers: [{name: a, image: b}], volumes: [{name: v, downwardAPI: {items: [{path: a}]}}]}",
        "exactly one of fieldRef and resourceFieldRef",
    ),
    (
        "Workload",
        "{containers: [{name: a, image: b}], volumes: [{name: v, projected: {sources: [{}]}}]}",
        "exactly one source is needed: configMap",
    ),
];

/// As [`REFUSED`], for the fields of one container.
const REFUSED_CONTAINERS: &[(&str, &str)] = &[
    ("ports: [{name: a, containerPort: 1}, {name: a, containerPort: 2}]", "port names must be unique"),
    ("ports: [{containerPort: 1, hostPort: 1, hostIP: here}]", "hostIP must be an IPv4"),
    ("ports: [{containerPort: 1, hostPort: 9, hostPortEnd: 8}]", "hostPortEnd is the last of"),
    ("ports: [{containerPort: 65535, hostPort: 8, hostPortEnd: 9}]", "hostPortEnd is the last of"),
    ("ports: [{containerPort: 1, hostIP: 127.0.0.1}]", "hostIP has a meaning with hostPort"),
    ("livenessProbe: {tcpSocket: {port: 1}, successThreshold: 2}", "livenessProbe.successThreshold must be 1"),
    ("startupProbe: {tcpSocket: {port: 1}, successThreshold: 2}", "startupProbe.successThreshold must be 1"),
    ("readinessProbe: {tcpSocket: {port: 1}, terminationGracePeriodSeconds: 2}", "a readinessProbe ends no container"),
    ("readinessProbe: {}", "exactly one handler is needed: exec, httpGet, tcp"),
    ("readinessProbe: {tcpSocket: {port: 1}, grpc: {port: 1}}", "exactly one handler is needed: exec, httpGet, tcp"),
    ("lifecycle: {preStop: {}}", "exactly one handler is needed: exec, httpGet or sleep"),
    ("volumeMounts: [{name: v, mountPath: /v, mountPropagation: Bidirectional}]", "mountPropagation Bidirectional"),
    ("env: [{name: A, value: a, valueFrom: {fieldRef: {fieldPath: a}}}]", "value and valueFrom exclude"),
    ("env: [{name: A, valueFrom: {}}]", "exactly one source is needed: configMapKeyRef"),
    ("envFrom: [{prefix: a}]", "exactly one of configMapRef and secretRef"),
    ("resources: {ulimits: [{name: core, soft: 2, hard: 1}]}", "soft must not be above hard"),
    ("resources: {ulimits: [{name: core, soft: -1, hard: 1}]}", "soft must not be above hard"),
    ("securityContext: {runAsNonRoot: true, runAsUser: 0}", "runAsNonRoot forbids"),
    ("securityContext: {privileged: true, allowPrivilegeEscalation: false}", "a privileged container cannot"),
    ("securityContext: {capabilities: {add: [CAP_NET_ADMIN]}}", "capabilities are named without"),
    ("securityContext: {seccompProfile: {type: Localhost}}", "localhostProfile is needed"),
    ("securityContext: {seccompProfile: {type: Unconfined, localhostProfile: a}}", "localhostProfile is needed"),
];

/// Kind, spec before, spec after, and how the message begins.
const REFUSED_CHANGES: &[(&str, &str, &str, &str)] = &[
    ("Volume", "{local: {}}", "{tmpfs: {}}", "the source of a Volume cannot be changed"),
    ("Volume", "{local: {}}", "{local: {path: /a}}", "the source of a Volume cannot be changed"),
    ("Volume", "{hostPath: {path: /a}}", "{hostPath: {path: /b}}", "the source of a Volume cannot be changed"),
    ("Volume", "{block: {}, capacity: 1}", "{block: {fsType: xfs}, capacity: 1}", "the source of a Volume"),
    (
        "Volume",
        "{nfs: {server: a, path: /}}",
        "{nfs: {server: b, path: /}}",
        "the source of a Volume cannot be changed",
    ),
    ("Volume", "{local: {}, nodeName: a}", "{local: {}, nodeName: b}", "nodeName cannot be changed"),
    ("Volume", "{local: {}, nodeName: a}", "{local: {}}", "nodeName cannot be changed"),
    (
        "Network",
        "{driver: bridge}",
        "{driver: vxlan, vxlan: {vni: 1}, subnets: [{cidr: 10.0.0.0/24}]}",
        "the driver cannot be changed",
    ),
    ("Network", "{}", "{driver: none}", "the driver cannot be changed"),
    ("Network", "{}", "{parent: eth0, vlan: 5, subnets: [{cidr: 10.0.0.0/24}]}", "vlan cannot be changed"),
    (
        "Network",
        "{parent: eth0, vlan: 5, subnets: [{cidr: 10.0.0.0/24}]}",
        "{parent: eth0, vlan: 6, subnets: [{cidr: 10.0.0.0/24}]}",
        "vlan cannot be changed",
    ),
];

fn container(fields: &str) -> String {
    format!("{{volumes: [{{name: v, emptyDir: {{}}}}], containers: [{{name: a, image: b, {fields}}}]}}")
}

#[test]
fn each_rule_refuses_what_it_is_for() {
    let containers = REFUSED_CONTAINERS.iter().map(|(fields, start)| ("Workload", container(fields), *start));
    let all = REFUSED.iter().map(|(kind, spec, start)| (*kind, (*spec).to_owned(), *start)).chain(containers);
    for (kind, spec, start) in all {
        let messages = refusals(kind, "it", &spec, None);
        if start.is_empty() {
            assert!(messages.is_empty(), "{spec}: {messages:?}");
        } else {
            assert!(messages.len() == 1 && messages[0].starts_with(start), "{spec}: {messages:?}");
        }
    }
}

#[test]
fn names_that_are_taken_or_too_long_are_refused() {
    assert!(refusals("Network", "host", "{}", None)[0].starts_with("the names host and none"));
    assert!(refusals("Network", "none", "{driver: host}", None)[0].starts_with("the names host and none"));
    assert!(refusals("Network", "host", "{driver: host}", None).is_empty());
    let long = "a".repeat(64);
    let spec = "{containers: [{name: a, image: b}]}";
    assert!(refusals("Workload", &long, spec, None)[0].starts_with("the name of a Workload"));
    assert!(refusals("Workload", &long[1..], spec, None).is_empty());
}

#[test]
fn what_is_fixed_cannot_be_changed() {
    for (kind, old, new, start) in REFUSED_CHANGES {
        let messages = refusals(kind, "it", new, Some(old));
        assert!(!messages.is_empty(), "{old} -> {new} is accepted");
        assert!(messages.iter().all(|message| message.starts_with(start)), "{old} -> {new}: {messages:?}");
        assert!(refusals(kind, "it", old, Some(old)).is_empty(), "{old} unchanged is refused");
    }
    assert!(refusals("Volume", "it", "{local: {}, nodeName: a}", Some("{local: {}}")).is_empty());
    assert!(refusals("Volume", "it", "{tmpfs: {}, capacity: 2Gi}", Some("{tmpfs: {}, capacity: 1Gi}")).is_empty());
}

/// Rules of a schema and of everything below it.
fn rules_of(schema: &Value, rules: &mut BTreeSet<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        rules.insert(rule["message"].as_str().expect("every rule has a message").to_owned());
    }
    for property in schema["properties"].as_object().into_iter().flatten().map(|(_, property)| property) {
        rules_of(property, rules);
    }
    if schema["items"].is_object() {
        rules_of(&schema["items"], rules);
    }
}

#[test]
fn no_rule_is_untested() {
    let mut rules = BTreeSet::new();
    for schema in SCHEMAS.values() {
        rules_of(schema, &mut rules);
    }
    let tested = REFUSED.iter().map(|(_, _, start)| *start);
    let tested = tested.chain(REFUSED_CONTAINERS.iter().map(|(_, start)| *start));
    let tested = tested.chain(REFUSED_CHANGES.iter().map(|(_, _, _, start)| *start));
    let tested: Vec<_> =
        tested.chain(["the names host and none", "the name of a Workload"]).filter(|start| !start.is_empty()).collect();
    let untested: Vec<_> = rules.iter().filter(|rule| !tested.iter().any(|start| rule.starts_with(start))).collect();
    assert!(untested.is_empty(), "{untested:#?}");
}
