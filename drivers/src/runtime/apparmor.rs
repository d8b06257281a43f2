//! AppArmor: which profile a container gets, and our own one.
//!
//! # Contract
//! - A profile that is asked for is enforced, or the container is refused with what the node lacks.
//! - Without a wish our own profile holds where the node has AppArmor, its files and its parser, and none elsewhere.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::{AppArmor, Error};

/// Name of our own profile.
const DEFAULT_PROFILE: &str = "nodelet-default";
/// Everything that a container's other bounds allow, but nothing that changes the node, reaches processes outside or
/// mounts. It includes no other file, so that it needs the parser only. Distributions have profiles for runc and crun, which
/// bring a container the signals that end it.
const DEFAULT_RULES: &str = "\
profile nodelet-default flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  unix,
  umount,
  deny mount,
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send,receive) peer=nodelet-default,
  ptrace (trace,read,tracedby,readby) peer=nodelet-default,
  deny /proc/sys/[^kn]** w,
  deny /proc/sys/kernel/[^smn]** w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,
  deny /proc/kmem rwklx,
  deny /proc/mem rwklx,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
";
/// Where distributions put the program that compiles profiles.
const PARSERS: &[&str] = &["/sbin/apparmor_parser", "/usr/sbin/apparmor_parser", "/usr/bin/apparmor_parser"];
const FIELD: &str = "securityContext.appArmorProfile";

/// What the node has of AppArmor.
#[derive(Debug, Clone, Copy)]
struct Support<'a> {
    /// The kernel enforces profiles.
    enabled: bool,
    /// Names of the loaded profiles, with their modes; `None` where they cannot be read.
    loaded: Option<&'a str>,
    /// There is a program that compiles profiles.
    parser: Option<&'static str>,
}

/// What is to be done for a wish.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    /// No profile.
    None,
    /// The profile of this name, which is loaded.
    Loaded(String),
    /// Our own one, once this program has loaded it, in this agent's version.
    Load(&'static str),
}

/// The profile for a container; `None` is none. Blocking.
///
/// # Errors
/// [`Error::Invalid`] for a profile that this node cannot enforce.
pub(super) fn resolve(wanted: Option<&AppArmor>, privileged: bool) -> Result<Option<String>, Error> {
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"));
    let loaded = if enabled { std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").ok() } else { None };
    let parser = PARSERS.iter().find(|path| Path::new(path).exists()).copied();
    match choose(wanted, privileged, Support { enabled, loaded: loaded.as_deref(), parser })? {
        Choice::None => Ok(None),
        Choice::Loaded(name) => Ok(Some(name)),
        Choice::Load(parser) => {
            load(parser, loaded.as_deref().unwrap_or_default()).map(|()| Some(DEFAULT_PROFILE.to_owned()))
        }
    }
}

fn choose(wanted: Option<&AppArmor>, privileged: bool, node: Support<'_>) -> Result<Choice, Error> {
    let is_loaded = |name: &str| names(node.loaded.unwrap_or_default(), name);
    let default = || match node.parser {
        // The parser cannot work either where the profiles cannot be seen.
        Some(parser) => node.loaded.map(|_| Choice::Load(parser)),
        None => is_loaded(DEFAULT_PROFILE).then(|| Choice::Loaded(DEFAULT_PROFILE.to_owned())),
    };
    match wanted {
        Some(AppArmor::RuntimeDefault | AppArmor::Localhost(_)) if !node.enabled => {
            Err(invalid("the kernel of this node has no AppArmor: remove the field, or set type Unconfined".to_owned()))
        }
        Some(AppArmor::RuntimeDefault) => default().ok_or_else(|| {
            let message = match node.loaded {
                Some(_) => {
                    "apparmor_parser is not on this node, so that the default profile cannot be loaded: install the \
                     package apparmor"
                }
                None => {
                    "the profiles of this node's kernel cannot be seen, so that the default one cannot be loaded: mount \
                     securityfs at /sys/kernel/security"
                }
            };
            invalid(message.to_owned())
        }),
        Some(AppArmor::Localhost(name)) if node.loaded.is_some() && !is_loaded(name) => {
            Err(invalid(format!("profile {name:?} is not loaded in the kernel of this node (see aa-status)")))
        }
        Some(AppArmor::Localhost(name)) => Ok(Choice::Loaded(name.clone())),
        Some(AppArmor::Unconfined) if node.enabled => Ok(Choice::Loaded("unconfined".to_owned())),
        None if node.enabled && !privileged => Ok(default().unwrap_or(Choice::None)),
        Some(AppArmor::Unconfined) | None => Ok(Choice::None),
    }
}

/// Whether the kernel's list of profiles names this one.
fn names(loaded: &str, name: &str) -> bool {
    loaded.lines().any(|line| line.rsplit_once(" (").is_some_and(|(loaded, _)| loaded == name))
}

/// Loads our own profile, one caller at a time: once, over what an older version of ours has loaded, and again when it is
/// seen to be gone.
fn load(parser: &str, loaded: &str) -> Result<(), Error> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if *done && names(loaded, DEFAULT_PROFILE) {
        return Ok(());
    }
    let failed = |source| Error::Failed {
        doing: format!("loading the AppArmor profile {DEFAULT_PROFILE} with {parser}"),
        source,
    };
    let run = || -> std::io::Result<std::process::Output> {
        let mut command = Command::new(parser);
        // Without its cache, which may be read-only.
        command.args(["--skip-cache", "--replace"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(DEFAULT_RULES.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = run().map_err(|error| failed(Box::new(error)))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned().into()));
    }
    *done = true;
    Ok(())
}

fn invalid(message: String) -> Error {
    Error::Invalid { field: FIELD.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: Support<'_> = Support { enabled: false, loaded: None, parser: Some(PARSERS[0]) };
    const READY: Support<'_> =
        Support { enabled: true, loaded: Some("my app (enforce)\nnodelet-default (enforce)\n"), parser: None };

    fn choice(wanted: Option<AppArmor>, node: Support<'_>) -> Result<Choice, String> {
        choose(wanted.as_ref(), false, node).map_err(|error| error.to_string())
    }

    #[test]
    fn a_node_without_apparmor_refuses_what_it_cannot_enforce() {
        for wanted in [AppArmor::RuntimeDefault, AppArmor::Localhost("x".to_owned())] {
            let error = choice(Some(wanted), BARE).unwrap_err();
            assert!(error.contains("appArmorProfile: the kernel of this node has no AppArmor"), "{error}");
        }
        for wanted in [None, Some(AppArmor::Unconfined)] {
            assert_eq!(choice(wanted, BARE), Ok(Choice::None));
        }
    }

    #[test]
    fn profiles_are_the_loaded_ones_and_our_own() {
        let loaded = |name: &str| Ok(Choice::Loaded(name.to_owned()));
        let localhost = |name: &str| Some(AppArmor::Localhost(name.to_owned()));
        assert_eq!(choice(localhost("my app"), READY), loaded("my app"));
        assert!(choice(localhost("my"), READY).unwrap_err().contains("\"my\" is not loaded"));
        // Where the list cannot be read, the OCI runtime is the one that finds out, and a wish of nobody is none.
        let blind = Support { loaded: None, parser: Some(PARSERS[0]), ..READY };
        assert_eq!(choice(localhost("my"), blind), loaded("my"));
        assert_eq!(choice(None, blind), Ok(Choice::None));
        assert!(choice(Some(AppArmor::RuntimeDefault), blind).unwrap_err().contains("mount securityfs"));
        assert_eq!(choice(Some(AppArmor::Unconfined), READY), loaded("unconfined"));
        for wanted in [None, Some(AppArmor::RuntimeDefault)] {
            assert_eq!(choice(wanted.clone(), READY), loaded(DEFAULT_PROFILE));
            // What is loaded may be an older version's.
            for loaded in [READY.loaded, Some("")] {
                let new = Support { loaded, parser: Some(PARSERS[0]), ..READY };
                assert_eq!(choice(wanted.clone(), new), Ok(Choice::Load(PARSERS[0])));
            }
        }
        assert_eq!(choose(None, true, READY).unwrap(), Choice::None);
    }

    #[test]
    fn without_the_parser_only_an_explicit_wish_fails() {
        let node = Support { loaded: Some(""), ..READY };
        assert_eq!(choice(None, node), Ok(Choice::None));
        assert!(choice(Some(AppArmor::RuntimeDefault), node).unwrap_err().contains("install the package apparmor"));
    }
}
