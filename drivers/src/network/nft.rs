//! Our nftables tables, one for IP and one for bridges, kept equal to what they should be by netlink transactions.
//!
//! [`Table::sync`] writes the difference between what the kernel is known to hold and what it should hold, one
//! transaction, in some ten microseconds per element. [`Table::change`] is for those who know what is new: its cost does
//! not grow with what is held. What the kernel holds is known as long as its ruleset generation has not moved by another
//! hand; when it has, the tables are read, and put back element by element or, when chains or rules are damaged, as a
//! whole.

pub(super) mod decode;
pub(super) mod encode;
mod expr;
pub(super) mod foreign;
mod guard;
mod observe;
mod ruleset;
mod write;

use std::collections::BTreeSet;

use self::encode::{Attrs, Batch, Family, NLM_F_ACK, Verb, query};
pub(super) use self::guard::of_place;
use self::observe::Observed;
use self::ruleset::{Chain, Rule, Set, chains, rules, sets};
pub(super) use self::ruleset::{Element, Elements, TABLE, elements, port_element};
use super::netlink::{Refused, Socket};

/// Our tables in the kernel.
pub(super) struct Table {
    socket: Socket,
    rules: Vec<Rule>,
    /// Those that the kernel has.
    families: Vec<Family>,
    /// What the kernel held at which generation, when that is known.
    known: Option<Known>,
}

struct Known {
    generation: u32,
    elements: Elements,
    /// It is what was wanted when it was last written.
    settled: bool,
}

/// An element and the set that it belongs to.
pub(super) type Member = (&'static str, Element);

/// Elements that are missing, and those that should not be there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Difference {
    add: Vec<Member>,
    remove: Vec<Member>,
}

impl Difference {
    fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

impl Table {
    /// Opens a netlink socket in the calling thread's network namespace.
    pub(super) fn open() -> std::io::Result<Self> {
        let socket = Socket::open(netlink_sys::protocols::NETLINK_NETFILTER)?;
        Ok(Self { socket, rules: rules(), families: vec![Family::Inet, Family::Bridge], known: None })
    }

    /// See [`Socket::port`].
    pub(super) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Makes the kernel's tables this. Returns whether they were not. Everything or nothing happens.
    pub(super) fn sync(&mut self, wanted: &Elements) -> Result<bool, Refused> {
        self.refresh()?;
        let Some(known) = &self.known else { return self.write_whole(wanted).map(|()| true) };
        let difference = self.difference(&known.elements, wanted);
        let changed = self.write_difference(&difference)?;
        if let Some(known) = &mut self.known {
            known.settled = true;
        }
        Ok(changed)
    }

    /// Adds and removes elements where the kernel holds what it should; else [`Table::sync`], which `wanted` is for.
    pub(super) fn change(
        &mut self,
        remove: Vec<Member>,
        add: Vec<Member>,
        wanted: impl FnOnce() -> Elements,
    ) -> Result<bool, Refused> {
        self.refresh()?;
        match &self.known {
            Some(known) if known.settled => {
                let held = |(set, element): &Member| known.elements.get(set).is_some_and(|set| set.contains(element));
                let added: BTreeSet<&Member> = add.iter().collect();
                let possible = |(name, _): &Member| self.sets().any(|set| set.name == *name);
                let difference = Difference {
                    remove: remove.into_iter().filter(|m| possible(m) && held(m) && !added.contains(m)).collect(),
                    add: add.iter().filter(|m| possible(m) && !held(m)).cloned().collect(),
                };
                self.write_difference(&difference)
            }
            _ => self.sync(&wanted()),
        }
    }

    /// Whether the kernel's tables are exactly this.
    pub(super) fn is_intact(&mut self, wanted: &Elements) -> Result<bool, Refused> {
        self.refresh()?;
        Ok(self.known.as_ref().is_some_and(|known| self.difference(&known.elements, wanted).is_empty()))
    }

    /// Chains that the kernel can have.
    fn chains(&self) -> impl Iterator<Item = &'static Chain> {
        chains().filter(|chain| self.families.contains(&chain.family))
    }

    /// Sets that the kernel can have.
    fn sets(&self) -> impl Iterator<Item = &'static Set> {
        sets().filter(|set| self.families.contains(&set.family))
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

    /// Removes the tables; absence is success.
    pub(super) fn remove(&mut self) -> Result<(), Refused> {
        self.known = None;
        for family in self.families.clone() {
            let mut batch = Batch::default();
            write::remove_table(&mut batch, family);
            match self.transact(&batch) {
                Err(refused) if refused.errno == libc::ENOENT || is_unknown_family(&refused) => {}
                other => other?,
            }
        }
        Ok(())
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
            let observed = observe::tables(&mut self.socket, &self.families)?;
            let after = observe::generation(&mut self.socket)?;
            self.known = observed.filter(|observed| self.is_sound(observed)).map(|observed| Known {
                generation: after,
                elements: observed.elements,
                settled: false,
            });
            if before == after {
                break;
            }
            before = after;
        }
        Ok(())
    }

    fn write_whole(&mut self, wanted: &Elements) -> Result<(), Refused> {
        loop {
            let mut batch = Batch::default();
            write::tables(&mut batch, &self.families, &self.rules, wanted);
            match self.transact(&batch) {
                // Nothing but the guard against false senders is lost.
                Err(refused) if is_unknown_family(&refused) && self.families.contains(&Family::Bridge) => {
                    tracing::warn!(
                        "this kernel has no nftables for bridges (CONFIG_NF_TABLES_BRIDGE): containers that may change \
                         their links can send by the addresses of others"
                    );
                    self.families.retain(|family| *family != Family::Bridge);
                }
                other => return other,
            }
        }
    }

    fn write_difference(&mut self, difference: &Difference) -> Result<bool, Refused> {
        if difference.is_empty() {
            return Ok(false);
        }
        let mut batch = Batch::default();
        // Removals first: a moved port is a removal and an addition of the same key.
        write::elements(&mut batch, Verb::DelElement, &difference.remove);
        write::elements(&mut batch, Verb::NewElement, &difference.add);
        let before = self.known.take();
        self.transact(&batch)?;
        let after = observe::generation(&mut self.socket)?;
        // One step further is our own; any other number means that somebody else was there too, so that the next
        // look must read.
        self.known = before.filter(|known| known.generation.wrapping_add(1) == after).map(|mut known| {
            known.generation = after;
            known.apply(difference);
            known
        });
        Ok(true)
    }

    fn transact(&mut self, batch: &Batch) -> Result<(), Refused> {
        let first = self.socket.reserve(batch.messages());
        self.socket.transact(&batch.encode(first), first)
    }

    /// Whether everything but the elements is as written.
    fn is_sound(&self, observed: &Observed) -> bool {
        let sets: BTreeSet<&str> = self.sets().map(|set| set.name).collect();
        let hook = |chain: &Chain| chain.hook.map(|hook| (hook.number, hook.priority));
        let chains: BTreeSet<_> = self.chains().map(|chain| (chain.name, hook(chain))).collect();
        let rules_are_right = |chain: &Chain| {
            let held = observed.rules.iter().filter(|(name, _)| name == chain.name).map(|(_, comment)| comment.clone());
            held.eq(self.rules.iter().filter(|rule| rule.chain == chain.name).map(write::comment))
        };
        !observed.flagged
            && observed.sets.iter().map(String::as_str).collect::<BTreeSet<_>>() == sets
            && observed.chains.iter().map(|c| (c.name.as_str(), c.hook)).collect::<BTreeSet<_>>() == chains
            && observed.chains.iter().all(|chain| !chain.drops)
            && self.chains().all(rules_are_right)
    }

    fn difference(&self, held: &Elements, wanted: &Elements) -> Difference {
        let nothing = BTreeSet::new();
        let mut difference = Difference::default();
        for Set { name, .. } in self.sets() {
            let (held, wanted) = (held.get(name).unwrap_or(&nothing), wanted.get(name).unwrap_or(&nothing));
            difference.add.extend(wanted.difference(held).map(|element| (*name, element.clone())));
            difference.remove.extend(held.difference(wanted).map(|element| (*name, element.clone())));
        }
        difference
    }
}

impl Known {
    fn apply(&mut self, difference: &Difference) {
        for (set, element) in &difference.remove {
            self.elements.entry(set).or_default().remove(element);
        }
        for (set, element) in &difference.add {
            self.elements.entry(set).or_default().insert(element.clone());
        }
    }
}

/// The kernel was built without tables of the family.
fn is_unknown_family(refused: &Refused) -> bool {
    matches!(refused.errno, libc::EOPNOTSUPP | libc::EAFNOSUPPORT)
}

/// A single answer or a dump.
fn ask(
    socket: &mut Socket,
    family: Family,
    verb: Verb,
    flags: u16,
    attrs: &Attrs,
) -> Result<Vec<super::netlink::Message>, Refused> {
    let first = socket.reserve(1);
    let flags = if flags == 0 { NLM_F_ACK } else { flags };
    socket.talk(&query(family, verb, flags, first, attrs), first, 1)
}
