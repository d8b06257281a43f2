use std::collections::BTreeMap;

use super::*;
use crate::sources::scan::scan;

const A: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
const B: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n";
const W: &str = "apiVersion: nodelet.dev/v1alpha1\nkind: Workload\nmetadata: {name: w, namespace: ns}\n";
const N: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns}\n";

/// A directory with these files, as a scan of the real thing.
fn directory(files: &[(&str, &str)]) -> Scan {
    let directory = tempfile::tempdir().expect("temporary directory");
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().expect("has a parent")).expect("directory");
        std::fs::write(path, text).expect("file");
    }
    scan(directory.path())
}

/// What came from these files so far.
fn inventory(files: &[(&str, &str)]) -> Inventory {
    plan_sync(&Inventory::default(), &directory(files)).inventory
}

fn told(plan: &SyncPlan) -> String {
    let list = |keys: Vec<String>| keys.join(", ");
    let apply = list(plan.apply.iter().map(|object| object.key.to_string()).collect());
    let delete = list(plan.delete.iter().map(ToString::to_string).collect());
    let keep = list(plan.keep.iter().map(|kept| kept.key.to_string()).collect());
    format!("apply [{apply}] delete [{delete}] keep [{keep}] faults {}", plan.faults.len())
}

/// A name, what came from the directory before, its files now, and what the plan says.
type Case<'a> = (&'a str, Inventory, Vec<(&'a str, &'a str)>, &'a str);

#[test]
fn table() {
    let ab = [("a.yaml", A), ("b.yaml", B)];
    let both = format!("{A}---\n{B}");
    let bad = format!("{A}---\nkind: ConfigMap\n");
    let cases: Vec<Case<'_>> = vec![
        (
            "first look",
            Inventory::default(),
            ab.to_vec(),
            "apply [ConfigMap a, ConfigMap b] delete [] keep [] faults 0",
        ),
        ("nothing new", inventory(&ab), ab.to_vec(), "apply [ConfigMap a, ConfigMap b] delete [] keep [] faults 0"),
        (
            "file removed",
            inventory(&ab),
            vec![("a.yaml", A)],
            "apply [ConfigMap a] delete [ConfigMap b] keep [] faults 0",
        ),
        (
            "object removed",
            inventory(&[("x.yaml", &both)]),
            vec![("x.yaml", B)],
            "apply [ConfigMap b] delete [ConfigMap a] keep [] faults 0",
        ),
        (
            "object moved",
            inventory(&ab),
            vec![("b.yaml", &both)],
            "apply [ConfigMap a, ConfigMap b] delete [] keep [] faults 0",
        ),
        (
            "file renamed",
            inventory(&ab),
            vec![("c.yaml", A), ("b.yaml", B)],
            "apply [ConfigMap b, ConfigMap a] delete [] keep [] faults 0",
        ),
        (
            "file broken",
            inventory(&ab),
            vec![("a.yaml", A), ("b.yaml", "a: [")],
            "apply [ConfigMap a] delete [] keep [ConfigMap b] faults 1",
        ),
        (
            "file cut to nothing",
            inventory(&ab),
            vec![("a.yaml", A), ("b.yaml", "\n")],
            "apply [ConfigMap a] delete [] keep [ConfigMap b] faults 1",
        ),
        (
            "broken and other removed",
            inventory(&ab),
            vec![("b.yaml", "a: [")],
            "apply [] delete [ConfigMap a] keep [ConfigMap b] faults 1",
        ),
        (
            "an object lost its name",
            inventory(&[("x.yaml", &both)]),
            vec![("x.yaml", &bad)],
            "apply [ConfigMap a] delete [] keep [ConfigMap b] faults 1",
        ),
        ("directory emptied", inventory(&ab), vec![], "apply [] delete [] keep [ConfigMap a, ConfigMap b] faults 0"),
        (
            "directory emptied of manifests",
            inventory(&ab),
            vec![("a.yaml~", A)],
            "apply [] delete [] keep [ConfigMap a, ConfigMap b] faults 0",
        ),
        (
            "emptied on purpose",
            inventory(&ab),
            vec![("none.yaml", "# nothing\n")],
            "apply [] delete [ConfigMap a, ConfigMap b] keep [] faults 0",
        ),
        ("never had anything", Inventory::default(), vec![], "apply [] delete [] keep [] faults 0"),
        (
            "the same object twice",
            Inventory::default(),
            vec![("1.yaml", A), ("2.yaml", A)],
            "apply [ConfigMap a] delete [] keep [] faults 1",
        ),
        (
            "order",
            Inventory::default(),
            vec![("1.yaml", W), ("2.yaml", A), ("sub/3.yaml", N)],
            "apply [Namespace ns, ConfigMap a, Workload ns/w] delete [] keep [] faults 0",
        ),
        (
            "reverse order",
            inventory(&[("1.yaml", W), ("2.yaml", A), ("3.yaml", N)]),
            vec![("none.yml", "#\n")],
            "apply [] delete [Workload ns/w, ConfigMap a, Namespace ns] keep [] faults 0",
        ),
        (
            "hidden files are none",
            inventory(&[("a.yaml", A)]),
            vec![("a.yaml", A), (".b.yaml", B), ("..data/b.yaml", B)],
            "apply [ConfigMap a] delete [] keep [] faults 0",
        ),
    ];
    for (name, inventory, files, expected) in cases {
        let plan = plan_sync(&inventory, &directory(&files));
        assert_eq!(told(&plan), expected, "{name}");
        // Carried out and looked at again, there is nothing to delete.
        let again = plan_sync(&plan.inventory, &directory(&files));
        assert_eq!(again.delete, [], "{name}");
        assert_eq!(again.inventory, plan.inventory, "{name}");
    }
}

#[test]
fn another_version_is_the_same_object() {
    let old = Inventory::from_objects(BTreeMap::from([(
        ObjectKey {
            api_version: "nodelet.dev/v1".into(),
            kind: "Workload".into(),
            namespace: Some("ns".into()),
            name: "w".into(),
        },
        "a.yaml".to_owned(),
    )]));
    assert_eq!(
        told(&plan_sync(&old, &directory(&[("a.yaml", W)]))),
        "apply [Workload ns/w] delete [] keep [] faults 0"
    );
}

#[test]
fn a_missing_directory_keeps_everything() {
    let inventory = inventory(&[("a.yaml", A)]);
    let plan = plan_sync(&inventory, &scan(std::path::Path::new("/nonexistent/manifests")));
    assert_eq!(told(&plan), "apply [] delete [] keep [ConfigMap a] faults 0");
    assert_eq!(plan.inventory, inventory);
    assert!(plan.keep[0].reason.starts_with("/nonexistent/manifests: No such file"), "{}", plan.keep[0].reason);
}
