//! `nodelet images`: everything on the nodes, by whatever it came, and who needs it.
//!
//! NodeState has what Image objects want and how far that is. The rest only the nodes know: they are asked what they
//! would remove and what not, and nothing is removed.

use http::Method;
use nodelet_drivers::images::normalize;
use serde_json::{Map, Value, json};

use crate::cli::Outcome;
use crate::cli::node_lists::{NodeListArgs, show, size, text};
use crate::cli::session::Session;

/// Images of a namespace's objects, and those of no object.
pub(crate) async fn list(args: &NodeListArgs, session: &Session) -> anyhow::Result<Outcome> {
    let kind = session.kinds.named("nodestates.nodelet.dev")?;
    let nodes = session.client.list(kind, None, &[]).await?;
    let mut found = Vec::new();
    for node in nodes["items"].as_array().into_iter().flatten() {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("{}/prune", kind.path(None, Some(name)));
        let held = match session.client.send(Method::POST, &path, &[("dryRun", "All")], Value::Null).await {
            Ok(answer) => held(&answer),
            Err(error) => {
                session.output.note(&format!("{name} says only what Images want: {error}"));
                Vec::new()
            }
        };
        let parts = node["status"]["images"].as_array().map_or(&[][..], Vec::as_slice);
        let entries = merged(parts, held, |part| args.shows(session, part));
        found.extend(entries.into_iter().map(|entry| (name, entry)));
    }
    let told: Vec<Value> = found.iter().map(|(node, entry)| json!({"node": node, "images": entry})).collect();
    if session.output.structured(&json!({"items": told}))? {
        return Ok(Outcome::Done);
    }
    let rows: Vec<Vec<String>> = found.iter().map(|(node, entry)| row(node, entry)).collect();
    let headers = ["NODE", "NAMESPACE", "NAME", "REFERENCE", "DIGEST", "SIZE", "PHASE", "NEEDED BY", "MESSAGE"];
    show(session, &headers, &rows)
}

/// The images of a node's answer.
fn held(answer: &Value) -> Vec<Value> {
    let kept = answer["kept"].as_array().into_iter().flatten();
    let unneeded = answer["removed"].as_array().into_iter().flatten();
    kept.chain(unneeded).cloned().collect()
}

/// What Images want, with what is there beside it, and then what no Image names.
fn merged(parts: &[Value], held: Vec<Value>, shown: impl Fn(&Value) -> bool) -> Vec<Value> {
    let name_of = |part: &Value| part["reference"].as_str().and_then(|reference| normalize(reference).ok());
    let of = |reference: &Value| held.iter().find(|image| image["reference"] == *reference);
    let mut all: Vec<Value> = parts
        .iter()
        .filter(|part| shown(part))
        .map(|part| {
            let mut entry = part.clone();
            if let Some(image) = name_of(part).and_then(|name| of(&name.into())) {
                entry["neededBy"] = image["neededBy"].clone();
            }
            entry
        })
        .collect();
    let named: Vec<String> = parts.iter().filter_map(name_of).collect();
    for image in held.iter().filter(|image| !named.iter().any(|name| image["reference"] == name.as_str())) {
        let mut entry = Map::new();
        for (key, from) in
            [("reference", "reference"), ("digest", "digest"), ("size", "sizeBytes"), ("neededBy", "neededBy")]
        {
            entry.insert(key.to_owned(), image[from].clone());
        }
        entry.insert("unusedSince".to_owned(), image["unusedSince"].clone());
        entry.insert("phase".to_owned(), "Ready".into());
        all.push(entry.into());
    }
    all
}

fn row(node: &str, entry: &Value) -> Vec<String> {
    let digest = text(&entry["digest"]);
    let digest = digest.strip_prefix("sha256:").map_or(digest.as_str(), |hash| &hash[..hash.len().min(12)]).to_owned();
    let needed = match (&entry["neededBy"], &entry["unusedSince"]) {
        (Value::String(by), _) => by.clone(),
        (_, Value::String(since)) => format!("nobody since {since}"),
        _ => String::new(),
    };
    vec![
        node.to_owned(),
        text(&entry["namespace"]),
        text(&entry["name"]),
        text(&entry["reference"]),
        digest,
        entry["size"].as_u64().map_or_else(String::new, size),
        format!("{}{}", text(&entry["phase"]), progress(entry)),
        needed,
        text(&entry["message"]),
    ]
}

/// How far it is, if it is on its way.
fn progress(entry: &Value) -> String {
    match (entry["bytesDone"].as_u64(), entry["bytesTotal"].as_u64()) {
        (Some(done), Some(total)) if total > 0 && entry["phase"] != "Ready" => {
            let rate = entry["bytesPerSecond"].as_u64().map_or_else(String::new, |rate| format!(", {}/s", size(rate)));
            let left = entry["secondsLeft"].as_u64().map_or_else(String::new, |left| format!(", {left} s left"));
            format!(" {} %{rate}{left}", u128::from(done) * 100 / u128::from(total))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_listed_once_with_who_needs_it() {
        let parts = [
            json!({"namespace": "a", "name": "web", "reference": "nginx:1", "digest": "sha256:1", "size": 5, "phase": "Ready"}),
            json!({"namespace": "b", "name": "db", "reference": "pg:1", "phase": "Pulling", "bytesDone": 1, "bytesTotal": 4}),
        ];
        let answer = json!({
            "kept": [
                {"reference": "docker.io/library/nginx:1", "digest": "sha256:1", "sizeBytes": 5, "neededBy": "Image a/web"},
                {"reference": "docker.io/library/app:1", "digest": "sha256:2", "sizeBytes": 2048, "neededBy": "Workload a/app"},
            ],
            "removed": [{"reference": "docker.io/library/old:1", "digest": "sha256:3", "sizeBytes": 1, "unusedSince": "then"}],
        });
        let rows = |shown: &dyn Fn(&Value) -> bool| -> Vec<String> {
            merged(&parts, held(&answer), shown).iter().map(|entry| row("n", entry).join("|")).collect()
        };
        assert_eq!(
            rows(&|_| true),
            [
                "n|a|web|nginx:1|1|5 B|Ready|Image a/web|",
                "n|b|db|pg:1|||Pulling 25 %||",
                "n|||docker.io/library/app:1|2|2.0 KiB|Ready|Workload a/app|",
                "n|||docker.io/library/old:1|3|1 B|Ready|nobody since then|",
            ]
        );
        // Another namespace's object hides its image with it.
        assert_eq!(rows(&|part| part["namespace"] == "b").len(), 3);
    }
}
