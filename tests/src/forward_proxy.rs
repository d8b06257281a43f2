//! A proxy as sites have it between their nodes and the world: requests for plain HTTP, tunnels for the rest.
//!
//! It speaks HTTP/1.1, one request for each connection, in threads of its own. Whatever host is asked for, it goes to
//! 127.0.0.1 at the port that was asked for: the names exist only here, so who reaches them came through here.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};

use crate::namespaces::Namespaces;

/// The proxy, for as long as the value lives.
#[derive(Debug)]
pub struct ForwardProxy {
    /// The port on 127.0.0.1.
    pub port: u16,
    listener: TcpListener,
    asked: Arc<Mutex<Vec<String>>>,
}

impl ForwardProxy {
    /// Listens on a free port of the node's 127.0.0.1.
    pub fn start_in(node: &Namespaces) -> Result<ForwardProxy> {
        node.in_network(|| {
            let listener = TcpListener::bind("127.0.0.1:0").context("listening on loopback")?;
            let port = listener.local_addr()?.port();
            let proxy = ForwardProxy { port, listener: listener.try_clone()?, asked: Arc::default() };
            let asked = proxy.asked.clone();
            std::thread::spawn(move || {
                while let Ok((client, _)) = listener.accept() {
                    let asked = asked.clone();
                    // A client that went away is nobody's concern.
                    std::thread::spawn(move || drop(serve(client, &asked)));
                }
            });
            Ok(proxy)
        })
    }

    /// What was asked for: method and host, in order.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        // Wakes the listener, which ends.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
    }
}

fn serve(mut client: TcpStream, asked: &Mutex<Vec<String>>) -> Result<()> {
    let mut from = BufReader::new(client.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            bail!("the connection ended within a head");
        }
        if line == "\r\n" {
            break;
        }
        head.push(line);
    }
    let first = head.first().cloned().unwrap_or_default();
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let tunnel = method == "CONNECT";
    let (host, path) = match target.strip_prefix("http://") {
        _ if tunnel => (target, ""),
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => bail!("{target} is nothing for a proxy"),
    };
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{method} {host}"));
    let port: u16 = host.rsplit_once(':').map_or(Ok(80), |(_, port)| port.parse())?;
    let mut server = TcpStream::connect(("127.0.0.1", port)).context("reaching the server")?;
    if tunnel {
        client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
        let (mut up, mut down) = (server.try_clone()?, client.try_clone()?);
        let back = std::thread::spawn(move || pass(&mut server, &mut down));
        pass(&mut from, &mut up)?;
        let _ended = back.join();
        return Ok(());
    }
    let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    let kept = |line: &&String| !line.to_ascii_lowercase().starts_with("connection:");
    request.extend(head.iter().skip(1).filter(kept).map(String::as_str));
    server.write_all(format!("{request}\r\n").as_bytes())?;
    pass(&mut server, &mut client)
}

fn pass(from: &mut impl Read, to: &mut TcpStream) -> Result<()> {
    std::io::copy(from, to)?;
    Ok(to.shutdown(Shutdown::Write)?)
}
