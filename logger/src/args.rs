//! The command line: pairs of key and value in any order, as containerd makes them from a URI's query.

use std::ffi::OsString;
use std::path::PathBuf;

/// Smallest size of one file: enough for a few records, so that no record passes the limit by itself.
const MIN_SIZE: u64 = 1024;

/// What the logger was asked to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Args {
    /// The current file; rotated ones are `<path>.1` (youngest), `<path>.2`, …
    pub(crate) path: PathBuf,
    /// Bytes of one file at most.
    pub(crate) max_size: u64,
    /// Files at most, the current one included.
    pub(crate) max_files: u32,
    /// Write what there is of a line at once, for those who are attached.
    pub(crate) unfinished_lines: bool,
    /// Directory of the container's input, if that is kept open here.
    pub(crate) input: Option<PathBuf>,
}

impl Default for Args {
    fn default() -> Self {
        Self { path: PathBuf::new(), max_size: 10 << 20, max_files: 5, unfinished_lines: false, input: None }
    }
}

/// Why the command line is unusable.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unusable {
    /// Where to say so, if that much was understood.
    pub(crate) path: Option<PathBuf>,
    /// What is wrong.
    pub(crate) message: String,
}

impl Args {
    pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Self, Unusable> {
        let words: Vec<OsString> = args.collect();
        let mut parsed = Self::default();
        let mut problem = None;
        for pair in words.chunks(2) {
            let key = pair[0].to_string_lossy();
            let Some(value) = pair.get(1) else {
                problem.get_or_insert(format!("{key} has no value"));
                break;
            };
            let number = value.to_str().and_then(|text| text.parse::<u64>().ok());
            match (&*key, number) {
                ("path", _) => parsed.path = value.into(),
                // A wish that is too small is no reason to leave a container without its log.
                ("max-size", Some(bytes)) => parsed.max_size = bytes.max(MIN_SIZE),
                ("max-files", Some(files @ 1..=1000)) => parsed.max_files = files as u32,
                ("input", _) => parsed.input = Some(value.into()),
                ("unfinished-lines", _) if value == "now" => parsed.unfinished_lines = true,
                ("max-size" | "max-files" | "unfinished-lines", _) => {
                    problem.get_or_insert(format!("{} is not a usable {key}", value.display()));
                }
                _ => {
                    problem.get_or_insert(format!("{key} is not an option"));
                }
            }
        }
        let usable_path = parsed.path.is_absolute() && parsed.path.file_name().is_some();
        if !usable_path {
            problem.get_or_insert("path must be given and absolute".to_owned());
        }
        match problem {
            None => Ok(parsed),
            Some(message) => Err(Unusable { path: usable_path.then_some(parsed.path), message }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, Unusable> {
        Args::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn pairs_come_in_any_order() {
        let expected = Args {
            path: "/l/0.log".into(),
            max_size: 4096,
            max_files: 3,
            unfinished_lines: true,
            input: Some("/i".into()),
        };
        let words =
            ["path", "/l/0.log", "unfinished-lines", "now", "max-size", "4096", "input", "/i", "max-files", "3"];
        assert_eq!(parse(&words), Ok(expected));
        let expected = Args { path: "/l/0.log".into(), ..Args::default() };
        assert_eq!(parse(&["max-files", "5", "path", "/l/0.log"]), Ok(expected));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (words, message, path) in [
            (vec![], "path must be given and absolute", false),
            (vec!["path", "relative"], "path must be given and absolute", false),
            (vec!["path"], "path has no value", false),
            (vec!["path", "/a", "max-size", "-1"], "-1 is not a usable max-size", true),
            (vec!["max-files", "0", "path", "/a"], "0 is not a usable max-files", true),
            (vec!["path", "/a", "colour", "red"], "colour is not an option", true),
        ] {
            let error = parse(&words).unwrap_err();
            assert_eq!((error.message.as_str(), error.path.is_some()), (message, path), "{words:?}");
        }
    }
}
