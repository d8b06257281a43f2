//! `nodelet rollback`: run an older revision of a workload that was good, until its spec is edited.

use clap::Args;
use nodelet_crds::labels::ROLLBACK_TO;
use serde_json::{Value, json};

use super::session::Session;
use super::{Outcome, Usage, apply};

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// The workload
    #[arg(value_name = "WORKLOAD")]
    name: String,
    /// The revision. Default: the one before the one that runs; `nodelet describe` lists them
    #[arg(long, value_name = "NUMBER")]
    to_revision: Option<u64>,
}

pub(crate) async fn rollback(args: &RollbackArgs, session: &Session) -> anyhow::Result<Outcome> {
    let kind = session.kinds.named("workloads")?;
    let name = args.name.rsplit('/').next().unwrap_or(&args.name);
    let object = session.object(kind, name).await?;
    let number = choose(&object["status"], args.to_revision).map_err(Usage)?;
    // It holds for this generation of the object only: the next edit is a new wish.
    let value = format!("{number}/{}", object["metadata"]["generation"]);
    let patch = json!({"metadata": {"annotations": {ROLLBACK_TO: value}}});
    let path = kind.path(Some(&session.namespace), Some(name));
    let object = session.client.merge(&path, apply::FIELD_MANAGER, &patch).await?;
    if !session.output.structured(&object)? {
        session.output.line(format!("{}/{name} rolled back to revision {number}", kind.qualified()))?;
    }
    Ok(Outcome::Done)
}

/// The revision to go back to, or why there is none.
fn choose(status: &Value, wanted: Option<u64>) -> Result<u64, String> {
    let kept = status["revisions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let numbers: Vec<u64> = kept.iter().filter_map(|revision| revision["number"].as_u64()).collect();
    let runs = status["revision"].as_u64();
    match wanted {
        Some(wanted) if numbers.contains(&wanted) => Ok(wanted),
        Some(wanted) => {
            let known: Vec<String> = numbers.iter().map(u64::to_string).collect();
            Err(format!("there is no revision {wanted}; kept are: {}", known.join(", ")))
        }
        None => numbers
            .iter()
            .rev()
            .find(|number| runs.is_none_or(|runs| **number < runs))
            .copied()
            .ok_or_else(|| "there is no older revision that was good".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_before_the_one_that_runs_unless_told() {
        let status = json!({"revision": 4, "revisions": [{"number": 2}, {"number": 4}, {"number": 5}]});
        assert_eq!(choose(&status, None), Ok(2));
        assert_eq!(choose(&status, Some(5)), Ok(5));
        assert_eq!(choose(&status, Some(3)).unwrap_err(), "there is no revision 3; kept are: 2, 4, 5");
        assert!(choose(&json!({"revision": 1, "revisions": [{"number": 1}]}), None).is_err());
        assert!(choose(&json!({}), None).is_err());
    }
}
