//! The second pass: the bytes of the wanted blobs, in the order in which the archive has them.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::super::manifest::Digest;
use super::contents::{Contents, Packing, safe_name};

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// A piece of the second pass.
#[derive(Debug)]
pub(in crate::images) enum Part {
    /// The bytes of this blob follow, from its start.
    Begin(Digest),
    /// The next bytes of the blob.
    Data(Bytes),
    /// Reading failed; nothing follows.
    Failed(std::io::Error),
}

/// Starts to read the wanted blobs (digest and name in the archive) on a thread of their own. It stops when the
/// receiver is dropped.
pub(in crate::images) fn stream(contents: Arc<Contents>, wanted: Vec<(Digest, String)>) -> mpsc::Receiver<Part> {
    let (parts, receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        if let Err(Ended::Read(e)) = read(&contents, &wanted, &parts) {
            // The receiver may be gone as well, which is fine.
            let _ = parts.blocking_send(Part::Failed(e));
        }
    });
    receiver
}

enum Ended {
    Read(std::io::Error),
    NobodyListens,
}

impl From<std::io::Error> for Ended {
    fn from(e: std::io::Error) -> Self {
        Ended::Read(e)
    }
}

fn read(contents: &Contents, wanted: &[(Digest, String)], parts: &mpsc::Sender<Part>) -> Result<(), Ended> {
    // Blobs by the entry that really holds their bytes; equal layers are sent once.
    let mut open: BTreeMap<&str, &Digest> =
        wanted.iter().filter_map(|(digest, name)| Some((contents.resolve(name)?, digest))).collect();
    match contents.packing() {
        Packing::Directory | Packing::Plain => {
            for (name, digest) in open {
                let entry = contents.entry(name).map_err(std::io::Error::other)?;
                let file = contents.open_at(name, 0)?;
                send(digest, entry.size, &mut file.take(entry.size), parts)?;
            }
        }
        Packing::Gzip | Packing::Zstd => {
            let mut archive = tar::Archive::new(contents.unpacked()?);
            for entry in archive.entries()? {
                let mut entry = entry?;
                let name = safe_name(&entry.path()?).unwrap_or_default();
                if !matches!(entry.header().entry_type(), tar::EntryType::Regular | tar::EntryType::Continuous) {
                    continue;
                }
                if let Some(digest) = open.remove(name.as_str()) {
                    let size = entry.size();
                    send(digest, size, &mut entry, parts)?;
                }
                if open.is_empty() {
                    break;
                }
            }
        }
    }
    Ok(())
}

fn send(digest: &Digest, size: u64, bytes: &mut dyn Read, parts: &mpsc::Sender<Part>) -> Result<(), Ended> {
    let gone = |_| Ended::NobodyListens;
    parts.blocking_send(Part::Begin(digest.clone())).map_err(gone)?;
    let mut left = size;
    while left > 0 {
        let mut chunk = Vec::with_capacity(CHUNK.min(usize::try_from(left).unwrap_or(CHUNK)));
        let read = bytes.take(CHUNK as u64).read_to_end(&mut chunk)? as u64;
        if read == 0 {
            return Err(Ended::Read(std::io::ErrorKind::UnexpectedEof.into()));
        }
        left = left.saturating_sub(read);
        parts.blocking_send(Part::Data(chunk.into())).map_err(gone)?;
    }
    Ok(())
}
