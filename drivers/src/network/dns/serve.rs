//! The server: a thread with sockets, and the handle by which the networks tell it what to answer.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::answer::{Question, Reply, answer};
use super::listen::Sockets;
use super::upstream::Upstreams;
use super::view::View;
use crate::ids::NetworkKey;

/// Questions that are with upstream servers at once: of all, and of one client.
const ASKING: usize = 1024;
const ASKING_FOR_ONE: usize = 128;
/// TCP connections at once, and how long one may be silent.
const CONNECTIONS: usize = 256;
const SILENCE: Duration = Duration::from_secs(10);
/// After an error of a socket, so that one which lasts does not keep a processor busy.
const RESPITE: Duration = Duration::from_millis(10);
/// Datagrams in a row before other tasks get their turn.
const BURST: usize = 64;

/// The handle. Dropping it ends the server.
pub(in crate::network) struct NameServer {
    shared: Arc<Shared>,
    listening: HashMap<NetworkKey, Vec<IpAddr>>,
    thread: Option<mpsc::UnboundedSender<Command>>,
}

enum Command {
    Open(NetworkKey, Vec<Sockets>),
    /// Tells when it is done: the addresses may be wanted again.
    Close(NetworkKey, std::sync::mpsc::Sender<()>),
}

/// What every task of the server reads.
struct Shared {
    view: RwLock<Arc<View>>,
    /// The addresses that we listen on.
    own: RwLock<Vec<IpAddr>>,
    upstreams: Upstreams,
    asking: Arc<Semaphore>,
    asking_for: Mutex<HashMap<IpAddr, usize>>,
    connections: Arc<Semaphore>,
}

impl NameServer {
    /// Without networks, and without a thread until there is one.
    pub(in crate::network) fn new() -> Self {
        let shared = Shared {
            view: RwLock::default(),
            own: RwLock::default(),
            upstreams: Upstreams::new(),
            asking: Arc::new(Semaphore::new(ASKING)),
            asking_for: Mutex::default(),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
        };
        Self { shared: Arc::new(shared), listening: HashMap::new(), thread: None }
    }

    /// From now on this is what is known.
    pub(in crate::network) fn publish(&self, view: View) {
        *self.shared.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }

    /// Listens for a network on exactly these addresses, in the calling thread's network namespace. Sockets that are
    /// open already stay as they are.
    pub(in crate::network) fn listen(&mut self, network: &NetworkKey, addresses: &[IpAddr]) -> Result<(), Refusal> {
        if self.listening.get(network).map(Vec::as_slice).unwrap_or_default() == addresses {
            return Ok(());
        }
        self.close(network);
        if addresses.is_empty() {
            return Ok(());
        }
        let open = |address: &IpAddr| Sockets::bind(*address).map_err(|source| Refusal { address: *address, source });
        let sockets = addresses.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let thread = match &self.thread {
            Some(thread) => thread.clone(),
            None => {
                let started = start(self.shared.clone());
                let thread = started.map_err(|source| Refusal { address: addresses[0], source })?;
                self.thread.insert(thread).clone()
            }
        };
        // The receiver ends with us.
        let _ = thread.send(Command::Open(network.clone(), sockets));
        self.listening.insert(network.clone(), addresses.to_vec());
        self.tell_own();
        Ok(())
    }

    /// Closes the sockets of a network.
    pub(in crate::network) fn close(&mut self, network: &NetworkKey) {
        if self.listening.remove(network).is_some() {
            if let Some(thread) = &self.thread {
                let (done, closed) = std::sync::mpsc::channel();
                let _ = thread.send(Command::Close(network.clone(), done));
                // An error means that the thread has ended, and its sockets with it.
                let _ = closed.recv();
            }
            self.tell_own();
        }
    }

    /// Whether we listen on this address.
    pub(in crate::network) fn is_at(&self, address: IpAddr) -> bool {
        self.listening.values().any(|all| all.contains(&address))
    }

    fn tell_own(&self) {
        let own = self.listening.values().flatten().copied().collect();
        *self.shared.own.write().unwrap_or_else(PoisonError::into_inner) = own;
    }
}

/// An address that could not be listened on.
#[derive(Debug)]
pub(in crate::network) struct Refusal {
    pub(in crate::network) address: IpAddr,
    pub(in crate::network) source: io::Error,
}

fn start(shared: Arc<Shared>) -> io::Result<mpsc::UnboundedSender<Command>> {
    let (sender, mut commands) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("net-names".into()).spawn(move || {
        runtime.block_on(async {
            let mut networks: HashMap<NetworkKey, JoinSet<()>> = HashMap::new();
            while let Some(command) = commands.recv().await {
                match command {
                    Command::Open(network, sockets) => {
                        let mut tasks = JoinSet::new();
                        for sockets in sockets {
                            if let Err(error) = serve(&mut tasks, &shared, &network, sockets) {
                                tracing::error!(%network, %error, "the name server cannot use its sockets");
                            }
                        }
                        networks.insert(network, tasks);
                    }
                    Command::Close(network, done) => {
                        if let Some(mut tasks) = networks.remove(&network) {
                            tasks.shutdown().await;
                            // Those who wait for an upstream hold the socket too, and end with their next turn.
                            tokio::task::yield_now().await;
                        }
                        let _ = done.send(());
                    }
                }
            }
        });
    })?;
    Ok(sender)
}

fn serve(tasks: &mut JoinSet<()>, shared: &Arc<Shared>, network: &NetworkKey, sockets: Sockets) -> io::Result<()> {
    let udp = UdpSocket::from_std(sockets.udp)?;
    let tcp = TcpListener::from_std(sockets.tcp)?;
    tasks.spawn(serve_udp(shared.clone(), network.clone(), Arc::new(udp)));
    tasks.spawn(serve_tcp(shared.clone(), network.clone(), tcp));
    Ok(())
}

async fn serve_udp(shared: Arc<Shared>, network: NetworkKey, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let mut asking = JoinSet::new();
    let mut in_a_row = 0;
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%network, %error, "receiving a question");
                tokio::time::sleep(RESPITE).await;
                continue;
            }
        };
        match shared.answer(&network, client, &buffer[..length], true) {
            Reply::None => {}
            Reply::Send(bytes) => send(&socket, client, &bytes).await,
            Reply::Ask(question, upstreams) => {
                let (shared, socket) = (shared.clone(), socket.clone());
                asking.spawn(async move {
                    let bytes = shared.ask(client.ip(), *question, &upstreams).await;
                    send(&socket, client, &bytes).await;
                });
            }
        }
        while asking.try_join_next().is_some() {}
        in_a_row += 1;
        if in_a_row % BURST == 0 {
            tokio::task::yield_now().await;
        }
    }
}

async fn send(socket: &UdpSocket, client: SocketAddr, bytes: &[u8]) {
    if let Err(error) = socket.send_to(bytes, client).await {
        // It asks again.
        tracing::debug!(%client, %error, "sending an answer");
    }
}

async fn serve_tcp(shared: Arc<Shared>, network: NetworkKey, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%network, %error, "accepting a connection");
                tokio::time::sleep(RESPITE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        // Beyond the limit a connection is closed at once: the client asks again.
        let Ok(permit) = shared.connections.clone().try_acquire_owned() else { continue };
        let (shared, network) = (shared.clone(), network.clone());
        connections.spawn(async move {
            if let Err(error) = converse(&shared, &network, stream, client).await {
                tracing::debug!(%client, %error, "a connection to the name server ended");
            }
            drop(permit);
        });
    }
}

/// Questions and answers over one connection, each after its length.
async fn converse(shared: &Shared, network: &NetworkKey, mut stream: TcpStream, client: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    loop {
        let mut length = [0; 2];
        match timeout(SILENCE, stream.read_exact(&mut length)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        }
        buffer.resize(usize::from(u16::from_be_bytes(length)), 0);
        timeout(SILENCE, stream.read_exact(&mut buffer)).await??;
        let bytes = match shared.answer(network, client, &buffer, false) {
            Reply::None => return Ok(()),
            Reply::Send(bytes) => bytes,
            Reply::Ask(question, upstreams) => shared.ask(client.ip(), *question, &upstreams).await,
        };
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        let whole = [&length.to_be_bytes()[..], &bytes].concat();
        timeout(SILENCE, stream.write_all(&whole)).await??;
    }
}

impl Shared {
    fn answer(&self, network: &NetworkKey, client: SocketAddr, bytes: &[u8], udp: bool) -> Reply {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner).clone();
        // The bytes are anybody's: should they break the parser, then only their own answer.
        catch_unwind(AssertUnwindSafe(|| answer(&view, network, client, bytes, udp))).unwrap_or_else(|_| {
            tracing::error!(%network, %client, ?bytes, "a question broke the name server; please report it");
            Reply::None
        })
    }

    async fn ask(&self, client: IpAddr, question: Question, upstreams: &[IpAddr]) -> Vec<u8> {
        use hickory_proto::op::ResponseCode::ServFail;
        let Some(query) = question.query().cloned() else {
            return question.encode(ServFail, vec![], vec![], vec![]);
        };
        let Ok(_permit) = self.asking.try_acquire() else {
            return question.encode(ServFail, vec![], vec![], vec![]);
        };
        let Some(_turn) = Turn::take(self, client) else {
            return question.encode(ServFail, vec![], vec![], vec![]);
        };
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner).clone();
        let told = self.upstreams.ask(upstreams, &own, &query).await;
        question.encode(told.code, told.answers, told.authorities, vec![])
    }
}

/// A client's share of the questions that are with upstream servers.
struct Turn<'a> {
    shared: &'a Shared,
    client: IpAddr,
}

impl<'a> Turn<'a> {
    fn take(shared: &'a Shared, client: IpAddr) -> Option<Self> {
        let mut all = shared.asking_for.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(client).or_default();
        if *count >= ASKING_FOR_ONE {
            return None;
        }
        *count += 1;
        Some(Self { shared, client })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut all = self.shared.asking_for.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.client);
            }
        }
    }
}
