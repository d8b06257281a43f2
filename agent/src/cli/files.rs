//! Objects from `-f`.

use std::io::Read;
use std::path::PathBuf;

use anyhow::Context as _;

use super::session::Session;
use crate::client::Kind;
use crate::manifest::{self, Fault, Object, rank};
use crate::sources::pod;

/// An object of a file and the kind the server has for it.
pub(crate) struct Target<'a> {
    pub(crate) kind: &'a Kind,
    pub(crate) namespace: Option<String>,
    pub(crate) object: Object,
}

/// All objects of `paths` that the server knows, in the order of application, and what is wrong with the rest.
pub(crate) fn read<'a>(session: &'a Session, paths: &[PathBuf]) -> anyhow::Result<(Vec<Target<'a>>, Vec<Fault>)> {
    let mut targets = Vec::new();
    let mut faults = Vec::new();
    for path in paths {
        let texts = if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("reading stdin")?;
            vec![("stdin".to_owned(), text)]
        } else {
            let files = manifest::files(path).with_context(|| format!("reading {}", path.display()))?;
            let read = |file: PathBuf| {
                let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
                anyhow::Ok((file.display().to_string(), text))
            };
            files.into_iter().map(read).collect::<anyhow::Result<_>>()?
        };
        for (file, text) in texts {
            let manifest = manifest::parse(&file, &text);
            faults.extend(manifest.faults);
            for object in manifest.objects {
                match target(session, object) {
                    Ok(target) => targets.push(target),
                    Err(found) => faults.extend(found),
                }
            }
        }
    }
    targets.sort_by_key(|target| rank(&target.kind.kind));
    Ok((targets, faults))
}

fn target(session: &Session, mut object: Object) -> Result<Target<'_>, Vec<Fault>> {
    if pod::is_pod(&object) && session.kinds.of("v1", "Pod").is_err() {
        object = pod::workload(&object)?;
    }
    let kind = session.kinds.of(&object.key.api_version, &object.key.kind).map_err(|error| object.refusal(&error))?;
    let namespace = kind.namespaced.then(|| object.key.namespace.clone().unwrap_or_else(|| session.namespace.clone()));
    object.value = manifest::with_namespace(object.value, namespace.as_deref());
    Ok(Target { kind, namespace, object })
}

impl Target<'_> {
    /// `workload.nodelet.dev/web`
    pub(crate) fn shown(&self) -> String {
        format!("{}/{}", self.kind.qualified(), self.object.key.name)
    }
}
