//! A limit of memory that is lowered below what is used.
//!
//! Set at once, it would kill (version 2) or be refused (version 1). Instead the use is brought down first: in version 2
//! by `memory.high`, which takes what can be reclaimed and slows who wants more, and kills nobody; in version 1 by what
//! the kernel reclaims before it refuses. What was in force stays so meanwhile, and the limit is set once the use is below
//! it.

use std::fmt;

use serde::Serialize;

use super::Error;
use super::files::Group;

/// More memory is used than a limit that was asked for. It is not in force; asking again brings it nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Excess {
    /// The limit that was asked for, in bytes.
    pub wanted: u64,
    /// What is used, in bytes.
    pub used: u64,
    /// The limit that is in force, in bytes; `None` if there is none.
    pub in_force: Option<u64>,
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Upwards, so that it is never told to use no more than it may.
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        write!(f, "{} MiB of memory are used, above the limit of {} MiB; ", mib(self.used), self.wanted >> 20)?;
        match self.in_force {
            Some(limit) => write!(f, "until that falls, {} MiB stay in force", mib(limit)),
            None => write!(f, "until that falls, there is none"),
        }
    }
}

/// Sets `memory.max` and `memory.high` of version 2, the first one only when it kills nobody by that.
pub(super) fn set_v2(group: &Group, max: Option<u64>, high: Option<u64>) -> Result<Option<Excess>, Error> {
    let text = |bytes: Option<u64>| bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
    if let Some(wanted) = max {
        let in_force = group.read_number("memory.max")?;
        let is_lower = in_force.is_none_or(|now| now > wanted);
        let used = || Ok::<u64, Error>(group.read_number("memory.current")?.unwrap_or(0));
        if is_lower && used()? > wanted {
            // Written also when it says so already: each time the kernel reclaims down to it, as far as it can.
            group.write("memory.high", &text(Some(high.map_or(wanted, |high| high.min(wanted)))))?;
            let used = used()?;
            if used > wanted {
                return Ok(Some(Excess { wanted, used, in_force }));
            }
        }
    }
    // Not below what it was before the limit is in force.
    group.set("memory.max", &text(max))?;
    group.set("memory.high", &text(high))?;
    Ok(None)
}
