//! Reading our tables back from the kernel.

use super::decode::{Attributes, attributes};
use super::encode::{Attrs, Family, NLM_F_DUMP, Verb};
use super::ruleset::{Element, Elements, TABLE, sets};
use super::{Refused, Socket, ask};

/// The kernel's tables.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// Somebody has switched one off, or made it theirs.
    pub(super) flagged: bool,
    pub(super) chains: Vec<ObservedChain>,
    /// Chain and user data of each rule, in order.
    pub(super) rules: Vec<(String, Vec<u8>)>,
    pub(super) sets: Vec<String>,
    pub(super) elements: Elements,
}

/// A chain of the kernel's table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ObservedChain {
    pub(super) name: String,
    /// Hook number and priority.
    pub(super) hook: Option<(u32, i32)>,
    /// Its policy has been set to drop.
    pub(super) drops: bool,
}

/// The number that counts every change of the namespace's whole ruleset.
pub(super) fn generation(socket: &mut Socket) -> Result<u32, Refused> {
    let answers = ask(socket, Family::Inet, Verb::GetGeneration, 0, &Attrs::default())?;
    answers.iter().find_map(|answer| attributes(answer.payload()).number(1)).ok_or(Refused {
        errno: libc::EPROTO,
        detail: Some("no generation in the answer".to_owned()),
        request: 0,
    })
}

fn named(fill: impl FnOnce(&mut Attrs)) -> Attrs {
    let mut attrs = Attrs::default();
    attrs.text(1, TABLE);
    fill(&mut attrs);
    attrs
}

/// The tables of these families as they are; `None` if one is missing.
pub(super) fn tables(socket: &mut Socket, families: &[Family]) -> Result<Option<Observed>, Refused> {
    let mut observed = Observed::default();
    for family in families {
        if !read(socket, *family, &mut observed)? {
            return Ok(None);
        }
    }
    for set in sets() {
        observed.elements.entry(set.name).or_default();
    }
    Ok(Some(observed))
}

/// Adds the table of one family. Returns whether there is one.
fn read(socket: &mut Socket, family: Family, observed: &mut Observed) -> Result<bool, Refused> {
    let flagged = match ask(socket, family, Verb::GetTable, 0, &named(|_| {})) {
        Ok(answers) => answers.iter().any(|a| attributes(a.payload()).number(2).is_some_and(|flags| flags != 0)),
        Err(refused) if refused.errno == libc::ENOENT => return Ok(false),
        Err(refused) => return Err(refused),
    };
    observed.flagged |= flagged;
    // Older kernels do not filter by table.
    for answer in ask(socket, family, Verb::GetChain, NLM_F_DUMP, &named(|_| {}))? {
        let attrs = attributes(answer.payload());
        if attrs.text(1) == Some(TABLE) {
            let hook = attrs.nested(4);
            observed.chains.push(ObservedChain {
                name: attrs.text(3).unwrap_or_default().to_owned(),
                hook: hook.and_then(|hook| Some((hook.number(1)?, hook.number(2)?.cast_signed()))),
                drops: attrs.number(5) == Some(0),
            });
        }
    }
    for answer in ask(socket, family, Verb::GetRule, NLM_F_DUMP, &named(|_| {}))? {
        let attrs = attributes(answer.payload());
        if attrs.text(1) == Some(TABLE) {
            let comment = attrs.get(7).unwrap_or_default().to_vec();
            observed.rules.push((attrs.text(2).unwrap_or_default().to_owned(), comment));
        }
    }
    for set in sets().filter(|set| set.family == family) {
        let name = named(|attrs| {
            attrs.text(2, set.name);
        });
        match ask(socket, family, Verb::GetElement, NLM_F_DUMP, &name) {
            Ok(answers) => {
                observed.sets.push(set.name.to_owned());
                let lists = answers.iter().filter_map(|answer| attributes(answer.payload()).nested(3));
                observed.elements.insert(set.name, lists.flatten().filter_map(|(_, e)| element(e)).collect());
            }
            Err(refused) if refused.errno == libc::ENOENT => {}
            Err(refused) => return Err(refused),
        }
    }
    Ok(true)
}

fn element(bytes: &[u8]) -> Option<Element> {
    let attrs = Attributes::new(bytes);
    let value = |kind| attrs.nested(kind).and_then(|nested| nested.get(1)).map(<[u8]>::to_vec);
    Some(Element { key: value(1)?, end: attrs.number(3).is_some_and(|flags| flags & 1 != 0), data: value(2) })
}
