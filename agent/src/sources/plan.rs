//! What a source has to apply and delete, decided from what it held before and what it holds now. Pure.
//!
//! The rule: an object is deleted only when its absence was really seen. A file that cannot be read keeps what came
//! from it; a directory that is missing, unreadable or has no manifest file at all keeps everything. Whoever wants an
//! empty directory to mean "delete everything" leaves one manifest file with nothing but a comment in it.

use std::collections::{BTreeMap, BTreeSet};

use super::inventory::Inventory;
use super::scan::{FileContent, Scan};
use crate::manifest::{Fault, Object, ObjectKey, rank};

/// Everything to do after one look at a source.
#[derive(Debug, Default, PartialEq)]
pub struct SyncPlan {
    /// To be applied, in this order.
    pub apply: Vec<Object>,
    /// To be deleted, in this order: the reverse of the order of application.
    pub delete: Vec<ObjectKey>,
    /// Kept although they are not there now, and why.
    pub keep: Vec<Kept>,
    /// What came from which file, once this plan is carried out.
    pub inventory: Inventory,
    /// What is wrong in the files.
    pub faults: Vec<Fault>,
}

/// An object that stays although the source does not show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Which one.
    pub key: ObjectKey,
    /// Why.
    pub reason: String,
}

/// Compares `inventory`, what came from the source until now, with `scan`, what it shows.
pub fn plan_sync(inventory: &Inventory, scan: &Scan) -> SyncPlan {
    let files = match scan {
        Scan::Unusable { reason } => return keep_all(inventory, reason),
        Scan::Files(files) if files.is_empty() && !inventory.is_empty() => {
            let reason = "the directory is suddenly empty of manifest files; to delete everything that came from it, put a \
                          file with a comment there";
            return keep_all(inventory, reason);
        }
        Scan::Files(files) => files,
    };

    let mut plan = SyncPlan::default();
    let mut holders: BTreeMap<ObjectKey, String> = BTreeMap::new();
    // Files whose former objects are not surely gone, with the reason.
    let mut doubtful: BTreeMap<&str, &str> = BTreeMap::new();
    for (file, content) in files {
        let manifest = match content {
            FileContent::Unreadable { fault } => {
                plan.faults.push(fault.clone());
                doubtful.insert(file, "its file cannot be read");
                continue;
            }
            FileContent::Manifest(manifest) => manifest,
        };
        plan.faults.extend(manifest.faults.iter().cloned());
        if manifest.incomplete {
            doubtful.insert(file, "its file has faults");
        }
        for object in &manifest.objects {
            if let Some(first) = holders.get(&object.key) {
                let message = format!("is already declared in {first}; one of them must go");
                plan.faults.push(object.fault("metadata.name", message));
                continue;
            }
            holders.insert(object.key.clone(), file.clone());
            plan.apply.push(object.clone());
        }
    }
    plan.apply.sort_by_key(|object| rank(&object.key.kind));

    let mut gone = BTreeSet::new();
    for (key, file) in inventory.objects() {
        if holders.keys().any(|held| held.is_same(key)) {
            continue;
        }
        match doubtful.get(file) {
            Some(reason) => {
                plan.keep.push(Kept { key: key.clone(), reason: format!("{reason}: {file}") });
                holders.insert(key.clone(), file.to_owned());
            }
            None => {
                gone.insert(key.clone());
            }
        }
    }
    plan.delete = gone.into_iter().collect();
    plan.delete.sort_by_key(|key| std::cmp::Reverse(rank(&key.kind)));
    plan.inventory = Inventory::from_objects(holders);
    plan
}

fn keep_all(inventory: &Inventory, reason: &str) -> SyncPlan {
    let keep = inventory.objects().map(|(key, _)| Kept { key: key.clone(), reason: reason.to_owned() }).collect();
    SyncPlan { keep, inventory: inventory.clone(), ..SyncPlan::default() }
}

#[cfg(test)]
mod tests;
