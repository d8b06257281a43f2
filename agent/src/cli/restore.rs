//! `nodelet restore`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::backup::store;
use super::output::Output;
use super::{Global, Outcome};

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The file that `nodelet backup` made
    file: PathBuf,
    /// Directory of the store; otherwise the configuration says it
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub(crate) fn restore(args: &RestoreArgs, global: &Global, output: &Output) -> anyhow::Result<Outcome> {
    let store = store(args.data_dir.as_ref(), global)?;
    let restored = nodelet_apiserver::restore(&args.file, &store)?;
    let nodelet_apiserver::Restored { objects, version, kept } = restored;
    let value = json!({"store": store, "objects": objects, "version": version, "kept": kept});
    if !output.structured(&value)? {
        output.line(format!("{}: {objects} objects, going on at version {version}", store.display()))?;
        if let Some(kept) = kept {
            output.line(format!("the store of before is {}", kept.display()))?;
        }
    }
    Ok(Outcome::Done)
}
