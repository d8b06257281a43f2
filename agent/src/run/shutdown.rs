//! Hears from systemd-logind that the system goes down, and holds that up until the workloads have been stopped.
//!
//! logind grants an inhibitor lock of mode `delay`: a descriptor, whose closing lets the shutdown go on. It waits no
//! longer than its `InhibitDelayMaxSec` (5 s unless configured). A node without a system bus or without logind is
//! stopped as ever: containers are ended by whoever ends processes there.
//! Facts: `org.freedesktop.login1(5)`.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use zbus::zvariant::OwnedFd;

/// Where the system bus is, unless `$DBUS_SYSTEM_BUS_ADDRESS` says otherwise.
const SOCKET: &str = "/run/dbus/system_bus_socket";
/// Left of the delay for what comes after the workloads: their last log lines, and the lock's release.
const RESERVE: Duration = Duration::from_millis(500);
/// After logind went away, as in its upgrade.
const AGAIN: Duration = Duration::from_secs(5);

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1",
    gen_blocking = false
)]
trait Logind {
    /// Takes a lock: what it is about, who takes it, why, and `delay` or `block`.
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<OwnedFd>;

    /// The longest delay, in microseconds.
    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> zbus::Result<u64>;

    /// The system goes down (`true`), or does not after all.
    #[zbus(signal)]
    fn prepare_for_shutdown(&self, start: bool) -> zbus::Result<()>;
}

/// The system goes down, and waits for us.
#[derive(Debug)]
pub(super) struct Shutdown {
    /// The time there is for the workloads.
    pub(super) within: Duration,
    /// Dropping it lets the system go down.
    lock: OwnedFd,
    signals: PrepareForShutdownStream,
}

impl Shutdown {
    /// Lets the system go down. Answers when it does not after all; for ever waiting if it does.
    pub(super) async fn let_go(self) {
        let Self { lock, mut signals, within: _ } = self;
        drop(lock);
        while let Some(signal) = signals.next().await {
            if signal.args().is_ok_and(|args| !args.start) {
                return;
            }
        }
        std::future::pending().await
    }
}

/// Waits until the system goes down. Cancel-safe: dropping it gives the lock back. For ever waiting where there is no
/// logind.
pub(super) async fn announced() -> Shutdown {
    if std::env::var_os("DBUS_SYSTEM_BUS_ADDRESS").is_none() && !Path::new(SOCKET).exists() {
        tracing::debug!("no system bus: a shutdown of the system is not announced");
        return std::future::pending().await;
    }
    loop {
        match wait().await {
            Ok(shutdown) => return shutdown,
            Err(error) => tracing::debug!(%error, "a shutdown of the system is not announced for now"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn wait() -> zbus::Result<Shutdown> {
    let connection = zbus::Connection::system().await?;
    let logind = LogindProxy::builder(&connection).cache_properties(zbus::proxy::CacheProperties::No).build().await?;
    // Before the lock: between the two nothing can be missed then.
    let mut signals = logind.receive_prepare_for_shutdown().await?;
    let lock = logind.inhibit("shutdown", "nodelet", "Stopping workloads in order", "delay").await?;
    tracing::info!("systemd-logind waits for the workloads before the system goes down");
    while let Some(signal) = signals.next().await {
        if signal.args()?.start {
            let most = Duration::from_micros(logind.inhibit_delay_max_usec().await?);
            return Ok(Shutdown { within: most.saturating_sub(RESERVE), lock, signals });
        }
    }
    Err(zbus::Error::InterfaceNotFound)
}
