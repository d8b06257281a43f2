//! Network: a bridge of this node that Workloads attach to, with its subnets, gateway and rules.
//!
//! A Network that names no subnet gets a free private one, once; the choice is kept in NodeState. `host` and `none`
//! need nothing made. A Network that is used cannot go.

use std::sync::Arc;

use kube::ResourceExt;
use nodelet_crds::common::{condition_type, now, set_condition};
use nodelet_crds::network::{Network, Subnet as ApiSubnet};
use nodelet_crds::node_state::{NodeNetwork, PartPhase};
use nodelet_crds::{labels, reasons};
use nodelet_drivers::network::{self, NetworkSpec};

use crate::context::{Context, chain, set_finalizer};
use crate::controller::{Outcome, Reconciler, object_key};

mod desired;
pub mod events;

pub use desired::answers_names;

use desired::Desired;

/// The reconciler of Networks.
pub struct Networks;

impl Reconciler for Networks {
    type Kind = Network;
    type Error = Error;
    const KIND: &'static str = "Network";

    async fn pass(ctx: &Arc<Context>, object: &Network) -> Result<Outcome, Error> {
        pass(ctx, object).await
    }

    fn reason(error: &Error) -> &'static str {
        match error {
            Error::Network(network::Error::Overlap { .. }) => reasons::SUBNET_CONFLICT,
            Error::Network(network::Error::Exhausted { .. }) => reasons::NO_FREE_SUBNET,
            Error::Network(_) => reasons::NETWORK_FAILED,
            Error::Api(_) => reasons::RECONCILE_ERROR,
        }
    }

    async fn publish_failure(ctx: &Context, object: &Network, reason: &'static str, message: String) {
        let part = NodeNetwork { phase: PartPhase::Failed, message, ..part(object) };
        publish(ctx, object, part, reason).await;
    }
}

/// A pass failed for a reason of the node or the API.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API did not answer as it should.
    #[error("talking to the API")]
    Api(#[from] kube::Error),
    /// The network driver.
    #[error("making the network")]
    Network(#[from] network::Error),
}

async fn pass(ctx: &Arc<Context>, object: &Network) -> Result<Outcome, Error> {
    let chosen = ctx.report.network(&object.namespace().unwrap_or_default(), &object.name_any());
    let chosen = chosen.map(|part| part.subnets).unwrap_or_default();
    let desired = match desired::validate(object, &ctx.settings.node_labels, &chosen) {
        Ok(desired) => desired,
        Err(invalid) => {
            if object.metadata.deletion_timestamp.is_some() {
                // It was never made.
                return done(ctx, object).await;
            }
            let part = NodeNetwork { phase: PartPhase::Failed, message: invalid.message, ..part(object) };
            publish(ctx, object, part, invalid.reason).await;
            return Ok(Outcome::Settled);
        }
    };
    let spec = match desired {
        Desired::NotHere => {
            forget(ctx, object);
            status(ctx, object, None, reasons::NOT_SELECTED).await;
            return Ok(Outcome::Settled);
        }
        Desired::NothingToMake => None,
        Desired::Made(spec) => Some(spec),
        Desired::BridgeWithoutSubnet(mut spec) => {
            spec.subnets = chosen_subnets(ctx, &spec).await?;
            Some(spec)
        }
    };
    if object.metadata.deletion_timestamp.is_some() {
        return let_go(ctx, object, spec).await;
    }
    set_finalizer(&ctx.client, object, labels::FINALIZER, true).await?;
    let mut part = NodeNetwork { phase: PartPhase::Ready, ..part(object) };
    if let Some(spec) = spec {
        // The choice of a subnet is recorded before it is used.
        part.subnets = api_subnets(&spec);
        ctx.report.set_network(part.clone());
        let made = ctx.drivers.networks.ensure_network(&spec).await?;
        // What plugins make has names of their own.
        let has_link = !matches!(spec.driver, network::Driver::Cni(_));
        part.link = has_link.then(|| made.link.to_string());
        part.endpoints = endpoints(ctx, &spec).await?;
    }
    publish(ctx, object, part, reasons::READY).await;
    Ok(Outcome::Settled)
}

/// A Network without subnets keeps the one it was given. NodeState remembers it through reboots; what was chosen a moment
/// before the agent was killed, only the node does.
async fn chosen_subnets(ctx: &Context, spec: &NetworkSpec) -> Result<Vec<network::Subnet>, Error> {
    let made = ctx.drivers.networks.list_networks().await?;
    if let Some(before) = made.into_iter().find(|network| network.spec.key == spec.key) {
        return Ok(before.spec.subnets);
    }
    Ok(vec![network::Subnet {
        cidr: ctx.drivers.networks.free_subnet().await?,
        gateway: None,
        range: None,
        exclude: Vec::new(),
    }])
}

async fn let_go(ctx: &Arc<Context>, object: &Network, spec: Option<NetworkSpec>) -> Result<Outcome, Error> {
    if !object.finalizers().iter().any(|f| f == labels::FINALIZER) {
        return Ok(Outcome::Settled);
    }
    let Some(spec) = spec else { return done(ctx, object).await };
    let attached = ctx.drivers.networks.list_attachments().await?;
    let users: Vec<String> =
        attached.iter().filter(|a| a.spec.network == spec.key).map(|a| a.spec.sandbox.to_string()).collect();
    if !users.is_empty() {
        let message = format!("deleted when no longer used by {}", users.join(", "));
        let part = NodeNetwork { phase: PartPhase::Ready, message, ..part(object) };
        publish(ctx, object, part, reasons::TERMINATING).await;
        return Ok(Outcome::Again(std::time::Duration::from_secs(2)));
    }
    ctx.drivers.networks.remove_network(&spec.key).await?;
    if ctx.drivers.networks.list_networks().await?.is_empty() {
        ctx.drivers.networks.remove_rules().await?;
    }
    done(ctx, object).await
}

async fn done(ctx: &Arc<Context>, object: &Network) -> Result<Outcome, Error> {
    forget(ctx, object);
    set_finalizer(&ctx.client, object, labels::FINALIZER, false).await?;
    Ok(Outcome::Settled)
}

fn forget(ctx: &Context, object: &Network) {
    ctx.report.forget_network(&object.namespace().unwrap_or_default(), &object.name_any());
}

async fn endpoints(ctx: &Context, spec: &NetworkSpec) -> Result<u32, Error> {
    let all = ctx.drivers.networks.list_attachments().await?;
    Ok(u32::try_from(all.iter().filter(|a| a.spec.network == spec.key).count()).unwrap_or(u32::MAX))
}

fn part(object: &Network) -> NodeNetwork {
    NodeNetwork {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        observed_generation: object.metadata.generation,
        ..Default::default()
    }
}

fn api_subnets(spec: &NetworkSpec) -> Vec<ApiSubnet> {
    spec.subnets
        .iter()
        .map(|subnet| ApiSubnet {
            cidr: subnet.cidr.to_string(),
            gateway: subnet.gateway.map(|ip| ip.to_string()),
            range: subnet.range.map(|(first, last)| format!("{first}-{last}")),
            exclude: subnet.exclude.iter().map(|(first, last)| format!("{first}-{last}")).collect(),
        })
        .collect()
}

/// Puts this node's part into NodeState and the sum into the object's status.
async fn publish(ctx: &Context, object: &Network, part: NodeNetwork, reason: &'static str) {
    let mut part = part;
    if part.subnets.is_empty() {
        // A failure must not lose the choice.
        let before = ctx.report.network(&part.namespace, &part.name);
        part.subnets = before.map(|p| p.subnets).unwrap_or_default();
    }
    status(ctx, object, Some(&part), reason).await;
    ctx.report.set_network(part);
}

async fn status(ctx: &Context, object: &Network, part: Option<&NodeNetwork>, reason: &'static str) {
    let generation = object.metadata.generation;
    let mut status = object.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    status.desired_nodes = u32::from(part.is_some());
    status.ready_nodes = u32::from(part.is_some_and(|p| p.phase == PartPhase::Ready));
    status.failed_nodes = u32::from(part.is_some_and(|p| p.phase == PartPhase::Failed));
    let ready = part.is_none_or(|p| p.phase == PartPhase::Ready);
    let message = part.map_or_else(|| "no node is selected".to_owned(), |p| p.message.clone());
    set_condition(&mut status.conditions, condition_type::READY, ready, reason, message, generation, now());
    if let Err(error) = ctx.write_status(object, object.status.as_ref(), &status).await {
        tracing::warn!(network = %object_key(object), "writing the status: {}", chain(&error));
    }
}
