//! Images that were found whole a moment ago, so that a hundred containers of one image that start together look through
//! it once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use containerd_client::services::v1::Image as Record;

use super::Image;

/// What another hand takes from below a record is noticed so much later.
const HOLDS: Duration = Duration::from_secs(1);

/// The looks that still hold, by name of the record.
#[derive(Debug, Default)]
pub(super) struct Recent {
    looks: Mutex<HashMap<String, Look>>,
}

#[derive(Debug)]
struct Look {
    at: Instant,
    record: Record,
    image: Image,
}

impl Recent {
    /// The image, if it was whole a moment ago and its record has not changed since.
    pub(super) fn get(&self, record: &Record, now: Instant) -> Option<Image> {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let look = looks.get(&record.name)?;
        (now.duration_since(look.at) < HOLDS && look.record == *record).then(|| look.image.clone())
    }

    /// It was found whole.
    pub(super) fn put(&self, record: Record, image: Image, now: Instant) {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.retain(|_, look| now.duration_since(look.at) < HOLDS);
        looks.insert(record.name.clone(), Look { at: now, record, image });
    }

    /// Something is about to be taken from the node, perhaps from below any record.
    pub(super) fn clear(&self) {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_holds_for_the_same_record_and_a_moment() {
        let record = |label: &str| Record {
            name: "web".to_owned(),
            labels: HashMap::from([("platform".to_owned(), label.to_owned())]),
            ..Record::default()
        };
        let image = Image {
            reference: "web".to_owned(),
            digest: "sha256:1".to_owned(),
            config_digest: "sha256:2".to_owned(),
            size: 1,
            signed_by: Vec::new(),
        };
        let (recent, now) = (Recent::default(), Instant::now());
        assert_eq!(recent.get(&record("a"), now), None);
        recent.put(record("a"), image.clone(), now);
        assert_eq!(recent.get(&record("a"), now + HOLDS / 2), Some(image.clone()));
        assert_eq!(recent.get(&record("b"), now), None, "the record has changed");
        assert_eq!(recent.get(&record("a"), now + HOLDS), None, "that was long ago");
        recent.put(Record { name: "other".to_owned(), ..record("a") }, image.clone(), now + HOLDS);
        assert_eq!(recent.looks.lock().unwrap().len(), 1, "what no longer holds is forgotten");
        recent.put(record("a"), image, now);
        recent.clear();
        assert_eq!(recent.get(&record("a"), now), None);
    }
}
