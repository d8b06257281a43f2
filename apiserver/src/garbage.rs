//! What happens to objects by itself: dependents follow their owners, namespaces empty, Events expire.
//!
//! One thread hears of every committed change, in order, and acts by ordinary writes. It starts with a pass over
//! everything, so what was under way when the process ended goes on.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::registry::{Class, View};
use crate::server::Inner;
use crate::store::{Change, ChangeKind, Key, Stored, WriteError};
use crate::verbs::delete::{FOREGROUND, ORPHAN, mark};
use crate::verbs::update::{is_released, replacement};

/// Events kept at most; a flood of them must not fill the disk.
const MAX_EVENTS: usize = 10_000;
/// How often Events are looked at.
const EXPIRY_ROUND: Duration = Duration::from_secs(30);

/// Runs until the server is gone.
pub(crate) fn run(inner: &Weak<Inner>, changes: &Receiver<(usize, Arc<Change>)>) {
    let mut events = Events::default();
    if let Some(inner) = inner.upgrade() {
        for resource in inner.registry.all().iter().filter(|r| r.view == View::Stored) {
            let objects = inner.store.read().list(resource.table, None);
            for object in objects {
                events.note(&inner, resource.table, &object.key);
                settle(&inner, resource.table, &object);
            }
        }
    }
    let mut next_round = Instant::now() + EXPIRY_ROUND;
    loop {
        let wait = next_round.saturating_duration_since(Instant::now());
        let received = changes.recv_timeout(wait);
        let Some(inner) = inner.upgrade() else { return };
        match received {
            Ok((table, change)) => {
                if change.kind == ChangeKind::Deleted {
                    events.forget(&inner, table, &change.object.key);
                    owner_gone(&inner, &change.object.uid);
                    content_gone(&inner, &change.object.key);
                } else {
                    events.note(&inner, table, &change.object.key);
                    settle(&inner, table, &change.object);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                events.expire(&inner);
                next_round = Instant::now() + EXPIRY_ROUND;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// When each Event was last heard of. Wall clocks jump; these do not, and after a restart the time starts anew.
#[derive(Default)]
struct Events(HashMap<Key, Instant>);

impl Events {
    fn note(&mut self, inner: &Inner, table: usize, key: &Key) {
        if inner.registry.get(table).class != Class::Event {
            return;
        }
        self.0.insert(key.clone(), Instant::now());
        if self.0.len() > MAX_EVENTS {
            let mut by_age: Vec<(Instant, Key)> = self.0.iter().map(|(key, heard)| (*heard, key.clone())).collect();
            by_age.sort();
            for (_, key) in by_age.into_iter().take(MAX_EVENTS / 10) {
                self.0.remove(&key);
                delete(inner, table, &key, None);
            }
        }
    }

    fn forget(&mut self, inner: &Inner, table: usize, key: &Key) {
        if inner.registry.get(table).class == Class::Event {
            self.0.remove(key);
        }
    }

    fn expire(&mut self, inner: &Inner) {
        let table = inner.registry.class(Class::Event).table;
        let ttl = inner.options.event_ttl;
        let old: Vec<Key> = self.0.iter().filter(|(_, heard)| heard.elapsed() >= ttl).map(|(k, _)| k.clone()).collect();
        for key in old {
            delete(inner, table, &key, None);
        }
    }
}

/// Does what the state of an object asks for.
fn settle(inner: &Inner, table: usize, object: &Stored) {
    // A later version speaks for itself when its change arrives.
    let current = inner.store.get(table, &object.key);
    let Some(object) = current.filter(|current| current.rv == object.rv) else { return };
    if object.deleting {
        if inner.registry.get(table).class == Class::Namespace {
            empty(inner, &object.key.name);
        } else {
            let finalizers = object.finalizers();
            if finalizers.iter().any(|f| f == ORPHAN) {
                orphan_dependents(inner, &object.uid);
                release(inner, table, &object.key, ORPHAN);
            } else if finalizers.iter().any(|f| f == FOREGROUND) {
                foreground(inner, table, &object);
            }
        }
    } else if !object.owners.is_empty() {
        collect_if_ownerless(inner, table, &object);
    }
}

/// Deletes an object as a user would; conflicts are tried again, other failures are left to the next change or start.
fn delete(inner: &Inner, table: usize, key: &Key, finalizer: Option<&str>) {
    change(inner, table, key, |object| Some(mark(inner.registry.get(table), object, finalizer)));
}

/// Changes an object until it succeeds. `edit` says whether the object is to be removed, or `None` for no change.
fn change(inner: &Inner, table: usize, key: &Key, edit: impl Fn(&mut Value) -> Option<bool>) {
    let resource = inner.registry.get(table);
    loop {
        let Some(stored) = inner.store.get(table, key) else { return };
        let mut object = stored.value();
        let Some(remove) = edit(&mut object) else { return };
        if !remove && object == stored.value() {
            return;
        }
        match inner.store.write_blocking(replacement(resource, key, stored.rv, object, remove)) {
            Err(WriteError::Changed) => {}
            Err(WriteError::Missing) | Ok(_) => return,
            Err(error) => {
                tracing::warn!(?resource, namespace = %key.namespace, name = %key.name, %error, "garbage collection");
                return;
            }
        }
    }
}

/// Removes a finalizer, and with the last one the object.
fn release(inner: &Inner, table: usize, key: &Key, finalizer: &str) {
    let resource = inner.registry.get(table);
    change(inner, table, key, |object| {
        let list = object["metadata"]["finalizers"].as_array_mut()?;
        list.retain(|f| f != finalizer);
        if list.is_empty()
            && let Some(metadata) = object["metadata"].as_object_mut()
        {
            metadata.remove("finalizers");
        }
        Some(is_released(resource, object))
    });
}

fn owner_gone(inner: &Inner, uid: &str) {
    let dependents = inner.store.read().dependents(uid);
    for (table, key) in dependents {
        if let Some(dependent) = inner.store.get(table, &key) {
            collect_if_ownerless(inner, table, &dependent);
        }
    }
    wake_foreground(inner);
}

/// Deletes an object all of whose owners are gone; of several owners, those that are gone are struck out. Owners of
/// kinds that are not served here are never taken for gone.
fn collect_if_ownerless(inner: &Inner, table: usize, object: &Stored) {
    if object.owners.iter().all(|uid| inner.store.read().by_uid(uid).is_some()) {
        return;
    }
    let value = object.value();
    let owners = value["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
    let is_gone = |owner: &Value| {
        let text = |field: &str| owner[field].as_str().unwrap_or_default();
        inner.registry.find_kind(text("apiVersion"), text("kind")).is_some()
            && inner.store.read().by_uid(text("uid")).is_none()
    };
    let gone: Vec<String> = owners
        .iter()
        .filter(|owner| is_gone(owner))
        .map(|owner| owner["uid"].as_str().unwrap_or_default().to_owned())
        .collect();
    if gone.is_empty() {
        return;
    }
    if gone.len() == owners.len() {
        delete(inner, table, &object.key, None);
    } else {
        strike_owners(inner, table, &object.key, &gone);
    }
}

fn strike_owners(inner: &Inner, table: usize, key: &Key, gone: &[String]) {
    change(inner, table, key, |object| {
        let owners = object["metadata"]["ownerReferences"].as_array_mut()?;
        owners.retain(|owner| !gone.iter().any(|uid| owner["uid"] == *uid.as_str()));
        if owners.is_empty()
            && let Some(metadata) = object["metadata"].as_object_mut()
        {
            metadata.remove("ownerReferences");
        }
        Some(false)
    });
}

fn orphan_dependents(inner: &Inner, uid: &str) {
    let dependents = inner.store.read().dependents(uid);
    for (table, key) in dependents {
        strike_owners(inner, table, &key, &[uid.to_owned()]);
    }
}

/// Deletes the dependents of an object, and lets go of it when those that block it are gone.
fn foreground(inner: &Inner, table: usize, owner: &Stored) {
    let dependents = inner.store.read().dependents(&owner.uid);
    let mut blocked = false;
    for (table, key) in dependents {
        let Some(dependent) = inner.store.get(table, &key) else { continue };
        let value = dependent.value();
        let references = value["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        let others_live = references.iter().any(|reference| {
            let uid = reference["uid"].as_str().unwrap_or_default();
            uid != &*owner.uid && inner.store.read().by_uid(uid).is_some()
        });
        if others_live {
            strike_owners(inner, table, &key, &[owner.uid.to_string()]);
            continue;
        }
        blocked |= references.iter().any(|r| r["uid"] == *owner.uid && r["blockOwnerDeletion"] == true);
        if !dependent.deleting {
            delete(inner, table, &key, Some(FOREGROUND));
        }
    }
    let left = inner.store.read().dependents(&owner.uid);
    let waits = blocked
        && left.iter().any(|(table, key)| {
            inner.store.get(*table, key).is_some_and(|dependent| {
                dependent.value()["metadata"]["ownerReferences"]
                    .as_array()
                    .is_some_and(|list| list.iter().any(|r| r["uid"] == *owner.uid && r["blockOwnerDeletion"] == true))
            })
        });
    if !waits {
        release(inner, table, &owner.key, FOREGROUND);
    }
}

/// After a dependent is gone, its owners may have waited for just that.
fn wake_foreground(inner: &Inner) {
    let waiting: Vec<(usize, Arc<Stored>)> = {
        let state = inner.store.read();
        inner
            .registry
            .all()
            .iter()
            .filter(|r| r.view == View::Stored)
            .flat_map(|r| state.deleting(r.table).into_iter().map(|o| (r.table, o)))
            .collect()
    };
    for (table, object) in waiting {
        if inner.registry.get(table).class != Class::Namespace {
            settle(inner, table, &object);
        }
    }
}

/// Deletes everything in a namespace that is being deleted, and the namespace once it is empty.
fn empty(inner: &Inner, namespace: &str) {
    let mut left = 0;
    for resource in inner.registry.all().iter().filter(|r| r.view == View::Stored && r.namespaced) {
        let objects = inner.store.read().list(resource.table, Some(namespace));
        for object in objects {
            if !object.deleting {
                delete(inner, resource.table, &object.key, None);
            }
        }
        left += inner.store.read().list(resource.table, Some(namespace)).len();
    }
    if left > 0 {
        return;
    }
    let namespaces = inner.registry.class(Class::Namespace);
    change(inner, namespaces.table, &Key::new("", namespace), |object| {
        object["spec"]["finalizers"] = json!([]);
        Some(is_released(namespaces, object))
    });
}

/// After an object is gone, its namespace may have waited for just that.
fn content_gone(inner: &Inner, key: &Key) {
    if key.namespace.is_empty() {
        return;
    }
    let namespaces = inner.registry.class(Class::Namespace).table;
    let namespace = inner.store.get(namespaces, &Key::new("", &key.namespace));
    if namespace.is_some_and(|namespace| namespace.deleting) {
        empty(inner, &key.namespace);
    }
}
