//! `nodelet crds`

use serde_json::json;

use super::Outcome;
use super::output::Output;

pub(crate) fn crds(output: &Output) -> anyhow::Result<Outcome> {
    if output.is_json() {
        output.structured(&json!({"apiVersion": "v1", "kind": "List", "items": nodelet_crds::crds()}))?;
    } else {
        output.write(&nodelet_crds::crds_yaml())?;
    }
    Ok(Outcome::Done)
}
