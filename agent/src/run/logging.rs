//! Log lines of the agent: text for people, or one JSON object each.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, ObservabilityConfiguration};

/// Starts logging to stderr. A second call changes nothing.
pub(super) fn start(configuration: &ObservabilityConfiguration) {
    let filter = EnvFilter::try_new(directives(&configuration.log_level)).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match configuration.log_format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_target(true).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}

/// A plain level is meant for our own lines: the libraries below tell of every buffer and frame.
fn directives(level: &str) -> String {
    const QUIET: &str = "tower=info,hyper=info,hyper_util=info,h2=info,tonic=info,kube=info,kube_client=info,rustls=info,\
         hickory_net=warn,hickory_proto=warn,hickory_resolver=warn";
    if matches!(level.to_ascii_lowercase().as_str(), "debug" | "trace") {
        format!("{level},{QUIET}")
    } else {
        level.to_owned()
    }
}
