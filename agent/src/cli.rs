//! The command line. One file a command under `cli/`; this one knows what they are called and what they share.
//!
//! Exit codes: 0 done, 1 failed, 2 usage; `exec` has its command's. Results go to stdout, everything else to stderr; colour only to a terminal.

mod apply;
mod attach;
mod backup;
mod completion;
mod config;
mod cp;
mod crds;
mod delete;
mod describe;
mod diff;
mod doctor;
mod edit;
mod events;
mod exec;
mod files;
mod get;
mod images;
mod logs;
mod node_lists;
mod output;
mod plan;
mod port_forward;
mod power;
mod progress;
mod remote;
mod restore;
mod rollback;
mod run;
mod session;
mod table;
mod terminal;
mod version;
mod volumes;
mod wait;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::manifest::chain;
use output::Output;

/// Keeps one Linux node in the state that its resources describe.
#[derive(Debug, Parser)]
#[command(name = "nodelet", version, max_term_width = 120, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The API: unix:///path/api.sock, or http(s)://host:port. Default: the kubeconfig, else the agent's socket
    #[arg(long, global = true, env = "NODELET_SERVER", value_name = "ADDRESS")]
    server: Option<String>,
    /// Reach the API as this kubeconfig says
    #[arg(long, global = true, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The namespace. Default: the kubeconfig's, else `default`
    #[arg(short, long, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// How results are printed
    #[arg(short, long, global = true, value_name = "FORMAT")]
    output: Option<Format>,
    /// The configuration file, which also says where the agent's socket is
    #[arg(long, global = true, env = "NODELET_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// `-o`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// More columns
    Wide,
    /// YAML
    Yaml,
    /// JSON
    Json,
    /// Kind and name only
    Name,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Run(run::RunArgs),
    /// Bring objects of files into the API
    Apply(apply::ApplyArgs),
    /// Delete objects, named or of files
    Delete(delete::DeleteArgs),
    /// Show what applying files would change
    Diff(diff::DiffArgs),
    /// Show what the agent would do, for workloads as they are or as files have them
    Plan(plan::PlanArgs),
    /// List objects, or show some
    Get(get::GetArgs),
    /// Show everything about objects: conditions, containers, events
    Describe(describe::DescribeArgs),
    /// Change an object in $EDITOR
    Edit(edit::EditArgs),
    /// Print the output of a workload's container
    Logs(logs::LogsArgs),
    /// Run a command in a workload's container
    Exec(exec::ExecArgs),
    /// See and feed the program of a workload's container
    Attach(attach::AttachArgs),
    /// Copy files between here and a workload's container
    Cp(cp::CpArgs),
    /// Reach a workload's TCP ports by ports of this machine
    PortForward(port_forward::PortForwardArgs),
    /// List what happened
    Events(events::EventsArgs),
    /// Show the chain of causes behind an object's state
    Why(why::WhyArgs),
    /// Stop workloads and keep them so
    Stop(power::PowerArgs),
    /// Start stopped workloads
    Start(power::PowerArgs),
    /// Replace all containers of workloads once
    Restart(power::PowerArgs),
    /// Run an older revision of a workload that was good, until its spec is edited
    Rollback(rollback::RollbackArgs),
    /// Images on the nodes; get one, or remove those that nobody needs
    Images(images::ImagesArgs),
    /// Volumes, where they are and who uses them; copy one to a file, or fill one from it
    Volumes(volumes::VolumesArgs),
    /// Networks on the nodes
    Networks(node_lists::NodeListArgs),
    /// Copy this node's store of objects to a file, while the agent runs or not
    Backup(backup::BackupArgs),
    /// Put a copy of the store back while the agent is stopped
    Restore(restore::RestoreArgs),
    /// Print the CustomResourceDefinitions
    Crds,
    /// Check the node; every fault comes with a remedy
    Doctor(doctor::DoctorArgs),
    /// Print or check the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print the completion script of a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Versions of this program and of the agent
    Version,
}

/// How a command ended, other than by an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// What was wrong has been said already.
    Failed,
    /// As another program ended that we ran for the user.
    Code(u8),
}

/// Used in a wrong way: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// The program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let output = Output::new(cli.global.output);
    match execute(cli, &output) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(1),
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        Err(error) if error.downcast_ref::<output::Closed>().is_some() => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&chain(error.as_ref()));
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

/// Runs the program with `arguments` against `output`; for tests.
///
/// # Errors
/// Whatever the command could not do.
#[cfg(test)]
pub(crate) async fn run_with(
    arguments: impl IntoIterator<Item = impl Into<std::ffi::OsString> + Clone>,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let cli = Cli::try_parse_from(arguments)?;
    let output = output.with_format(cli.global.output);
    client_command(cli.command, &cli.global, &output).await
}

fn execute(cli: Cli, output: &Output) -> anyhow::Result<Outcome> {
    let Cli { global, command } = cli;
    match command {
        Command::Run(args) => run::run(&args, &global),
        command => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(client_command(command, &global, output)),
    }
}

async fn client_command(command: Command, global: &Global, output: &Output) -> anyhow::Result<Outcome> {
    match command {
        Command::Run(_) => Err(Usage("the agent is not run from here".to_owned()).into()),
        Command::Apply(args) => apply::apply(&args, &session::open(global, output).await?).await,
        Command::Delete(args) => delete::delete(&args, &session::open(global, output).await?).await,
        Command::Diff(args) => diff::diff(&args, &session::open(global, output).await?).await,
        Command::Plan(args) => plan::plan(&args, &session::open(global, output).await?).await,
        Command::Get(args) => get::get(&args, &session::open(global, output).await?).await,
        Command::Describe(args) => describe::describe(&args, &session::open(global, output).await?).await,
        Command::Edit(args) => edit::edit(&args, &session::open(global, output).await?).await,
        Command::Logs(args) => logs::logs(&args, &session::open(global, output).await?).await,
        Command::Exec(args) => exec::exec(&args, &session::open(global, output).await?).await,
        Command::Attach(args) => attach::attach(&args, &session::open(global, output).await?).await,
        Command::Cp(args) => cp::cp(&args, &session::open(global, output).await?).await,
        Command::PortForward(args) => port_forward::port_forward(&args, session::open(global, output).await?).await,
        Command::Events(args) => events::events(&args, &session::open(global, output).await?).await,
        Command::Why(args) => why::why(&args, &session::open(global, output).await?).await,
        Command::Stop(args) => power::stop(&args, &session::open(global, output).await?).await,
        Command::Start(args) => power::start(&args, &session::open(global, output).await?).await,
        Command::Restart(args) => power::restart(&args, &session::open(global, output).await?).await,
        Command::Rollback(args) => rollback::rollback(&args, &session::open(global, output).await?).await,
        Command::Images(args) => images::images(&args, &session::open(global, output).await?).await,
        Command::Volumes(args) => volumes::volumes(&args, global, &session::open(global, output).await?).await,
        Command::Networks(args) => node_lists::networks(&args, &session::open(global, output).await?).await,
        Command::Backup(args) => backup::backup(&args, global, output),
        Command::Restore(args) => restore::restore(&args, global, output),
        Command::Crds => crds::crds(output),
        Command::Doctor(args) => doctor::doctor(&args, global, output).await,
        Command::Config(command) => config::config(&command, global, output),
        Command::Completion { shell } => completion::completion(shell, Cli::command(), output),
        Command::Version => version::version(global, output).await,
    }
}

#[cfg(test)]
mod tests;
