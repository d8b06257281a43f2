//! `nodelet port-forward`

use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use clap::Args;
use kube::core::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::remote;
use super::session::Session;
use super::{Outcome, Usage, exec};

/// Channels of the only port of a connection.
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// The protocol has no word for the end of one direction: once the local side has ended, the answer may take so long.
const LINGER: std::time::Duration = std::time::Duration::from_secs(30);
/// Bytes carried at once.
const CHUNK: usize = 32 << 10;

#[derive(Debug, Args)]
#[command(after_help = "Goes on until Ctrl-C.")]
pub(crate) struct PortForwardArgs {
    /// The workload, or KIND/NAME
    workload: String,
    /// PORT for the same one here and there, LOCAL:REMOTE, or :REMOTE for a free one here
    #[arg(required = true, value_name = "[LOCAL:]REMOTE", value_parser = Ports::parse)]
    ports: Vec<Ports>,
    /// Addresses to listen at
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "localhost")]
    address: Vec<String>,
}

/// A local port and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ports {
    local: u16,
    remote: u16,
}

impl Ports {
    fn parse(text: &str) -> Result<Self, String> {
        let port = |text: &str| match text.parse::<u16>() {
            Ok(0) | Err(_) => Err(format!("{text:?} is not a port; expected 1 to 65535")),
            Ok(port) => Ok(port),
        };
        match text.split_once(':') {
            None => port(text).map(|port| Self { local: port, remote: port }),
            Some(("" | "0", remote)) => Ok(Self { local: 0, remote: port(remote)? }),
            Some((local, remote)) => Ok(Self { local: port(local)?, remote: port(remote)? }),
        }
    }
}

pub(crate) async fn port_forward(args: &PortForwardArgs, session: Session) -> anyhow::Result<Outcome> {
    let session = std::sync::Arc::new(session);
    let (kind, name) = remote::target(&session, &args.workload)?;
    // A name that does not exist is told now, not at the first connection.
    session.object(kind, name).await?;
    let (kind, name) = (kind.clone(), name.to_owned());
    let mut listeners = Vec::new();
    for ports in &args.ports {
        let mut local = ports.local;
        for address in addresses(&args.address)? {
            let listener = match TcpListener::bind(SocketAddr::new(address, local)).await {
                Ok(listener) => listener,
                // A node without IPv6 has only one localhost.
                Err(_) if address.is_ipv6() && args.address == ["localhost"] => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("listening at {}", SocketAddr::new(address, local)));
                }
            };
            let bound = listener.local_addr()?;
            local = bound.port();
            session.output.line(format!("Forwarding from {bound} -> {}", ports.remote))?;
            listeners.push((listener, ports.remote));
        }
    }
    let mut serving = tokio::task::JoinSet::new();
    for (listener, remote) in listeners {
        let (session, kind, name) = (session.clone(), kind.clone(), name.clone());
        serving.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    // Out of descriptors; some will be given back.
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                };
                let (session, kind, name) = (session.clone(), kind.clone(), name.clone());
                tokio::spawn(async move {
                    let connect = |request: Request| request.portforward(&name, &[remote]);
                    let carried = match remote::connect(&session, &kind, &session.namespace, connect).await {
                        Ok((sender, receiver)) => carry(stream, sender, receiver).await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = carried {
                        session.output.error(&crate::manifest::chain(error.as_ref()));
                    }
                });
            }
        });
    }
    exec::stopped().await;
    Ok(Outcome::Done)
}

/// The addresses that are meant; `localhost` is both.
fn addresses(words: &[String]) -> anyhow::Result<Vec<IpAddr>> {
    let mut all = Vec::new();
    for word in words {
        match word.as_str() {
            "localhost" => all.extend([IpAddr::from([127, 0, 0, 1]), std::net::Ipv6Addr::LOCALHOST.into()]),
            other => all.push(other.parse().map_err(|_| Usage(format!("--address {other:?} is not an IP address")))?),
        }
    }
    Ok(all)
}

/// One connection, until either side ends it.
async fn carry(
    mut stream: TcpStream,
    mut sender: remote::Sender,
    mut receiver: remote::Receiver,
) -> anyhow::Result<()> {
    let _ = stream.set_nodelay(true);
    let (mut from, mut to) = stream.split();
    let sending = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if sender.send(DATA, &buffer[..length]).await.is_err() {
                break;
            }
        }
        tokio::time::sleep(LINGER).await;
    };
    let receiving = async {
        // The first message of each channel repeats the port.
        let mut begun = [false; 2];
        while let Some((channel, bytes)) = receiver.next().await? {
            let Some(begun) = begun.get_mut(usize::from(channel)) else { continue };
            let bytes = if std::mem::replace(begun, true) { bytes } else { bytes.slice(bytes.len().min(2)..) };
            match channel {
                DATA => to.write_all(&bytes).await?,
                ERROR if !bytes.is_empty() => anyhow::bail!("{}", String::from_utf8_lossy(&bytes).trim()),
                _ => {}
            }
        }
        let _ = to.shutdown().await;
        anyhow::Ok(())
    };
    // Whichever is first ends the connection.
    tokio::select! {
        result = receiving => result,
        () = sending => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let ports = |local, remote| Some(Ports { local, remote });
        for (text, expected) in [
            ("80", ports(80, 80)),
            ("8080:80", ports(8080, 80)),
            (":80", ports(0, 80)),
            ("0:80", ports(0, 80)),
            ("0", None),
            ("80:", None),
            ("80:0", None),
            ("70000", None),
            ("http", None),
        ] {
            assert_eq!(Ports::parse(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn addresses_are_read() {
        let all = |words: &[&str]| addresses(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(all(&["localhost"]).ok().map(|all| all.len()), Some(2));
        assert_eq!(all(&["0.0.0.0"]).ok(), Some(vec![IpAddr::from([0, 0, 0, 0])]));
        assert!(all(&["nonsense"]).is_err());
    }
}
