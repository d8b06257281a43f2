//! What is written is read as the same, for the types whose JSON form is not that of their fields.

// Test code throughout, also in the functions that tests share.
#![allow(clippy::unwrap_used)]

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use nodelet_crds::{
    Quantity,
    node_state::{NodeAddress, NodeAddressType},
    resource_limit::IoLimit,
    workload::*,
};
use proptest::{option, prelude::*, sample::select};
use serde::{Serialize, de::DeserializeOwned};

fn comes_back<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) -> Result<(), TestCaseError> {
    let json = serde_json::to_value(value).unwrap();
    prop_assert_eq!(&serde_json::from_value::<T>(json.clone()).unwrap(), value);
    let yaml = serde_saphyr::to_string(&json).unwrap();
    prop_assert_eq!(&serde_saphyr::from_str::<T>(&yaml).unwrap(), value, "{}", yaml);
    Ok(())
}

/// Names and texts, among them those that YAML readers take for something else.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9]{1,8}",
        select(vec!["0755", "yes", "null", "1e3", "a: b", "- a", "#a"]).prop_map(str::to_owned)
    ]
}

fn quantity() -> impl Strategy<Value = Quantity> {
    prop_oneof![any::<u64>().prop_map(Quantity::from_bytes), any::<u64>().prop_map(Quantity::from_milli_cpu)]
}

fn port() -> impl Strategy<Value = IntOrString> {
    prop_oneof![any::<u16>().prop_map(|n| IntOrString::Int(n.into())), "[a-z]{1,15}".prop_map(IntOrString::String)]
}

fn on_change() -> impl Strategy<Value = OnChange> {
    select(vec![OnChange::Update, OnChange::Restart, OnChange::Signal])
}

fn host_path() -> impl Strategy<Value = HostPathVolumeSource> {
    use HostPathType::*;
    let types = vec![Unchecked, DirectoryOrCreate, Directory, FileOrCreate, File, Socket, CharDevice, BlockDevice];
    (text(), select(types)).prop_map(|(path, type_)| HostPathVolumeSource { path, type_ })
}

fn volume() -> impl Strategy<Value = WorkloadVolume> {
    let empty_dir = (select(vec![EmptyDirMedium::Disk, EmptyDirMedium::Memory]), option::of(quantity()));
    let config_map = (text(), option::of(0u16..512), option::of(any::<bool>()), on_change());
    let named = |name| WorkloadVolume { name, ..Default::default() };
    prop_oneof![
        (text(), text()).prop_map(move |(name, volume)| WorkloadVolume {
            volume: Some(VolumeReference { name: volume }),
            ..named(name)
        }),
        (text(), empty_dir).prop_map(move |(name, (medium, size_limit))| WorkloadVolume {
            empty_dir: Some(EmptyDirVolumeSource { medium, size_limit }),
            ..named(name)
        }),
        (text(), config_map).prop_map(move |(name, (of, default_mode, optional, on_change))| WorkloadVolume {
            config_map: Some(ConfigMapVolumeSource { name: of, items: Vec::new(), default_mode, optional, on_change }),
            ..named(name)
        }),
        (text(), host_path())
            .prop_map(move |(name, host_path)| WorkloadVolume { host_path: Some(host_path), ..named(name) }),
    ]
}

fn container_port() -> impl Strategy<Value = ContainerPort> {
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    (option::of(text()), any::<u16>(), option::of(any::<u16>()), option::of(text()), protocol).prop_map(
        |(name, container_port, host_port, host_ip, protocol)| ContainerPort {
            name,
            container_port,
            host_port,
            host_ip,
            protocol,
            ..Default::default()
        },
    )
}

fn probe() -> impl Strategy<Value = Probe> {
    let scheme = select(vec![HttpScheme::Http, HttpScheme::Https]);
    let http = (text(), port(), option::of(text()), scheme).prop_map(|(path, port, host, scheme)| HttpGetAction {
        path,
        port,
        host,
        scheme,
        http_headers: Vec::new(),
    });
    let tcp = (port(), option::of(text())).prop_map(|(port, host)| TcpSocketAction { port, host });
    (option::of(http), option::of(tcp), any::<u32>(), any::<u32>(), option::of(any::<u32>())).prop_map(
        |(http_get, tcp_socket, initial_delay_seconds, period_seconds, termination_grace_period_seconds)| Probe {
            http_get,
            tcp_socket,
            initial_delay_seconds,
            period_seconds,
            termination_grace_period_seconds,
            ..Default::default()
        },
    )
}

fn resources() -> impl Strategy<Value = Resources> {
    let amounts = || {
        option::of((option::of(quantity()), option::of(quantity()))).prop_map(|amounts| {
            amounts.map(|(cpu, memory)| ResourceAmounts { cpu, memory, ..ResourceAmounts::default() })
        })
    };
    let name = select(vec![UlimitName::As, UlimitName::Nofile, UlimitName::Rttime]);
    let ulimits = prop::collection::vec((name, -1i64.., -1i64..), 0..3);
    (amounts(), amounts(), option::of(any::<u32>()), ulimits).prop_map(|(requests, limits, pids, ulimits)| {
        let ulimits = ulimits.into_iter().map(|(name, soft, hard)| Ulimit { name, soft, hard }).collect();
        Resources { requests, limits, pids, ulimits, ..Resources::default() }
    })
}

prop_compose! {
    fn container()(
        name in text(), image in text(), command in prop::collection::vec(text(), 0..3), tty: bool,
        working_dir in option::of(text()), ports in prop::collection::vec(container_port(), 0..3),
        readiness_probe in option::of(probe()), resources in option::of(resources()), sidecar: bool,
    ) -> Container {
        let restart_policy = sidecar.then_some(ContainerRestartPolicy::Always);
        Container {
            name, image, command, tty, working_dir, ports, readiness_probe, resources, restart_policy,
            ..Default::default()
        }
    }
}

prop_compose! {
    fn workload()(
        containers in prop::collection::vec(container(), 0..3), volumes in prop::collection::vec(volume(), 0..3),
        stopped: bool, host_pid in option::of(any::<bool>()), host_ipc in option::of(any::<bool>()),
        grace: u32, restart in select(vec![RestartPolicy::Always, RestartPolicy::UnlessStopped]),
        networks in prop::collection::vec((text(), option::of(text())), 0..3),
    ) -> nodelet_crds::WorkloadSpec {
        let attachment = |(name, ip)| NetworkAttachment { name, ip, ..Default::default() };
        nodelet_crds::WorkloadSpec {
            containers, volumes, stopped, host_pid, host_ipc,
            termination_grace_period_seconds: grace,
            restart_policy: restart,
            networks: networks.into_iter().map(attachment).collect(),
            ..Default::default()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn workloads(spec in workload()) {
        comes_back(&spec)?;
    }

    #[test]
    fn io_limits(
        device in text(), read in option::of(quantity()), write in option::of(quantity()),
        read_iops in option::of(any::<u32>()), write_iops in option::of(any::<u32>()),
    ) {
        let limit =
            IoLimit { device, read_bytes_per_second: read, write_bytes_per_second: write, read_iops, write_iops };
        comes_back(&limit)?;
    }

    #[test]
    fn node_addresses(address in text(), is_name: bool) {
        let type_ = if is_name { NodeAddressType::Hostname } else { NodeAddressType::InternalIP };
        comes_back(&NodeAddress { type_, address })?;
    }

    #[test]
    fn container_statuses(name in text(), ready: bool, exit_code: i32, reason in text(), id in text()) {
        let end = StateTerminated { exit_code, reason: reason.clone(), container_id: id.clone(), ..Default::default() };
        let status = ContainerStatus {
            name,
            ready,
            state: ContainerState::waiting(reason, ""),
            last_state: ContainerState::terminated(end),
            container_id: id.clone(),
            image_id: id,
            ..Default::default()
        };
        comes_back(&status)?;
    }
}
