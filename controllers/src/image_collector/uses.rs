//! Since when nobody needs an image, remembered over restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_openapi::jiff::Timestamp;
use nodelet_drivers::images::Fetched;

use super::keeps::Keeps;

/// Times by normalised reference, for images that were needed once and are no longer. What the file loses is at worst
/// kept for a while longer.
#[derive(Debug, Default)]
pub(super) struct Uses {
    file: Option<PathBuf>,
    needed: BTreeSet<String>,
    unused: BTreeMap<String, Timestamp>,
}

/// So many names at most: an image that was removed is forgotten when newer ones push it out.
const REMEMBERED: usize = 4096;

impl Uses {
    /// What an earlier run remembered.
    pub(super) async fn load(file: PathBuf) -> Self {
        let unused = match tokio::fs::read(&file).await {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!("{} is unreadable and begun anew: {error}", file.display());
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        Self { file: Some(file), needed: BTreeSet::new(), unused }
    }

    #[cfg(test)]
    pub(super) fn of(unused: impl IntoIterator<Item = (String, Timestamp)>) -> Self {
        Self { unused: unused.into_iter().collect(), ..Self::default() }
    }

    /// Notes what is needed now, and what of `held` is seen unneeded for the first time. Written to the file only if
    /// that changed anything.
    pub(super) async fn note(&mut self, keeps: &Keeps, held: &[Fetched], now: Timestamp) {
        if self.change(keeps, held, now)
            && let Some(file) = self.file.clone()
        {
            let bytes = serde_json::to_vec(&self.unused).unwrap_or_default();
            if let Err(error) = crate::blocking(move || replace(&file, &bytes)).await {
                tracing::warn!("remembering the use of images: {error}");
            }
        }
    }

    fn change(&mut self, keeps: &Keeps, held: &[Fetched], now: Timestamp) -> bool {
        let before = self.unused.len();
        self.unused.retain(|reference, _| !keeps.contains_key(reference));
        let mut changed = self.unused.len() != before;
        for reference in std::mem::take(&mut self.needed) {
            if !keeps.contains_key(&reference) {
                self.unused.insert(reference, now);
                changed = true;
            }
        }
        for image in held.iter().filter(|image| !keeps.contains_key(&image.reference)) {
            if !self.unused.contains_key(&image.reference) {
                self.unused.insert(image.reference.clone(), now);
                changed = true;
            }
        }
        self.needed = keeps.keys().cloned().collect();
        while self.unused.len() > REMEMBERED {
            let oldest = self.unused.iter().min_by_key(|(_, since)| **since).map(|(reference, _)| reference.clone());
            self.unused.remove(&oldest.unwrap_or_default());
        }
        changed
    }

    /// Since when nobody needs it; `None` when it was never seen needed.
    pub(super) fn unused_since(&self, reference: &str) -> Option<Timestamp> {
        self.unused.get(reference).copied()
    }
}

/// Whole or not at all.
fn replace(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, bytes)?;
    std::fs::rename(new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeps(names: &[&str]) -> Keeps {
        names.iter().map(|name| ((*name).to_owned(), "x".to_owned())).collect()
    }

    #[tokio::test]
    async fn the_end_of_a_use_is_remembered_over_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("uses.json");
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut uses = Uses::load(file.clone()).await;
        uses.note(&keeps(&["a", "b"]), &[], at(1)).await;
        assert!(!file.exists(), "nothing to remember yet");
        uses.note(&keeps(&["b"]), &[], at(2)).await;
        uses.note(&keeps(&["b"]), &[], at(3)).await;
        let mut again = Uses::load(file).await;
        assert_eq!((again.unused_since("a"), again.unused_since("b")), (Some(at(2)), None));
        again.note(&keeps(&["a"]), &[], at(4)).await;
        assert_eq!(again.unused_since("a"), None, "needed again");
    }
}
