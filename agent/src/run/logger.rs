//! Putting `nodelet-logger` where containerd's shims find it.
//!
//! Shims run it in containerd's view of the file system, which need not be ours, so it is copied below `dataDir`,
//! which both see under the same path. Its name holds its hash: a new version never touches what is running.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// There is no log writer to be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not where it should be.
    #[error("nodelet-logger is missing at {path}; install it beside nodelet, or set NODELET_LOGGER to its path", path = path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It cannot be copied.
    #[error("copying nodelet-logger to {path}", path = path.display())]
    Copy {
        /// Where to.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Copies the log writer below `data_dir`, unless it is there, and answers its path.
pub(super) fn install(data_dir: &Path) -> Result<PathBuf, Error> {
    let own = std::env::current_exe().unwrap_or_default();
    let source = std::env::var_os("NODELET_LOGGER").map_or_else(|| own.with_file_name("nodelet-logger"), PathBuf::from);
    install_from(&source, data_dir)
}

fn install_from(source: &Path, data_dir: &Path) -> Result<PathBuf, Error> {
    let program = fs::read(source).map_err(|error| Error::Missing { path: source.to_owned(), source: error })?;
    let hash: String = Sha256::digest(&program).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let path = data_dir.join("bin").join(format!("nodelet-logger-{hash}"));
    let is_whole = fs::metadata(&path)
        .is_ok_and(|there| there.len() == program.len() as u64 && there.permissions().mode() & 0o111 != 0);
    if is_whole {
        return Ok(path);
    }
    copy(&program, &path).map_err(|source| Error::Copy { path: path.clone(), source })?;
    Ok(path)
}

/// Under another name first: nobody ever runs half of it.
fn copy(program: &[u8], path: &Path) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&fresh)?;
    file.write_all(program)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&fresh, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_copied_once_and_named_by_its_content() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let source = directory.path().join("nodelet-logger");
        let error = install_from(&source, directory.path()).expect_err("missing");
        assert!(error.to_string().contains("NODELET_LOGGER"), "{error}");
        fs::write(&source, "one").expect("writes");
        let one = install_from(&source, directory.path()).expect("installs");
        assert_eq!(install_from(&source, directory.path()).expect("is there"), one);
        assert_eq!(fs::metadata(&one).expect("is there").permissions().mode() & 0o777, 0o755);
        fs::write(&source, "two").expect("writes");
        let two = install_from(&source, directory.path()).expect("installs");
        assert!(one != two && fs::read(one).expect("stays") == b"one" && fs::read(two).expect("is there") == b"two");
    }
}
