//! What types cannot say: ranges, addresses, names, and what this release cannot do yet.

use std::net::SocketAddr;
use std::path::Path;

use nodelet_drivers::ids::CgroupPath;

use super::load::Finding;
use super::{ApiMode, NodeletConfiguration};

/// Everything that is wrong with a well-typed configuration.
pub(super) fn check(configuration: &NodeletConfiguration) -> Vec<Finding> {
    let NodeletConfiguration {
        api_version,
        kind,
        node_name,
        node_labels,
        data_dir,
        run_dir,
        api,
        runtime,
        sources,
        images,
        system_reserved,
        eviction,
        observability,
    } = configuration;
    let mut found = Findings::default();

    if api_version != "nodelet.dev/v1alpha1" {
        found.push("apiVersion", format!("{api_version:?} is not known"), "nodelet.dev/v1alpha1", "correct the value");
    }
    if kind != "NodeletConfiguration" {
        let remedy = "manifests belong into a directory of `sources`, not into the configuration";
        found.push("kind", format!("{kind:?} is not a configuration"), "NodeletConfiguration", remedy);
    }
    let is_name = |name: &str| {
        name.len() <= 63
            && !name.starts_with(['-', '.'])
            && !name.ends_with(['-', '.'])
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
    };
    if !is_name(node_name) {
        let expected =
            "at most 63 lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit";
        found.push("nodeName", format!("{node_name:?} is not a name"), expected, "correct the value");
    }
    for (label, value) in node_labels {
        let key = format!("nodeLabels.{label}");
        if let Some(wrong) = nodelet_apiserver::wrong_label_key(label) {
            let problem = format!("{label:?} is no key of a label: {wrong}");
            found.push(key, problem, "a name such as zone, or example.com/zone", "correct the key");
        } else if !nodelet_apiserver::is_label_value(value) {
            let expected =
                "nothing, or at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends";
            found.push(key, format!("{value:?} is no value of a label"), expected, "correct the value");
        }
    }
    found.absolute("dataDir", data_dir);
    found.absolute("runDir", run_dir);
    // The longest name below it is a sandbox's; a unix socket's path has at most 107 bytes.
    if run_dir.as_os_str().len() > 90 {
        found.push("runDir", "the path is too long for a socket", "at most 90 bytes", "choose a shorter directory");
    }
    if data_dir == run_dir {
        let remedy = "give runDir a directory of its own, on a tmpfs";
        found.push("runDir", "the same directory as dataDir", "two directories", remedy);
    }

    if api.mode == ApiMode::Cluster {
        let remedy = "set api.mode: embedded";
        found.push("api.mode", "mode cluster is not supported by this release", "embedded", remedy);
    } else if !api.kubeconfig.is_empty() {
        let remedy = "remove the key";
        found.push("api.kubeconfig", "has a meaning with api.mode: cluster only", "an empty value", remedy);
    }
    found.address("api.listen", &api.listen);
    found.address("observability.listen", &observability.listen);
    if !observability.otlp_endpoint.is_empty() {
        let problem = "sending traces is not supported by this release";
        found.push("observability.otlpEndpoint", problem, "an empty value", "remove the key");
    }
    if tracing_subscriber::EnvFilter::try_new(&observability.log_level).is_err() {
        let expected = "error, warn, info, debug, trace, or directives such as info,nodelet_controllers=debug";
        let problem = format!("{:?} is not a log level", observability.log_level);
        found.push("observability.logLevel", problem, expected, "correct the value");
    }

    found.absolute("runtime.address", &runtime.address);
    for (key, value) in [
        ("runtime.namespace", &runtime.namespace),
        ("runtime.snapshotter", &runtime.snapshotter),
        ("runtime.handler", &runtime.handler),
    ] {
        let valid = !value.is_empty()
            && value.len() <= 76
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !valid {
            let expected = "1 to 76 letters, digits, '.', '_' or '-'";
            found.push(key, format!("{value:?} is not a name of containerd"), expected, "correct the value");
        }
    }
    if runtime.shim_pool > 100 {
        let problem = format!("{} Workloads would die with one shim", runtime.shim_pool);
        found.push(
            "runtime.shimPool",
            problem,
            "0 (a shim each) to 100",
            "10 takes most of the memory that can be saved",
        );
    }
    let parent = CgroupPath::new(&runtime.cgroup_parent).and_then(|parent| runtime.cgroup_driver.parent(&parent));
    if let Err(error) = parent {
        found.push(
            "runtime.cgroupParent",
            format!("{:?} is not a cgroup", error.value),
            error.expected,
            "correct the value",
        );
    }
    let audit = runtime.audit_seconds;
    if !(10..=86_400).contains(&audit) {
        let problem =
            if audit < 10 { format!("{audit} seconds would poll") } else { format!("{audit} is out of range") };
        let remedy = "events are acted on at once whatever this says; use 300";
        found.push("runtime.auditSeconds", problem, "10 to 86400", remedy);
    }

    let back_off = &runtime.crash_loop_back_off;
    for (key, seconds) in [("initialSeconds", back_off.initial_seconds), ("resetSeconds", back_off.reset_seconds)] {
        if !(1..=86_400).contains(&seconds) {
            let key = format!("runtime.crashLoopBackOff.{key}");
            found.push(key, format!("{seconds} is out of range"), "1 to 86400", "correct the value");
        }
    }
    if !(back_off.initial_seconds..=86_400).contains(&back_off.max_seconds) {
        let problem = format!("{} is out of range", back_off.max_seconds);
        let expected = "initialSeconds to 86400";
        found.push("runtime.crashLoopBackOff.maxSeconds", problem, expected, "correct the value");
    }

    for (i, source) in sources.iter().enumerate() {
        found.absolute(&format!("sources[{i}].directory"), &source.directory);
        if sources[..i].contains(source) {
            let problem = format!("{} is listed twice", source.directory.display());
            found.push(format!("sources[{i}].directory"), problem, "each directory once", "remove one of them");
        }
    }

    for (key, value) in
        [("images.parallelPulls", images.parallel_pulls), ("images.parallelLayers", images.parallel_layers)]
    {
        if !(1..=64).contains(&value) {
            found.push(key, format!("{value} is out of range"), "1 to 64", "correct the value");
        }
    }
    let reserved = [
        ("systemReserved.cpu", system_reserved.cpu.as_ref().map(|cpu| cpu.milli_cpu())),
        ("systemReserved.memory", system_reserved.memory.as_ref().map(|memory| memory.bytes())),
    ];
    for (key, amount) in reserved {
        if let Some(Err(error)) = amount {
            found.push(
                key,
                error.to_string(),
                "a quantity such as 500m of CPU or 512Mi of memory",
                "correct the value",
            );
        }
    }
    if eviction.pressure_transition_seconds > 86_400 {
        let problem = format!("{} is out of range", eviction.pressure_transition_seconds);
        found.push("eviction.pressureTransitionSeconds", problem, "0 to 86400", "correct the value; the default is 60");
    }
    if !(1..=3600).contains(&images.stall_seconds) {
        let problem = format!("{} is out of range", images.stall_seconds);
        found.push("images.stallSeconds", problem, "1 to 3600", "correct the value; the default is 30");
    }
    if images.gc.high_percent > 100 {
        let problem = format!("{} is out of range", images.gc.high_percent);
        found.push("images.gc.highPercent", problem, "0 to 100", "correct the value");
    } else if images.gc.low_percent > images.gc.high_percent {
        let problem = format!("{} is above images.gc.highPercent ({})", images.gc.low_percent, images.gc.high_percent);
        found.push("images.gc.lowPercent", problem, "a value not above it", "lower it");
    }
    found.absolute("images.registriesDir", &images.registries_dir);
    if !images.credentials_file.as_os_str().is_empty() {
        found.absolute("images.credentialsFile", &images.credentials_file);
    }
    found.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn push(&mut self, key: impl Into<String>, problem: impl Into<String>, expected: &str, remedy: &str) {
        let (key, problem) = (key.into(), problem.into());
        self.0.push(Finding { key, problem, expected: expected.to_owned(), remedy: remedy.to_owned() });
    }

    fn absolute(&mut self, key: &str, path: &Path) {
        if !path.is_absolute() {
            let problem = format!("{:?} is not an absolute path", path.display().to_string());
            self.push(key, problem, "a path that begins with /", "write the whole path");
        }
    }

    fn address(&mut self, key: &str, value: &str) {
        if !value.is_empty() && value.parse::<SocketAddr>().is_err() {
            let problem = format!("{value:?} is not an address");
            self.push(
                key,
                problem,
                "address:port such as 127.0.0.1:6440, or nothing",
                "use a numeric address with a port",
            );
        }
    }
}
