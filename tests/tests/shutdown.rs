//! The system goes down: workloads stop in order, before it does, and start again at the next boot.
//!
//! systemd-logind is a stand-in here, on a bus of the node's own: it grants the lock, announces the shutdown and waits.

#![allow(missing_docs)] // of what zbus's macro writes

use std::fs;
use std::os::fd::OwnedFd as StdFd;
use std::sync::Mutex;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{Node, PATIENCE, api};
use nodelet_tests::wait::until;
use zbus::object_server::SignalEmitter;
use zbus::zvariant::OwnedFd;

nodelet_tests::on_containerd!(workloads_stop_in_order_before_the_system_does);

const BUS: &str = "<!DOCTYPE busconfig PUBLIC '-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN'
 'http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd'>
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context='default'><allow send_destination='*' eavesdrop='true'/><allow eavesdrop='true'/><allow own='*'/>
</policy></busconfig>";

/// The part of logind that is asked for.
#[derive(Default)]
struct Logind {
    /// Our ends of the locks that were granted: they end when all holders have let go.
    locks: std::sync::Arc<Mutex<Vec<StdFd>>>,
}

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Logind {
    fn inhibit(&self, what: &str, _who: &str, _why: &str, mode: &str) -> zbus::fdo::Result<OwnedFd> {
        if (what, mode) != ("shutdown", "delay") {
            return Err(zbus::fdo::Error::InvalidArgs(format!("{what} {mode}")));
        }
        let (ours, theirs) = std::io::pipe().map_err(|error| zbus::fdo::Error::Failed(error.to_string()))?;
        self.locks.lock().map_err(|error| zbus::fdo::Error::Failed(error.to_string()))?.push(ours.into());
        Ok(StdFd::from(theirs).into())
    }

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> u64 {
        8_000_000
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(emitter: &SignalEmitter<'_>, start: bool) -> zbus::Result<()>;
}

fn workload(name: &str, more: &str, script: &str) -> String {
    format!(
        "---\napiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\nspec:\n  \
         terminationGracePeriodSeconds: 60\n  {more}\n  containers:\n  - name: main\n    \
         image: localhost:5000/shop/busybox:1\n    command: [sh, -c, \"{script}\"]\n    \
         volumeMounts: [{{name: order, mountPath: /order}}]\n  \
         volumes: [{{name: order, hostPath: {{path: /run/order, type: DirectoryOrCreate}}}}]\n"
    )
}

/// Asked to stop by a request to itself, and with a sidecar.
const HOOKED: &str = "---
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: hooked}
spec:
  terminationGracePeriodSeconds: 60
  initContainers:
  - name: beside
    image: localhost:5000/shop/busybox:1
    restartPolicy: Always
    command: [sh, -c, \"trap 'echo beside >>/order/stopped; exit 0' TERM; while :; do sleep 1 & wait; done\"]
    volumeMounts: [{name: order, mountPath: /order}]
  containers:
  - name: main
    image: localhost:5000/shop/busybox:1
    command: [sh, -c]
    args:
    - |
      mkdir -p /tmp/w/cgi-bin
      printf '#!/bin/sh\\necho hook >>/order/stopped\\necho; echo\\n' >/tmp/w/cgi-bin/stop
      chmod +x /tmp/w/cgi-bin/stop
      httpd -p 8000 -h /tmp/w
      trap 'echo main >>/order/stopped; exit 0' TERM; while :; do sleep 1 & wait; done
    readinessProbe: {tcpSocket: {port: 8000}, periodSeconds: 1}
    lifecycle: {preStop: {httpGet: {path: /cgi-bin/stop, port: 8000}}}
    volumeMounts: [{name: order, mountPath: /order}]
  volumes: [{name: order, hostPath: {path: /run/order, type: DirectoryOrCreate}}]
";

fn workloads_stop_in_order_before_the_system_does(node: &mut Node) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let inside = |path: &str| node.namespaces.path(path);
    fs::create_dir_all(inside("/run/dbus"))?;
    fs::write(inside("/run/dbus/bus.conf"), BUS)?;
    let words = ["dbus-daemon", "--nofork", "--config-file=/run/dbus/bus.conf"].map(std::ffi::OsStr::new);
    let _bus = node.namespaces.spawn(&words, &node.logs.join("bus.log"))?;
    let socket = inside("/run/dbus/system_bus_socket");
    until(PATIENCE, "the bus", || Ok(socket.exists().then_some(())))?;
    let logind = Logind::default();
    let locks = logind.locks.clone();
    let connection = runtime.block_on(async {
        let builder = zbus::connection::Builder::address(format!("unix:path={}", socket.display()).as_str())?;
        let builder = builder.name("org.freedesktop.login1")?.serve_at("/org/freedesktop/login1", logind)?;
        anyhow::Ok(builder.build().await?)
    })?;
    // The bus was not there when the agent started.
    node.kill_agent()?;
    node.start_agent()?;
    let stops =
        |name: &str| format!("trap 'echo {name} >>/order/stopped; exit 0' TERM; while :; do sleep 1 & wait; done");
    node.apply(&workload("db", "hostname: db", &stops("db")))?;
    node.until_ready("db")?;
    node.apply(
        &(workload("web", "dependsOn: [{name: db, condition: Ready}]", &stops("web"))
            + &workload("job", "restartPolicy: OnFailure", &stops("job"))
            + &workload("deaf", "hostname: deaf", "trap '' TERM; while :; do sleep 1; done")
            + HOOKED),
    )?;
    for name in ["web", "job", "deaf", "hooked"] {
        node.until_ready(name)?;
    }
    let lock = until(PATIENCE, "the lock", || Ok(locks.lock().ok().and_then(|mut locks| locks.pop())))?;

    runtime.block_on(async {
        let emitter = SignalEmitter::new(&connection, "/org/freedesktop/login1")?;
        Logind::prepare_for_shutdown(&emitter, true).await
    })?;
    // The system goes down as soon as the lock is given back.
    let released = std::io::read_to_string(fs::File::from(lock));
    ensure!(released.is_ok_and(|text| text.is_empty()));
    let tasks = node.ctr(&["tasks", "ls", "-q"])?;
    ensure!(tasks.trim().is_empty(), "still there: {tasks}");
    let order = fs::read_to_string(node.namespaces.path("/run/order/stopped")).context("nobody was asked to stop")?;
    let place =
        |name: &str| order.lines().position(|line| line == name).with_context(|| format!("{name} in {order:?}"));
    ensure!(place("web")? < place("db")?, "{order:?}");
    place("job")?;
    ensure!(place("hook")? < place("main")? && place("main")? < place("beside")?, "{order:?}");
    node.stop_agent()?;

    node.start_agent()?;
    for name in ["db", "web", "job", "deaf", "hooked"] {
        let workload = node.until_ready(name)?;
        ensure!(api::restarts(&workload) == 0, "{workload:#}");
    }
    Ok(())
}
