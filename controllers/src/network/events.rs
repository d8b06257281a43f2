//! What the kernel says about our links and rules, turned into repairs and wake-ups.

use std::sync::Arc;

use kube::runtime::reflector::ObjectRef;
use nodelet_crds::network::Network;
use nodelet_crds::workload::Workload;
use nodelet_drivers::network::NetworkEvent;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, chain};
use crate::controller::object_ref;

/// Listens until `stop`. A missing rule is put back here, at once, for everybody; a missing link wakes its owner.
pub async fn run(
    ctx: Arc<Context>,
    networks: mpsc::Sender<ObjectRef<Network>>,
    workloads: mpsc::Sender<ObjectRef<Workload>>,
    stop: CancellationToken,
) {
    let mut events = ctx.drivers.networks.events();
    loop {
        let event = tokio::select! {
            // Cancel-safe: `recv` loses nothing, and we are leaving.
            event = events.recv() => event,
            () = stop.cancelled() => return,
        };
        match event {
            None => return,
            Some(NetworkEvent::Table) => repair_rules(&ctx).await,
            Some(NetworkEvent::Link(link)) => {
                tracing::info!(%link, "link changed by another hand");
                wake_owner(&ctx, link.as_str(), &networks, &workloads).await;
            }
            Some(NetworkEvent::Resync) => {
                repair_rules(&ctx).await;
                for network in ctx.stores.networks.state() {
                    let _ = networks.send(ObjectRef::from_obj(&*network)).await;
                }
                for workload in ctx.stores.workloads.state() {
                    let _ = workloads.send(ObjectRef::from_obj(&*workload)).await;
                }
            }
        }
    }
}

async fn repair_rules(ctx: &Context) {
    match ctx.drivers.networks.repair_rules().await {
        Ok(true) => {
            ctx.metrics.repairs.with_label_values(&["rules"]).inc();
            tracing::info!("nftables rules put back");
        }
        Ok(false) => {}
        Err(error) => tracing::warn!("putting back the nftables rules: {}", chain(&error)),
    }
}

async fn wake_owner(
    ctx: &Context,
    link: &str,
    networks: &mpsc::Sender<ObjectRef<Network>>,
    workloads: &mpsc::Sender<ObjectRef<Workload>>,
) {
    for network in ctx.stores.networks.state() {
        let part = ctx.report.network(
            network.metadata.namespace.as_deref().unwrap_or_default(),
            network.metadata.name.as_deref().unwrap_or_default(),
        );
        if part.and_then(|p| p.link).as_deref() == Some(link) {
            let _ = networks.send(ObjectRef::from_obj(&*network)).await;
        }
    }
    let attachments = match ctx.drivers.networks.list_attachments().await {
        Ok(attachments) => attachments,
        Err(error) => {
            tracing::warn!("reading attachments: {}", chain(&error));
            return;
        }
    };
    for attachment in attachments.iter().filter(|a| a.host_link.as_str() == link) {
        let Some(uid) = ctx.sandboxes.owner(&attachment.spec.sandbox) else { continue };
        if let Some(workload) = ctx.workload_by_uid(&uid) {
            ctx.metrics.repairs.with_label_values(&["link"]).inc();
            let name = workload.metadata.name.as_deref().unwrap_or_default();
            let namespace = workload.metadata.namespace.as_deref().unwrap_or_default();
            let _ = workloads.send(object_ref(namespace, name)).await;
        }
    }
}
