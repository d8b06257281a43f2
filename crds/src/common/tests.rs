use k8s_openapi::jiff::Timestamp;

use super::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn requirement(key: &str, operator: SelectorOperator, values: &[&str]) -> NodeSelector {
    let values = values.iter().map(|value| (*value).to_owned()).collect();
    let requirement = NodeSelectorRequirement { key: key.to_owned(), operator, values };
    NodeSelector { match_expressions: vec![requirement], ..Default::default() }
}

fn at(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

#[test]
fn selectors_judge_labels_as_kubernetes_does() {
    use SelectorOperator::*;
    let west = labels(&[("zone", "west"), ("disk", "ssd")]);
    let bare = labels(&[]);
    let cases = [
        (NodeSelector::default(), true, true),
        (NodeSelector { match_labels: labels(&[("zone", "west")]), ..Default::default() }, true, false),
        (
            NodeSelector { match_labels: labels(&[("zone", "west"), ("disk", "hdd")]), ..Default::default() },
            false,
            false,
        ),
        (requirement("zone", In, &["east", "west"]), true, false),
        (requirement("zone", In, &["east"]), false, false),
        (requirement("zone", NotIn, &["west"]), false, true),
        (requirement("zone", Exists, &[]), true, false),
        (requirement("zone", DoesNotExist, &[]), false, true),
    ];
    for (selector, on_west, on_bare) in cases {
        assert_eq!(selector.matches(&west), on_west, "{selector:?} on {west:?}");
        assert_eq!(selector.matches(&bare), on_bare, "{selector:?} on {bare:?}");
    }
}

#[test]
fn transition_time_moves_with_the_status_only() {
    let mut conditions = Vec::new();
    set_condition(&mut conditions, "Ready", false, "Pending", "waiting", Some(1), at(10));
    set_condition(&mut conditions, "ImagesReady", true, "Pulled", "", Some(1), at(11));
    set_condition(&mut conditions, "Ready", false, "Pulling", "10 of 20 MiB", Some(2), at(20));
    assert_eq!(conditions[0].last_transition_time, at(10));
    assert_eq!((conditions[0].reason.as_str(), conditions[0].message.as_str()), ("Pulling", "10 of 20 MiB"));
    assert_eq!(conditions[0].observed_generation, Some(2));

    let before = conditions.clone();
    set_condition(&mut conditions, "Ready", false, "Pulling", "10 of 20 MiB", Some(2), at(30));
    assert_eq!(conditions, before, "setting the same again changes nothing");

    set_condition(&mut conditions, "Ready", true, "Ready", "", Some(2), at(40));
    assert_eq!(conditions[0].last_transition_time, at(40));
    assert!(is_true(&conditions, "Ready") && !is_true(&conditions, "Progressing"));
    assert_eq!(conditions.len(), 2);
}
