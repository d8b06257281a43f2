//! `nodelet backup`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::output::Output;
use super::{Global, Outcome, session};

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// The new file
    file: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
    /// Directory of the store; otherwise the configuration says it
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub(crate) fn backup(args: &BackupArgs, global: &Global, output: &Output) -> anyhow::Result<Outcome> {
    let store = store(args.data_dir.as_ref(), global)?;
    let copied = nodelet_apiserver::backup(&store, &args.file, args.force)?;
    let nodelet_apiserver::Copied { objects, version, bytes } = copied;
    let file = args.file.display();
    if !output.structured(&json!({"file": args.file, "objects": objects, "version": version, "bytes": bytes}))? {
        output.line(format!("{file}: {objects} objects at version {version}, {} KiB", bytes.div_ceil(1024)))?;
    }
    Ok(Outcome::Done)
}

/// The store that the flags and the configuration name.
pub(super) fn store(data_dir: Option<&PathBuf>, global: &Global) -> anyhow::Result<PathBuf> {
    let data_dir = match data_dir {
        Some(data_dir) => data_dir.clone(),
        None => session::configuration(global)?.data_dir,
    };
    Ok(data_dir.join("store.db"))
}
