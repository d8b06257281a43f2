//! The containers of a Workload: what each is made from, and the hash by which a change is seen. Pure.

use std::collections::BTreeMap;

use nodelet_crds::image::PullPolicy;
use nodelet_crds::workload::{Container, Workload, container};
use nodelet_drivers::ids::CgroupPath;
use nodelet_drivers::images::{Fetch, normalize};

use super::super::dereference::References;
use super::super::model::{ContainerWish, ImageWish, MountWish, Probes, PullRule, Template, VolumeWish, Wait};
use super::super::{devices, env, fit, limits, security, volumes};
use super::Place;
use crate::invalid::Invalid;
use crate::names;

/// A log without a declared size is capped all the same.
const LOG_MAX_SIZE: u64 = 10 << 20;
const LOG_MAX_FILES: u32 = 5;

/// Makes the containers' wishes.
pub(super) struct Maker<'a> {
    pub(super) object: &'a Workload,
    pub(super) references: &'a References,
    pub(super) place: &'a Place,
    pub(super) volumes: &'a volumes::Volumes,
    pub(super) cgroup: &'a CgroupPath,
    pub(super) waits: Vec<Wait>,
}

impl Maker<'_> {
    pub(super) fn containers(&mut self, path: &str, all: &[Container]) -> Result<Vec<ContainerWish>, Invalid> {
        all.iter().enumerate().map(|(index, c)| self.container(&format!("{path}[{index}]"), c)).collect()
    }

    fn container(&mut self, path: &str, container: &Container) -> Result<ContainerWish, Invalid> {
        let variables = env::variables(self.object, container, path, self.place, self.references, &mut self.waits)?;
        let map: BTreeMap<String, String> = variables.iter().cloned().collect();
        let expand = |words: &[String]| words.iter().map(|word| env::expand(word, &map)).collect();
        let (log_max_size, log_max_files) = logging(path, container)?;
        let lifecycle = container.lifecycle.as_ref();
        let template = Template {
            command: expand(&container.command),
            args: expand(&container.args),
            working_dir: container.working_dir.clone(),
            env: variables,
            tty: container.tty,
            stdin: container.stdin,
            stdin_once: container.stdin && container.stdin_once == Some(true),
            mounts: self.mounts(path, container)?,
            ulimits: ulimits(container),
            devices: devices::devices(path, container)?,
            security: security::security(self.object, container, path, &self.place.data_dir)?,
            host_pid: self.object.spec.host_pid == Some(true),
            share_pid: self.object.spec.share_process_namespace == Some(true),
            oom_score_adj: None,
            stop_signal: lifecycle.and_then(|l| l.stop_signal.clone()),
            log_max_size,
            log_max_files,
        };
        let image = image(path, container)?;
        let hash = self.hash(&template, &image, container);
        Ok(ContainerWish {
            name: container.name.clone(),
            image,
            limits: limits::limits(path, container)?,
            requests: fit::of(container),
            hash,
            probes: Probes {
                startup: container.startup_probe.clone(),
                liveness: container.liveness_probe.clone(),
                readiness: container.readiness_probe.clone(),
            },
            ports: named_ports(container),
            signal: self.signal(container),
            sidecar: container.restart_policy == Some(container::ContainerRestartPolicy::Always),
            pre_stop: lifecycle.and_then(|l| l.pre_stop.clone()),
            post_start: lifecycle.and_then(|l| l.post_start.clone()),
            template,
        })
    }

    fn signal(&self, container: &Container) -> Option<String> {
        let mounts = container.volume_mounts.iter();
        let content: BTreeMap<&str, &String> =
            mounts.filter_map(|m| Some((m.name.as_str(), self.volumes.signal_on.get(&m.name)?))).collect();
        (!content.is_empty()).then(|| names::short_hash(&format!("{content:?}"), 16))
    }

    fn mounts(&self, path: &str, container: &Container) -> Result<Vec<MountWish>, Invalid> {
        let mut mounts = Vec::new();
        for (index, mount) in container.volume_mounts.iter().enumerate() {
            let path = format!("{path}.volumeMounts[{index}]");
            if !self.volumes.wishes.contains_key(&mount.name) && !self.volumes.waiting.contains(&mount.name) {
                return Err(Invalid::field(
                    format!("{path}.name"),
                    format!("there is no volume {:?} in spec.volumes", mount.name),
                ));
            }
            mounts.push(MountWish {
                volume: mount.name.clone(),
                path: mount.mount_path.clone(),
                sub_path: (!mount.sub_path.is_empty()).then(|| mount.sub_path.clone()),
                read_only: mount.read_only || self.volumes.read_only.contains(&mount.name),
                propagation: match mount.mount_propagation {
                    None | Some(container::MountPropagation::None) => String::new(),
                    Some(container::MountPropagation::HostToContainer) => "rslave".to_owned(),
                    Some(container::MountPropagation::Bidirectional) => "rshared".to_owned(),
                },
            });
        }
        // A mount below another must come after it.
        mounts.sort_by_key(|mount| mount.path.matches('/').count());
        Ok(mounts)
    }

    /// Everything whose change means another container. Secrets go in as part of a one-way hash only.
    fn hash(&self, template: &Template, image: &ImageWish, container: &Container) -> String {
        let used = container.volume_mounts.iter().map(|m| m.name.as_str());
        let files: BTreeMap<&str, &String> =
            used.filter_map(|name| Some((name, self.volumes.restart_on.get(name)?))).collect();
        let sources: BTreeMap<&str, String> = container
            .volume_mounts
            .iter()
            .filter_map(|m| Some((m.name.as_str(), source_key(self.volumes.wishes.get(&m.name)?))))
            .collect();
        let whole = serde_json::json!({
            "template": template,
            "image": image.fetch.reference,
            "files": files,
            "sources": sources,
            "cgroup": self.cgroup.as_str(),
        });
        names::short_hash(&whole.to_string(), 16)
    }
}

/// What of a volume's source means another mount.
fn source_key(volume: &VolumeWish) -> String {
    match volume {
        VolumeWish::Path { path, .. } | VolumeWish::HostPath(path, _) => path.display().to_string(),
        VolumeWish::Image(image) => format!("image {}", image.fetch.reference),
        VolumeWish::Ephemeral(nodelet_drivers::volumes::Ephemeral::Disk { .. }) => "disk".to_owned(),
        VolumeWish::Ephemeral(nodelet_drivers::volumes::Ephemeral::Memory { size_limit }) => {
            format!("memory {size_limit:?}")
        }
        VolumeWish::Ephemeral(nodelet_drivers::volumes::Ephemeral::Files { in_memory, .. }) => {
            format!("files {in_memory}")
        }
        VolumeWish::Ephemeral(nodelet_drivers::volumes::Ephemeral::Image(_)) => "image".to_owned(),
    }
}

fn image(path: &str, container: &Container) -> Result<ImageWish, Invalid> {
    image_wish(&format!("{path}.image"), &container.image, container.image_pull_policy)
}

/// An image that is named at `path`.
pub fn image_wish(path: &str, reference: &str, policy: PullPolicy) -> Result<ImageWish, Invalid> {
    normalize(reference).map_err(|error| Invalid::field(path, error))?;
    let fetch = Fetch::new(reference);
    let policy = match policy {
        PullPolicy::Always => PullRule::Always,
        PullPolicy::IfNotPresent => PullRule::IfAbsent,
        PullPolicy::Never => PullRule::Never,
        PullPolicy::Newer => PullRule::Newer,
    };
    Ok(ImageWish { fetch, policy, digest: None })
}

fn logging(path: &str, container: &Container) -> Result<(u64, u32), Invalid> {
    let Some(logging) = &container.logging else { return Ok((LOG_MAX_SIZE, LOG_MAX_FILES)) };
    let size = match &logging.max_size {
        None => LOG_MAX_SIZE,
        Some(size) => size.bytes().map_err(|error| Invalid::field(format!("{path}.logging.maxSize"), error))?,
    };
    Ok((size, logging.max_files.unwrap_or(LOG_MAX_FILES)))
}

/// The ports that probes and hooks can call by name.
pub fn named_ports(container: &Container) -> Vec<(String, u16)> {
    container.ports.iter().filter_map(|port| Some((port.name.clone()?, port.container_port))).collect()
}

fn ulimits(container: &Container) -> Vec<(String, u64, u64)> {
    // -1 is "unlimited".
    let value = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
    let all = container.resources.iter().flat_map(|r| &r.ulimits);
    all.map(|u| {
        let name = u.name.oci_name().trim_start_matches("RLIMIT_").to_lowercase();
        (name, value(u.soft), value(u.hard))
    })
    .collect()
}
