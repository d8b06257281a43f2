//! Our nftables table, kept equal to what it should be by netlink transactions.
//!
//! [`Table::sync`] is what everybody calls: it writes the difference between what the kernel is known to hold and
//! what it should hold, one transaction, in some ten microseconds per element. What the kernel holds is known as
//! long as its ruleset generation has not moved by another hand; when it has, the table is read, and put back
//! element by element or, when chains or rules are damaged, as a whole.

pub(super) mod decode;
pub(super) mod encode;
mod expr;
mod observe;
mod ruleset;

use std::collections::BTreeSet;

use self::encode::{Attrs, Batch, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, Verb, query};
use self::observe::Observed;
use self::ruleset::{CHAINS, Rule, SETS, rules};
pub(super) use self::ruleset::{Element, Elements, TABLE, elements, port_element};
use super::netlink::{Refused, Socket};

/// Elements in one message: an attribute list is limited to 64 KiB, an element has at most 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// Our table in the kernel.
pub(super) struct Table {
    socket: Socket,
    rules: Vec<Rule>,
    /// What the kernel held at which generation, when that is known.
    known: Option<Known>,
}

struct Known {
    generation: u32,
    elements: Elements,
}

/// How the kernel's table differs from the wanted one. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Repair {
    /// Chains, rules or sets are missing or strange: the table is written anew.
    Whole,
    /// Only elements differ.
    Elements { add: Vec<(&'static str, Element)>, remove: Vec<(&'static str, Element)> },
}

impl Table {
    /// Opens a netlink socket in the calling thread's network namespace.
    pub(super) fn open() -> std::io::Result<Self> {
        let socket = Socket::open(netlink_sys::protocols::NETLINK_NETFILTER)?;
        Ok(Self { socket, rules: rules(), known: None })
    }

    /// See [`Socket::port`].
    pub(super) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Makes the kernel's table this. Returns whether it was not. Everything or nothing happens.
    pub(super) fn sync(&mut self, wanted: &Elements) -> Result<bool, Refused> {
        self.refresh()?;
        let repair = match &self.known {
            Some(held) => difference(&held.elements, wanted),
            None => Repair::Whole,
        };
        self.write(&repair, wanted)
    }

    /// Whether the kernel's table is exactly this.
    pub(super) fn is_intact(&mut self, wanted: &Elements) -> Result<bool, Refused> {
        self.refresh()?;
        Ok(self.known.as_ref().is_some_and(|known| known.elements == *wanted))
    }

    /// The elements that are really in the kernel, as far as the table is sound.
    pub(super) fn held(&mut self) -> Result<Option<&Elements>, Refused> {
        self.refresh()?;
        Ok(self.known.as_ref().map(|known| &known.elements))
    }

    /// The socket, for other subsystems of netfilter.
    pub(super) fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Removes the table; absence is success.
    pub(super) fn remove(&mut self) -> Result<(), Refused> {
        self.known = None;
        let mut batch = Batch::default();
        batch.push(Verb::DelTable, 0, |attrs| {
            attrs.text(1, TABLE);
        });
        match self.transact(&batch) {
            Err(refused) if refused.errno == libc::ENOENT => Ok(()),
            other => other,
        }
    }

    /// Brings `known` up to date.
    fn refresh(&mut self) -> Result<(), Refused> {
        let generation = observe::generation(&mut self.socket)?;
        if self.known.as_ref().is_some_and(|known| known.generation == generation) {
            return Ok(());
        }
        // Read until nothing changes under way, so that the generation belongs to what was read.
        let mut before = generation;
        for _ in 0..5 {
            let observed = observe::table(&mut self.socket)?;
            let after = observe::generation(&mut self.socket)?;
            self.known = observed
                .filter(|observed| is_sound(observed, &self.rules))
                .map(|observed| Known { generation: after, elements: observed.elements });
            if before == after {
                break;
            }
            before = after;
        }
        Ok(())
    }

    fn write(&mut self, repair: &Repair, wanted: &Elements) -> Result<bool, Refused> {
        let mut batch = Batch::default();
        match repair {
            Repair::Whole => self.write_table(&mut batch, wanted),
            Repair::Elements { add, remove } => {
                // Removals first: a moved port is a removal and an addition of the same key.
                write_elements(&mut batch, Verb::DelElement, remove);
                write_elements(&mut batch, Verb::NewElement, add);
            }
        }
        if batch.is_empty() {
            return Ok(false);
        }
        let before = self.known.take().map(|known| known.generation);
        self.transact(&batch)?;
        let after = observe::generation(&mut self.socket)?;
        // One step further is our own; any other number means that somebody else was there too, so that the next
        // look must read.
        if before.is_some_and(|before| before.wrapping_add(1) == after) {
            self.known = Some(Known { generation: after, elements: wanted.clone() });
        }
        Ok(true)
    }

    /// The whole table in one transaction. Removing the old one in it leaves no moment without rules.
    fn write_table(&self, batch: &mut Batch, wanted: &Elements) {
        let table = |attrs: &mut Attrs| {
            attrs.text(1, TABLE).number(2, 0);
        };
        batch.push(Verb::NewTable, NLM_F_CREATE, table);
        batch.push(Verb::DelTable, 0, |attrs| {
            attrs.text(1, TABLE);
        });
        batch.push(Verb::NewTable, NLM_F_CREATE, table);
        for (id, set) in (1u32..).zip(&SETS) {
            batch.push(Verb::NewSet, NLM_F_CREATE, |attrs| {
                let flags = u32::from(set.interval) * 4 + u32::from(set.data.is_some()) * 8;
                attrs.text(1, TABLE).text(2, set.name).number(3, flags).number(4, set.key.0).number(5, set.key.1);
                if let Some((kind, length)) = set.data {
                    attrs.number(6, kind).number(7, length);
                }
                attrs.number(10, id);
                // Byte order of the key for those who print it; link names are texts in the machine's order.
                let order: u32 = if set.key.0 == ruleset::T_LINK { 1 } else { 2 };
                attrs.bytes(13, &[&[0, 4][..], &order.to_ne_bytes()].concat());
            });
        }
        for chain in &CHAINS {
            batch.push(Verb::NewChain, NLM_F_CREATE, |attrs| {
                attrs.text(1, TABLE).text(3, chain.name);
                if let Some(hook) = chain.hook {
                    attrs.nest(4, |inner| {
                        inner.number(1, hook.number).bytes(2, &hook.priority.to_be_bytes());
                    });
                    attrs.number(5, 1).text(7, hook.kind);
                }
            });
        }
        for rule in &self.rules {
            batch.push(Verb::NewRule, NLM_F_CREATE | NLM_F_APPEND, |attrs| {
                attrs.text(1, TABLE).text(2, rule.chain);
                attrs.nest(4, |list| rule.exprs.iter().for_each(|expr| expr.write(list)));
                attrs.bytes(7, &comment(rule));
            });
        }
        let all: Vec<(&'static str, Element)> =
            wanted.iter().flat_map(|(set, elements)| elements.iter().map(|e| (*set, e.clone()))).collect();
        write_elements(batch, Verb::NewElement, &all);
    }

    fn transact(&mut self, batch: &Batch) -> Result<(), Refused> {
        let first = self.socket.reserve(batch.messages());
        self.socket.transact(&batch.encode(first), first)
    }
}

/// Writes elements, grouped by set, in messages of limited size.
fn write_elements(batch: &mut Batch, verb: Verb, elements: &[(&'static str, Element)]) {
    let flags = if verb == Verb::NewElement { NLM_F_CREATE } else { 0 };
    for group in elements.chunk_by(|(a, _), (b, _)| a == b) {
        for part in group.chunks(ELEMENTS_PER_MESSAGE) {
            batch.push(verb, flags, |attrs| {
                attrs.text(1, TABLE).text(2, group[0].0).nest(3, |list| {
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
fn comment(rule: &Rule) -> Vec<u8> {
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

/// Whether everything but the elements is as written.
fn is_sound(observed: &Observed, rules: &[Rule]) -> bool {
    let sets: BTreeSet<&str> = SETS.iter().map(|set| set.name).collect();
    let chains: BTreeSet<(&str, Option<(u32, i32)>)> =
        CHAINS.iter().map(|chain| (chain.name, chain.hook.map(|hook| (hook.number, hook.priority)))).collect();
    let of_chain =
        |chain: &str| -> Vec<Vec<u8>> { rules.iter().filter(|rule| rule.chain == chain).map(comment).collect() };
    !observed.flagged
        && observed.sets.iter().map(String::as_str).collect::<BTreeSet<_>>() == sets
        && observed.chains.iter().map(|c| (c.name.as_str(), c.hook)).collect::<BTreeSet<_>>() == chains
        && observed.chains.iter().all(|chain| !chain.drops)
        && CHAINS.iter().all(|chain| {
            let held: Vec<&Vec<u8>> =
                observed.rules.iter().filter(|(c, _)| c == chain.name).map(|(_, comment)| comment).collect();
            held.into_iter().eq(of_chain(chain.name).iter())
        })
}

fn difference(held: &Elements, wanted: &Elements) -> Repair {
    let nothing = BTreeSet::new();
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    for set in &SETS {
        let (held, wanted) = (held.get(set.name).unwrap_or(&nothing), wanted.get(set.name).unwrap_or(&nothing));
        add.extend(wanted.difference(held).map(|element| (set.name, element.clone())));
        remove.extend(held.difference(wanted).map(|element| (set.name, element.clone())));
    }
    Repair::Elements { add, remove }
}

/// A single answer or a dump.
fn ask(socket: &mut Socket, verb: Verb, flags: u16, attrs: &Attrs) -> Result<Vec<super::netlink::Message>, Refused> {
    let first = socket.reserve(1);
    let flags = if flags == 0 { NLM_F_ACK } else { flags };
    socket.talk(&query(verb, flags, first, attrs), first, 1)
}
