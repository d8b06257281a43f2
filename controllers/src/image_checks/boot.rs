//! Whether the node went down in order, remembered over boots in a file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Record {
    /// The kernel's identifier of the boot in which it was written.
    boot_id: String,
    /// The agent has stopped in order since.
    orderly: bool,
    /// Nothing is trusted in this boot but what is in `checked`.
    unclean: bool,
    /// What was found sound in this boot.
    checked: BTreeSet<String>,
}

/// This boot. A file that cannot be written is logged; the next boot then counts as unclean, which costs time only.
#[derive(Debug)]
pub(super) struct Boot {
    file: PathBuf,
    record: Record,
}

impl Boot {
    /// Reads what the last run left and begins this one.
    pub(super) fn load(file: PathBuf, boot_id: &str) -> Self {
        let before = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        let record = begin(before, boot_id);
        let boot = Self { file, record };
        boot.write();
        boot
    }

    pub(super) fn is_unclean(&self) -> bool {
        self.record.unclean
    }

    /// The image has not been checked since an unclean boot.
    pub(super) fn doubts(&self, reference: &str) -> bool {
        self.record.unclean && !self.record.checked.contains(reference)
    }

    /// The image is sound.
    pub(super) fn trust(&mut self, reference: &str) {
        if self.record.unclean && self.record.checked.insert(reference.to_owned()) {
            self.write();
        }
    }

    pub(super) fn orderly_stop(&mut self) {
        self.record.orderly = true;
        self.write();
    }

    fn write(&self) {
        let bytes = serde_json::to_vec(&self.record).unwrap_or_default();
        if let Err(error) = replace(&self.file, &bytes) {
            tracing::warn!("writing {}: {error}", self.file.display());
        }
    }
}

fn begin(before: Option<Record>, boot_id: &str) -> Record {
    let fresh = |unclean| Record { boot_id: boot_id.to_owned(), unclean, ..Record::default() };
    match before {
        // The first start on this node: what is there was not put there by us.
        None => fresh(false),
        Some(before) if before.boot_id == boot_id => Record { orderly: false, ..before },
        Some(before) => fresh(!before.orderly),
    }
}

/// Whole and on disk, or not at all.
fn replace(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    let new = file.with_extension("new");
    let mut handle = std::fs::File::create(&new)?;
    handle.write_all(bytes)?;
    handle.sync_all()?;
    std::fs::rename(new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_boot_without_an_orderly_stop_before_it_is_unclean() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("boot.json");
        let start = |boot_id: &str| Boot::load(file.clone(), boot_id);
        assert!(!start("a").is_unclean(), "the first start");
        assert!(!start("a").is_unclean(), "a kill of the agent alone");
        assert!(start("b").is_unclean(), "the node went down with the agent running");
        let mut boot = start("b");
        assert!(boot.is_unclean() && boot.doubts("x"), "an agent's restart forgets nothing");
        boot.trust("x");
        assert!(!start("b").doubts("x") && start("b").doubts("y"));
        boot.orderly_stop();
        assert!(start("b").doubts("y"), "still the same boot");
        start("b").orderly_stop();
        assert!(!start("c").is_unclean());
        std::fs::write(&file, "{torn").unwrap();
        assert!(!start("c").is_unclean());
    }
}
