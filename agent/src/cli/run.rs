//! `nodelet run`: the configuration, then [`crate::run`].

use clap::Args;

use super::{Global, Outcome, Usage, session};
use crate::config::{self, Override};

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The name of this node
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Directory of what survives a reboot
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Directory of what does not
    #[arg(long, value_name = "DIR")]
    run_dir: Option<String>,
    /// Address of the API; empty serves the unix socket only
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// A directory of manifests; may be given several times
    #[arg(long, value_name = "DIR")]
    source: Vec<String>,
    /// Log level or directives
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Any other key of the configuration, such as runtime.managed=true
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl RunArgs {
    fn overrides(&self) -> Result<Vec<Override>, Usage> {
        let sources = (!self.source.is_empty()).then(|| self.source.join(","));
        let flags = [
            ("--node-name", "nodeName", &self.node_name),
            ("--data-dir", "dataDir", &self.data_dir),
            ("--run-dir", "runDir", &self.run_dir),
            ("--listen", "api.listen", &self.listen),
            ("--source", "sources", &sources),
            ("--log-level", "observability.logLevel", &self.log_level),
            ("--log-format", "observability.logFormat", &self.log_format),
        ];
        let mut overrides: Vec<Override> = flags
            .into_iter()
            .filter_map(|(flag, key, value)| Some(config::from_flag(flag, key, value.as_deref()?)))
            .collect();
        for pair in &self.set {
            let (key, value) = pair.split_once('=').ok_or_else(|| Usage(format!("--set {pair:?} is not KEY=VALUE")))?;
            overrides.push(config::from_flag(&format!("--set {key}"), key, value));
        }
        Ok(overrides)
    }
}

pub(crate) fn run(args: &RunArgs, global: &Global) -> anyhow::Result<Outcome> {
    nodelet_drivers::memory::share_one_heap();
    let mut overrides = config::from_environment(session::variables());
    overrides.extend(args.overrides()?);
    let path = global.config.as_deref();
    let configuration = config::load(path.unwrap_or(config::DEFAULT_PATH.as_ref()), path.is_some(), &overrides)?;
    // What went wrong is in the agent's log, in the format that was asked for.
    Ok(if crate::run::run(configuration).is_ok() { Outcome::Done } else { Outcome::Failed })
}
