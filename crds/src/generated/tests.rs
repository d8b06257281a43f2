//! Generated files against what is checked in, and rules over all schemas.
//!
//! `UPDATE_GENERATED=1 cargo test -p nodelet-crds` writes the files anew.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize as _;

use super::*;

/// Compares a generated file with the one checked in, or writes it.
fn compare(path: &Path, generated: &str) {
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, generated).unwrap();
        return;
    }
    let there = fs::read_to_string(path).unwrap_or_default();
    if there != generated {
        let line = there.lines().zip(generated.lines()).take_while(|(a, b)| a == b).count();
        panic!(
            "{} is not what the types say, from line {} on:\n  there:     {}\n  generated: {}\n\
             run: UPDATE_GENERATED=1 cargo test -p nodelet-crds",
            path.display(),
            line + 1,
            there.lines().nth(line).unwrap_or("(end)"),
            generated.lines().nth(line).unwrap_or("(end)"),
        );
    }
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// What release builds hold, one value on a line, so that changes to it merge as those to the types do.
#[test]
fn a_release_build_holds_what_the_types_say() {
    let mut json = Vec::new();
    let lines = serde_json::ser::PrettyFormatter::with_indent(b"");
    derived().serialize(&mut serde_json::Serializer::with_formatter(&mut json, lines)).unwrap();
    json.push(b'\n');
    compare(&in_repository("crds/src/generated/crds.json"), &String::from_utf8(json).unwrap());
    if std::env::var_os("UPDATE_GENERATED").is_none() {
        assert_eq!(serde_json::from_str::<Vec<CustomResourceDefinition>>(DERIVED).unwrap(), derived());
    }
}

#[test]
fn yaml_files_are_up_to_date() {
    let mut expected = Vec::new();
    for crd in crds() {
        let path = in_repository("crds/yaml").join(format!("{}.yaml", crd.metadata.name.as_ref().unwrap()));
        compare(&path, &crd_yaml(&crd));
        expected.push(path.file_name().unwrap().to_owned());
    }
    let there = fs::read_dir(in_repository("crds/yaml")).unwrap().map(|entry| entry.unwrap().file_name());
    for file in there {
        assert!(expected.contains(&file), "crds/yaml/{} belongs to no kind", file.display());
    }
}

#[test]
fn reference_page_is_up_to_date() {
    compare(&in_repository("docs/reference.md"), &reference::reference(&crds()));
}

#[test]
fn yaml_says_what_the_crds_say() {
    let documents: Vec<Value> = serde_saphyr::from_multiple(&crds_yaml()).unwrap();
    let expected: Vec<Value> = crds()
        .iter()
        .map(|crd| {
            let mut crd = serde_json::to_value(crd).unwrap();
            whole_numbers(&mut crd);
            crd
        })
        .collect();
    assert_eq!(documents, expected);
}

#[test]
fn names_are_those_of_the_contract() {
    let names = crds().into_iter().map(|crd| {
        let CustomResourceDefinition { spec, .. } = crd;
        assert_eq!((spec.group.as_str(), spec.versions[0].name.as_str()), (crate::GROUP, crate::VERSION));
        assert_eq!(spec.names.categories, Some(vec!["nodelet".to_owned()]));
        assert!(spec.versions[0].subresources.as_ref().unwrap().status.is_some());
        let columns = spec.versions[0].additional_printer_columns.as_ref().unwrap();
        for needed in ["Ready", "Reason", "Age"] {
            assert!(columns.iter().any(|column| column.name == needed), "{} lacks {needed}", spec.names.kind);
        }
        (spec.names.kind, (spec.names.short_names.unwrap().join(" "), spec.scope))
    });
    let names: BTreeMap<_, _> = names.collect();
    let expected = [
        ("Image", "img", "Namespaced"),
        ("Volume", "vol", "Namespaced"),
        ("Network", "net", "Namespaced"),
        ("ResourceLimit", "rl", "Namespaced"),
        ("Workload", "wl", "Namespaced"),
        ("NodeState", "nst", "Cluster"),
    ];
    let own = |(kind, short, scope): (&str, &str, &str)| (kind.to_owned(), (short.to_owned(), scope.to_owned()));
    assert_eq!(names, expected.into_iter().map(own).collect());
}

/// Calls `check` for every schema of every kind, with its path.
fn walk(check: &mut impl FnMut(&str, &JSONSchemaProps)) {
    fn below(path: &str, schema: &JSONSchemaProps, check: &mut impl FnMut(&str, &JSONSchemaProps)) {
        check(path, schema);
        for (name, property) in schema.properties.iter().flatten() {
            below(&format!("{path}.{name}"), property, check);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
            below(&format!("{path}[]"), items, check);
        }
        if let Some(JSONSchemaPropsOrBool::Schema(values)) = &schema.additional_properties {
            below(&format!("{path}{{}}"), values, check);
        }
    }
    for crd in crds() {
        let schema = crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema.unwrap();
        below(&crd.spec.names.kind, &schema, check);
    }
}

#[test]
fn every_field_is_described() {
    walk(&mut |path, schema| {
        let is_entry = path.ends_with("[]") || path.ends_with("{}");
        assert!(is_entry || schema.description.as_ref().is_some_and(|text| text.len() > 3), "{path} is not described");
    });
}

#[test]
fn schemas_are_structural() {
    walk(&mut |path, schema| {
        let typed = schema.type_.is_some() || schema.x_kubernetes_int_or_string == Some(true);
        assert!(typed, "{path} has no type");
        assert!(schema.x_kubernetes_preserve_unknown_fields.is_none(), "{path} preserves unknown fields");
        assert!(schema.any_of.is_none() && schema.one_of.is_none(), "{path} has alternatives");
        assert!(schema.nullable.is_none(), "{path} is nullable");
        let known = [None, Some("int32"), Some("int64"), Some("double"), Some("date-time")];
        assert!(known.contains(&schema.format.as_deref()), "{path} has the format {:?}", schema.format);
        assert!(schema.default.as_ref().is_none_or(|default| !default.0.is_null()), "{path} defaults to null");
    });
}

#[test]
fn every_list_says_how_it_merges() {
    walk(&mut |path, schema| {
        if schema.type_.as_deref() != Some("array") {
            return;
        }
        let list_type = schema.x_kubernetes_list_type.as_deref();
        assert!(matches!(list_type, Some("map" | "set" | "atomic")), "{path} does not say how it merges");
        if path.contains(".spec.") {
            assert!(schema.max_items.is_some(), "{path} is not bounded, which makes rules over it too costly");
        }
        let Some(keys) = &schema.x_kubernetes_list_map_keys else { return };
        let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items else { panic!("{path} has no items") };
        for key in keys {
            let property = &items.properties.as_ref().unwrap()[key];
            let required = items.required.iter().flatten().any(|name| name == key);
            assert!(required || property.default.is_some(), "{path}: the key {key} is neither required nor defaulted");
        }
    });
}

/// A real API server refuses a CRD whose rules may become costly. The text of a quantity has no bound there, so that
/// parsing one is affordable once in an object, but not in every entry of a list.
#[test]
fn rules_in_lists_parse_no_quantity() {
    walk(&mut |path, schema| {
        for rule in schema.x_kubernetes_validations.iter().flatten() {
            assert!(!(path.contains("[]") && rule.rule.contains("quantity(")), "{path}: {}", rule.rule);
            assert!(!path.contains(".status"), "{path}: lists of a status are not bounded");
            assert!(rule.message.as_ref().is_some_and(|message| !message.contains('\n')), "{path}: {}", rule.rule);
        }
    });
}
