//! `nodelet completion`

use super::Outcome;
use super::output::Output;

pub(crate) fn completion(
    shell: clap_complete::Shell,
    mut command: clap::Command,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "nodelet", &mut script);
    output.bytes(&script)?;
    Ok(Outcome::Done)
}
