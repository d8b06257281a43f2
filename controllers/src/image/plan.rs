//! Decides what to do about an Image on this node.

use std::time::Duration;

use nodelet_crds::image::{Image as Object, PullPolicy};
use nodelet_drivers::images::{Image, Source};

use super::desired::Desired;

/// What is on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The image under that reference.
    pub present: Option<Image>,
    /// The spec changed since the status was last written.
    pub edited: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// The Image is for other nodes.
    NotHere,
    /// It is there.
    Keep(Image),
    /// It is not there and must not be fetched.
    Missing(String),
    /// Get it, unless that was done within `fresh`.
    Fetch {
        /// How old a finished transfer may be.
        fresh: Duration,
    },
}

/// Decides.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let Some(fetch) = &desired.fetch else { return Plan::NotHere };
    // An edited Image may name another archive for the same reference.
    let other_archive = observed.edited && matches!(fetch.source, Source::Archive(_));
    match (desired.policy, &observed.present) {
        (PullPolicy::Never, None) => Plan::Missing(format!(
            "{} is not on the node and pullPolicy is Never: import it or choose another policy",
            fetch.reference
        )),
        (PullPolicy::Never, Some(image)) => Plan::Keep(image.clone()),
        (PullPolicy::IfNotPresent, Some(image)) if !other_archive => Plan::Keep(image.clone()),
        // Just fetched is as good as present; it may have been removed by another hand since.
        (PullPolicy::IfNotPresent, _) => Plan::Fetch { fresh: Duration::ZERO },
        // Once per edit and per start of the agent.
        (PullPolicy::Always | PullPolicy::Newer, present) => {
            let fresh = if present.is_some() && !observed.edited { Duration::MAX } else { Duration::from_secs(10) };
            Plan::Fetch { fresh }
        }
    }
}

/// Whether an image that is there serves although fetching failed.
pub fn keeps_old(object: &Object) -> bool {
    matches!(object.spec.pull_policy, PullPolicy::Newer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nodelet_drivers::images::Fetch;

    fn desired(policy: PullPolicy, archive: bool) -> Desired {
        let source = if archive { Source::Archive("/a.tar".into()) } else { Source::Registry };
        let fetch = Fetch { source, ..Fetch::new("web:1") };
        Desired { fetch: Some(fetch), policy }
    }

    fn image() -> Image {
        Image {
            reference: "r".into(),
            digest: "sha256:1".into(),
            config_digest: "sha256:2".into(),
            size: 1,
            signed_by: vec![],
        }
    }

    #[test]
    fn policies() {
        let here = |edited| Observed { present: Some(image()), edited };
        let absent = |edited| Observed { present: None, edited };
        let fetch = |fresh| Plan::Fetch { fresh };
        use PullPolicy::*;
        for (policy, archive, observed, expected) in [
            (IfNotPresent, false, here(true), Plan::Keep(image())),
            (IfNotPresent, false, absent(false), fetch(Duration::ZERO)),
            (IfNotPresent, true, here(false), Plan::Keep(image())),
            (IfNotPresent, true, here(true), fetch(Duration::ZERO)),
            (Never, false, here(false), Plan::Keep(image())),
            (Always, false, here(false), fetch(Duration::MAX)),
            (Always, false, here(true), fetch(Duration::from_secs(10))),
            (Newer, false, absent(false), fetch(Duration::from_secs(10))),
        ] {
            assert_eq!(plan(&desired(policy, archive), &observed), expected, "{policy:?} {archive} {observed:?}");
        }
        assert!(matches!(plan(&desired(Never, false), &absent(false)), Plan::Missing(_)));
        assert_eq!(plan(&Desired { fetch: None, policy: Always }, &here(true)), Plan::NotHere);
    }
}
