//! Paths of the node, checked against Kubernetes' hostPath types.

use std::fs::{DirBuilder, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::{Error, HostPathType, check_host_path, io_error, wrong_type};

/// Checks `path` and makes it if its type says so; says whether it was made.
pub(super) fn ensure(path: &Path, kind: HostPathType) -> Result<bool, Error> {
    check_host_path(path)?;
    let found = match std::fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(Error::Io { doing: format!("looking at {}", path.display()), source }),
    };
    let making = |source| io_error("making", path)(source);
    match (found, kind) {
        (_, HostPathType::Any) => Ok(false),
        (Some(found), _) if matches(found, kind) => Ok(false),
        (None, HostPathType::DirectoryOrCreate) => {
            DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(making)?;
            Ok(true)
        }
        // Its directory has to be there, as in Kubernetes.
        (None, HostPathType::FileOrCreate) => {
            OpenOptions::new().create(true).append(true).mode(0o644).open(path).map_err(making)?;
            Ok(true)
        }
        (found, _) => Err(wrong_type(path, kind, found.map_or("nothing", describe))),
    }
}

/// Whether it is there as its type says, without making it.
pub(super) fn is_in_order(path: &Path, kind: HostPathType) -> bool {
    kind == HostPathType::Any || std::fs::metadata(path).is_ok_and(|metadata| matches(metadata.file_type(), kind))
}

fn matches(found: FileType, kind: HostPathType) -> bool {
    match kind {
        HostPathType::Any => true,
        HostPathType::DirectoryOrCreate | HostPathType::Directory => found.is_dir(),
        HostPathType::FileOrCreate | HostPathType::File => found.is_file(),
        HostPathType::Socket => found.is_socket(),
        HostPathType::CharDevice => found.is_char_device(),
        HostPathType::BlockDevice => found.is_block_device(),
    }
}

fn describe(found: FileType) -> &'static str {
    match found {
        _ if found.is_dir() => "a directory",
        _ if found.is_file() => "a file",
        _ if found.is_socket() => "a socket",
        _ if found.is_char_device() => "a character device",
        _ if found.is_block_device() => "a block device",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        ensure(&socket, HostPathType::Socket).unwrap();
        ensure(Path::new("/dev/null"), HostPathType::CharDevice).unwrap();
        assert!(ensure(Path::new("/dev/null"), HostPathType::BlockDevice).is_err());
        let error = ensure(&socket, HostPathType::File).unwrap_err().to_string();
        assert!(error.starts_with("hostPath.type: ") && error.ends_with("should be a File, but there is a socket"));
        assert!(!is_in_order(&dir.path().join("absent"), HostPathType::Directory));
        assert!(ensure(&dir.path().join("a/b"), HostPathType::DirectoryOrCreate).unwrap());
        assert!(!ensure(&dir.path().join("a/b"), HostPathType::DirectoryOrCreate).unwrap());
        assert!(ensure(&dir.path().join("no/file"), HostPathType::FileOrCreate).is_err());
    }
}
