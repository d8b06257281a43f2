//! The real drivers, as the configuration says.

use std::path::PathBuf;

use nodelet_controllers::Drivers;

use crate::config::NodeletConfiguration;

/// A driver cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// temp
    #[error("not wired")]
    NotWired,
}

/// Makes them; nothing is connected or changed yet.
pub(super) fn assemble(_configuration: &NodeletConfiguration, _logger: PathBuf) -> Result<Drivers, Error> {
    Err(Error::NotWired)
}
