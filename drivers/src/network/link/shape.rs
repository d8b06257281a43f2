//! Limits of what a link sends: a token bucket (`tbf`) at its root.

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Route;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::{Links, Refused, Request};
use crate::network::nft::decode::Attributes;

const KIND: &str = "tbf";
/// `TCA_KIND` and `TCA_OPTIONS`.
const KIND_NAME: u16 = 1;
const OPTIONS: u16 = 2;
/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64` and `TCA_TBF_BURST`.
const PARAMETERS: u16 = 1;
const RATE64: u16 = 4;
const BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`.
const ETHERNET: u8 = 1;
/// What may be sent at once, at least: some large packets as the kernel hands them on.
const SMALLEST_BURST: u64 = 64 * 1024;

fn message(link: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(link).unwrap_or_default();
    message.header.parent = TcHandle::ROOT;
    message
}

/// Lets a link send at most this many bytes per second, whatever its limit was.
pub(in crate::network) fn limit(link: u32, rate: u64) -> Request {
    let clamp = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    // A fiftieth of a second at once, and a tenth in wait before packets are dropped.
    let burst = (rate / 50).max(SMALLEST_BURST);
    // `struct tc_tbf_qopt`: two `struct tc_ratespec`, then what may wait, and two numbers that `BURST` replaces.
    let mut parameters = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend(clamp(rate).to_ne_bytes());
    parameters.extend([0; 12]);
    parameters.extend(clamp(burst + rate / 10).to_ne_bytes());
    parameters.extend([0; 8]);
    let mut message = message(link);
    message.header.handle = TcHandle { major: 1, minor: 0 };
    message.attributes = vec![
        TcAttribute::Kind(KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::Other(DefaultNla::new(PARAMETERS, parameters)),
            TcOption::Other(DefaultNla::new(RATE64, rate.to_ne_bytes().to_vec())),
            TcOption::Other(DefaultNla::new(BURST, clamp(burst).to_ne_bytes().to_vec())),
        ]),
    ];
    Request(Route::NewQueueDiscipline(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
}

/// Lifts the limit.
pub(in crate::network) fn unlimit(link: u32) -> Request {
    Request(Route::DelQueueDiscipline(message(link)), NLM_F_ACK)
}

impl Links {
    /// The limit of what a link sends, in bytes per second.
    pub(in crate::network) fn limit_of(&mut self, link: u32) -> Result<Option<u64>, Refused> {
        let answers = self.talk(vec![Request(Route::GetQueueDiscipline(message(link)), NLM_F_DUMP)])?;
        Ok(answers.iter().find_map(|answer| rate(answer.payload(), link)))
    }
}

/// Reads an answer by hand: the typed parser refuses what it does not know of statistics.
fn rate(payload: &[u8], link: u32) -> Option<u64> {
    /// Length of `struct tcmsg`, and where the link's index and the parent are in it.
    const HEADER: usize = 20;
    let word = |at: usize| payload.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let attributes = Attributes::new(payload.get(HEADER..)?);
    if word(4) != Some(link) || word(12) != Some(u32::from(TcHandle::ROOT)) || attributes.text(KIND_NAME) != Some(KIND)
    {
        return None;
    }
    let options = attributes.nested(OPTIONS)?;
    // Only rates that need it are told in 64 bits.
    if let Some(wide) = options.get(RATE64).and_then(|bytes| bytes.try_into().ok()).map(u64::from_ne_bytes) {
        return Some(wide);
    }
    let rate = options.get(PARAMETERS)?.get(8..12)?.try_into().ok()?;
    Some(u64::from(u32::from_ne_bytes(rate)))
}
