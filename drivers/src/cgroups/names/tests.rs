use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

fn path(text: &str) -> CgroupPath {
    CgroupPath::new(text).unwrap()
}

fn sandbox(text: &str) -> SandboxId {
    SandboxId::new(text).unwrap()
}

#[test]
fn a_parent_is_a_directory_or_a_slice() {
    for (driver, configured, expected) in [
        (Driver::Cgroupfs, "/nodelet", Some("/nodelet")),
        (Driver::Cgroupfs, "/system.slice/nodelet", Some("/system.slice/nodelet")),
        (Driver::Cgroupfs, "/nodelet.slice", None),
        (Driver::Systemd, "/nodelet", Some("/nodelet.slice")),
        (Driver::Systemd, "/nodelet.slice", Some("/nodelet.slice")),
        (Driver::Systemd, "/edge-site", Some("/edge_site.slice")),
        (Driver::Systemd, "/a b", Some("/a\\x20b.slice")),
        (Driver::Systemd, "/a/b", None),
        (Driver::Systemd, "/a23456789012345678901234567890123", None),
    ] {
        let parent = driver.parent(&path(configured)).ok();
        assert_eq!(parent.as_ref().map(CgroupPath::as_str), expected, "{driver:?} {configured}");
    }
}

#[test]
fn what_belongs_together_is_nested() {
    for (parent, limit, within, container) in [
        (
            "/nodelet",
            "/nodelet/limit-default.tenants",
            "/nodelet/limit-default.tenants/web-app-1a2b",
            "/nodelet/limit-default.tenants/web-app-1a2b/main.3",
        ),
        (
            "/nodelet.slice",
            "/nodelet.slice/nodelet-limit_default.tenants.slice",
            "/nodelet.slice/nodelet-limit_default.tenants.slice/nodelet-limit_default.tenants-web_app_1a2b.slice",
            "/nodelet.slice/nodelet-limit_default.tenants.slice/nodelet-limit_default.tenants-web_app_1a2b.slice/\
             nodelet-web-app-1a2b-main.3.scope",
        ),
    ] {
        let found = path(parent).limit("default", "tenants").unwrap();
        assert_eq!(found.as_str(), limit);
        assert!(found.is_limit("default", "tenants") && !found.is_limit("default", "tenant"));
        let found = found.sandbox(&sandbox("web-app-1a2b")).unwrap();
        assert_eq!(found.as_str(), within);
        assert_eq!(found.as_sandbox(), Some(sandbox("web-app-1a2b")));
        assert_eq!(may_be_limit(found.last()), found.is_systemd());
        assert_eq!([is_slice_of_sandbox(&found), is_slice_of_sandbox(&path(limit))], [found.is_systemd(), false]);
        assert!(!found.is_limit("default", "tenants"));
        let found = found.container("main.3").unwrap();
        assert_eq!(found.as_str(), container);
        assert_eq!(found.as_container(), Some((sandbox("web-app-1a2b"), "main")));
        assert_eq!(CgroupPath::from_oci(&found.oci()), Some(found));
    }
}

#[test]
fn the_oci_runtime_is_told_of_slice_prefix_and_name() {
    let container = path("/nodelet.slice").sandbox(&sandbox("web-1")).unwrap().container("main").unwrap();
    assert_eq!(container.oci(), "nodelet-web_1.slice:nodelet:web-1-main");
    let beside = container.beside("nodelet.reaper").unwrap();
    assert_eq!(beside.oci(), "nodelet-web_1.slice:nodelet:web-1-nodelet.reaper");
    let inner = container.join("container").unwrap();
    assert_eq!(inner.as_container(), Some((sandbox("web-1"), "main")), "crun has one of its own in it");
    assert_eq!(path("/nodelet/web-1/main").oci(), "/nodelet/web-1/main");
    let leaf = path("/nodelet.slice").leaf("nodelet.shim-1").unwrap();
    assert_eq!((leaf.oci().as_str(), leaf.as_container()), ("nodelet.slice:nodelet:nodelet.shim-1", None));
    assert_eq!(path("/top").as_container(), None);
    assert_eq!(path("/nodelet.slice").as_sandbox(), None);
    assert_eq!(path("/nodelet.slice/nodelet-limit_a.b.slice").as_sandbox(), None);
}

/// What systemd takes for the name of a slice or scope.
fn is_unit(name: &str) -> bool {
    let (name, is_slice) = match (name.strip_suffix(SLICE), name.strip_suffix(SCOPE)) {
        (Some(name), _) => (name, true),
        (_, Some(name)) => (name, false),
        _ => return false,
    };
    let characters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.\\".contains(&b));
    let nests = !name.starts_with('-') && !name.ends_with('-') && !name.contains("--");
    !name.is_empty() && name.len() + SLICE.len() <= 255 && characters && (nests || !is_slice)
}

prop_compose! {
    fn names()(
        chain in prop::collection::vec("[a-z0-9]([-a-z0-9.]{0,60}[a-z0-9])?|[a-z]{200,253}", 0..=8),
        namespace in "[a-z]([-a-z0-9]{0,61}[a-z0-9])?",
        id in "[a-z0-9]{1,8}([-._][a-z0-9]{1,5}){0,3}-[0-9a-f]{10}",
        container in "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
        attempt: u32,
    ) -> (Vec<String>, String, SandboxId, String) {
        (chain, namespace, sandbox(&id), format!("{container}.{attempt}"))
    }
}

proptest! {
    #[test]
    fn units_are_valid_and_never_shared(all in prop::collection::vec(names(), 1..12)) {
        // A name of a unit stands for one place in the tree, however often that is named.
        let mut units: HashMap<String, Vec<String>> = HashMap::new();
        let mut unit = |path: &CgroupPath, what: Vec<String>| {
            let name = path.last().to_owned();
            assert!(is_unit(&name), "{name}");
            assert_eq!(units.entry(name.clone()).or_insert_with(|| what.clone()), &what, "{}", name);
        };
        for parent in ["/nodelet.slice", "/edge_site_of_thirty_two_letters_.slice"] {
            for (chain, namespace, id, container) in &all {
                let (mut at, mut what) = (path(parent), vec![parent.to_owned()]);
                for name in chain {
                    at = at.limit(namespace, name).unwrap();
                    prop_assert!(at.is_limit(namespace, name));
                    what.push(format!("limit {namespace} {name}"));
                    unit(&at, what.clone());
                }
                let within = at.sandbox(id).unwrap();
                prop_assert_eq!(within.as_sandbox(), Some(id.clone()));
                what.push(format!("sandbox {id}"));
                unit(&within, what.clone());
                let scope = within.container(container).unwrap();
                let name = container.split('.').next().unwrap();
                prop_assert_eq!(scope.as_container(), Some((id.clone(), name)));
                prop_assert_eq!(CgroupPath::from_oci(&scope.oci()), Some(scope.clone()));
                prop_assert!(is_unit(scope.last()));
            }
        }
    }

    #[test]
    fn escaping_is_reversed_and_keeps_names_apart(texts in prop::collection::vec(".{0,20}|[-_.a-z]{0,6}", 1..20)) {
        let distinct: HashSet<&String> = texts.iter().collect();
        let escaped: HashSet<String> = distinct.iter().map(|text| escape(text, false)).collect();
        prop_assert_eq!(escaped.len(), distinct.len());
        for text in texts {
            let back = unescape(&escape(&text, false));
            prop_assert_eq!(back.as_ref(), Some(&text));
        }
    }
}
