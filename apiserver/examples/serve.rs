//! The API alone, without a node behind it: `serve DIR [ADDRESS]` keeps its store and keys in `DIR`.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;

use nodelet_apiserver::{Options, Server};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().unwrap_or_else(|| "nodelet-api".into()));
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:6440".into()).parse()?;
    let options = Options { store: dir.join("store.db"), ..Options::default() };
    let server = Server::open(options, nodelet_crds::crds())?;
    let shutdown = CancellationToken::new();
    let (bound, address) = tokio::sync::oneshot::channel();
    println!("socket {}", dir.join("api.sock").display());
    tokio::spawn(async move {
        if let Ok(address) = address.await {
            println!("serving https://{address}");
        }
    });
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    let (pki, socket) = (dir.join("pki"), dir.join("api.sock"));
    tokio::try_join!(
        server.serve_tls(listen, &pki, Some(bound), shutdown.clone()),
        server.serve_unix(&socket, shutdown.clone()),
    )?;
    Ok(())
}
