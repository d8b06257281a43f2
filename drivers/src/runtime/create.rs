//! Making a container: record, snapshot, task. The record comes first: it is the journal of all that follows, and
//! keeps the snapshot from being collected.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::container::Runtime as Handler;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::{
    Container as Record, CreateContainerRequest, CreateTaskRequest, UpdateContainerRequest,
};
use containerd_client::types::Mount;
use tonic::Status;

use super::accounts::Accounts;
use super::containerd::{Options, Shared};
use super::image::{self, ImageFacts};
use super::record::{Journal, RuncOptions, SPEC_TYPE, json_any};
use super::shims::Place;
use super::spec::{self, Inputs};
use super::{
    ContainerSpec, DeviceWish, Error, LogTarget, MountSource, Namespace, Seccomp, anchors, apparmor, cdi, info, layers,
    reaper, signal, stdin, users, view,
};
use crate::containerd::{is_already_exists, is_not_found};
use crate::failpoint::passed;
use crate::ids::CgroupPath;
use crate::volumes::{self, Content, populate};

/// Label on the snapshots that we make, so that a sweep knows them.
pub(super) const SNAPSHOT_LABEL: &str = "nodelet.dev/container";
const DEFAULT_STOP_SIGNAL: &str = "SIGTERM";
/// How long containerd may need to clear away the task of a dead shim, and how often to look.
const REMNANT_GOES_WITHIN: Duration = Duration::from_secs(10);
const REMNANT_PAUSE: Duration = Duration::from_millis(20);

/// See [`super::Runtime::create`].
pub(super) async fn create(shared: &Shared, spec: ContainerSpec) -> Result<(), Error> {
    check(&spec)?;
    let _demand = shared.shims.demand();
    let _turn = shared.creating.acquire().await;
    let image = image::facts(shared, &spec.image).await?;
    let stop_signal = stop_signal(&spec, &image)?;
    let mut record = record(shared, &spec)?;
    let anchored = anchors::are_possible(shared).await?;
    // Held until the task is there.
    let place = shared.shims.join(&spec.id, &spec.sandbox, &spec.cgroup, anchored);
    if place.ready.is_some() {
        anchors::ensure(shared, &place).await?;
        record.sandbox = place.shim.clone();
    }
    let pooled = Some(place.shim.clone()).filter(|shim| *shim != spec.sandbox.as_str());
    Journal { spec: spec.clone(), stop_signal, shim: pooled }.put(&mut record)?;

    // Before the record names it: a reaper without a container is swept.
    let shared_pid = match spec.namespaces.pid {
        Namespace::Sandbox => Some(reaper::ensure(shared, &spec, &place.shim).await?),
        _ => None,
    };
    let surroundings = Surroundings { shim: place.shim.clone(), shared_pid };
    let mounts = match image.accounts.get() {
        Some(accounts) => {
            record.spec = Some(oci_spec(shared, &spec, &image, accounts, surroundings).await?);
            create_record(shared, &spec, record).await?;
            prepare(shared, &spec, &image).await?
        }
        None => {
            // The first container of an image: who it runs as is read from the snapshot, which must not exist
            // before the record does.
            // A record must have a specification, so this one has an empty one until then.
            record.spec = Some(json_any(SPEC_TYPE, &serde_json::json!({"ociVersion": "1.0.2"}))?);
            create_record(shared, &spec, record.clone()).await?;
            let mounts = prepare(shared, &spec, &image).await?;
            let accounts = read_accounts(&spec, &mounts).await?;
            let accounts = image.accounts.get_or_init(|| accounts);
            record.spec = Some(oci_spec(shared, &spec, &image, accounts, surroundings).await?);
            update_spec(shared, &spec, record).await?;
            mounts
        }
    };
    fill_volumes(shared, &spec, &image).await?;
    let mounts = translate_owners(shared, &spec, &image, mounts).await?;
    let log = prepare_log(shared, &spec).await?;
    let stdin = match (spec.stdin, spec.tty) {
        (false, _) => String::new(),
        (true, true) => stdin::ensure_pipe(&shared.options.run_dir, &spec.id)?,
        // The logger keeps it open, and the stand-in for the OCI runtime hands it to the program.
        (true, false) => stdin::ensure_input(&shared.options, &spec.id).map(|()| String::new())?,
    };
    create_task(shared, &spec, &place, mounts, stdin, log).await?;
    release_layers(shared, &spec).await;
    Ok(())
}

/// See [`users`]; nothing to do with the node's.
async fn translate_owners(
    shared: &Shared,
    spec: &ContainerSpec,
    image: &ImageFacts,
    rootfs: Vec<Mount>,
) -> Result<Vec<Mount>, Error> {
    let Some(namespace) = spec.namespaces.user.clone() else { return Ok(rootfs) };
    let (run_dir, spec, binds) = (shared.options.run_dir.clone(), spec.clone(), all_mounts(spec, image));
    let doing = format!("translating the owners of files for container {}", spec.id);
    let mapped = tokio::task::spawn_blocking(move || users::map(&run_dir, &spec, &namespace, &binds, &rootfs)).await;
    let mapped = mapped.map_err(|error| Error::Failed { doing, source: Box::new(error) })?;
    passed("translating the owners of files");
    mapped
}

/// The root file system holds its layers by itself. Those that stay are removed with the container.
async fn release_layers(shared: &Shared, spec: &ContainerSpec) {
    if spec.namespaces.user.is_some() {
        let (run_dir, spec) = (shared.options.run_dir.clone(), spec.clone());
        let _ = tokio::task::spawn_blocking(move || users::release_layers(&run_dir, &spec)).await;
    }
}

/// Those declared, and those of the image's volumes.
fn all_mounts(spec: &ContainerSpec, image: &ImageFacts) -> Vec<super::Mount> {
    let of_image = volumes(spec, image).into_iter().map(|(destination, directory)| super::Mount {
        destination,
        source: MountSource::Bind(directory),
        read_only: false,
        propagation: String::new(),
    });
    spec.mounts.iter().cloned().chain(of_image).collect()
}

/// What no daemon needs to be asked for.
fn check(spec: &ContainerSpec) -> Result<(), Error> {
    if spec.stdin && !spec.tty && spec.log == LogTarget::None {
        return Err(invalid("stdin", "input without a terminal (tty) is kept open by the log's writer".to_owned()));
    }
    for (index, mount) in spec.mounts.iter().enumerate() {
        if !mount.destination.starts_with('/') {
            let message = format!("{:?} is not an absolute path", mount.destination);
            return Err(invalid(&format!("volumeMounts[{index}].mountPath"), message));
        }
        if !["", "rprivate", "rslave", "rshared"].contains(&mount.propagation.as_str()) {
            let message = format!("{:?} is none of rprivate, rslave, rshared", mount.propagation);
            return Err(invalid(&format!("volumeMounts[{index}].mountPropagation"), message));
        }
    }
    Ok(())
}

fn stop_signal(spec: &ContainerSpec, image: &ImageFacts) -> Result<String, Error> {
    let of_image = image.config.stop_signal().as_deref().filter(|s| !s.is_empty());
    let chosen = spec.stop_signal.as_deref().or(of_image).unwrap_or(DEFAULT_STOP_SIGNAL);
    signal::parse(chosen)?;
    Ok(chosen.to_owned())
}

fn record(shared: &Shared, spec: &ContainerSpec) -> Result<Record, Error> {
    let options = &shared.options;
    let runtime = if spec.stdin && !spec.tty {
        Some(stdin::stand_in(&options.run_dir, &spec.id))
    } else {
        options.oci_runtime.clone()
    };
    let mut labels = spec.labels.clone();
    if spec.namespaces.pid == Namespace::Sandbox {
        labels.insert(reaper::USED_BY.to_owned(), spec.sandbox.to_string());
    }
    Ok(Record {
        id: spec.id.to_string(),
        labels: labels.into_iter().collect(),
        image: spec.image.clone(),
        runtime: Some(handler(options, runtime, &spec.cgroup)),
        snapshotter: shared.containerd.snapshotter().to_owned(),
        snapshot_key: spec.id.to_string(),
        ..Default::default()
    })
}

/// containerd's runtime, with this OCI runtime, for a container in this cgroup.
pub(super) fn handler(options: &Options, oci_runtime: Option<String>, cgroup: &CgroupPath) -> Handler {
    let runc = RuncOptions {
        binary_name: oci_runtime.unwrap_or_default(),
        root: options.oci_root.as_ref().map(|root| root.display().to_string()).unwrap_or_default(),
        systemd_cgroup: cgroup.is_systemd(),
    };
    Handler { name: options.handler.clone(), options: Some(runc.to_any()) }
}

async fn create_record(shared: &Shared, spec: &ContainerSpec, record: Record) -> Result<(), Error> {
    let containerd = &shared.containerd;
    let request = containerd.request(CreateContainerRequest { container: Some(record) });
    let result = containerd.containers().create(request).await;
    passed("recording a container");
    match result {
        Ok(_) => Ok(()),
        Err(status) if is_already_exists(&status) => {
            Err(Error::AlreadyExists { what: "container", id: spec.id.to_string() })
        }
        Err(status) => Err(containerd.error(format!("recording container {}", spec.id), status)),
    }
}

async fn update_spec(shared: &Shared, spec: &ContainerSpec, record: Record) -> Result<(), Error> {
    let containerd = &shared.containerd;
    let mask = prost_types::FieldMask { paths: vec!["spec".to_owned()] };
    let request = containerd.request(UpdateContainerRequest { container: Some(record), update_mask: Some(mask) });
    let result = containerd.containers().update(request).await;
    result.map_err(|status| containerd.error(format!("recording container {}", spec.id), status))?;
    passed("completing the record of a container");
    Ok(())
}

async fn prepare(shared: &Shared, spec: &ContainerSpec, image: &ImageFacts) -> Result<Vec<Mount>, Error> {
    let containerd = &shared.containerd;
    let key = spec.id.to_string();
    let message = PrepareSnapshotRequest {
        snapshotter: containerd.snapshotter().to_owned(),
        key: key.clone(),
        parent: image.chain_id.clone(),
        labels: [(SNAPSHOT_LABEL.to_owned(), key.clone())].into(),
    };
    let mut result = containerd.snapshots().prepare(containerd.request(message.clone())).await;
    if result.as_ref().is_err_and(is_already_exists) {
        // Of an earlier container whose record is gone: the record just made was not there.
        let remove = RemoveSnapshotRequest { snapshotter: containerd.snapshotter().to_owned(), key };
        let _ = containerd.snapshots().remove(containerd.request(remove)).await;
        result = containerd.snapshots().prepare(containerd.request(message)).await;
    }
    passed("preparing a root file system");
    match result {
        Ok(answer) => Ok(answer.into_inner().mounts),
        Err(status) if is_not_found(&status) => {
            Err(Error::NotFound { what: "snapshot of image", id: spec.image.clone() })
        }
        Err(status) => {
            Err(containerd.error(format!("preparing the root file system of container {}", spec.id), status))
        }
    }
}

async fn read_accounts(spec: &ContainerSpec, mounts: &[Mount]) -> Result<Accounts, Error> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Failed {
        doing: format!("reading the users of image {}", spec.image),
        source,
    };
    // Other snapshotters: numbers still work.
    let Some(layers) = layers::of_mounts(mounts) else { return Ok(Accounts::default()) };
    let read = tokio::task::spawn_blocking(move || Accounts::read(&layers)).await;
    read.map_err(|e| failed(Box::new(e)))?.map_err(|e| failed(Box::new(e)))
}

/// Makes the directories of the image's volumes, and fills those that were never filled with what the image has there.
async fn fill_volumes(shared: &Shared, spec: &ContainerSpec, image: &ImageFacts) -> Result<(), Error> {
    let volumes = volumes(spec, image);
    if volumes.is_empty() {
        return Ok(());
    }
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Failed {
        doing: format!("filling the volumes of container {}", spec.id),
        source,
    };
    let find = move || -> Result<Vec<_>, Box<dyn std::error::Error + Send + Sync>> {
        let mut empty = Vec::new();
        for (path, directory) in volumes {
            std::fs::create_dir_all(&directory)?;
            if populate::is_wanted(&directory)? {
                empty.push((path, directory));
            }
        }
        Ok(empty)
    };
    let empty = tokio::task::spawn_blocking(find).await.map_err(|e| failed(Box::new(e)))?.map_err(failed)?;
    if empty.is_empty() {
        return Ok(());
    }
    let name = format!("volumes-{}", spec.id);
    let files = view::view(shared, &spec.sandbox, &name, &spec.image).await?;
    let (run_dir, sandbox) = (shared.options.run_dir.clone(), spec.sandbox.clone());
    let fill = move || {
        // Other snapshotters: they begin empty.
        if !populate::is_possible(&files) {
            return Ok(());
        }
        for (path, directory) in empty {
            let content = Content { image: files.clone(), path, keep_owner: false };
            populate::from_snapshot(&run_dir, &sandbox, &content, &directory)?;
            passed("filling a volume of an image");
        }
        Ok(())
    };
    let filled = tokio::task::spawn_blocking(fill).await.map_err(|e| failed(Box::new(e)))?;
    view::remove(shared, &spec.sandbox, Some(&name)).await?;
    filled.map_err(|error: volumes::Error| failed(Box::new(error)))
}

/// Paths of the image's volumes that nothing is mounted at, and the directories that stand for them.
fn volumes(spec: &ContainerSpec, image: &ImageFacts) -> Vec<(String, PathBuf)> {
    let Some(top) = &spec.anonymous_volumes else { return Vec::new() };
    let is_mounted = |path: &str| spec.mounts.iter().any(|mount| mount.destination.trim_end_matches('/') == path);
    let declared = image.config.volumes().iter().flatten().map(|path| path.trim_end_matches('/'));
    let own = declared.filter(|path| path.len() > 1 && path.starts_with('/') && !is_mounted(path));
    own.map(|path| (path.to_owned(), top.join(path.trim_start_matches('/').replace('/', "+")))).collect()
}

/// Where a container goes.
struct Surroundings {
    shim: String,
    shared_pid: Option<PathBuf>,
}

/// The devices that are asked for by name.
fn named(devices: &[DeviceWish]) -> Vec<&str> {
    devices
        .iter()
        .filter_map(|wish| match wish {
            DeviceWish::Named { name } => Some(name.as_str()),
            DeviceWish::File { .. } => None,
        })
        .collect()
}

async fn oci_spec(
    shared: &Shared,
    spec: &ContainerSpec,
    image: &Arc<ImageFacts>,
    accounts: &Accounts,
    surroundings: Surroundings,
) -> Result<prost_types::Any, Error> {
    let user = image.config.user().clone().unwrap_or_default();
    let identity = accounts.resolve(&spec.security, &user)?;
    let (mut wanted, node) = (spec.clone(), shared.node.clone());
    wanted.mounts = all_mounts(spec, image);
    if spec.namespaces.user.is_some() {
        users::check(&identity)?;
        users::translate(&shared.options.run_dir, spec, &mut wanted.mounts);
    }
    let image = image.clone();
    let foreign_architectures = shared.options.foreign_architectures;
    let recursive_read_only = info::recursive_read_only(shared).await;
    let built = tokio::task::spawn_blocking(move || {
        let hostname = hostname(&wanted);
        let devices = spec::given(&wanted)?;
        let edits = cdi::resolve(&cdi::DIRECTORIES.map(Path::new), &named(&wanted.devices))?;
        let profile = match &wanted.security.seccomp {
            Seccomp::Localhost(path) if !wanted.security.privileged => Some(spec::read_profile(path)?),
            _ => None,
        };
        let inputs = Inputs {
            spec: &wanted,
            shared_pid: surroundings.shared_pid.as_deref(),
            image: &image.config,
            identity: &identity,
            hostname: &hostname,
            node: &node,
            foreign_architectures,
            recursive_read_only,
            apparmor: apparmor::resolve(wanted.security.apparmor.as_ref(), wanted.security.privileged)?,
            shim: &surroundings.shim,
            devices: &devices,
            profile,
        };
        let mut built = spec::build(&inputs)?;
        edits.apply(&mut built);
        json_any(SPEC_TYPE, &built)
    });
    built.await.map_err(|e| Error::Failed {
        doing: format!("building the specification of container {}", spec.id),
        source: Box::new(e),
    })?
}

/// The host name that a container will see. Blocking; a pinned namespace is entered by a thread of its own.
fn hostname(spec: &ContainerSpec) -> String {
    let own = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let path = match (&spec.namespaces.uts, &spec.hostname) {
        (Namespace::Path(path), _) => path.clone(),
        (Namespace::Private, Some(name)) => return name.clone(),
        _ => return own(),
    };
    let thread = std::thread::spawn(move || {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        let file = std::fs::File::open(path).ok()?;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::HostNameAndNISDomainName))
            .ok()?;
        Some(rustix::system::uname().nodename().to_string_lossy().into_owned())
    });
    thread.join().ok().flatten().unwrap_or_else(own)
}

/// Makes the log's directory and returns the URI that the shim takes for stdout and stderr.
async fn prepare_log(shared: &Shared, spec: &ContainerSpec) -> Result<String, Error> {
    let LogTarget::File { path, max_size, max_files } = &spec.log else {
        // The shim wants to have something to copy a terminal's output to.
        return Ok(if spec.tty { "/dev/null".to_owned() } else { String::new() });
    };
    if let Some(dir) = path.parent() {
        tokio::fs::create_dir_all(dir).await.map_err(|source| Error::Failed {
            doing: format!("making the log directory {}", dir.display()),
            source: Box::new(source),
        })?;
    }
    let (max_size, max_files) = (max_size.to_string(), max_files.to_string());
    let input = stdin::directory(&shared.options.run_dir, &spec.id);
    let mut arguments: Vec<(&str, &[u8])> = vec![
        ("path", path.as_os_str().as_bytes()),
        ("max-size", max_size.as_bytes()),
        ("max-files", max_files.as_bytes()),
    ];
    if spec.tty {
        // Who is attached waits for a prompt, which has no newline.
        arguments.push(("unfinished-lines", b"now"));
    }
    if spec.stdin && !spec.tty {
        arguments.push(("input", input.as_os_str().as_bytes()));
    }
    Ok(logger_uri(&shared.options.logger, &arguments))
}

/// The shim runs the path with the query's keys and values as arguments.
fn logger_uri(logger: &Path, arguments: &[(&str, &[u8])]) -> String {
    let query: Vec<String> = arguments.iter().map(|(key, value)| format!("{key}={}", escape(value, false))).collect();
    format!("binary://{}?{}", escape(logger.as_os_str().as_bytes(), true), query.join("&"))
}

fn escape(bytes: &[u8], is_path: bool) -> String {
    bytes.iter().fold(String::new(), |text, byte| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => text + &char::from(*byte).to_string(),
        b'/' if is_path => text + "/",
        _ => text + &format!("%{byte:02X}"),
    })
}

/// Never to be cancelled: a client that goes away in the middle of it leaves a shim that nobody ends.
async fn create_task(
    shared: &Shared,
    spec: &ContainerSpec,
    place: &Place<'_>,
    rootfs: Vec<Mount>,
    stdin: String,
    log: String,
) -> Result<(), Error> {
    let containerd = &shared.containerd;
    let message = CreateTaskRequest {
        container_id: spec.id.to_string(),
        rootfs,
        stdin,
        stdout: log.clone(),
        // With a terminal there is one stream.
        stderr: if spec.tty { String::new() } else { log },
        terminal: spec.tty,
        ..Default::default()
    };
    let deadline = tokio::time::Instant::now() + REMNANT_GOES_WITHIN;
    let mut remade = false;
    loop {
        match containerd.tasks().create(containerd.request(message.clone())).await {
            Ok(answer) => {
                passed("creating a task");
                shared.exits.forget(&spec.id);
                shared.watch(&spec.id, answer.into_inner().pid, &spec.cgroup).await;
                return Ok(());
            }
            // The record is new, so this is what is left of an earlier one whose shim died: containerd denies it
            // already and still clears it away.
            Err(status) if is_already_exists(&status) && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(REMNANT_PAUSE).await;
            }
            Err(status) if anchors::is_missing(&status) && !remade && anchors::remake(shared, place).await? => {
                remade = true;
            }
            Err(status) => {
                return Err(bad_command(&status).unwrap_or_else(|| {
                    containerd.error(format!("creating the task of container {}", spec.id), status)
                }));
            }
        }
    }
}

/// The OCI runtime says that the program cannot be run: an error of the specification, not of the node. The texts
/// are those of runc and crun.
pub(super) fn bad_command(status: &Status) -> Option<Error> {
    let text = status.message();
    let unrunnable = ["executable file not found", "no such file or directory", "permission denied", "is a directory"];
    let about_program = text.contains("exec: ") || text.contains("executable file");
    if !about_program || !unrunnable.iter().any(|reason| text.contains(reason)) {
        return None;
    }
    let start = text.find("exec: ").or_else(|| text.find("executable file")).unwrap_or(0);
    let reason = text.get(start..).unwrap_or(text).trim_end_matches(": unknown");
    Some(invalid("command", reason.to_owned()))
}

fn invalid(field: &str, message: String) -> Error {
    Error::Invalid { field: field.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_arguments_are_escaped() {
        let uri = logger_uri(Path::new("/opt/my logger"), &[("path", b"/l/a b&c=\xff.log"), ("max-size", b"10")]);
        assert_eq!(uri, "binary:///opt/my%20logger?path=%2Fl%2Fa%20b%26c%3D%FF.log&max-size=10");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_of_the_specification() {
        let text = "OCI runtime create failed: unable to start container process: exec: \"nope\": executable file not \
                    found in $PATH: unknown";
        let error = bad_command(&Status::unknown(text)).unwrap();
        assert_eq!(error.to_string(), "command: exec: \"nope\": executable file not found in $PATH");
        assert!(bad_command(&Status::unknown("mount /x: no such file or directory")).is_none());
    }
}
