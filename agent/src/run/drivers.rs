//! The real drivers, as the configuration says.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nodelet_controllers::Drivers;
use nodelet_drivers::cgroups::linux::LinuxCgroups;
use nodelet_drivers::cgroups::{Driver, systemd};
use nodelet_drivers::containerd::Containerd;
use nodelet_drivers::ids::{CgroupPath, InvalidId};
use nodelet_drivers::images::ContainerdImages;
use nodelet_drivers::network::LinuxNetworks;
use nodelet_drivers::runtime::ContainerdRuntime;
use nodelet_drivers::sandbox::linux::LinuxSandboxes;
use nodelet_drivers::volumes::linux::LinuxVolumes;
use nodelet_drivers::{images, network, runtime};

use crate::config::NodeletConfiguration;

/// Where the kernel's cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// A driver cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection to containerd.
    #[error("preparing the connection to containerd")]
    Containerd(#[source] runtime::Error),
    /// Networks.
    #[error("preparing networks; run `nodelet doctor`")]
    Networks(#[source] network::Error),
    /// Sandboxes or volumes.
    #[error("preparing {what}")]
    Directory {
        /// What for.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// systemd is to make cgroups, and cannot.
    #[error(
        "runtime.cgroupDriver is systemd, which does not run this node (there is no /run/systemd/system): set cgroupfs; in a \
         container, mount the node's /run/systemd and /run/dbus"
    )]
    NoSystemd,
    /// The parent cgroup has no usable name.
    #[error("runtime.cgroupParent")]
    CgroupParent(#[source] InvalidId),
}

/// Makes them; containerd need not run yet.
pub(super) fn assemble(configuration: &NodeletConfiguration, logger: PathBuf) -> Result<Drivers, Error> {
    let NodeletConfiguration { data_dir, run_dir, runtime, images, .. } = configuration;
    let containerd =
        Containerd::new(&runtime.address, &runtime.namespace, &runtime.snapshotter).map_err(Error::Containerd)?;
    if runtime.cgroup_driver == Driver::Systemd && !systemd::is_running() {
        return Err(Error::NoSystemd);
    }
    let configured = CgroupPath::new(&runtime.cgroup_parent).map_err(Error::CgroupParent)?;
    let parent = runtime.cgroup_driver.parent(&configured).map_err(Error::CgroupParent)?;
    if let Ok(old) = runtime.cgroup_driver.other().parent(&configured) {
        tokio::task::spawn_blocking(move || remove_unused(old));
    }
    let runtime_options = runtime::Options {
        logger,
        oci_runtime: Some(runtime.oci_runtime.clone()).filter(|name| !name.is_empty()),
        handler: runtime.handler.clone(),
        cgroup_root: CGROUPS.into(),
        run_dir: run_dir.clone(),
        shim_pool: usize::try_from(runtime.shim_pool).unwrap_or(usize::MAX),
        cgroup_parent: parent.clone(),
        ..Default::default()
    };
    let images_options = images::Options {
        parallel_pulls: usize::try_from(images.parallel_pulls).unwrap_or(usize::MAX),
        parallel_layers: usize::try_from(images.parallel_layers).unwrap_or(usize::MAX),
        registries_dir: Some(images.registries_dir.clone()).filter(|directory| directory != Path::new("")),
        credentials_file: Some(images.credentials_file.clone()).filter(|file| file != Path::new("")),
        max_bytes_per_second: Some(images.max_bytes_per_second),
        stall: Duration::from_secs(images.stall_seconds.into()),
        ..Default::default()
    };
    let directory = |what| move |source| Error::Directory { what, source };
    Ok(Drivers {
        runtime: Arc::new(ContainerdRuntime::new(containerd.clone(), runtime_options)),
        images: Arc::new(ContainerdImages::new(containerd, images_options)),
        sandboxes: Arc::new(LinuxSandboxes::new(run_dir).map_err(directory("sandboxes"))?),
        networks: Arc::new(LinuxNetworks::new(run_dir).map_err(Error::Networks)?),
        volumes: Arc::new(LinuxVolumes::new(data_dir, run_dir).map_err(directory("volumes"))?),
        cgroups: Arc::new(LinuxCgroups::new(CGROUPS, parent)),
    })
}

/// What the other driver left, if there was a change.
fn remove_unused(old: CgroupPath) {
    let cgroups = LinuxCgroups::new(CGROUPS, old);
    if let Err(error) = cgroups.remove_unused() {
        let error = crate::manifest::chain(&error);
        tracing::warn!("cgroups of the driver that was used before are left: {error}");
    }
}
