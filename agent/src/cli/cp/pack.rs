//! Files of this machine as a tar stream.

use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;
use tokio::sync::mpsc;

/// Bytes of one piece.
const PIECE: usize = 32 << 10;

/// Packs a file or a directory under another name. Blocking. An end of the receiving side is an early end.
pub(super) fn pack(source: &Path, name: &str, archive: mpsc::Sender<Bytes>) -> io::Result<()> {
    let pieces = io::BufWriter::with_capacity(PIECE, Pieces(archive));
    let mut builder = tar::Builder::new(pieces);
    // Links inside a tree are links; the source itself is what it leads to.
    builder.follow_symlinks(false);
    let packed = if std::fs::metadata(source)?.is_dir() {
        builder.append_dir_all(name, source)
    } else {
        std::fs::File::open(source).and_then(|mut file| builder.append_file(name, &mut file))
    };
    let finished = packed.and_then(|()| builder.into_inner()).and_then(|mut pieces| pieces.flush());
    match finished {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

struct Pieces(mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Bytes::copy_from_slice(bytes));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
