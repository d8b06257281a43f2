//! A connection against a client of our own, honest and otherwise.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::connection::{Opened, Shared, open};
use super::frames;
use super::headers::HeaderWriter;
use crate::streams::channel::{Activity, Chunk};

struct Client {
    io: DuplexStream,
    headers: HeaderWriter,
}

struct Server {
    opened: mpsc::Receiver<Opened>,
    connection: Arc<Shared>,
    driver: JoinHandle<()>,
}

fn connect(limit: usize) -> (Client, Server) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let (opened, connection, driver) = open(far, limit, Arc::new(Activity::new()));
    let server = Server { opened, connection, driver: tokio::spawn(driver) };
    (Client { io: near, headers: HeaderWriter::new() }, server)
}

/// A frame from the server: type (0 for data), stream or first word, rest.
type Seen = (u16, u32, Vec<u8>);

impl Client {
    async fn open(&mut self, id: u32, kind: &str) {
        let block = self.headers.write(&[("streamtype", kind)]).unwrap();
        let body = [&[0, 0][..], &block].concat();
        self.io.write_all(&frames::control(1, &[id, 0], &body)).await.unwrap();
    }

    async fn data(&mut self, id: u32, bytes: &[u8], last: bool) {
        self.io.write_all(&frames::data_header(id, bytes.len(), last)).await.unwrap();
        self.io.write_all(bytes).await.unwrap();
    }

    async fn send(&mut self, frame: Bytes) {
        self.io.write_all(&frame).await.unwrap();
    }

    async fn next(&mut self) -> Option<Seen> {
        let first = self.io.read_u32().await.ok()?;
        let length = self.io.read_u32().await.unwrap() & 0x00ff_ffff;
        let mut body = vec![0; length as usize];
        self.io.read_exact(&mut body).await.unwrap();
        if first >> 31 == 0 {
            return Some((0, first, body));
        }
        let word = u32::from_be_bytes(body[..4].try_into().unwrap());
        Some(((first & 0xffff) as u16, word, body[4..].to_vec()))
    }
}

#[tokio::test]
async fn a_stream_carries_bytes_both_ways() {
    let (mut client, mut server) = connect(4);
    client.open(1, "data").await;
    let stream = server.opened.recv().await.unwrap();
    assert_eq!((stream.id, stream.header("streamtype")), (1, Some("data")));
    let (mut source, mut sink) = stream.accept().await;
    assert!(matches!(client.next().await, Some((2, 1, _))));
    client.data(1, b"hello ", false).await;
    client.data(1, b"world", true).await;
    let mut got = Vec::new();
    while let Some(bytes) = source.next().await {
        got.extend(bytes);
    }
    assert_eq!(got, b"hello world");
    sink.send(Chunk::copy_of(b"back")).await.unwrap();
    sink.close().await;
    assert_eq!(client.next().await, Some((0, 1, b"back".to_vec())));
    assert_eq!(client.next().await, Some((0, 1, vec![])));
    client.send(frames::ping(7)).await;
    assert_eq!(client.next().await, Some((6, 7, vec![])));
    server.connection.go_away(0).await;
    assert_eq!(client.next().await, Some((7, 1, vec![0; 4])));
    assert_eq!(client.next().await, None);
    drop(client);
    server.driver.await.unwrap();
}

#[tokio::test]
async fn windows_count_once_the_client_speaks_of_them() {
    let (mut client, mut server) = connect(4);
    client.open(1, "data").await;
    let (_source, mut sink) = server.opened.recv().await.unwrap().accept().await;
    assert!(matches!(client.next().await, Some((2, 1, _))));
    // A setting that a client sends says that it knows windows: 10 bytes at first.
    client.send(frames::control(4, &[1, 7, 10], &[])).await;
    client.send(frames::ping(1)).await;
    assert!(matches!(client.next().await, Some((6, 1, _))));
    let sending = tokio::spawn(async move {
        sink.send(Chunk::copy_of(b"0123456789abcdef")).await.unwrap();
        sink.finish().await;
    });
    assert_eq!(client.next().await, Some((0, 1, b"0123456789".to_vec())));
    client.send(frames::ping(3)).await;
    assert!(matches!(client.next().await, Some((6, 3, _))), "more than the window was sent");
    client.send(frames::window(1, 4)).await;
    assert_eq!(client.next().await, Some((0, 1, b"abcd".to_vec())));
    client.send(frames::window(1, 100)).await;
    assert_eq!(client.next().await, Some((0, 1, b"ef".to_vec())));
    assert_eq!(client.next().await, Some((0, 1, vec![])));
    sending.await.unwrap();
}

#[tokio::test]
async fn what_was_read_is_told_to_the_client() {
    let (mut client, mut server) = connect(4);
    client.open(1, "data").await;
    let (mut source, _sink) = server.opened.recv().await.unwrap().accept().await;
    assert!(matches!(client.next().await, Some((2, 1, _))));
    client.data(1, &[0; 40_000], false).await;
    let mut read = 0;
    while read < 40_000 {
        read += source.next().await.unwrap().len();
    }
    let told: Vec<_> = [client.next().await.unwrap(), client.next().await.unwrap()].into_iter().collect();
    assert!(told.iter().all(|(kind, _, _)| *kind == 9), "{told:?}");
    assert_eq!(told.iter().map(|(_, id, _)| *id).collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test]
async fn a_reset_ends_both_directions() {
    let (mut client, mut server) = connect(4);
    client.open(1, "data").await;
    let (mut source, mut sink) = server.opened.recv().await.unwrap().accept().await;
    client.send(frames::reset(1, frames::Reset::Cancel)).await;
    assert!(source.next().await.is_none());
    sink.gone().await;
    assert!(sink.send(Chunk::copy_of(b"x")).await.is_err());
    // What is still on its way is thrown away, and the connection goes on.
    client.data(1, b"late", false).await;
    client.open(3, "data").await;
    assert_eq!(server.opened.recv().await.unwrap().id, 3);
}

#[tokio::test]
async fn too_many_streams_are_refused() {
    let (mut client, mut server) = connect(2);
    for id in [1, 3, 5] {
        client.open(id, "data").await;
    }
    assert_eq!(client.next().await, Some((3, 5, 3u32.to_be_bytes().to_vec())));
    let first = server.opened.recv().await.unwrap();
    first.refuse().await;
    assert_eq!(client.next().await, Some((3, 1, 3u32.to_be_bytes().to_vec())));
    // Its place is free again.
    client.open(7, "data").await;
    assert_eq!(server.opened.recv().await.unwrap().id, 3);
    assert_eq!(server.opened.recv().await.unwrap().id, 7);
}

#[tokio::test]
async fn a_broken_protocol_ends_the_connection() {
    for wrong in [
        // Data on a stream that never was, replies, streams of a server, an id twice, another version, headers that are none.
        frames::data_header(9, 0, false).to_vec().into(),
        frames::reply(1, &[]),
        frames::control(1, &[2, 0], &[0; 10]),
        frames::control(1, &[1, 0], &[1; 40]),
        Bytes::from_static(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
        Bytes::from_static(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
    ] {
        let (mut client, server) = connect(4);
        client.send(wrong.clone()).await;
        assert!(matches!(client.next().await, Some((7, 0, rest)) if rest == [0, 0, 0, 1]), "{wrong:?}");
        assert_eq!(client.next().await, None);
        server.driver.await.unwrap();
    }
    let (mut client, server) = connect(4);
    client.open(3, "data").await;
    client.open(3, "data").await;
    assert!(matches!(client.next().await, Some((7, 3, _))));
    server.driver.await.unwrap();
}

#[tokio::test]
async fn nobody_reads_ahead_of_a_slow_reader() {
    let (mut client, mut server) = connect(4);
    client.open(1, "data").await;
    let (mut source, _sink) = server.opened.recv().await.unwrap().accept().await;
    let flood = async {
        for _ in 0..1000 {
            client.data(1, &[7; 32 * 1024], false).await;
        }
    };
    let flooded = tokio::time::timeout(std::time::Duration::from_millis(300), flood).await;
    assert!(flooded.is_err(), "32 MiB were taken by nobody");
    assert!(source.next().await.is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever comes, after honest streams or none: the connection ends, and nothing else does.
    #[test]
    fn no_bytes_make_it_panic_or_hang(
        streams in 0u32..3,
        parts in proptest::collection::vec((0u16..12, 0u8..4, proptest::collection::vec(any::<u8>(), 0..64)), 0..8),
        tail in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut client, mut server) = connect(4);
            let user = tokio::spawn(async move {
                while let Some(stream) = server.opened.recv().await {
                    let (mut source, sink) = stream.accept().await;
                    tokio::spawn(async move { while source.next().await.is_some() {} sink.close().await });
                }
            });
            for id in 0..streams {
                client.open(2 * id + 1, "data").await;
            }
            let mut wire = Vec::new();
            for (kind, id, body) in parts {
                match kind {
                    0 => {
                        wire.extend(frames::data_header(id.into(), body.len(), id > 2));
                        wire.extend(body);
                    }
                    kind => wire.extend(frames::control(kind, &[id.into()], &body)),
                }
            }
            wire.extend(tail);
            let (mut from, mut to) = tokio::io::split(client.io);
            let writing = async {
                // The server may have closed before.
                let _ = to.write_all(&wire).await;
                let _ = to.shutdown().await;
            };
            let mut back = Vec::new();
            let both = async { tokio::join!(writing, from.read_to_end(&mut back)) };
            tokio::time::timeout(std::time::Duration::from_secs(10), both).await.unwrap().1.unwrap();
            server.driver.await.unwrap();
            user.abort();
        });
    }
}
