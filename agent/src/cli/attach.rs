//! `nodelet attach`

use clap::Args;

use super::Outcome;
use super::exec::{has_terminal, params, talk};
use super::remote;
use super::session::Session;

#[derive(Debug, Args)]
#[command(after_help = "Shows what the container's own program prints from now on, and ends with it.")]
pub(crate) struct AttachArgs {
    /// The workload, or KIND/NAME
    workload: String,
    /// The container, if there are several
    #[arg(short, long)]
    container: Option<String>,
    /// Pass what is typed to the program; the container needs `stdin: true`
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Use the program's terminal; the container needs `tty: true`
    #[arg(short = 't', long)]
    tty: bool,
}

pub(crate) async fn attach(args: &AttachArgs, session: &Session) -> anyhow::Result<Outcome> {
    let (kind, name) = remote::target(session, &args.workload)?;
    let tty = args.tty && has_terminal(session, args.stdin);
    let params = params(args.stdin, tty, args.container.as_deref());
    let (sender, receiver) =
        remote::connect(session, kind, &session.namespace, |request| request.attach(name, &params)).await?;
    if tty {
        session.output.note("attached; what is not shown is a prompt that came before: press Enter");
    }
    talk(sender, receiver, args.stdin, tty).await
}
