//! Events: what happened to an object, told once and counted when it happens again.
//!
//! As client-go's `EventCorrelator` does for the kubelet: the same note about the same object is one Event with a series;
//! when there were [`DIFFERENT`] notes with one reason, further ones are combined in one more Event, which has the
//! youngest. Nothing is remembered longer than [`SPAN`] after it happened last, or over a restart of the agent.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::events::EventType;
use kube::{Api, Client};
use tokio::time::Instant;

/// As many notes with one reason about one object have an Event each.
const DIFFERENT: usize = 10;

/// How long what was told is remembered.
const SPAN: Duration = Duration::from_secs(600);

/// The longest note that the API server of Kubernetes takes, in bytes.
const LONGEST_NOTE: usize = 1024;

/// Before the note of an Event that stands for several.
const COMBINED: &str = "(combined from similar events): ";

/// Publishes Events in the name of this node.
pub(crate) struct Recorder {
    client: Client,
    node: String,
    told: Mutex<Told>,
}

impl Recorder {
    pub(crate) fn new(client: Client, node: String) -> Self {
        Self { client, node, told: Mutex::default() }
    }

    /// Tells that `note` happened to an object. Events about cluster-scoped objects are in `default`.
    pub(crate) async fn publish(
        &self,
        regarding: ObjectReference,
        type_: EventType,
        reason: &str,
        note: &str,
    ) -> Result<(), kube::Error> {
        let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let now = Timestamp::now();
        let subject = Subject {
            object: regarding.uid.clone().or_else(|| regarding.name.clone()).unwrap_or_default(),
            reason: reason.to_owned(),
        };
        // Unique, as those of client-go: a name and a time.
        let name = format!("{}.{:x}", regarding.name.as_deref().unwrap_or("nodelet"), now.as_nanosecond());
        let telling = self.told.lock().unwrap_or_else(PoisonError::into_inner).tell(
            &subject,
            &truncate(note.to_owned(), LONGEST_NOTE - COMBINED.len()),
            &name,
            Instant::now(),
        );
        if telling.count > 1 {
            let series = EventSeries { count: telling.count, last_observed_time: MicroTime(now) };
            let change = serde_json::json!({"note": telling.note, "series": series});
            match events.patch(&telling.name, &PatchParams::default(), &Patch::Merge(change)).await {
                // It has expired, or was deleted by hand: told anew.
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                patched => return patched.map(drop),
            }
        }
        let event = Event {
            action: Some(reason.to_owned()),
            event_time: Some(MicroTime(now)),
            metadata: ObjectMeta { name: Some(telling.name), namespace: Some(namespace), ..Default::default() },
            note: Some(telling.note),
            reason: Some(reason.to_owned()),
            regarding: Some(regarding),
            reporting_controller: Some("nodelet".to_owned()),
            reporting_instance: Some(self.node.clone()),
            type_: Some(if type_ == EventType::Normal { "Normal" } else { "Warning" }.to_owned()),
            ..Default::default()
        };
        match events.create(&PostParams::default(), &event).await {
            // It was told twice at the same time.
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            created => created.map(drop),
        }
    }
}

/// What Events are similar by.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Subject {
    object: String,
    reason: String,
}

/// What was told lately.
#[derive(Default)]
struct Told {
    subjects: HashMap<Subject, Vec<Series>>,
    swept: Option<Instant>,
}

/// One Event, as it was published.
struct Series {
    name: String,
    /// `None`: of several that are combined.
    note: Option<String>,
    count: i32,
    last: Instant,
}

/// An Event to publish: to create if this is the first time, else to bring up to date.
#[derive(Debug, PartialEq, Eq)]
struct Telling {
    name: String,
    note: String,
    count: i32,
}

impl Told {
    /// Decides by which Event `note` is told; `name` is for a new one.
    fn tell(&mut self, subject: &Subject, note: &str, name: &str, now: Instant) -> Telling {
        self.forget(now);
        let series = self.subjects.entry(subject.clone()).or_default();
        let place = match series.iter().position(|one| one.note.as_deref() == Some(note)) {
            Some(place) => place,
            None => {
                let combined = series.len() >= DIFFERENT;
                match series.iter().position(|one| combined && one.note.is_none()) {
                    Some(place) => place,
                    None => {
                        let note = (!combined).then(|| note.to_owned());
                        series.push(Series { name: name.to_owned(), note, count: 0, last: now });
                        series.len() - 1
                    }
                }
            }
        };
        let one = &mut series[place];
        one.count = one.count.saturating_add(1);
        one.last = now;
        let note = if one.note.is_some() { note.to_owned() } else { format!("{COMBINED}{note}") };
        Telling { name: one.name.clone(), note, count: one.count }
    }

    /// Forgets what did not happen for [`SPAN`]; looks for it a few times in a span, not at each Event.
    fn forget(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now - swept < SPAN / 8) {
            return;
        }
        self.swept = Some(now);
        for series in self.subjects.values_mut() {
            series.retain(|one| now - one.last < SPAN);
        }
        self.subjects.retain(|_, series| !series.is_empty());
    }
}

fn truncate(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut end = max - 3;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(reason: &str) -> Subject {
        Subject { object: "uid".to_owned(), reason: reason.to_owned() }
    }

    #[test]
    fn a_note_is_told_once_and_counted() {
        let mut told = Told::default();
        let now = Instant::now();
        let mut tell = |reason: &str, note: &str, name: &str, after: Duration| {
            let Telling { name, note, count } = told.tell(&subject(reason), note, name, now + after);
            (name, note, count)
        };
        let one = |name: &str, note: &str, count| (name.to_owned(), note.to_owned(), count);
        assert_eq!(tell("OOMKilled", "Container a ended", "1", Duration::ZERO), one("1", "Container a ended", 1));
        // Another note, or the same with another reason, is another Event.
        assert_eq!(tell("OOMKilled", "Killed process 7", "2", Duration::ZERO), one("2", "Killed process 7", 1));
        assert_eq!(tell("Error", "Container a ended", "3", Duration::ZERO), one("3", "Container a ended", 1));
        assert_eq!(tell("OOMKilled", "Container a ended", "4", SPAN / 2), one("1", "Container a ended", 2));
        // The span begins anew with each time.
        assert_eq!(tell("OOMKilled", "Container a ended", "5", SPAN * 11 / 8), one("1", "Container a ended", 3));
        assert_eq!(tell("OOMKilled", "Killed process 7", "6", SPAN * 11 / 8), one("6", "Killed process 7", 1));
        assert_eq!(tell("OOMKilled", "Container a ended", "7", SPAN * 3), one("7", "Container a ended", 1));
    }

    #[test]
    fn many_different_notes_are_combined() {
        let mut told = Told::default();
        let now = Instant::now();
        for n in 0..DIFFERENT {
            assert_eq!(told.tell(&subject("Pulling"), &format!("try {n}"), &format!("e{n}"), now).count, 1);
        }
        for n in 1..=3 {
            let telling = told.tell(&subject("Pulling"), &format!("late try {n}"), &format!("l{n}"), now);
            let note = format!("{COMBINED}late try {n}");
            assert_eq!(telling, Telling { name: "l1".to_owned(), note, count: n });
        }
        // Those that had an Event keep it.
        assert_eq!(told.tell(&subject("Pulling"), "try 4", "again", now).name, "e4");
    }

    #[test]
    fn what_is_told_of_is_forgotten() {
        let mut told = Told::default();
        let now = Instant::now();
        for n in 0..100 {
            told.tell(&subject(&format!("{n}")), "note", "name", now);
        }
        told.tell(&subject("late"), "note", "name", now + SPAN);
        assert_eq!(told.subjects.len(), 1);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(truncate("äöü".to_owned(), 6), "äöü");
        assert_eq!(truncate("äöüß".to_owned(), 6), "ä...");
    }
}
