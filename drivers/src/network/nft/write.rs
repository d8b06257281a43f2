//! Filling transactions with what our tables are made of.

use super::Member;
use super::encode::{Attrs, Batch, Family, NLM_F_APPEND, NLM_F_CREATE, Verb};
use super::guard;
use super::ruleset::{self, Chain, Element, Elements, Rule, Set, TABLE, sets};

/// Elements in one message: an attribute list is limited to 64 KiB, an element has at most 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// The whole tables of these families. Removing the old ones in the same transaction leaves no moment without rules.
pub(super) fn tables(batch: &mut Batch, families: &[Family], rules: &[Rule], wanted: &Elements) {
    let named = |attrs: &mut Attrs| {
        attrs.text(1, TABLE).number(2, 0);
    };
    for family in families {
        batch.push(*family, Verb::NewTable, NLM_F_CREATE, named);
        remove_table(batch, *family);
        batch.push(*family, Verb::NewTable, NLM_F_CREATE, named);
    }
    let is_possible = |family: &Family| families.contains(family);
    for (id, set) in (1u32..).zip(sets()).filter(|(_, set)| is_possible(&set.family)) {
        batch.push(set.family, Verb::NewSet, NLM_F_CREATE, |attrs| write_set(attrs, set, id));
    }
    for chain in ruleset::chains().filter(|chain| is_possible(&chain.family)) {
        batch.push(chain.family, Verb::NewChain, NLM_F_CREATE, |attrs| write_chain(attrs, chain));
    }
    for chain in ruleset::chains().filter(|chain| is_possible(&chain.family)) {
        for rule in rules.iter().filter(|rule| rule.chain == chain.name) {
            batch.push(chain.family, Verb::NewRule, NLM_F_CREATE | NLM_F_APPEND, |attrs| {
                attrs.text(1, TABLE).text(2, rule.chain);
                attrs.nest(4, |list| rule.exprs.iter().for_each(|expr| expr.write(list)));
                attrs.bytes(7, &comment(rule));
            });
        }
    }
    let possible = sets().filter(|set| is_possible(&set.family));
    let all: Vec<Member> = possible
        .flat_map(|set| wanted.get(set.name).into_iter().flatten().map(|element| (set.name, element.clone())))
        .collect();
    elements(batch, Verb::NewElement, &all);
}

/// The removal of a table.
pub(super) fn remove_table(batch: &mut Batch, family: Family) {
    batch.push(family, Verb::DelTable, 0, |attrs| {
        attrs.text(1, TABLE);
    });
}

fn write_set(attrs: &mut Attrs, set: &Set, id: u32) {
    let flags = u32::from(set.interval) * 4 + u32::from(set.data.is_some()) * 8;
    attrs.text(1, TABLE).text(2, set.name).number(3, flags).number(4, set.key.0).number(5, set.key.1);
    if let Some((kind, length)) = set.data {
        attrs.number(6, kind).number(7, length);
    }
    attrs.number(10, id);
    // Byte order of the key for those who print it; link names are texts in the machine's order.
    let order: u32 = if set.key.0 == ruleset::T_LINK { 1 } else { 2 };
    let notes = guard::key_notes(set).unwrap_or_else(|| [&[0, 4][..], &order.to_ne_bytes()].concat());
    attrs.bytes(13, &notes);
}

fn write_chain(attrs: &mut Attrs, chain: &Chain) {
    attrs.text(1, TABLE).text(3, chain.name);
    if let Some(hook) = chain.hook {
        attrs.nest(4, |inner| {
            inner.number(1, hook.number).bytes(2, &hook.priority.to_be_bytes());
        });
        attrs.number(5, 1).text(7, hook.kind);
    }
}

/// Elements, grouped by set, in messages of limited size.
pub(super) fn elements(batch: &mut Batch, verb: Verb, members: &[Member]) {
    let flags = if verb == Verb::NewElement { NLM_F_CREATE } else { 0 };
    for group in members.chunk_by(|(a, _), (b, _)| a == b) {
        let Some(set) = sets().find(|set| set.name == group[0].0) else { continue };
        for part in group.chunks(ELEMENTS_PER_MESSAGE) {
            batch.push(set.family, verb, flags, |attrs| {
                attrs.text(1, TABLE).text(2, set.name).nest(3, |list| {
                    for (_, element) in part {
                        list.nest(1, |inner| write_element(inner, element, verb));
                    }
                });
            });
        }
    }
}

fn write_element(attrs: &mut Attrs, element: &Element, verb: Verb) {
    attrs.nest(1, |key| {
        key.bytes(1, &element.key);
    });
    if let (Some(data), Verb::NewElement) = (&element.data, verb) {
        attrs.nest(2, |value| {
            value.bytes(1, data);
        });
    }
    if element.end {
        attrs.number(3, 1);
    }
}

/// A rule's user data in the form that `nft` prints as comment. The digest makes a rule of another version of ours
/// a different one.
pub(super) fn comment(rule: &Rule) -> Vec<u8> {
    use sha2::Digest;
    let mut list = Attrs::default();
    rule.exprs.iter().for_each(|expr| expr.write(&mut list));
    let digest = sha2::Sha256::digest(list.as_bytes());
    let text = format!("{} [{:02x}{:02x}{:02x}]", rule.comment, digest[0], digest[1], digest[2]);
    let mut bytes = vec![0, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}
