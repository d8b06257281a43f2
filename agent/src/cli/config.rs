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
