//! A proxy in front of a registry that breaks answers on purpose and counts the bytes of every blob.
//!
//! It speaks HTTP/1.1, one request for each connection, in threads of its own. A [`Rule`] picks requests by a part of
//! their path and says what goes wrong with them and how often; all other requests are forwarded untouched. Counters
//! hold what was written to the client, so a byte that is asked for twice is counted twice.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::namespaces::Namespaces;

/// What goes wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is reset after so many bytes of the body.
    CutAfter(u64),
    /// Nothing more comes after so many bytes of the body, and the connection stays.
    StallAfter(u64),
    /// One bit of the byte at this offset of the body is another.
    WrongByte(u64),
    /// The head claims so many bytes more than the body has; then the connection ends.
    ClaimMore(u64),
    /// The body, and what the head says of its length, is this much shorter than it should be.
    Truncated(u64),
    /// The body never ends, and the head does not say how long it is.
    Endless,
    /// The range that was asked for is ignored: the whole body comes, with status 200.
    IgnoreRange,
    /// So many bytes in a second, at most.
    Slow(u64),
    /// This answer instead, without asking the registry.
    Status {
        /// Its status code.
        code: u16,
        /// Its additional header lines, each ending in CR LF.
        headers: String,
        /// Its body.
        body: String,
    },
}

impl Fault {
    /// An empty answer with that status.
    pub fn status(code: u16) -> Fault {
        Fault::Status { code, headers: String::new(), body: String::new() }
    }
}

/// Which requests a fault is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// A part of the path, such as `/blobs/` or a digest.
    pub path: String,
    /// How many requests it hits; then it is gone.
    pub times: usize,
    /// What goes wrong.
    pub fault: Fault,
}

/// What went through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes of bodies sent to clients, by digest of the blob.
    pub blobs: BTreeMap<String, u64>,
    /// Requests, in order: method, path and the first byte of a range.
    pub requests: Vec<String>,
}

impl Counts {
    /// Bytes of all blobs.
    pub fn bytes(&self) -> u64 {
        self.blobs.values().sum()
    }

    /// Requests for the content of blobs.
    pub fn blob_requests(&self) -> usize {
        self.requests.iter().filter(|line| line.starts_with("GET") && line.contains("/blobs/")).count()
    }
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    counts: Counts,
    /// Tokens are wanted, and this is the number of the one that is good.
    token: Option<u64>,
    /// When so many bytes of blobs have been sent, everything is cut.
    cut_at: Option<u64>,
    /// How often everything was cut.
    cuts: u64,
    /// A cut makes the token bad.
    expire_on_cut: bool,
    tokens_given: usize,
}

impl State {
    /// Makes the token bad, if a cut is to do that.
    fn expire(&mut self) {
        if self.expire_on_cut {
            self.token = self.token.map(|number| number + 1);
        }
    }

    /// Counts bytes of a blob, and answers how often everything was cut.
    fn sent(&mut self, digest: &str, bytes: u64) -> u64 {
        *self.counts.blobs.entry(digest.to_owned()).or_default() += bytes;
        if self.cut_at.is_some_and(|at| self.counts.bytes() >= at) {
            self.cut_at = None;
            self.cuts += 1;
            self.expire();
        }
        self.cuts
    }
}

/// The proxy, for as long as the value lives.
#[derive(Debug)]
pub struct FaultProxy {
    /// The port on 127.0.0.1.
    pub port: u16,
    listener: TcpListener,
    state: Arc<Mutex<State>>,
    ended: Arc<End>,
}

impl FaultProxy {
    /// Listens on a free port of 127.0.0.1 and forwards to the registry at `target` there.
    pub fn start(target: u16) -> Result<FaultProxy> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listening on loopback")?;
        let port = listener.local_addr()?.port();
        let proxy = FaultProxy { port, listener: listener.try_clone()?, state: Arc::default(), ended: Arc::default() };
        let (state, ended) = (proxy.state.clone(), proxy.ended.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if ended.is_over() {
                    return;
                }
                let (Ok(client), state, ended) = (client, state.clone(), ended.clone()) else { continue };
                std::thread::spawn(move || {
                    // A client that went away, or was cut, is what this is for.
                    let _ = Exchange { client, port, target, state, ended }.serve();
                });
            }
        });
        Ok(proxy)
    }

    /// The same on the loopback of a node, in front of the registry there. A thread keeps the network namespace that it
    /// was started in, and so do the sockets that it makes.
    pub fn start_in(node: &Namespaces, target: u16) -> Result<FaultProxy> {
        node.in_network(|| FaultProxy::start(target))
    }

    /// The reference of `name` through this proxy.
    pub fn name(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Adds a rule; the first that fits a request is taken.
    pub fn inject(&self, path: &str, times: usize, fault: Fault) {
        self.state().rules.push(Rule { path: path.to_owned(), times, fault });
    }

    /// Forgets all rules.
    pub fn heal(&self) {
        self.state().rules.clear();
    }

    /// Cuts all connections that carry blobs, once, when so many bytes of blobs have come since [`Self::take`].
    pub fn cut_at(&self, bytes: u64) {
        self.state().cut_at = Some(bytes);
    }

    /// How often [`Self::cut_at`] has cut.
    pub fn cuts(&self) -> u64 {
        self.state().cuts
    }

    /// From now on a bearer token is wanted, which `/token` gives to everybody.
    pub fn want_tokens(&self, expire_on_cut: bool) {
        let mut state = self.state();
        state.token = Some(0);
        state.expire_on_cut = expire_on_cut;
    }

    /// How many tokens were given.
    pub fn tokens_given(&self) -> usize {
        self.state().tokens_given
    }

    /// What went through since the start or the last call.
    pub fn take(&self) -> Counts {
        std::mem::take(&mut self.state().counts)
    }

    /// Bytes of blobs since the start or the last [`Self::take`].
    pub fn bytes(&self) -> u64 {
        self.state().counts.bytes()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.ended.over();
        // Wakes the listener, which then sees that it is over; a connection would have to come from its namespace.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request and its answer.
struct Exchange {
    client: TcpStream,
    port: u16,
    target: u16,
    state: Arc<Mutex<State>>,
    ended: Arc<End>,
}

/// The head of a request or an answer.
#[derive(Debug)]
struct Head {
    first: String,
    lines: Vec<(String, String)>,
}

impl Head {
    fn read(stream: &mut impl BufRead) -> Result<Head> {
        let mut line = || -> Result<String> {
            let mut text = String::new();
            if stream.read_line(&mut text)? == 0 {
                bail!("the connection ended within a head");
            }
            Ok(text.trim_end().to_owned())
        };
        let first = line()?;
        let mut lines = Vec::new();
        loop {
            let text = line()?;
            match text.split_once(':') {
                Some((name, value)) => lines.push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None => return Ok(Head { first, lines }),
            }
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.lines.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: Option<String>) {
        self.lines.retain(|(known, _)| known != name);
        self.lines.extend(value.map(|value| (name.to_owned(), value)));
    }

    fn text(&self) -> String {
        let lines: String = self.lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{}\r\n{lines}\r\n", self.first)
    }
}

impl Exchange {
    fn serve(mut self) -> Result<()> {
        let mut request = Head::read(&mut BufReader::new(self.client.try_clone()?))?;
        let mut words = request.first.split(' ');
        let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
        let (fault, allowed) = {
            let mut state = lock(&self.state);
            let from = request.get("range").unwrap_or_default().to_owned();
            state.counts.requests.push(format!("{method} {path} {from}").trim_end().to_owned());
            let good = state.token.map(|number| format!("Bearer t{number}"));
            if path.starts_with("/token") && good.is_some() {
                state.tokens_given += 1;
            }
            let allowed = good.is_none() || request.get("authorization") == good.as_deref();
            (take_fault(&mut state.rules, &path), allowed)
        };
        let token = lock(&self.state).token;
        if let Some(token) = token.filter(|_| path.starts_with("/token")) {
            return self.say(200, "", &format!(r#"{{"token":"t{token}","expires_in":3600}}"#));
        }
        if let Some(Fault::Status { code, headers, body }) = fault {
            return self.say(code, &headers, &body);
        }
        if !allowed {
            let realm = format!("http://127.0.0.1:{}/token", self.port);
            let headers = format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"test\"\r\n");
            return self.say(401, &headers, r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#);
        }
        if fault == Some(Fault::IgnoreRange) {
            request.set("range", None);
        }
        self.forward(&method, &path, request, fault)
    }

    fn say(&mut self, code: u16, headers: &str, body: &str) -> Result<()> {
        let length = body.len();
        let head = format!("HTTP/1.1 {code} x\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n");
        self.client.write_all(head.as_bytes())?;
        Ok(self.client.write_all(body.as_bytes())?)
    }

    fn forward(&mut self, method: &str, path: &str, mut request: Head, fault: Option<Fault>) -> Result<()> {
        let mut registry = TcpStream::connect(("127.0.0.1", self.target)).context("reaching the registry")?;
        request.set("connection", Some("close".to_owned()));
        registry.write_all(request.text().as_bytes())?;
        let mut registry = BufReader::new(registry);
        let mut head = Head::read(&mut registry)?;
        head.set("connection", Some("close".to_owned()));
        let length = head.get("content-length").and_then(|text| text.parse::<u64>().ok());
        match (&fault, length) {
            (Some(Fault::ClaimMore(more)), Some(length)) => {
                head.set("content-length", Some((length + more).to_string()));
            }
            (Some(Fault::Truncated(less)), Some(length)) => {
                head.set("content-length", Some(length.saturating_sub(*less).to_string()));
            }
            (Some(Fault::Endless), _) => head.set("content-length", None),
            _ => {}
        }
        self.client.write_all(head.text().as_bytes())?;
        if method == "HEAD" {
            return Ok(());
        }
        self.body(path, &mut registry, length.unwrap_or(u64::MAX), fault)
    }

    fn body(&mut self, path: &str, from: &mut impl Read, length: u64, fault: Option<Fault>) -> Result<()> {
        let digest =
            path.split_once("/blobs/").map(|(_, digest)| digest.split('?').next().unwrap_or(digest).to_owned());
        let end = match &fault {
            Some(Fault::CutAfter(bytes) | Fault::StallAfter(bytes)) => *bytes,
            Some(Fault::Truncated(less)) => length.saturating_sub(*less),
            _ => length,
        };
        if let Some(Fault::Slow(_)) = fault {
            // What is slow is counted when it arrives, and not when it waits in a buffer here.
            rustix::net::sockopt::set_socket_send_buffer_size(&self.client, 16 << 10)?;
        }
        let begin = Instant::now();
        let cuts = lock(&self.state).cuts;
        let mut sent = 0;
        let mut buffer = vec![0; 16 << 10];
        while sent < end {
            let want = buffer.len().min(usize::try_from(end - sent).unwrap_or(usize::MAX));
            let read = from.read(&mut buffer[..want])?;
            if read == 0 {
                break;
            }
            if let Some(Fault::WrongByte(at)) = fault
                && (sent..sent + read as u64).contains(&at)
            {
                buffer[usize::try_from(at - sent)?] ^= 1;
            }
            self.client.write_all(&buffer[..read])?;
            sent += read as u64;
            if let Some(digest) = &digest
                && lock(&self.state).sent(digest, read as u64) != cuts
            {
                return Ok(self.client.shutdown(Shutdown::Both)?);
            }
            if let Some(Fault::Slow(rate)) = fault {
                let due = Duration::from_millis(sent.saturating_mul(1000) / rate.max(1));
                self.wait(due.saturating_sub(begin.elapsed()));
            }
        }
        match fault {
            Some(Fault::CutAfter(_)) => {
                lock(&self.state).expire();
                self.client.shutdown(Shutdown::Both)?;
            }
            Some(Fault::StallAfter(_)) => self.wait(Duration::from_secs(3600)),
            Some(Fault::Endless) => loop {
                self.client.write_all(&buffer)?;
            },
            _ => {}
        }
        Ok(())
    }

    /// Waits, but not beyond the end of the proxy.
    fn wait(&self, time: Duration) {
        self.ended.wait(time);
    }
}

/// The end of a proxy, for those who wait.
#[derive(Debug, Default)]
struct End {
    over: Mutex<bool>,
    changed: Condvar,
}

impl End {
    fn over(&self) {
        *lock(&self.over) = true;
        self.changed.notify_all();
    }

    fn is_over(&self) -> bool {
        *lock(&self.over)
    }

    /// Waits for the end, but not longer than this.
    fn wait(&self, time: Duration) {
        let _ = self.changed.wait_timeout_while(lock(&self.over), time, |over| !*over);
    }
}

fn take_fault(rules: &mut Vec<Rule>, path: &str) -> Option<Fault> {
    let at = rules.iter().position(|rule| rule.times > 0 && path.contains(&rule.path))?;
    rules[at].times -= 1;
    let fault = rules[at].fault.clone();
    rules.retain(|rule| rule.times > 0);
    Some(fault)
}
