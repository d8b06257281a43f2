//! `nodelet doctor`
use super::output::Output;
use super::{Global, Outcome};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {}

pub(crate) async fn doctor(_args: &DoctorArgs, _global: &Global, _output: &Output) -> anyhow::Result<Outcome> {
    Ok(Outcome::Done)
}
