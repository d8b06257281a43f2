//! Which kinds the server has, and by which words people call them.

use futures::future::BoxFuture;
use serde_json::Value;

use super::{Client, Error};
use crate::config::nearest;

/// One kind the server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty is the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// `Workload`
    pub kind: String,
    /// `workloads`
    pub plural: String,
    /// `workload`
    pub singular: String,
    /// `wl`
    pub short_names: Vec<String>,
    /// `nodelet`
    pub categories: Vec<String>,
    /// Lives in namespaces.
    pub namespaced: bool,
    /// What can be done: `get`, `list`, …
    pub verbs: Vec<String>,
}

impl Kind {
    /// As objects carry it: `v1`, `nodelet.dev/v1alpha1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `workload.nodelet.dev`: how an object of the kind is named in output.
    pub fn qualified(&self) -> String {
        let singular = self.kind.to_lowercase();
        if self.group.is_empty() { singular } else { format!("{singular}.{}", self.group) }
    }

    /// The path of a list or an object.
    pub fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if let (true, Some(namespace)) = (self.namespaced, namespace) {
            path.push_str(&format!("/namespaces/{}", super::percent(namespace)));
        }
        path.push_str(&format!("/{}", self.plural));
        if let Some(name) = name {
            path.push_str(&format!("/{}", super::percent(name)));
        }
        path
    }
}

/// All kinds of a server.
#[derive(Debug, Clone, Default)]
pub struct Kinds(Vec<Kind>);

impl Kinds {
    /// Asks the server.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn load(client: &Client) -> Result<Self, Error> {
        let (core, groups) = futures::try_join!(get(client, "/api/v1".to_owned()), get(client, "/apis".to_owned()))?;
        let mut kinds = resources("", "v1", &core);
        let versions: Vec<(String, String)> = groups["groups"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|group| {
                let name = group["name"].as_str()?;
                let preferred = group["preferredVersion"]["version"].as_str()?;
                Some((name.to_owned(), preferred.to_owned()))
            })
            .collect();
        let mut requests = Vec::with_capacity(versions.len());
        for (group, version) in &versions {
            requests.push(get(client, format!("/apis/{group}/{version}")));
        }
        let lists = futures::future::join_all(requests).await;
        for ((group, version), list) in versions.iter().zip(lists) {
            match list {
                Ok(list) => kinds.extend(resources(group, version, &list)),
                // One broken aggregated API of a cluster must not hide all other kinds.
                Err(error) => tracing::debug!(group, version, %error, "a group of the API does not answer"),
            }
        }
        // Ours first: `networks` means the nodelet kind even where another group has one.
        kinds.sort_by_key(|kind| (kind.group != "nodelet.dev", !kind.group.is_empty()));
        Ok(Self(kinds))
    }

    /// The kind of an object.
    ///
    /// # Errors
    /// [`Error::UnknownKind`]
    pub fn of(&self, api_version: &str, kind: &str) -> Result<&Kind, Error> {
        self.0.iter().find(|known| known.kind == kind && known.api_version() == api_version).ok_or_else(|| {
            let same_name = self.0.iter().find(|known| known.kind == kind);
            let same_version: Vec<&str> = self
                .0
                .iter()
                .filter(|known| known.api_version() == api_version)
                .map(|known| known.kind.as_str())
                .collect();
            Error::UnknownKind(match (same_name, nearest(kind, &same_version)) {
                (Some(known), _) => {
                    format!("no kind {kind} in apiVersion {api_version:?}; it is in {:?}", known.api_version())
                }
                (None, Some(near)) => format!("no kind {kind} in apiVersion {api_version:?}; did you mean {near}?"),
                (None, None) if same_version.is_empty() => format!("no apiVersion {api_version:?} here (kind {kind})"),
                (None, None) => {
                    format!("no kind {kind} in apiVersion {api_version:?}; it has {}", same_version.join(", "))
                }
            })
        })
    }

    /// The kind that `word` names: plural, singular, kind, short name, or `plural.group`.
    ///
    /// # Errors
    /// [`Error::UnknownKind`]
    pub fn named(&self, word: &str) -> Result<&Kind, Error> {
        let lower = word.to_lowercase();
        let (name, group) = match lower.split_once('.') {
            Some((name, group)) => (name, Some(group)),
            None => (lower.as_str(), None),
        };
        let fits = |kind: &&Kind| {
            let named = kind.plural == name
                || kind.singular == name
                || kind.kind.to_lowercase() == name
                || kind.short_names.iter().any(|short| short == name);
            named
                && group.is_none_or(|group| kind.group == group || format!("{}.{}", kind.version, kind.group) == group)
        };
        self.0.iter().find(fits).ok_or_else(|| {
            let words: Vec<&str> = self.0.iter().map(|kind| kind.plural.as_str()).collect();
            Error::UnknownKind(match nearest(name, &words) {
                Some(near) => format!("the server has no kind {word:?}; did you mean {near}?"),
                None => format!("the server has no kind {word:?}; it has {}", words.join(", ")),
            })
        })
    }

    /// The kinds that `words` (`wl,net`, a category, `all`) name.
    ///
    /// # Errors
    /// [`Error::UnknownKind`]
    pub fn many(&self, words: &str) -> Result<Vec<&Kind>, Error> {
        let mut found: Vec<&Kind> = Vec::new();
        for word in words.split(',') {
            let category: Vec<&Kind> =
                self.0.iter().filter(|kind| kind.categories.iter().any(|category| category == word)).collect();
            let named = if category.is_empty() { vec![self.named(word)?] } else { category };
            for kind in named {
                if !found.contains(&kind) {
                    found.push(kind);
                }
            }
        }
        Ok(found)
    }
}

fn get(client: &Client, path: String) -> BoxFuture<'_, Result<Value, Error>> {
    Box::pin(async move { client.send(http::Method::GET, &path, &[], Value::Null).await })
}

fn resources(group: &str, version: &str, list: &Value) -> Vec<Kind> {
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    list["resources"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|resource| {
            let plural = resource["name"].as_str().filter(|name| !name.contains('/'))?.to_owned();
            let kind = resource["kind"].as_str()?.to_owned();
            let singular = resource["singularName"].as_str().filter(|name| !name.is_empty()).map(str::to_owned);
            Some(Kind {
                group: group.to_owned(),
                version: version.to_owned(),
                singular: singular.unwrap_or_else(|| kind.to_lowercase()),
                kind,
                plural,
                short_names: strings(&resource["shortNames"]),
                categories: strings(&resource["categories"]),
                namespaced: resource["namespaced"].as_bool().unwrap_or_default(),
                verbs: strings(&resource["verbs"]),
            })
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// The kinds of the embedded API that tests elsewhere need.
    pub(crate) fn sample() -> Kinds {
        let core = json!({"resources": [
            {"name": "configmaps", "singularName": "configmap", "kind": "ConfigMap", "namespaced": true, "shortNames": ["cm"]},
            {"name": "namespaces", "singularName": "namespace", "kind": "Namespace", "namespaced": false, "shortNames": ["ns"]},
        ]});
        let ours = json!({"resources": [
            {"name": "workloads", "singularName": "workload", "kind": "Workload", "namespaced": true, "shortNames": ["wl"], "categories": ["nodelet"]},
            {"name": "workloads/status", "kind": "Workload", "namespaced": true},
            {"name": "networks", "singularName": "", "kind": "Network", "namespaced": true, "shortNames": ["net"], "categories": ["nodelet"]},
        ]});
        let mut kinds = resources("nodelet.dev", "v1alpha1", &ours);
        kinds.extend(resources("", "v1", &core));
        Kinds(kinds)
    }

    #[test]
    fn words_name_kinds() {
        let kinds = sample();
        for (word, kind) in [
            ("wl", "Workload"),
            ("Workload", "Workload"),
            ("workloads.nodelet.dev", "Workload"),
            ("workloads.v1alpha1.nodelet.dev", "Workload"),
            ("network", "Network"),
            ("cm", "ConfigMap"),
        ] {
            assert_eq!(kinds.named(word).map(|k| k.kind.as_str()).ok(), Some(kind), "{word}");
        }
        let message = |word| kinds.named(word).expect_err("unknown").to_string();
        assert_eq!(
            message("workload.example.com"),
            "the server has no kind \"workload.example.com\"; did you mean workloads?"
        );
        assert_eq!(
            message("zzz"),
            "the server has no kind \"zzz\"; it has workloads, networks, configmaps, namespaces"
        );
        let many: Vec<&str> = kinds.many("nodelet,ns").expect("known").iter().map(|k| k.kind.as_str()).collect();
        assert_eq!(many, ["Workload", "Network", "Namespace"]);
    }

    #[test]
    fn unknown_kinds_of_objects_suggest() {
        let kinds = sample();
        let message = |version, kind| kinds.of(version, kind).expect_err("unknown").to_string();
        assert_eq!(
            message("nodelet.dev/v1alpha1", "Workloadd"),
            "no kind Workloadd in apiVersion \"nodelet.dev/v1alpha1\"; did you mean Workload?"
        );
        assert_eq!(
            message("v1", "Workload"),
            "no kind Workload in apiVersion \"v1\"; it is in \"nodelet.dev/v1alpha1\""
        );
        assert_eq!(message("apps/v1", "Deployment"), "no apiVersion \"apps/v1\" here (kind Deployment)");
    }

    #[test]
    fn paths() {
        let kinds = sample();
        let workload = kinds.named("wl").expect("known");
        assert_eq!(workload.path(Some("a"), Some("b")), "/apis/nodelet.dev/v1alpha1/namespaces/a/workloads/b");
        assert_eq!(workload.path(None, None), "/apis/nodelet.dev/v1alpha1/workloads");
        let namespace = kinds.named("ns").expect("known");
        assert_eq!(namespace.path(Some("ignored"), Some("b")), "/api/v1/namespaces/b");
    }
}
