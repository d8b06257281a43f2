//! Running one CNI plugin: a program that is told what to do by its environment and standard input.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long a plugin may take. Some wait for an answer from their network (DHCP).
const PATIENCE: Duration = Duration::from_secs(60);
/// How much of what a plugin says without being asked is kept.
const LAST_WORDS: usize = 500;

/// A plugin did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// No directory has it.
    #[error("it is not in {}", .0.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", "))]
    NotFound(Vec<PathBuf>),
    /// It could not be run.
    #[error("running {program}")]
    Run {
        /// The program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It refused in the form that the specification has for it.
    #[error("{message} (code {code})")]
    Refused {
        /// The number of the error; below 100 it is one of the specification's.
        code: u64,
        /// What it says.
        message: String,
    },
    /// It ended with an error of no known form.
    #[error("it ended with {status}: {said}")]
    Ended {
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it wrote.
        said: String,
    },
    /// It was ended since it took too long.
    #[error("it did not end within {} s", PATIENCE.as_secs())]
    TimedOut,
    /// It said something else than it should.
    #[error("its answer is not JSON")]
    Garbage(#[source] serde_json::Error),
    /// It does not speak the version of the configuration.
    #[error("it speaks CNI {}, and the configuration asks for {wanted}", .spoken.join(", "))]
    Version {
        /// What it speaks.
        spoken: Vec<String>,
        /// What the configuration asks for.
        wanted: String,
    },
}

/// One call of a plugin.
pub(super) struct Call<'a> {
    /// `ADD`, `CHECK`, `DEL`, `GC` or `VERSION`.
    pub(super) command: &'static str,
    /// The sandbox.
    pub(super) container: &'a str,
    /// Its namespace, while there is one.
    pub(super) netns: Option<&'a Path>,
    /// The link inside.
    pub(super) ifname: &'a str,
    /// Where plugins are.
    pub(super) dirs: &'a [PathBuf],
}

/// The program of that name.
fn find(name: &str, dirs: &[PathBuf]) -> Result<PathBuf, PluginError> {
    let found = dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| PluginError::NotFound(dirs.to_vec()))
}

/// Runs a plugin in the calling thread's network namespace; returns what it answers, `Null` for nothing.
pub(super) async fn run(name: &str, call: &Call<'_>, input: &Value) -> Result<Value, PluginError> {
    let program = find(name, call.dirs)?;
    let failed = |source| PluginError::Run { program: program.clone(), source };
    let path = std::env::join_paths(call.dirs).unwrap_or_default();
    let mut command = Command::new(&program);
    command
        .env("CNI_COMMAND", call.command)
        .env("CNI_CONTAINERID", call.container)
        .env("CNI_NETNS", call.netns.unwrap_or(Path::new("")))
        .env("CNI_IFNAME", call.ifname)
        .env("CNI_ARGS", "IgnoreUnknown=true")
        .env("CNI_PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let text = input.to_string();
    let mut stdin = child.stdin.take();
    let talk = async {
        // A plugin that ends without reading has its reason, which its answer tells.
        if let Some(stdin) = &mut stdin {
            let _ = stdin.write_all(text.as_bytes()).await;
        }
        drop(stdin);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PATIENCE, talk).await.map_err(|_| PluginError::TimedOut)?.map_err(failed)?;
    judge(&output)
}

fn judge(output: &std::process::Output) -> Result<Value, PluginError> {
    let answer = match output.stdout.trim_ascii() {
        [] => Ok(Value::Null),
        text => serde_json::from_slice::<Value>(text),
    };
    if output.status.success() {
        return answer.map_err(PluginError::Garbage);
    }
    let told = answer.ok().and_then(|answer| {
        let code = answer.get("code")?.as_u64()?;
        let part = |key: &str| answer.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let message = [part("msg"), part("details")].into_iter().flatten().collect::<Vec<_>>().join(": ");
        Some(PluginError::Refused { code, message })
    });
    Err(told.unwrap_or_else(|| {
        let said = String::from_utf8_lossy(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
        let start = said.char_indices().rev().nth(LAST_WORDS).map_or(0, |(at, _)| at);
        PluginError::Ended { status: output.status, said: said[start..].trim().to_owned() }
    }))
}

/// Versions that a plugin speaks.
pub(super) async fn versions(name: &str, dirs: &[PathBuf]) -> Result<Vec<String>, PluginError> {
    let call = Call { command: "VERSION", container: "", netns: None, ifname: "", dirs };
    let answer = run(name, &call, &serde_json::json!({"cniVersion": "1.0.0"})).await?;
    let versions = answer.get("supportedVersions").and_then(Value::as_array);
    Ok(versions.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect())
}
