//! From the bytes of a question to those of its answer, or to what has to be asked elsewhere. Pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{PTR, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use super::view::{Found, View, Wanted};
use crate::ids::NetworkKey;

/// Clients should ask each time: names move from one instance to another within a second.
const TTL: u32 = 0;
/// What we take and give over UDP: fits a packet on every usual link.
const UDP_PAYLOAD: u16 = 1232;
const UDP_PAYLOAD_WITHOUT_EDNS: u16 = 512;
/// Of the header; a shorter datagram cannot even be refused.
const HEADER: usize = 12;

/// A question that was understood as far as it can be answered.
#[derive(Debug)]
pub(super) struct Question {
    metadata: Metadata,
    query: Option<Query>,
    edns: Option<Edns>,
    /// Largest answer in bytes.
    limit: u16,
}

/// What is to be done with a question.
#[derive(Debug)]
pub(super) enum Reply {
    /// Nothing: it is no question.
    None,
    /// Send this.
    Send(Vec<u8>),
    /// Ask these servers, or the node's if there are none.
    Ask(Box<Question>, Arc<[IpAddr]>),
}

/// Answers a datagram or message, whatever is in it.
pub(super) fn answer(view: &View, network: &NetworkKey, source: SocketAddr, bytes: &[u8], udp: bool) -> Reply {
    // An answer is never answered: two servers would talk for ever.
    if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
        return Reply::None;
    }
    let Ok(mut message) = Message::from_vec(bytes) else {
        let id = u16::from_be_bytes([bytes[0], bytes[1]]);
        let metadata = Metadata::new(id, MessageType::Response, OpCode::Query);
        return Question { metadata, query: None, edns: None, limit: UDP_PAYLOAD_WITHOUT_EDNS }
            .fail(ResponseCode::FormErr);
    };
    let theirs = message.edns.take();
    let limit = match (&theirs, udp) {
        (_, false) => u16::MAX,
        (Some(edns), true) => edns.max_payload().clamp(UDP_PAYLOAD_WITHOUT_EDNS, UDP_PAYLOAD),
        (None, true) => UDP_PAYLOAD_WITHOUT_EDNS,
    };
    let version = theirs.as_ref().map_or(0, Edns::version);
    let edns = theirs.map(|_| {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        edns
    });
    let mut metadata = Metadata::response_from_request(&message.metadata);
    metadata.recursion_available = true;
    let mut question = Question { metadata, query: None, edns, limit };
    if message.metadata.op_code != OpCode::Query {
        return question.fail(ResponseCode::NotImp);
    }
    let (Some(query), true) = (message.queries.pop(), message.queries.is_empty()) else {
        return question.fail(ResponseCode::FormErr);
    };
    question.query = Some(query.clone());
    if version > 0 {
        return question.fail(ResponseCode::BADVERS);
    }
    if query.query_class() != DNSClass::IN {
        return question.fail(ResponseCode::Refused);
    }
    let source = source.ip().to_canonical();
    let found = match (query.query_type(), query.name().parse_arpa_name()) {
        (RecordType::AXFR | RecordType::IXFR, _) => Found::Refused,
        (RecordType::PTR, Ok(net)) if net.prefix_len() == net.max_prefix_len() => {
            view.find_reverse(network, source, net.addr())
        }
        (kind, _) => {
            let wanted = match kind {
                RecordType::A => Wanted::V4,
                RecordType::AAAA => Wanted::V6,
                RecordType::SRV => Wanted::Service,
                _ => Wanted::Other,
            };
            view.find(network, source, text(query.name()).trim_end_matches('.'), wanted)
        }
    };
    match found {
        Found::Refused => question.fail(ResponseCode::Refused),
        Found::Nothing => {
            question.metadata.authoritative = true;
            question.fail(ResponseCode::NXDomain)
        }
        Found::Elsewhere(upstreams) => Reply::Ask(Box::new(question), upstreams),
        Found::Addresses(addresses) => {
            let name = query.name().clone();
            question.tell(addresses.into_iter().map(|address| address_record(name.clone(), address)).collect(), vec![])
        }
        Found::Names(names) => {
            let names = names.iter().filter_map(|name| absolute(name));
            let record = |name| Record::from_rdata(query.name().clone(), TTL, RData::PTR(PTR(name)));
            question.tell(names.map(record).collect(), vec![])
        }
        Found::Services(services) => {
            let (mut answers, mut additionals) = (Vec::new(), Vec::new());
            for (port, name, addresses) in services {
                let Some(target) = absolute(&name) else { continue };
                let data = RData::SRV(SRV::new(0, 0, port, target.clone()));
                answers.push(Record::from_rdata(query.name().clone(), TTL, data));
                additionals.extend(addresses.into_iter().map(|address| address_record(target.clone(), address)));
            }
            question.tell(answers, additionals)
        }
    }
}

/// The name in lower case. What is no text is written with escapes, so that it is no name of ours.
fn text(name: &Name) -> String {
    name.to_lowercase().to_ascii()
}

fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn address_record(name: Name, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    };
    Record::from_rdata(name, TTL, data)
}

impl Question {
    /// What is asked.
    pub(super) fn query(&self) -> Option<&Query> {
        self.query.as_ref()
    }

    /// Our own answer.
    fn tell(mut self, answers: Vec<Record>, additionals: Vec<Record>) -> Reply {
        self.metadata.authoritative = true;
        Reply::Send(self.encode(ResponseCode::NoError, answers, vec![], additionals))
    }

    fn fail(self, code: ResponseCode) -> Reply {
        Reply::Send(self.encode(code, vec![], vec![], vec![]))
    }

    /// The bytes of an answer, cut to what the client takes.
    pub(super) fn encode(
        self,
        code: ResponseCode,
        answers: Vec<Record>,
        authorities: Vec<Record>,
        additionals: Vec<Record>,
    ) -> Vec<u8> {
        let mut message = Message::response(self.metadata.id, self.metadata.op_code);
        message.metadata = self.metadata;
        message.metadata.response_code = code;
        message.queries.extend(self.query);
        message.answers = answers;
        message.authorities = authorities;
        message.additionals = additionals;
        message.edns = self.edns;
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(self.limit);
        if message.emit(&mut encoder).is_ok() {
            return bytes;
        }
        // Only a record that cannot be written comes here: an answer without any is always possible.
        let mut failed = Message::response(self.metadata.id, self.metadata.op_code);
        failed.metadata.response_code = ResponseCode::ServFail;
        failed.to_vec().unwrap_or_default()
    }
}
