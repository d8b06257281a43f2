//! From a workload's volumes to what its containers mount.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kube::ResourceExt;
use nodelet_crds::common::{condition_type, find_condition};
use nodelet_crds::reasons;
use nodelet_crds::volume::{PopulateFrom, VolumePhase, VolumeSpec};
use nodelet_crds::workload::volume_source::{DownwardApiVolumeFile, KeyProjection, ProjectedVolumeSource};
use nodelet_crds::workload::{
    EmptyDirMedium, EmptyDirVolumeSource, KeyToPath, OnChange, VolumeReference, VolumeSource, Workload,
};
use nodelet_drivers::volumes::{Ephemeral, FileContent};

use super::dereference::References;
use super::desired::Place;
use super::desired::image_wish;
use super::env::{field, missing, resource};
use super::files::fingerprint;
use super::model::{About, Fill, VolumeWish, Wait};
use crate::invalid::Invalid;
use crate::names::short_hash;

/// All volumes of a workload.
#[derive(Debug, Default)]
pub struct Volumes {
    /// What can be mounted.
    pub wishes: BTreeMap<String, VolumeWish>,
    /// What cannot yet; there is a [`Wait`] for each.
    pub waiting: BTreeSet<String>,
    /// Volumes whose access mode allows reading only.
    pub read_only: BTreeSet<String>,
    /// For `onChange: Signal`: a hash of the content, by volume.
    pub signal_on: BTreeMap<String, String>,
    /// For `onChange: Restart`: a hash of the content, by volume.
    pub restart_on: BTreeMap<String, String>,
}

/// Resolves the volumes; what is missing is added to `waits`.
pub fn volumes(
    object: &Workload,
    references: &References,
    place: &Place,
    waits: &mut Vec<Wait>,
) -> Result<Volumes, Invalid> {
    let group = object.spec.security_context.as_ref().and_then(|context| context.fs_group);
    let mut volumes = Volumes::default();
    for (index, volume) in object.spec.volumes.iter().enumerate() {
        let path = format!("spec.volumes[{index}]");
        let name = volume.name.clone();
        let before = waits.len();
        let wish = match volume.source() {
            Some(VolumeSource::Volume(reference)) => {
                let wish = volume_object(reference, &path, references, waits);
                if let Some((_, true)) = wish {
                    volumes.read_only.insert(name.clone());
                }
                wish.map(|(wish, _)| wish)
            }
            Some(VolumeSource::EmptyDir(source)) => Some(VolumeWish::Ephemeral(empty_dir(source, &path)?)),
            Some(VolumeSource::HostPath(source)) => {
                Some(VolumeWish::HostPath(PathBuf::from(&source.path), super::host_path_type(source.type_)))
            }
            Some(VolumeSource::ConfigMap(source)) => {
                let content = config_map(references, &source.name);
                let optional = source.optional == Some(true);
                let spec = Files {
                    kind: "ConfigMap",
                    name: &source.name,
                    items: &source.items,
                    mode: source.default_mode.map_or(0o644, u32::from),
                    optional,
                };
                files(&spec, content, false, group, waits).map(|f| changing(&mut volumes, &name, f, source.on_change))
            }
            Some(VolumeSource::Secret(source)) => {
                let content = secret(references, &source.secret_name);
                let optional = source.optional == Some(true);
                let spec = Files {
                    kind: "Secret",
                    name: &source.secret_name,
                    items: &source.items,
                    mode: source.default_mode.map_or(0o644, u32::from),
                    optional,
                };
                files(&spec, content, true, group, waits).map(|f| changing(&mut volumes, &name, f, source.on_change))
            }
            Some(VolumeSource::DownwardApi(source)) => {
                let mode = source.default_mode.map_or(0o644, u32::from);
                let mut files = BTreeMap::new();
                fields(object, &source.items, mode, place, &format!("{path}.downwardAPI"), &mut files)?;
                Some(VolumeWish::Ephemeral(Ephemeral::Files { files, in_memory: false, gid: group }))
            }
            Some(VolumeSource::Projected(source)) => {
                projected(object, source, references, place, &format!("{path}.projected"), group, waits)?
                    .map(VolumeWish::Ephemeral)
            }
            Some(VolumeSource::Image(source)) => {
                volumes.read_only.insert(name.clone());
                let path = format!("{path}.image.reference");
                Some(VolumeWish::Image(image_wish(&path, &source.reference, source.pull_policy)?))
            }
            None => return Err(Invalid::field(path, "exactly one source is needed")),
        };
        if matches!(wish, Some(VolumeWish::Ephemeral(Ephemeral::Files { .. }))) {
            // As in Kubernetes: what is written there would be gone with the next update.
            volumes.read_only.insert(name.clone());
        }
        match wish {
            Some(wish) => {
                volumes.wishes.insert(name, wish);
            }
            None => {
                debug_assert!(waits.len() > before, "a missing volume is waited for");
                volumes.waiting.insert(name);
            }
        }
    }
    Ok(volumes)
}

fn changing(volumes: &mut Volumes, name: &str, files: Ephemeral, on_change: OnChange) -> VolumeWish {
    let all = match on_change {
        OnChange::Update => None,
        OnChange::Restart => Some(&mut volumes.restart_on),
        OnChange::Signal => Some(&mut volumes.signal_on),
    };
    if let Some(all) = all {
        let print = fingerprint(&files);
        all.insert(name.to_owned(), short_hash(&format!("{print:?}"), 16));
    }
    VolumeWish::Ephemeral(files)
}

/// The path of a Volume object with what it is filled with, and whether it may be mounted for reading only.
fn volume_object(
    reference: &VolumeReference,
    path: &str,
    references: &References,
    waits: &mut Vec<Wait>,
) -> Option<(VolumeWish, bool)> {
    let name = &reference.name;
    let mut wait = |reason, message: String| {
        waits.push(Wait { reason, message: format!("{path}: {message}"), about: About::Volumes });
        None
    };
    let Some(volume) = references.volumes.get(name).and_then(Option::as_ref) else {
        return wait(reasons::NOT_FOUND, format!("Volume {name:?} does not exist in this namespace"));
    };
    if let Some(holder) = references.holders.get(name) {
        return wait(
            reasons::VOLUME_IN_USE,
            format!("Volume {name:?} is ReadWriteOnce and used by Workload {holder:?}"),
        );
    }
    let status = volume.status.clone().unwrap_or_default();
    let ready = matches!(status.phase, Some(VolumePhase::Ready | VolumePhase::InUse));
    match status.path {
        Some(path) if ready => {
            let wish = VolumeWish::Path { path: PathBuf::from(path), fill: fill(&volume.spec) };
            Some((wish, super::desired::is_read_only(volume.spec.access_mode)))
        }
        _ => {
            let why = find_condition(&status.conditions, condition_type::READY).map_or("", |c| c.message.as_str());
            let message = format!("Volume {name:?} is not ready: {why}");
            wait(reasons::VOLUMES_PENDING, message.trim_end_matches(": ").to_owned())
        }
    }
}

fn fill(spec: &VolumeSpec) -> Fill {
    match (spec.populate_from, &spec.owner) {
        (PopulateFrom::None, _) => Fill::Nothing,
        (PopulateFrom::Image, Some(_)) => Fill::Content,
        (PopulateFrom::Image, None) => Fill::ContentAndOwner,
    }
}

fn empty_dir(source: &EmptyDirVolumeSource, path: &str) -> Result<Ephemeral, Invalid> {
    let limit = source.size_limit.as_ref().map(|q| q.bytes()).transpose();
    let size_limit = limit.map_err(|error| Invalid::field(format!("{path}.emptyDir.sizeLimit"), error))?;
    Ok(match source.medium {
        EmptyDirMedium::Disk => Ephemeral::Disk { size_limit },
        EmptyDirMedium::Memory => Ephemeral::Memory { size_limit },
    })
}

type Content = BTreeMap<String, Vec<u8>>;

fn config_map(references: &References, name: &str) -> Option<Content> {
    let map = references.config_maps.get(name)?.as_ref()?;
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    Some(text.chain(binary).collect())
}

fn secret(references: &References, name: &str) -> Option<Content> {
    let secret = references.secrets.get(name)?.as_ref()?;
    Some(secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect())
}

/// What the workload says about a volume of files.
struct Files<'a> {
    kind: &'static str,
    name: &'a str,
    items: &'a [KeyToPath],
    mode: u32,
    optional: bool,
}

fn files(
    spec: &Files<'_>,
    content: Option<Content>,
    in_memory: bool,
    gid: Option<u32>,
    waits: &mut Vec<Wait>,
) -> Option<Ephemeral> {
    let content = match content {
        Some(content) => content,
        None if spec.optional => Content::new(),
        None => {
            waits.push(missing(spec.kind, spec.name, None));
            return None;
        }
    };
    let mut files = BTreeMap::new();
    if spec.items.is_empty() {
        files.extend(content.into_iter().map(|(key, data)| (key, FileContent { data, mode: spec.mode })));
    } else {
        for item in spec.items {
            match content.get(&item.key) {
                Some(data) => {
                    let mode = item.mode.map_or(spec.mode, u32::from);
                    files.insert(item.path.clone(), FileContent { data: data.clone(), mode });
                }
                None if spec.optional => {}
                None => {
                    waits.push(missing(spec.kind, spec.name, Some(&item.key)));
                    return None;
                }
            }
        }
    }
    Some(Ephemeral::Files { files, in_memory, gid })
}

/// Adds a file for each field of the object, and each amount of a container's resources, that is named.
fn fields(
    object: &Workload,
    items: &[DownwardApiVolumeFile],
    mode: u32,
    place: &Place,
    path: &str,
    files: &mut BTreeMap<String, FileContent>,
) -> Result<(), Invalid> {
    for (index, item) in items.iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(selector), _) => match selector.field_path.as_str() {
                "metadata.labels" => pairs(object.labels()),
                "metadata.annotations" => pairs(object.annotations()),
                other => field(object, other, &place.node).ok_or_else(|| {
                    let message = format!("{other:?} is not a field that can be shown");
                    Invalid::field(format!("{path}.fieldRef.fieldPath"), message)
                })?,
            },
            (None, Some(selector)) => {
                resource(object, None, selector, &format!("{path}.resourceFieldRef"), place.capacity)?
            }
            (None, None) => continue,
        };
        let mode = item.mode.map_or(mode, u32::from);
        files.insert(item.path.clone(), FileContent { data: text.into_bytes(), mode });
    }
    Ok(())
}

/// Labels or annotations as the downward API writes them: `key="value"`, a line each, sorted.
fn pairs(of: &BTreeMap<String, String>) -> String {
    of.iter().map(|(key, value)| format!("{key}={value:?}\n")).collect()
}

/// Several sources in one directory; a later one wins a path. Secrets among them put it all into memory.
fn projected(
    object: &Workload,
    source: &ProjectedVolumeSource,
    references: &References,
    place: &Place,
    path: &str,
    gid: Option<u32>,
    waits: &mut Vec<Wait>,
) -> Result<Option<Ephemeral>, Invalid> {
    let mode = source.default_mode.map_or(0o644, u32::from);
    let mut all = BTreeMap::new();
    let mut in_memory = false;
    let mut complete = true;
    for (index, part) in source.sources.iter().enumerate() {
        let mut from = |kind, projection: &KeyProjection, content, secret| {
            let optional = projection.optional == Some(true);
            let spec = Files { kind, name: &projection.name, items: &projection.items, mode, optional };
            match files(&spec, content, secret, gid, waits) {
                Some(Ephemeral::Files { files, .. }) => all.extend(files),
                _ => complete = false,
            }
        };
        if let Some(projection) = &part.config_map {
            from("ConfigMap", projection, config_map(references, &projection.name), false);
        }
        if let Some(projection) = &part.secret {
            in_memory = true;
            from("Secret", projection, secret(references, &projection.name), true);
        }
        if let Some(projection) = &part.downward_api {
            let path = format!("{path}.sources[{index}].downwardAPI");
            fields(object, &projection.items, mode, place, &path, &mut all)?;
        }
    }
    Ok(complete.then_some(Ephemeral::Files { files: all, in_memory, gid }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(volumes: serde_json::Value) -> Workload {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "nodelet.dev/v1alpha1", "kind": "Workload",
            "metadata": {"name": "web", "namespace": "shop", "labels": {"b": "2", "a": "x\"y"}},
            "spec": {"containers": [{"name": "app", "image": "i", "resources": {"limits": {"memory": "64Mi"}}}], "volumes": volumes},
        }))
        .unwrap()
    }

    fn references() -> References {
        let map = serde_json::json!({"data": {"k": "v", "l": "w"}});
        let secret = serde_json::json!({"data": {"p": "cHc="}});
        References {
            config_maps: BTreeMap::from([("c".to_owned(), serde_json::from_value(map).unwrap())]),
            secrets: BTreeMap::from([("s".to_owned(), serde_json::from_value(secret).unwrap())]),
            ..References::default()
        }
    }

    fn place() -> Place {
        Place {
            node: "edge".to_owned(),
            cgroups: nodelet_drivers::ids::CgroupPath::new("/nodelet").unwrap(),
            data_dir: "/var/lib/nodelet".into(),
            capacity: (4, 1 << 30),
            backoff: Default::default(),
        }
    }

    fn only(volumes: serde_json::Value) -> (Option<Ephemeral>, Vec<Wait>) {
        let mut waits = Vec::new();
        let mut made = super::volumes(&workload(volumes), &references(), &place(), &mut waits).unwrap();
        let wish = made.wishes.remove("v").map(|wish| match wish {
            VolumeWish::Ephemeral(kind) => kind,
            other => panic!("{other:?}"),
        });
        (wish, waits)
    }

    #[test]
    fn a_projection_joins_its_sources_and_keeps_secrets_in_memory() {
        let (files, waits) = only(serde_json::json!([{"name": "v", "projected": {"sources": [
            {"configMap": {"name": "c", "items": [{"key": "k", "path": "d/k", "mode": 0o400}]}},
            {"secret": {"name": "s"}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"downwardAPI": {"items": [
                {"path": "mem", "resourceFieldRef": {"containerName": "app", "resource": "limits.memory", "divisor": "1Mi"}},
                {"path": "cpu", "mode": 0o400, "resourceFieldRef": {"containerName": "app", "resource": "limits.cpu"}},
            ]}},
        ]}}]));
        let file = |data: &[u8], mode| FileContent { data: data.to_vec(), mode };
        let expected = BTreeMap::from([
            ("d/k".to_owned(), file(b"v", 0o400)),
            ("p".to_owned(), file(b"pw", 0o644)),
            ("labels".to_owned(), file(b"a=\"x\\\"y\"\nb=\"2\"\n", 0o644)),
            ("mem".to_owned(), file(b"64", 0o644)),
            ("cpu".to_owned(), file(b"4", 0o400)),
        ]);
        assert!(files == Some(Ephemeral::Files { files: expected, in_memory: true, gid: None }));
        assert_eq!(waits, []);
    }

    #[test]
    fn amounts_in_files_name_their_container() {
        for (container, message) in [(serde_json::Value::Null, "is needed"), ("none".into(), "there is no container")] {
            let reference = serde_json::json!({"containerName": container, "resource": "limits.cpu"});
            let object = workload(serde_json::json!([{"name": "v", "downwardAPI": {"items": [
                {"path": "cpu", "resourceFieldRef": reference}]}}]));
            let error = super::volumes(&object, &references(), &place(), &mut Vec::new()).unwrap_err();
            let path = "spec.volumes[0].downwardAPI.items[0].resourceFieldRef.containerName";
            assert!(error.message.contains(path) && error.message.contains(message), "{}", error.message);
        }
    }

    #[test]
    fn what_is_missing_is_waited_for_unless_optional() {
        let missing = |optional: bool| {
            only(serde_json::json!([{"name": "v", "secret": {"secretName": "none", "optional": optional}}]))
        };
        let (files, waits) = missing(false);
        assert!(files.is_none());
        assert!(waits[0].message.contains("Secret \"none\" does not exist"), "{}", waits[0].message);
        let (files, waits) = missing(true);
        assert!(files.is_some() && waits.is_empty());
    }
}
