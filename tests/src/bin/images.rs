//! `make images` and `make image`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use nodelet_tests::images::{catalog, store};

/// Builds container images from this machine's packages, without a daemon.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The images that tests, examples and the demo run.
    Test,
    /// The agent's own image, as an OCI archive.
    Agent {
        /// The agent's program.
        #[arg(long)]
        nodelet: PathBuf,
        /// The logger's program; it also runs on the node outside of the image, so a static one is best.
        #[arg(long)]
        logger: PathBuf,
        /// The archive to write.
        #[arg(long)]
        output: PathBuf,
    },
}

#[allow(clippy::print_stdout)] // a program whose output is where things are
fn main() -> anyhow::Result<()> {
    match Args::parse().what {
        What::Test => {
            let built = catalog::build(&nodelet_tests::cache().join("images"))?;
            println!("test images: {}", built.registry.display());
        }
        What::Agent { nodelet, logger, output } => {
            let image = catalog::agent(&nodelet, &logger)?;
            let name = concat!("nodelet.dev/nodelet:", env!("CARGO_PKG_VERSION"));
            store::oci_archive(&output, name, &image)?;
            println!("{name}: {}", output.display());
        }
    }
    Ok(())
}
