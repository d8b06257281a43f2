//! The Python client, in a process that answers line by line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::subject::Subject;
use crate::table::{Client, Outcome, Step, kind_of};

/// The process. It ends with its input.
pub struct Python {
    _process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Python {
    /// Starts it; nothing where the client cannot be had.
    pub fn start(subject: &Subject) -> Result<Option<Self>> {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let found = Command::new(tests.join("bin/fetch-python-client")).stderr(Stdio::inherit()).output()?;
        if found.status.code() == Some(3) {
            return Ok(None);
        }
        ensure!(found.status.success(), "fetching the Python client");
        let mut process = Command::new(String::from_utf8(found.stdout)?.trim())
            .arg(tests.join("tests/conformance/client/client.py"))
            .arg(&subject.kubeconfig)
            .arg(subject.directory.path().join("discovery.json"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = process.stdin.take().context("a pipe")?;
        let output = BufReader::new(process.stdout.take().context("a pipe")?);
        Ok(Some(Self { _process: process, input, output }))
    }
}

impl Client for Python {
    fn act(&mut self, step: &Step, namespace: &str) -> Result<Option<Outcome>> {
        let mut line = serde_json::to_value(step)?;
        line["namespace"] = namespace.into();
        if !step.of.is_empty() {
            let named = kind_of(&step.of)?;
            line["apiVersion"] = named.api_version.into();
            line["kind"] = named.kind.into();
            line["namespaced"] = named.namespaced.into();
            let body = &mut line["body"];
            if body.is_object() && !matches!(step.action.as_str(), "patch" | "delete" | "deletecollection") {
                for (field, value) in [("apiVersion", named.api_version), ("kind", named.kind)] {
                    if body[field].is_null() {
                        body[field] = Value::from(value);
                    }
                }
            }
        }
        writeln!(self.input, "{line}").context("the Python client ended")?;
        let mut answer = String::new();
        ensure!(self.output.read_line(&mut answer)? > 0, "the Python client ended at {line}");
        serde_json::from_str(&answer).with_context(|| answer.clone())
    }
}
