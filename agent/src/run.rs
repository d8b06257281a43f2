//! wiring
use crate::config::NodeletConfiguration;
/// x
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Error;
/// x
pub fn run(_c: NodeletConfiguration) -> Result<(), Error> {
    Ok(())
}
