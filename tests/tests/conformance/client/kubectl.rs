//! The table's actions as kubectl's commands.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::subject::Subject;
use crate::table::{Client, Outcome, Step, kind_of};

/// A kubectl.
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Kubectl {
    /// This program, against this server.
    pub fn new(subject: &Subject, program: &Path) -> Self {
        let home = subject.directory.path().to_owned();
        Self { program: program.to_owned(), kubeconfig: subject.kubeconfig.clone(), home }
    }

    fn run(&self, words: &[String], input: Option<&Value>, namespace: &str) -> Result<Outcome> {
        let mut child = Command::new(&self.program)
            .args(words)
            .args(["--namespace", namespace, "--request-timeout=20s"])
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("a pipe")?;
        if let Some(input) = input {
            stdin.write_all(input.to_string().as_bytes())?;
        }
        drop(stdin);
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(Outcome {
                object: serde_json::from_slice(&output.stdout).unwrap_or_default(),
                ..Outcome::default()
            });
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let reason = said
            .split_once("Error from server (")
            .and_then(|(_, rest)| rest.split_once(')'))
            .map(|(reason, _)| reason.to_owned())
            .or_else(|| said.contains("is invalid").then(|| "Invalid".to_owned()));
        // The status is known by its reason; the message is worded anew.
        Ok(Outcome { code: Some(0), reason, message: None, object: Value::String(said) })
    }
}

impl Client for Kubectl {
    fn act(&mut self, step: &Step, namespace: &str) -> Result<Option<Outcome>> {
        if matches!(step.action.as_str(), "request" | "typed" | "watch" | "deletecollection") {
            return Ok(None);
        }
        let named = kind_of(&step.of)?;
        let group = named.api_version.split_once('/').map(|(group, _)| format!(".{group}")).unwrap_or_default();
        let resource = format!("{}{group}", step.of);
        let name = step.name.clone();
        let mut words: Vec<String> = match (step.action.as_str(), name) {
            ("create", _) => ["create", "-f", "-", "--validate=ignore"].map(str::to_owned).to_vec(),
            ("update", _) => ["replace", "-f", "-", "--validate=ignore"].map(str::to_owned).to_vec(),
            ("apply", _) => ["apply", "--server-side", "-f", "-", "--validate=ignore"].map(str::to_owned).to_vec(),
            ("get", Some(name)) => vec!["get".into(), resource, name],
            ("list", None) => vec!["get".into(), resource],
            ("delete", Some(name)) if step.body.is_none() => {
                vec!["delete".into(), resource, name, "--wait=false".into()]
            }
            ("patch", Some(name)) => {
                let patch = step.body.clone().unwrap_or_default().to_string();
                let kind = format!("--type={}", step.patch.as_deref().unwrap_or("strategic"));
                vec!["patch".into(), resource, name, kind, "-p".into(), patch]
            }
            _ => return Ok(None),
        };
        for (parameter, value) in &step.with {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            words.push(match (parameter.as_str(), value.as_str()) {
                ("labelSelector", value) => format!("--selector={value}"),
                ("fieldSelector", value) => format!("--field-selector={value}"),
                ("fieldManager", value) => format!("--field-manager={value}"),
                ("dryRun", "All") => "--dry-run=server".to_owned(),
                ("force", "true") => "--force-conflicts".to_owned(),
                ("propagationPolicy", value) => format!("--cascade={}", value.to_lowercase()),
                _ => return Ok(None),
            });
        }
        if let Some(part) = &step.subresource {
            words.push(format!("--subresource={part}"));
        }
        if step.action != "delete" {
            words.extend(["-o", "json", "--show-managed-fields"].map(str::to_owned));
        }
        let input = step.body.clone().filter(|_| step.action != "patch").map(|mut body| {
            for (field, value) in [("apiVersion", named.api_version), ("kind", named.kind)] {
                if body.is_object() && body[field].is_null() {
                    body[field] = value.into();
                }
            }
            body
        });
        self.run(&words, input.as_ref(), namespace).map(Some)
    }
}
