//! `nodelet config`

use clap::Subcommand;
use serde_json::json;

use super::output::{Output, yaml};
use super::{Global, Outcome, session};
use crate::config;

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// The configuration in full: defaults, the file, and what the environment changes
    Print,
    /// Check the configuration
    Validate,
}

pub(crate) fn config(command: &ConfigCommand, global: &Global, output: &Output) -> anyhow::Result<Outcome> {
    let read = session::configuration(global);
    match command {
        ConfigCommand::Print => {
            let value = json!(read?);
            if !output.structured(&value)? {
                let path = global.config.as_deref().unwrap_or(config::DEFAULT_PATH.as_ref());
                let file = if path.exists() { "over the defaults" } else { "is not there: defaults" };
                output.line(format!("# {} {file}", path.display()))?;
                for config::Override { key, origin, .. } in config::from_environment(session::variables()) {
                    output.line(format!("# {key}: {origin}"))?;
                }
                output.write(&yaml(&value)?)?;
            }
            Ok(Outcome::Done)
        }
        ConfigCommand::Validate => {
            let faults: Vec<String> = match &read {
                Ok(_) => Vec::new(),
                Err(config::Error::Faults(faults)) => faults.0.iter().map(ToString::to_string).collect(),
                Err(error) => vec![crate::manifest::chain(error)],
            };
            if !output.structured(&json!({"valid": faults.is_empty(), "faults": faults}))? {
                for fault in &faults {
                    output.error(fault);
                }
                if faults.is_empty() {
                    output.line("valid")?;
                }
            }
            Ok(if faults.is_empty() { Outcome::Done } else { Outcome::Failed })
        }
    }
}
