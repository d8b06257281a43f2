//! What other tables do with packets that are forwarded.

use std::collections::BTreeMap;

use super::ask;
use super::decode::{Attributes, attributes};
use super::encode::{Attrs, Family, NLM_F_DUMP, Verb};
use super::ruleset::TABLE;
use crate::network::netlink::{Refused, Socket};

/// `NF_INET_FORWARD` and `NF_BR_FORWARD`.
const FORWARD: u32 = 2;
/// `NF_DROP`, as policy and as verdict.
const DROP: u32 = 0;
/// What the names of our bridges begin with, as a rule for all of them compares it.
const OURS: &[u8] = b"nl";

/// A chain of another table that drops what is forwarded unless some rule accepts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::network) struct Dropping {
    /// `ip`, `ip6`, `inet`, `bridge`.
    pub(in crate::network) family: &'static str,
    pub(in crate::network) table: String,
    pub(in crate::network) chain: String,
    /// The table has a chain for its users' own rules, which is where they belong.
    pub(in crate::network) for_users: Option<&'static str>,
    /// A rule of the table is about our bridges.
    pub(in crate::network) knows_us: bool,
}

/// Chains that Docker calls first and leaves alone.
const FOR_USERS: [&str; 1] = ["DOCKER-USER"];

#[derive(Default)]
struct Table {
    chains: Vec<String>,
    /// Those called when packets are forwarded, and whether their policy is to drop.
    forward: Vec<(String, bool)>,
    /// The last rule of each chain drops or rejects everything.
    closed: BTreeMap<String, bool>,
    knows_us: bool,
}

/// All chains of other tables of the calling thread's network namespace that drop what is forwarded.
pub(in crate::network) fn dropping() -> Result<Vec<Dropping>, Refused> {
    let mut socket = Socket::open(netlink_sys::protocols::NETLINK_NETFILTER).map_err(|error| Refused::io(&error))?;
    let mut tables: BTreeMap<(u8, String), Table> = BTreeMap::new();
    for answer in ask(&mut socket, Family::Any, Verb::GetChain, NLM_F_DUMP, &Attrs::default())? {
        let attrs = attributes(answer.payload());
        let (Some(table), Some(chain)) = (attrs.text(1), attrs.text(3)) else { continue };
        let family = answer.payload().first().copied().unwrap_or_default();
        let entry = tables.entry((family, table.to_owned())).or_default();
        entry.chains.push(chain.to_owned());
        if attrs.nested(4).and_then(|hook| hook.number(1)) == Some(FORWARD) {
            entry.forward.push((chain.to_owned(), attrs.number(5) == Some(DROP)));
        }
    }
    for answer in ask(&mut socket, Family::Any, Verb::GetRule, NLM_F_DUMP, &Attrs::default())? {
        let attrs = attributes(answer.payload());
        let (Some(table), Some(chain), Some(list)) = (attrs.text(1), attrs.text(2), attrs.nested(4)) else { continue };
        let family = answer.payload().first().copied().unwrap_or_default();
        let entry = tables.entry((family, table.to_owned())).or_default();
        let exprs: Vec<Attributes<'_>> = list.map(|(_, expr)| Attributes::new(expr)).collect();
        entry.knows_us |= exprs.iter().any(is_about_us);
        entry.closed.insert(chain.to_owned(), is_closing(&exprs));
    }
    let found = tables.into_iter().flat_map(|((family, name), table)| {
        let for_users = FOR_USERS.into_iter().find(|chain| table.chains.iter().any(|held| held == chain));
        let Table { forward, closed, knows_us, .. } = table;
        let drops = move |(chain, policy): &(String, bool)| *policy || closed.get(chain).copied().unwrap_or_default();
        let family = family_name(family);
        forward.into_iter().filter(drops).map(move |(chain, _)| Dropping {
            family,
            table: name.clone(),
            chain,
            for_users,
            knows_us,
        })
    });
    Ok(found.filter(|found| found.table != TABLE).collect())
}

fn family_name(family: u8) -> &'static str {
    match family {
        2 => "ip",
        10 => "ip6",
        7 => "bridge",
        _ => "inet",
    }
}

/// Compares something with the beginning of our links' names.
fn is_about_us(expr: &Attributes<'_>) -> bool {
    let value = |data: Attributes<'_>| data.nested(3).and_then(|data| data.get(1)).is_some_and(|v| v.starts_with(OURS));
    expr.text(1) == Some("cmp") && expr.nested(2).is_some_and(value)
}

/// Whether a rule drops or rejects whatever comes to it.
fn is_closing(exprs: &[Attributes<'_>]) -> bool {
    let verdict = |expr: &Attributes<'_>| {
        let code = expr.nested(2)?.nested(2)?.nested(2)?.number(1)?;
        Some(code == DROP)
    };
    let mut of_note = exprs.iter().filter(|expr| !matches!(expr.text(1), Some("counter" | "log")));
    match (of_note.next(), of_note.next()) {
        (Some(only), None) => match only.text(1) {
            Some("reject") => true,
            Some("immediate") => verdict(only) == Some(true),
            _ => false,
        },
        _ => false,
    }
}
