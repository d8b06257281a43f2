//! What a container record of ours holds beside the OCI specification, and messages that the client crate lacks.

use containerd_client::services::v1::{Container as Record, GetContainerRequest};
use serde::{Deserialize, Serialize};

use super::containerd::Shared;
use super::{ContainerSpec, Error};
use crate::containerd::absent_ok;
use crate::ids::ContainerId;

/// Key of the record's extension that marks it as ours and holds the [`Journal`].
const EXTENSION: &str = "nodelet.dev/container";
/// Type URLs by which the Go side finds its types; the value is JSON.
pub(super) const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
pub(super) const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
pub(super) const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// The durable memory of a container: what it was made from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Journal {
    /// What was asked for; `limits` are those of the last update.
    pub(super) spec: ContainerSpec,
    /// The signal that asks it to stop, with the image's taken into account.
    pub(super) stop_signal: String,
    /// The shim that it was made in, if that is not its sandbox's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) shim: Option<String>,
}

impl Journal {
    /// Writes it into `record`.
    pub(super) fn put(&self, record: &mut Record) -> Result<(), Error> {
        let any = json_any(EXTENSION, self)?;
        record.extensions.insert(EXTENSION.to_owned(), any);
        Ok(())
    }

    /// Reads it; `None` for a record that is not ours.
    pub(super) fn of(record: &Record) -> Option<Self> {
        let any = record.extensions.get(EXTENSION)?;
        serde_json::from_slice(&any.value)
            .inspect_err(|error| tracing::warn!(container = record.id, %error, "unreadable journal of a container"))
            .ok()
    }
}

/// `value` as JSON in the envelope that containerd stores.
pub(super) fn json_any(type_url: &str, value: &impl Serialize) -> Result<prost_types::Any, Error> {
    let value = serde_json::to_vec(value)
        .map_err(|e| Error::Failed { doing: format!("encoding {type_url}"), source: Box::new(e) })?;
    Ok(prost_types::Any { type_url: type_url.to_owned(), value })
}

/// Reads one container record.
pub(super) async fn get(shared: &Shared, id: &ContainerId) -> Result<Option<Record>, Error> {
    let containerd = &shared.containerd;
    let request = containerd.request(GetContainerRequest { id: id.to_string() });
    let answer = absent_ok(containerd.containers().get(request).await)
        .map_err(|status| containerd.error(format!("reading container {id}"), status))?;
    Ok(answer.and_then(|answer| answer.container))
}

/// Reads the journal of a container of ours that must be there.
pub(super) async fn journal(shared: &Shared, id: &ContainerId) -> Result<Journal, Error> {
    get(shared, id).await?.as_ref().and_then(Journal::of).ok_or_else(|| absent(id))
}

/// "container x not found".
pub(super) fn absent(id: &ContainerId) -> Error {
    Error::NotFound { what: "container", id: id.to_string() }
}

/// `containerd.runc.v1.Options`, of which we set a few fields.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RuncOptions {
    #[prost(string, tag = "6")]
    pub(super) binary_name: String,
    #[prost(string, tag = "7")]
    pub(super) root: String,
    #[prost(bool, tag = "9")]
    pub(super) systemd_cgroup: bool,
}

impl RuncOptions {
    /// The options in containerd's envelope.
    pub(super) fn to_any(&self) -> prost_types::Any {
        prost_types::Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: prost::Message::encode_to_vec(self),
        }
    }
}
