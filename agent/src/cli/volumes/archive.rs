//! A Volume as a file. Runs on the Volume's node: its files are read and written here.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use nodelet_drivers::volumes::archive;
use serde_json::{Value, json};

use crate::cli::Outcome;
use crate::cli::node_lists::size;
use crate::cli::session::Session;

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// The Volume
    name: String,
    /// The new file
    file: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
    /// Copy a `block` Volume while it is used: whoever writes to it waits meanwhile
    #[arg(long)]
    freeze: bool,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// The Volume; it must be empty and not in use
    name: String,
    /// The file that `nodelet volumes backup` made
    file: PathBuf,
}

/// Where the Volume is on this node.
async fn place(name: &str, session: &Session) -> anyhow::Result<(Value, PathBuf)> {
    let kind = session.kinds.named("volumes.nodelet.dev")?;
    let volume = session.object(kind, name).await?;
    let status = &volume["status"];
    let ready = matches!(status["phase"].as_str(), Some("Ready" | "InUse"));
    let path = status["path"].as_str().map(PathBuf::from).filter(|_| ready);
    let path = path.with_context(|| format!("Volume {name:?} is not ready: see `nodelet describe volume {name}`"))?;
    let node = status["nodeName"].as_str().unwrap_or("its node");
    ensure!(path.is_dir(), "{} is not here: run this on {node}, as root", path.display());
    Ok((volume, path))
}

fn users(volume: &Value) -> Vec<String> {
    let users = volume["status"]["usedBy"].as_array().into_iter().flatten();
    users.filter_map(|user| user.as_str().map(str::to_owned)).collect()
}

pub(super) async fn backup(args: &BackupArgs, session: &Session) -> anyhow::Result<Outcome> {
    let (volume, path) = place(&args.name, session).await?;
    let users = users(&volume);
    let is_block = volume["spec"]["block"].is_object();
    if args.freeze && !is_block {
        bail!("--freeze is for block Volumes: others share their filesystem with the rest of the node");
    }
    if !users.is_empty() && !args.freeze {
        let how = if is_block { ", or use --freeze" } else { "" };
        let users = users.join(" ");
        bail!(
            "Volume {:?} is used by {users}: `nodelet stop {users}` first, so that the copy is whole{how}",
            args.name
        );
    }
    if !args.force && args.file.exists() {
        bail!("{} is there already; --force replaces it", args.file.display());
    }
    let (file, freeze) = (args.file.clone(), args.freeze);
    let mut copy = tokio::task::spawn_blocking(move || write(&path, &file, freeze));
    let (files, bytes) = tokio::select! {
        // Cancel-safe: whichever comes first ends it.
        done = &mut copy => done.context("copying")??,
        _ = tokio::signal::ctrl_c() => {
            // A filesystem must not stay frozen, so the copy comes to its end.
            session.output.note("interrupted: waiting for the copy to end");
            copy.await.context("copying")??
        }
    };
    let stored = std::fs::metadata(&args.file)?.len();
    let told = json!({"file": args.file, "files": files, "bytes": bytes, "compressedBytes": stored});
    if !session.output.structured(&told)? {
        let (file, bytes, stored) = (args.file.display(), size(bytes), size(stored));
        session.output.line(format!("{file}: {files} files, {bytes}, compressed to {stored}"))?;
    }
    Ok(Outcome::Done)
}

/// Under another name first: a file of the right name is whole.
fn write(from: &Path, to: &Path, freeze: bool) -> anyhow::Result<(u64, u64)> {
    let mut draft = to.as_os_str().to_owned();
    draft.push(".part");
    let draft = PathBuf::from(draft);
    let result = (|| {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft);
        let file = file.with_context(|| format!("making {}", draft.display()))?;
        if freeze && file.metadata()?.dev() == std::fs::metadata(from)?.dev() {
            bail!("{} is on the filesystem that is frozen: it could not be written", to.display());
        }
        let mut buffer = BufWriter::new(&file);
        let frozen = freeze.then(|| archive::freeze(from)).transpose()?;
        let counted = archive::write(from, &mut buffer)?;
        drop(frozen);
        buffer.flush()?;
        drop(buffer);
        file.sync_all()?;
        std::fs::rename(&draft, to).with_context(|| format!("renaming {}", draft.display()))?;
        Ok(counted)
    })();
    if result.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    result
}

pub(super) async fn restore(args: &RestoreArgs, session: &Session) -> anyhow::Result<Outcome> {
    let (volume, path) = place(&args.name, session).await?;
    let users = users(&volume);
    if !users.is_empty() {
        let users = users.join(" ");
        bail!("Volume {:?} is used by {users}: `nodelet stop {users}` first", args.name);
    }
    let file = File::open(&args.file).with_context(|| format!("opening {}", args.file.display()))?;
    tokio::task::spawn_blocking(move || archive::read(&path, BufReader::new(file))).await.context("restoring")??;
    if !session.output.structured(&json!({"volume": args.name, "file": args.file}))? {
        session.output.line(format!("Volume {} is filled from {}", args.name, args.file.display()))?;
    }
    Ok(Outcome::Done)
}
