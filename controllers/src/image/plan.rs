//! Decides what to do about an Image on this node. Pure.
//!
//! | pullPolicy | not there | there |
//! | --- | --- | --- |
//! | `Never` | fails | keeps it |
//! | `IfNotPresent` | fetches it | keeps it |
//! | `Newer`, `Always` | fetches it | asks the registry after an edit and once in a run of the agent |
//!
//! `refreshSeconds` asks again, and instead of asking at every start of the agent. What is there without a required
//! signature counts as not there.

use std::time::Duration;

use nodelet_crds::image::PullPolicy;
use nodelet_drivers::images::{Image, Source};

use super::desired::Desired;

/// What is on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The image under that reference.
    pub present: Option<Image>,
    /// The spec changed since the status was last written.
    pub edited: bool,
    /// How the schedule of `refreshSeconds` stands.
    pub refresh: Refresh,
}

/// How a schedule stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Refresh {
    /// There is none.
    #[default]
    None,
    /// The registry is asked again after this time.
    In(Duration),
    /// It is time to ask.
    Due,
    /// It answered, so long ago, that the reference stands for something else.
    Moved(Duration),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// The Image is for other nodes.
    NotHere,
    /// It is there; look again after that time.
    Keep(Image, Option<Duration>),
    /// It is not there and must not be fetched.
    Missing(String),
    /// It is there, but whether it is signed may not be asked.
    Unsigned(String),
    /// Ask the registry what the reference stands for now.
    Resolve(Image),
    /// Get it, unless that was done within `fresh`.
    Fetch {
        /// How old a finished transfer may be.
        fresh: Duration,
    },
}

/// What somebody fetched just now is new enough for the first look at it.
const JUST_NOW: Duration = Duration::from_secs(10);

/// Decides.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let Some(fetch) = &desired.fetch else { return Plan::NotHere };
    let asks = matches!(desired.policy, PullPolicy::Always | PullPolicy::Newer);
    let signed = observed.present.as_ref().filter(|image| image.is_signed_by(&fetch.signers));
    // An edited Image may name another archive for the same reference.
    let outdated = observed.edited && (asks || matches!(fetch.source, Source::Archive(_)));
    match (desired.policy, signed) {
        (PullPolicy::Never, Some(image)) => Plan::Keep(image.clone(), None),
        (PullPolicy::Never, None) if observed.present.is_some() => Plan::Unsigned(format!(
            "{} is on the node, but its signature was not checked and pullPolicy Never forbids to ask for it",
            fetch.reference
        )),
        (PullPolicy::Never, None) => Plan::Missing(format!(
            "{} is not on the node and pullPolicy is Never: import it or choose another policy",
            fetch.reference
        )),
        (_, Some(image)) if !outdated => match observed.refresh {
            Refresh::In(again) => Plan::Keep(image.clone(), Some(again)),
            Refresh::Due => Plan::Resolve(image.clone()),
            Refresh::Moved(fresh) => Plan::Fetch { fresh },
            // Once per edit and per start of the agent.
            Refresh::None if asks => Plan::Fetch { fresh: Duration::MAX },
            Refresh::None => Plan::Keep(image.clone(), None),
        },
        // Just fetched is as good as present; it may have been removed by another hand since.
        (PullPolicy::IfNotPresent, _) => Plan::Fetch { fresh: Duration::ZERO },
        // An edit may come with a push.
        (PullPolicy::Always | PullPolicy::Newer, _) if observed.edited => Plan::Fetch { fresh: Duration::ZERO },
        (PullPolicy::Always | PullPolicy::Newer, _) => Plan::Fetch { fresh: JUST_NOW },
    }
}

/// Whether what is there serves although the registry does not answer. After an edit something else may be meant, which
/// only `Newer` puts up with.
pub fn keeps_old(policy: PullPolicy, edited: bool) -> bool {
    match policy {
        PullPolicy::Always => false,
        PullPolicy::Newer => true,
        PullPolicy::IfNotPresent | PullPolicy::Never => !edited,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nodelet_drivers::images::{Fetch, Signer};

    fn desired(policy: PullPolicy, archive: bool) -> Desired {
        let source = if archive { Source::Archive("/a.tar".into()) } else { Source::Registry };
        Desired { fetch: Some(Fetch { source, ..Fetch::new("web:1") }), policy }
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

    fn here(edited: bool, refresh: Refresh) -> Observed {
        Observed { present: Some(image()), edited, refresh }
    }

    #[test]
    fn policies() {
        let absent = |edited, refresh| Observed { present: None, edited, refresh };
        let fetch = |fresh| Plan::Fetch { fresh };
        let keep = || Plan::Keep(image(), None);
        let soon = Duration::from_secs(5);
        use PullPolicy::*;
        use Refresh::{Due, In, Moved};
        let none = Refresh::None;
        for (policy, archive, observed, expected) in [
            (IfNotPresent, false, here(true, none), keep()),
            (IfNotPresent, false, absent(false, none), fetch(Duration::ZERO)),
            (IfNotPresent, true, here(false, none), keep()),
            (IfNotPresent, true, here(true, none), fetch(Duration::ZERO)),
            (IfNotPresent, false, here(false, In(soon)), Plan::Keep(image(), Some(soon))),
            (IfNotPresent, false, here(false, Due), Plan::Resolve(image())),
            (IfNotPresent, false, here(true, Due), Plan::Resolve(image())),
            (IfNotPresent, false, here(false, Moved(soon)), fetch(soon)),
            (IfNotPresent, false, absent(false, Due), fetch(Duration::ZERO)),
            (Never, false, here(false, none), keep()),
            (Never, false, here(true, none), keep()),
            (Always, false, here(false, none), fetch(Duration::MAX)),
            (Always, false, here(true, none), fetch(Duration::ZERO)),
            (Always, false, absent(false, none), fetch(JUST_NOW)),
            // A restart of the agent asks no sooner than the schedule says; an edit does.
            (Always, false, here(false, In(soon)), Plan::Keep(image(), Some(soon))),
            (Always, false, here(true, In(soon)), fetch(Duration::ZERO)),
            (Always, false, here(false, Due), Plan::Resolve(image())),
            (Newer, false, here(false, none), fetch(Duration::MAX)),
            (Newer, false, absent(false, none), fetch(JUST_NOW)),
            (Newer, false, here(false, Moved(soon)), fetch(soon)),
        ] {
            assert_eq!(plan(&desired(policy, archive), &observed), expected, "{policy:?} {archive} {observed:?}");
        }
        assert!(matches!(plan(&desired(Never, false), &absent(false, none)), Plan::Missing(_)));
        assert_eq!(plan(&Desired { fetch: None, policy: Always }, &here(true, none)), Plan::NotHere);
    }

    #[test]
    fn what_is_there_unsigned_counts_as_not_there() {
        let pem = b"-----BEGIN PUBLIC KEY-----\n\
            MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEAh8Gxe6p9gOFpw91R202iOAV0ZoD\n\
            yrR0G0pUZVgm8d8VRK4C4FKzmdQlaLojPd2mGkmbOBE1ZRzqzbPSC0cQMg==\n\
            -----END PUBLIC KEY-----\n";
        let signer = Signer::new("test", pem).unwrap();
        let wish = |policy| {
            let fetch = Fetch { signers: vec![signer.clone()], ..Fetch::new("web:1") };
            Desired { fetch: Some(fetch), policy }
        };
        let observed = here(false, Refresh::None);
        assert_eq!(plan(&wish(PullPolicy::IfNotPresent), &observed), Plan::Fetch { fresh: Duration::ZERO });
        assert_eq!(plan(&wish(PullPolicy::Newer), &observed), Plan::Fetch { fresh: JUST_NOW });
        assert!(matches!(plan(&wish(PullPolicy::Never), &observed), Plan::Unsigned(_)));
        let signed = Image { signed_by: vec![signer.fingerprint().to_owned()], ..image() };
        let observed = Observed { present: Some(signed.clone()), ..Observed::default() };
        assert_eq!(plan(&wish(PullPolicy::IfNotPresent), &observed), Plan::Keep(signed, None));
    }
}
