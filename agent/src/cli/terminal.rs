//! Our own terminal, while somebody else's program uses it.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;

use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal that shows what comes as it is, until it is dropped: another terminal has made it ready.
pub(crate) struct Raw {
    terminal: File,
    before: Termios,
}

impl Raw {
    /// Takes the terminal that stdin is, and hands on every key.
    pub(crate) fn keys_and_output() -> std::io::Result<Self> {
        Self::enter(std::io::stdin(), Termios::make_raw)
    }

    /// Takes the terminal that stdout is, if it is one; its keys stay ours.
    pub(crate) fn output() -> std::io::Result<Option<Self>> {
        if !std::io::stdout().is_terminal() {
            return Ok(None);
        }
        Self::enter(std::io::stdout(), |raw| raw.output_modes.remove(OutputModes::OPOST)).map(Some)
    }

    fn enter(terminal: impl AsFd, change: impl FnOnce(&mut Termios)) -> std::io::Result<Self> {
        let terminal = File::from(terminal.as_fd().try_clone_to_owned()?);
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        change(&mut raw);
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// Whether keys can be read from stdin.
pub(crate) fn is_interactive() -> bool {
    std::io::stdin().is_terminal()
}

/// Columns and rows.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin())).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}
