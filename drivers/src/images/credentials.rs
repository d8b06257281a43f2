//! Credentials of the node: Docker's `config.json` with entries, credential helpers and a credential store.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::auth::{Helper, credentials_for, helper_for};
use super::registry::failed;
use super::{Credentials, Error};

/// A helper that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a helper gave nothing. Never holds what it printed to its output.
#[derive(Debug, thiserror::Error)]
enum HelperError {
    #[error("it cannot be run")]
    Run(#[source] std::io::Error),
    #[error("it takes longer than {} s", PATIENCE.as_secs())]
    Slow,
    #[error("it ended with {status}: {message}")]
    Ended { status: std::process::ExitStatus, message: String },
    #[error("it did not print the JSON of a credential")]
    Output,
}

/// What the node's file says for a reference. Read anew for every pull, so an edit needs no restart.
///
/// # Errors
/// [`Error::Failed`] when the file cannot be used or a helper fails: silently going without would end in a refusal
/// whose reason nobody sees. A file that is not there has no credentials.
pub(super) async fn of_node(file: Option<&Path>, reference: &str) -> Result<Option<Credentials>, Error> {
    let Some(file) = file else { return Ok(None) };
    let doing = || format!("reading the credentials {}", file.display());
    let bytes = match tokio::fs::read(file).await {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(doing(), e)),
    };
    // As Docker: a helper for the registry, then entries, then the store for all the rest.
    let helper = helper_for(reference, &bytes).map_err(|e| failed(doing(), e))?;
    if let Some(helper) = helper.as_ref().filter(|helper| helper.own) {
        return ask(helper).await;
    }
    let entry = credentials_for(reference, &bytes).map_err(|e| failed(doing(), e))?;
    match (entry, helper) {
        (Some(found), _) => Ok(Some(found)),
        (None, Some(store)) => ask(&store).await,
        (None, None) => Ok(None),
    }
}

/// Runs `docker-credential-<name> get`.
async fn ask(helper: &Helper) -> Result<Option<Credentials>, Error> {
    let program = format!("docker-credential-{}", helper.name);
    run(&program, &helper.server)
        .await
        .map_err(|e| Error::Failed { doing: format!("asking {program} for {}", helper.server), source: Arc::new(e) })
}

async fn run(program: &str, server: &str) -> Result<Option<Credentials>, HelperError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Output {
        username: String,
        secret: String,
    }
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(HelperError::Run)?;
    if let Some(mut input) = child.stdin.take() {
        // One that ended without reading says why below.
        let _ = input.write_all(server.as_bytes()).await;
    }
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .map_err(|_| HelperError::Slow)?
        .map_err(HelperError::Run)?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let message = String::from_utf8_lossy(&said).trim().chars().take(200).collect::<String>();
        // The helpers' common way to say that they have nothing.
        if message.contains("credentials not found") {
            return Ok(None);
        }
        return Err(HelperError::Ended { status: output.status, message });
    }
    let Output { username, secret } = serde_json::from_slice(&output.stdout).map_err(|_| HelperError::Output)?;
    Ok((!secret.is_empty()).then_some(Credentials { username, password: secret }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn program(dir: &Path, name: &str, script: &str) -> String {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    #[tokio::test]
    async fn helpers_are_asked_and_their_failures_told() {
        let dir = tempfile::tempdir().unwrap();
        let good = program(dir.path(), "good", r#"read s; echo "{\"Username\":\"u\",\"Secret\":\"for $s\"}""#);
        let found = run(&good, "r.example").await.unwrap().unwrap();
        assert_eq!((found.username.as_str(), found.password.as_str()), ("u", "for r.example"));
        let nothing = program(dir.path(), "nothing", "echo credentials not found in native keychain; exit 1");
        assert_eq!(run(&nothing, "r.example").await.unwrap(), None);
        let broken = program(dir.path(), "broken", "echo locked >&2; exit 3");
        assert!(run(&broken, "r.example").await.unwrap_err().to_string().contains("locked"));
        let odd = program(dir.path(), "odd", "echo secret stuff");
        assert!(!run(&odd, "r.example").await.unwrap_err().to_string().contains("secret"));
        assert!(matches!(run("/nonexistent/helper", "x").await, Err(HelperError::Run(_))));
    }

    #[tokio::test]
    async fn the_file_may_be_absent_but_not_broken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        assert_eq!(of_node(None, "x").await.unwrap(), None);
        assert_eq!(of_node(Some(&file), "x").await.unwrap(), None);
        std::fs::write(&file, "{").unwrap();
        assert!(of_node(Some(&file), "x").await.is_err());
        std::fs::write(&file, r#"{"auths":{"r.example":{"username":"u","password":"p"}}}"#).unwrap();
        assert!(of_node(Some(&file), "r.example/x").await.unwrap().is_some());
        assert!(of_node(Some(&file), "s.example/x").await.unwrap().is_none());
    }
}
