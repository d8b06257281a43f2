//! Slices and scopes: systemd is asked for them over D-Bus, so that what it does to its units (`systemctl daemon-reload`
//! sets all limits anew) never undoes ours.
//!
//! # Contract
//! - Slices are transient: nothing of them is left when they stop, nor after a reboot. One that the administrator has a
//!   unit file or drop-ins for keeps those, and gets our limits at run time.
//! - Calls block until systemd has done the job, and must be made from threads that may block within a tokio runtime.
//! - It is reached by the bus of the system.
//!
//! Facts: `org.freedesktop.systemd1(5)`, `systemd.resource-control(5)`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use futures::StreamExt as _;
use zbus::Connection;
use zbus::zvariant::{ObjectPath, OwnedObjectPath, OwnedValue, Value};

use super::Error;
use crate::ids::CgroupPath;

mod properties;

pub(super) use properties::{Properties, lasting, memory};

/// There where systemd is the first process, as `sd_booted(3)` has it.
const BOOTED: &str = "/run/systemd/system";
/// Longer than a scope takes whose processes have been killed.
const DONE_WITHIN: Duration = Duration::from_secs(30);
/// How long systemd may take to answer a call, `DBUS_TIMEOUT_USE_DEFAULT` of libdbus.
const ANSWERS_WITHIN: Duration = Duration::from_secs(25);

/// Whether systemd runs this node, as far as can be seen from here.
pub fn is_running() -> bool {
    Path::new(BOOTED).is_dir()
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1",
    gen_blocking = false
)]
trait Manager {
    /// Without it there are no signals.
    fn subscribe(&self) -> zbus::Result<()>;

    /// Makes and starts a unit: its name, what to do about other jobs, properties, and further units. Answers the job.
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Value<'_>)],
        others: &[(&str, Vec<(&str, Value<'_>)>)],
    ) -> zbus::Result<OwnedObjectPath>;

    /// Starts a unit that is known.
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    /// Stops a unit and all that needs it.
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;

    /// Forgets that it failed.
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;

    /// Changes a unit; until it stops, or until the next boot.
    fn set_unit_properties(&self, name: &str, runtime: bool, properties: &[(&str, Value<'_>)]) -> zbus::Result<()>;

    /// The object of a unit that is loaded.
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;

    /// A job is done.
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: ObjectPath<'_>, unit: &str, result: &str) -> zbus::Result<()>;
}

/// The connection to systemd, made when it is needed first.
#[derive(Debug, Default)]
pub struct Units(Mutex<Option<Connection>>);

/// What a unit is for: the cgroup, for errors, and what is being done to it.
struct Task<'a> {
    path: &'a CgroupPath,
    doing: String,
}

impl Units {
    /// Makes the slice of `path` and those above that are missing.
    pub(super) fn make(&self, path: &CgroupPath) -> Result<(), Error> {
        let task = Task { path, doing: format!("making the unit {}", path.last()) };
        self.call(&task, async |manager| {
            let mut missing = Vec::new();
            let mut at = Some(path.clone());
            while let Some(slice) = at.take() {
                if is_active(manager, slice.last()).await? {
                    break;
                }
                at = slice.above();
                missing.push(slice);
            }
            for slice in missing.iter().rev() {
                start(manager, slice.last(), &properties::of_new()).await?;
            }
            Ok(())
        })
    }

    /// Gives the unit of `path` these properties, unless it has them.
    pub(super) fn set(&self, path: &CgroupPath, wanted: &Properties) -> Result<(), Error> {
        let task = Task { path, doing: format!("changing the unit {}", path.last()) };
        self.call(&task, async |manager| {
            let found = properties_of(manager, path.last()).await?;
            let changes = wanted.unlike(&found);
            if changes.is_empty() {
                return Ok(());
            }
            manager.set_unit_properties(path.last(), true, &changes).await
        })
    }

    /// Stops the unit of `path` and with it all that are below. One that is not there, or was stopped by its end, is fine.
    pub(super) fn stop(&self, path: &CgroupPath) -> Result<(), Error> {
        let task = Task { path, doing: format!("stopping the unit {}", path.last()) };
        self.call(&task, async |manager| {
            let unit = path.last();
            if is_active(manager, unit).await? {
                let mut done = manager.receive_job_removed().await?;
                let job = match manager.stop_unit(unit, "replace").await {
                    Err(error) if is(&error, "NoSuchUnit") => return Ok(()),
                    job => job?,
                };
                // Whatever the result: what counts is the cgroup, which is looked at afterwards.
                finished(&mut done, &job, unit).await?;
            }
            match manager.reset_failed_unit(unit).await {
                Err(error) if !is(&error, "NoSuchUnit") => Err(error),
                _ => Ok(()),
            }
        })
    }

    /// Carries out `work`; a connection that broke is made anew, once, and `work` is repeated.
    fn call<T>(
        &self,
        task: &Task<'_>,
        mut work: impl AsyncFnMut(&ManagerProxy<'_>) -> zbus::Result<T>,
    ) -> Result<T, Error> {
        let failed = |source: zbus::Error| Error::Unit {
            path: task.path.to_string(),
            doing: task.doing.clone(),
            source: Box::new(source),
        };
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| failed(zbus::Error::InputOutput(std::sync::Arc::new(std::io::Error::other(error)))))?;
        runtime.block_on(async {
            let known = self.known();
            let is_known = known.is_some();
            let first = async {
                let connection = match known {
                    Some(connection) => connection,
                    None => self.connect().await?,
                };
                work(&manager(&connection).await?).await
            };
            match first.await {
                Err(error) if is_known && is_broken(&error) => {
                    self.remember(None);
                    let connection = self.connect().await.map_err(failed)?;
                    work(&manager(&connection).await.map_err(failed)?).await.map_err(failed)
                }
                result => result.map_err(failed),
            }
        })
    }

    fn known(&self) -> Option<Connection> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn remember(&self, connection: Option<Connection>) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = connection;
    }

    async fn connect(&self) -> zbus::Result<Connection> {
        let connection = zbus::connection::Builder::system()?.method_timeout(ANSWERS_WITHIN).build().await?;
        manager(&connection).await?.subscribe().await.or_else(|error| match is(&error, "AlreadySubscribed") {
            true => Ok(()),
            false => Err(error),
        })?;
        self.remember(Some(connection.clone()));
        Ok(connection)
    }
}

async fn manager(connection: &Connection) -> zbus::Result<ManagerProxy<'static>> {
    ManagerProxy::builder(connection).cache_properties(zbus::proxy::CacheProperties::No).build().await
}

/// A connection that is of no use any more, as after the bus was started anew. One on which an answer takes too long is
/// none: a new one would be answered no sooner.
fn is_broken(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::InputOutput(error) if error.kind() != std::io::ErrorKind::TimedOut)
}

/// Whether systemd answered with this error of its own.
fn is(error: &zbus::Error, name: &str) -> bool {
    let prefix = "org.freedesktop.systemd1.";
    matches!(error, zbus::Error::MethodError(found, _, _) if found.as_str().strip_prefix(prefix) == Some(name))
}

async fn is_active(manager: &ManagerProxy<'_>, unit: &str) -> zbus::Result<bool> {
    let object = match manager.get_unit(unit).await {
        Err(error) if is(&error, "NoSuchUnit") => return Ok(false),
        object => object?,
    };
    let of_unit = zbus::Proxy::new(
        manager.inner().connection(),
        manager.inner().destination().to_owned(),
        object,
        "org.freedesktop.systemd1.Unit",
    )
    .await?;
    let state: String = of_unit.get_property("ActiveState").await?;
    Ok(matches!(state.as_str(), "active" | "activating" | "reloading" | "deactivating"))
}

async fn properties_of(manager: &ManagerProxy<'_>, unit: &str) -> zbus::Result<HashMap<String, OwnedValue>> {
    let object = manager.get_unit(unit).await?;
    let of_unit = zbus::fdo::PropertiesProxy::builder(manager.inner().connection())
        .destination(manager.inner().destination().to_owned())?
        .path(object)?
        .build()
        .await?;
    let interface = zbus::names::InterfaceName::from_static_str_unchecked("org.freedesktop.systemd1.Slice");
    Ok(of_unit.get_all(interface).await?)
}

async fn start(manager: &ManagerProxy<'_>, unit: &str, properties: &[(&str, Value<'_>)]) -> zbus::Result<()> {
    let mut done = manager.receive_job_removed().await?;
    let job = match manager.start_transient_unit(unit, "replace", properties, &[]).await {
        // It has a file or drop-ins, or somebody else was quicker.
        Err(error) if is(&error, "UnitExists") => {
            manager.set_unit_properties(unit, true, properties).await?;
            manager.start_unit(unit, "replace").await?
        }
        job => job?,
    };
    match finished(&mut done, &job, unit).await?.as_str() {
        "done" | "skipped" => Ok(()),
        result => Err(zbus::Error::Failure(format!("the job of {unit} ended with {result:?}"))),
    }
}

/// Waits until a job is done, and answers its result.
async fn finished(done: &mut JobRemovedStream, job: &OwnedObjectPath, unit: &str) -> zbus::Result<String> {
    let wait = async {
        while let Some(signal) = done.next().await {
            let args = signal.args()?;
            if args.job.as_str() == job.as_str() {
                return Ok(args.result.to_owned());
            }
        }
        Err(zbus::Error::Failure("systemd went away".to_owned()))
    };
    match tokio::time::timeout(DONE_WITHIN, wait).await {
        Ok(result) => result,
        Err(_) => Err(zbus::Error::Failure(format!("the job of {unit} took longer than {DONE_WITHIN:?}"))),
    }
}
