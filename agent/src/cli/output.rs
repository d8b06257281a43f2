//! Where results go, and in which form.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::Format;

/// Nobody reads our output any more (`nodelet get wl | head -1`): a quiet end.
#[derive(Debug, thiserror::Error)]
#[error("the output was closed")]
pub(crate) struct Closed;

/// stdout and stderr, or a test's buffer.
#[derive(Clone)]
pub(crate) struct Output {
    pub(crate) format: Option<Format>,
    colour: bool,
    target: Target,
}

#[derive(Clone)]
enum Target {
    Process,
    #[cfg_attr(not(test), allow(dead_code))]
    Buffer(Arc<Mutex<String>>),
}

/// The colours that carry a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    Good,
    Bad,
    Warn,
    Faint,
    Bold,
}

impl Output {
    pub(crate) fn new(format: Option<Format>) -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { format, colour, target: Target::Process }
    }

    #[cfg(test)]
    pub(crate) fn buffer() -> Self {
        Self { format: None, colour: false, target: Target::Buffer(Arc::default()) }
    }

    #[cfg(test)]
    pub(crate) fn with_format(&self, format: Option<Format>) -> Self {
        Self { format, ..self.clone() }
    }

    /// What was written so far; empties it.
    #[cfg(test)]
    pub(crate) fn take(&self) -> String {
        match &self.target {
            Target::Process => String::new(),
            Target::Buffer(text) => std::mem::take(&mut *text.lock().expect("no test panics while writing")),
        }
    }

    /// A result line.
    pub(crate) fn line(&self, text: impl AsRef<str>) -> anyhow::Result<()> {
        self.write(&[text.as_ref(), "\n"].concat())
    }

    /// A part of a result.
    pub(crate) fn write(&self, text: &str) -> anyhow::Result<()> {
        self.bytes(text.as_bytes())
    }

    /// A part of a result that need not be text.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> anyhow::Result<()> {
        match &self.target {
            Target::Process => {
                let mut stdout = std::io::stdout().lock();
                stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| {
                    if error.kind() == std::io::ErrorKind::BrokenPipe {
                        Closed.into()
                    } else {
                        anyhow::Error::from(error)
                    }
                })
            }
            Target::Buffer(text) => {
                if let Ok(mut text) = text.lock() {
                    text.push_str(&String::from_utf8_lossy(bytes));
                }
                Ok(())
            }
        }
    }

    /// Something to know that is no result.
    pub(crate) fn note(&self, text: &str) {
        match &self.target {
            Target::Process => {
                let _ = writeln!(std::io::stderr().lock(), "{text}");
            }
            Target::Buffer(_) => {
                let _ = self.line(format!("[stderr] {text}"));
            }
        }
    }

    /// Something that went wrong.
    pub(crate) fn error(&self, text: &str) {
        let is_terminal = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        self.note(&if is_terminal { format!("\x1b[31merror:\x1b[0m {text}") } else { format!("error: {text}") });
    }

    /// `text` in colour, on a terminal.
    pub(crate) fn paint(&self, text: &str, paint: Paint) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Good => "32",
            Paint::Bad => "31",
            Paint::Warn => "33",
            Paint::Faint => "2",
            Paint::Bold => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Some(Format::Json)
    }

    /// Prints `value` if JSON or YAML is wanted, and says whether it did.
    pub(crate) fn structured(&self, value: &Value) -> anyhow::Result<bool> {
        match self.format {
            Some(Format::Json) => self.line(serde_json::to_string_pretty(value)?)?,
            Some(Format::Yaml) => self.write(&yaml(value)?)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// `value` as YAML, ending with a line feed.
pub(crate) fn yaml(value: &Value) -> anyhow::Result<String> {
    let mut text = serde_saphyr::to_string(value)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}
