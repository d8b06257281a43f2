//! One look at a directory of manifests.

use std::collections::BTreeMap;
use std::path::Path;

use crate::manifest::{self, Fault, Manifest};

/// What a directory shows.
#[derive(Debug, Clone, PartialEq)]
pub enum Scan {
    /// It cannot be told what is in it.
    Unusable {
        /// Why.
        reason: String,
    },
    /// Its manifest files, by path below the directory.
    Files(BTreeMap<String, FileContent>),
}

/// What a file shows.
#[derive(Debug, Clone, PartialEq)]
pub enum FileContent {
    /// It cannot be told what is in it.
    Unreadable {
        /// Why.
        fault: Fault,
    },
    /// Its objects and faults.
    Manifest(Manifest),
}

/// Reads everything. Blocking.
pub fn scan(directory: &Path) -> Scan {
    let files = match manifest::files(directory) {
        Ok(files) => files,
        Err(error) => return Scan::Unusable { reason: format!("{}: {error}", directory.display()) },
    };
    let contents = files.into_iter().map(|path| {
        let shown = path.display().to_string();
        let below = path.strip_prefix(directory).unwrap_or(&path).display().to_string();
        let content = match std::fs::read_to_string(&path) {
            Ok(text) => content(&shown, &text),
            Err(error) => unreadable(&shown, format!("cannot be read: {error}")),
        };
        (below, content)
    });
    Scan::Files(contents.collect())
}

/// A file's text. One of no bytes is taken for an interrupted write (a power cut leaves such), not for "no objects".
fn content(file: &str, text: &str) -> FileContent {
    if text.trim().is_empty() {
        let message = "is empty; remove the file, or leave a comment in it to say that this is meant";
        return unreadable(file, message.to_owned());
    }
    FileContent::Manifest(manifest::parse(file, text))
}

fn unreadable(file: &str, message: String) -> FileContent {
    let fault = Fault { file: file.to_owned(), at: None, object: None, field: String::new(), message };
    FileContent::Unreadable { fault }
}
