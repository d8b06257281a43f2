//! `nodelet exec`, and the talk to a program that it shares with `nodelet attach`.

use std::io::{Read, Write};

use clap::Args;
use kube::api::AttachParams;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::remote::{self, RESIZE, Receiver, STATUS, STDERR, STDIN, STDOUT, Sender};
use super::session::Session;
use super::{Outcome, terminal};

/// Bytes of input sent at once.
const CHUNK: usize = 32 << 10;

#[derive(Debug, Args)]
#[command(after_help = "Ends with the command's exit code; 127 if there is no such command, 126 if it cannot be run.")]
pub(crate) struct ExecArgs {
    /// The workload, or KIND/NAME
    workload: String,
    /// The container, if there are several
    #[arg(short, long)]
    container: Option<String>,
    /// Pass what is typed or piped in to the command
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Run the command on a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) async fn exec(args: &ExecArgs, session: &Session) -> anyhow::Result<Outcome> {
    let (kind, name) = remote::target(session, &args.workload)?;
    let tty = args.tty && has_terminal(session, args.stdin);
    let params = params(args.stdin, tty, args.container.as_deref());
    let (sender, receiver) =
        remote::connect(session, kind, &session.namespace, |request| request.exec(name, args.command.clone(), &params))
            .await?;
    talk(sender, receiver, args.stdin, tty).await
}

/// What the server is asked for.
pub(crate) fn params(stdin: bool, tty: bool, container: Option<&str>) -> AttachParams {
    let params = AttachParams::default().stdin(stdin).stdout(true).stderr(!tty).tty(tty);
    match container {
        Some(container) => params.container(container),
        None => params,
    }
}

/// A terminal is only of use to somebody who sits at one.
pub(crate) fn has_terminal(session: &Session, stdin: bool) -> bool {
    let has = !stdin || terminal::is_interactive();
    if !has {
        session.output.note("going on without a terminal (-t): the input is none");
    }
    has
}

/// Carries input, output and the terminal's size until the program's end.
pub(crate) async fn talk(mut sender: Sender, receiver: Receiver, stdin: bool, tty: bool) -> anyhow::Result<Outcome> {
    let raw = match (tty, stdin) {
        (true, true) => Some(terminal::Raw::keys_and_output()?),
        (true, false) => terminal::Raw::output()?,
        (false, _) => None,
    };
    let mut sizes = signal(SignalKind::window_change())?;
    let mut keys = if stdin { Some(input()) } else { None };
    let sending = async {
        let mut is_new = tty;
        loop {
            if std::mem::take(&mut is_new)
                && let Some((width, height)) = terminal::size()
            {
                let size = format!("{{\"Width\":{width},\"Height\":{height}}}");
                sender.send(RESIZE, size.as_bytes()).await?;
            }
            let read = async {
                match &mut keys {
                    Some(keys) => keys.recv().await,
                    None => std::future::pending().await,
                }
            };
            // Both only wait; nothing is lost when the other is first.
            tokio::select! {
                bytes = read => match bytes {
                    Some(bytes) => sender.send(STDIN, &bytes).await?,
                    None => {
                        keys = None;
                        sender.end(STDIN).await?;
                    }
                },
                _ = sizes.recv(), if tty => is_new = true,
            }
        }
    };
    let sending = async {
        let result: anyhow::Result<()> = sending.await;
        // What is left to be said comes from the other side.
        tracing::debug!(?result, "nothing more can be sent");
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = print(receiver) => outcome,
        () = sending => Ok(Outcome::Failed),
        // Not by the keyboard of a raw terminal, whose keys all go to the program.
        number = stopped() => Ok(Outcome::Code(u8::try_from(128 + number).unwrap_or(u8::MAX))),
    };
    // Before anything is said.
    drop(raw);
    outcome
}

/// Prints what comes, until the word about the end.
async fn print(mut receiver: Receiver) -> anyhow::Result<Outcome> {
    let mut status = None;
    while let Some((channel, bytes)) = receiver.next().await? {
        match channel {
            STDOUT => {
                write(move || {
                    let mut stdout = std::io::stdout().lock();
                    stdout.write_all(&bytes).and_then(|()| stdout.flush())
                })
                .await?;
            }
            STDERR => {
                write(move || std::io::stderr().lock().write_all(&bytes)).await?;
            }
            STATUS if !bytes.is_empty() => status = Some(bytes),
            _ => {}
        }
    }
    match status {
        Some(status) => Ok(match remote::exit_code(&status)? {
            0 => Outcome::Done,
            code => Outcome::Code(code),
        }),
        None => anyhow::bail!("the connection ended before the program did"),
    }
}

/// Writes on another thread: who reads us may wait for what we send.
async fn write(how: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> anyhow::Result<()> {
    match tokio::task::spawn_blocking(how).await? {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(super::output::Closed.into()),
        other => Ok(other?),
    }
}

/// Pieces of stdin. A thread of its own reads them, which nobody waits for: a read cannot be called off.
fn input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = stdin.read(&mut buffer) {
            if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The number of a signal that ends us.
pub(crate) async fn stopped() -> i32 {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
    let waiting = kinds.map(|kind| {
        Box::pin(async move {
            match signal(kind) {
                Ok(mut signal) => signal.recv().await,
                Err(_) => std::future::pending().await,
            };
            kind.as_raw_value()
        })
    });
    futures::future::select_all(waiting).await.0
}
