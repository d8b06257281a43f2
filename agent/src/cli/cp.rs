//! `nodelet cp`: a tar stream in one direction, made or unpacked by `tar` in the container as `kubectl cp` does.

mod pack;
mod unpack;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use tokio::sync::mpsc;

use super::exec::params;
use super::remote::{self, STATUS, STDERR, STDIN, STDOUT};
use super::session::Session;
use super::{Outcome, Usage};

/// Of what the container's tar complains, the begin.
const COMPLAINTS: usize = 4 << 10;

#[derive(Debug, Args)]
#[command(
    after_help = "One of the two is in a workload: WORKLOAD:PATH or NAMESPACE/WORKLOAD:PATH. The container needs tar."
)]
pub(crate) struct CpArgs {
    /// File or directory to copy
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Where to; into it if it is a directory
    #[arg(value_name = "DESTINATION")]
    destination: String,
    /// The container, if there are several
    #[arg(short, long)]
    container: Option<String>,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    Local(PathBuf),
    Remote { namespace: Option<String>, workload: String, path: String },
}

impl Side {
    fn parse(word: &str) -> anyhow::Result<Self> {
        // `./a:b` and `/a:b` are files here.
        let Some((place, path)) = word.split_once(':').filter(|_| !word.starts_with(['/', '.'])) else {
            return Ok(Self::Local(word.into()));
        };
        let (namespace, workload) = match place.split_once('/') {
            Some((namespace, workload)) => (Some(namespace.to_owned()), workload.to_owned()),
            None => (None, place.to_owned()),
        };
        if workload.is_empty() || path.is_empty() || namespace.as_ref().is_some_and(|name| name.is_empty()) {
            return Err(Usage(format!("{word:?} is not WORKLOAD:PATH or NAMESPACE/WORKLOAD:PATH")).into());
        }
        Ok(Self::Remote { namespace, workload, path: path.to_owned() })
    }
}

pub(crate) async fn cp(args: &CpArgs, session: &Session) -> anyhow::Result<Outcome> {
    let shell = |namespace: Option<String>, workload: String| Shell {
        session,
        namespace: namespace.unwrap_or_else(|| session.namespace.clone()),
        workload,
        container: args.container.clone(),
    };
    match (Side::parse(&args.source)?, Side::parse(&args.destination)?) {
        (Side::Local(from), Side::Remote { namespace, workload, path }) => {
            upload(&shell(namespace, workload), &from, &path).await
        }
        (Side::Remote { namespace, workload, path }, Side::Local(to)) => {
            download(&shell(namespace, workload), &path, &to).await
        }
        _ => Err(Usage("one of the two has to be in a workload, the other here".to_owned()).into()),
    }
}

/// Runs commands in one container.
struct Shell<'a> {
    session: &'a Session,
    namespace: String,
    workload: String,
    container: Option<String>,
}

impl Shell<'_> {
    async fn start(&self, stdin: bool, command: &[&str]) -> anyhow::Result<(remote::Sender, remote::Receiver)> {
        let kind = self.session.kinds.named("workloads")?;
        let params = params(stdin, false, self.container.as_deref());
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        remote::connect(self.session, kind, &self.namespace, |request| request.exec(&self.workload, command, &params))
            .await
    }

    /// Whether a command succeeds.
    async fn succeeds(&self, command: &[&str]) -> anyhow::Result<bool> {
        let (_sender, receiver) = self.start(false, command).await?;
        Ok(finish(receiver, None).await?.0 == 0)
    }
}

/// Hands on what comes until the command's end; its exit code and its complaints.
async fn finish(mut receiver: remote::Receiver, output: Option<mpsc::Sender<Bytes>>) -> anyhow::Result<(u8, String)> {
    let (mut complaints, mut status) = (Vec::new(), None);
    while let Some((channel, bytes)) = receiver.next().await? {
        match channel {
            STDOUT => {
                if let Some(output) = &output {
                    // Who unpacks has stopped, and says why.
                    output.send(bytes).await.context("unpacking")?;
                }
            }
            STDERR if complaints.len() < COMPLAINTS => complaints.extend_from_slice(&bytes),
            STATUS if !bytes.is_empty() => status = Some(bytes),
            _ => {}
        }
    }
    let status = status.context("the connection ended before the command did")?;
    Ok((remote::exit_code(&status)?, String::from_utf8_lossy(&complaints).trim().to_owned()))
}

/// What the container's tar said, if it failed.
fn check(code: u8, complaints: &str) -> anyhow::Result<()> {
    match code {
        0 => Ok(()),
        127 => bail!("the container has no tar, which copying needs"),
        _ if complaints.is_empty() => bail!("tar in the container ended with exit code {code}"),
        _ => bail!("{complaints}"),
    }
}

async fn upload(shell: &Shell<'_>, from: &Path, to: &str) -> anyhow::Result<Outcome> {
    let own = from.canonicalize().with_context(|| from.display().to_string())?;
    let own = own.file_name().map(|name| name.to_string_lossy().into_owned());
    let trimmed = to.trim_end_matches('/');
    let into = to.ends_with('/') || shell.succeeds(&["test", "-d", to]).await?;
    let (directory, name) = if into {
        (if trimmed.is_empty() { "/" } else { trimmed }, own.context("the source has no name")?)
    } else {
        match trimmed.rsplit_once('/') {
            Some(("", name)) => ("/", name.to_owned()),
            Some((directory, name)) => (directory, name.to_owned()),
            None => (".", trimmed.to_owned()),
        }
    };
    let (mut sender, receiver) = shell.start(true, &["tar", "-xmf", "-", "-C", directory]).await?;
    let (archive, mut pieces) = mpsc::channel::<Bytes>(8);
    let source = from.to_owned();
    let packing = tokio::task::spawn_blocking(move || pack::pack(&source, &name, archive));
    let sending = async {
        while let Some(piece) = pieces.recv().await {
            if sender.send(STDIN, &piece).await.is_err() {
                break;
            }
        }
        // Tells the packing side that it can stop, if the container's has.
        drop(pieces);
        let _ = sender.end(STDIN).await;
        std::future::pending::<()>().await;
    };
    // The command's end is the end, whatever is still to be sent.
    let ended = tokio::select! {
        ended = finish(receiver, None) => ended?,
        () = sending => return Ok(Outcome::Failed),
    };
    let packed = packing.await?;
    check(ended.0, &ended.1)?;
    packed.with_context(|| format!("reading {}", from.display()))?;
    Ok(Outcome::Done)
}

async fn download(shell: &Shell<'_>, from: &str, to: &Path) -> anyhow::Result<Outcome> {
    let trimmed = from.trim_end_matches('/');
    let (directory, name) = match trimmed.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((directory, name)) => (directory, name),
        None if trimmed.is_empty() => ("/", "."),
        None => (".", trimmed),
    };
    let into = to.is_dir() && name != "." && name != "..";
    let destination = if into { to.join(name) } else { to.to_owned() };
    // The name is kept from being taken for an option.
    let member = format!("./{name}");
    let (_sender, receiver) = shell.start(false, &["tar", "-cf", "-", "-C", directory, &member]).await?;
    let (sender, pieces) = mpsc::channel(8);
    let depth = if name == "." { 0 } else { 1 };
    let target = destination.clone();
    let unpacking = tokio::task::spawn_blocking(move || unpack::unpack(pieces, depth, &target));
    let ended = finish(receiver, Some(sender)).await;
    let unpacked = unpacking.await?;
    if let Ok((code, complaints)) = &ended {
        check(*code, complaints)?;
    }
    let left_out = unpacked.with_context(|| format!("writing {}", destination.display()))?;
    ended?;
    for what in left_out {
        shell.session.output.note(&format!("left out: {what}"));
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart() {
        let remote = |namespace: Option<&str>, workload: &str, path: &str| Side::Remote {
            namespace: namespace.map(str::to_owned),
            workload: workload.to_owned(),
            path: path.to_owned(),
        };
        let local = |path: &str| Side::Local(path.into());
        for (word, expected) in [
            ("a.txt", Some(local("a.txt"))),
            ("./a:b", Some(local("./a:b"))),
            ("/a:b", Some(local("/a:b"))),
            ("web:/etc/x", Some(remote(None, "web", "/etc/x"))),
            ("prod/web:x:y", Some(remote(Some("prod"), "web", "x:y"))),
            ("web:", None),
            (":x", None),
            ("/web:x", Some(local("/web:x"))),
            ("prod/:x", None),
        ] {
            assert_eq!(Side::parse(word).ok(), expected, "{word}");
        }
    }
}
