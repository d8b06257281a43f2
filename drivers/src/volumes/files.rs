//! Files that are replaced all at once while containers read them.
//!
//! As the kubelet does: the files are in a directory `..<version>`, the link `..data` leads to it, and what containers
//! open are links through `..data`. An update writes the next version beside the old one and then turns `..data` over
//! by a rename, so a reader sees all of the old files or all of the new. What takes room comes before that: where it is
//! lacking the old files stay as they are.
//!
//! ```text
//! a.conf -> ..data/a.conf    sub -> ..data/sub    ..data -> ..3f0c…    ..3f0c…/a.conf    ..3f0c…/sub/b.conf
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::FileContent;
use crate::mounts;

const CURRENT: &str = "..data";
const NEXT: &str = "..data.next";
const DRAFT: &str = "..draft";

/// Makes `dir` (which exists) show exactly `files`; changes nothing if it does. Paths have been checked. With `gid`
/// the files belong to that group, which may then read what their owner may.
pub(super) fn write(dir: &Path, files: &BTreeMap<String, FileContent>, gid: Option<u32>) -> io::Result<()> {
    let version = version(files, gid);
    let current = dir.join(CURRENT);
    if std::fs::read_link(&current).is_ok_and(|target| target.as_os_str() == &*version) && dir.join(&version).is_dir() {
        return show(dir, files, &version);
    }
    let mut links = Vec::new();
    prepare(dir, files, &version, gid, &mut links).inspect_err(|_| {
        // Room may be what it lacked, and what is shown is the former version until the last step.
        for left in links.iter().chain(&[dir.join(DRAFT), dir.join(NEXT), dir.join(&version)]) {
            let _ = mounts::delete_tree(left);
        }
    })?;
    std::fs::rename(dir.join(NEXT), &current)?;
    show(dir, files, &version)
}

/// All that takes room, beside what is shown; `links` are those that were made for new files.
fn prepare(
    dir: &Path,
    files: &BTreeMap<String, FileContent>,
    version: &str,
    gid: Option<u32>,
    links: &mut Vec<PathBuf>,
) -> io::Result<()> {
    let (draft, whole, next) = (dir.join(DRAFT), dir.join(version), dir.join(NEXT));
    for left in [&draft, &whole, &next] {
        mounts::delete_tree(left)?;
    }
    make_dir(&draft, gid)?;
    files.iter().try_for_each(|(path, content)| write_file(&draft, path, content, gid))?;
    std::fs::rename(&draft, &whole)?;
    symlink(version, &next)?;
    for name in files.keys().filter_map(|path| first_part(path)) {
        let link = dir.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(CURRENT).join(name), &link)?;
            links.push(link);
        }
    }
    Ok(())
}

/// The links to the files, and no others; older versions go.
fn show(dir: &Path, files: &BTreeMap<String, FileContent>, version: &str) -> io::Result<()> {
    let mut wanted: BTreeSet<&str> = files.keys().filter_map(|path| first_part(path)).collect();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name == CURRENT || name == version {
            continue;
        }
        let target = std::fs::read_link(entry.path()).ok();
        let is_link_of_ours = target.as_deref().is_some_and(|target| target == Path::new(CURRENT).join(name));
        if is_link_of_ours && wanted.remove(name) {
            continue;
        }
        if is_link_of_ours || name.starts_with("..") || wanted.contains(name) {
            mounts::delete_tree(&entry.path())?;
        }
    }
    wanted.into_iter().try_for_each(|name| symlink(Path::new(CURRENT).join(name), dir.join(name)))
}

fn first_part(path: &str) -> Option<&str> {
    path.split('/').find(|part| !part.is_empty() && *part != ".")
}

fn write_file(draft: &Path, path: &str, content: &FileContent, gid: Option<u32>) -> io::Result<()> {
    let path = draft.join(path);
    // Every directory on the way, so that all get the group.
    let missing: Vec<_> = path.ancestors().skip(1).take_while(|dir| !dir.exists()).collect();
    for dir in missing.into_iter().rev() {
        make_dir(dir, gid)?;
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
    file.write_all(&content.data)?;
    let mut mode = content.mode & 0o777;
    if gid.is_some() {
        chown(&path, None, gid)?;
        mode |= (mode & 0o500) >> 3;
    }
    file.set_permissions(Permissions::from_mode(mode))
}

fn make_dir(path: &Path, gid: Option<u32>) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o755))?;
    gid.map_or(Ok(()), |gid| chown(path, None, Some(gid)))
}

/// A name that is different for different files.
fn version(files: &BTreeMap<String, FileContent>, gid: Option<u32>) -> String {
    let mut hash = Sha256::new();
    for (path, content) in files {
        for field in [path.as_bytes(), &content.data] {
            hash.update((field.len() as u64).to_le_bytes());
            hash.update(field);
        }
        hash.update(content.mode.to_le_bytes());
    }
    hash.update(gid.map_or(u64::MAX, u64::from).to_le_bytes());
    let digest: String = hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("..{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> BTreeMap<String, FileContent> {
        let content = |text: &str| FileContent { data: text.into(), mode: 0o640 };
        files.iter().map(|(path, text)| ((*path).to_owned(), content(text))).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_update_shows_exactly_the_new_files() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let first = files(&[("a", "1"), ("sub/b", "2"), ("sub/c", "3")]);
        write(dir, &first, None).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("sub/c")).unwrap(), "3");
        assert_eq!(std::fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let before = names(dir);
        write(dir, &first, None).unwrap();
        assert_eq!(names(dir), before, "nothing to do");

        write(dir, &files(&[("a", "4"), ("d", "5")]), Some(1234)).unwrap();
        let after = names(dir);
        assert_eq!(after.len(), 4, "{after:?}");
        assert!(after.ends_with(&["a".to_owned(), "d".to_owned()]));
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "4");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(dir.join("d")).unwrap().gid(), 1234);

        write(dir, &files(&[]), None).unwrap();
        assert_eq!(names(dir).len(), 2, "only the version and the link to it");
    }

    #[test]
    fn what_a_crash_left_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        std::fs::create_dir_all(dir.join(DRAFT).join("half")).unwrap();
        symlink("nowhere", dir.join(NEXT)).unwrap();
        std::fs::create_dir(dir.join("..older")).unwrap();
        write(dir, &files(&[("a", "1")]), None).unwrap();
        assert_eq!(names(dir).len(), 3, "{:?}", names(dir));
    }

    #[test]
    fn a_reader_sees_the_old_or_the_new_files_and_nothing_between() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        write(&path, &files(&[("a", "0"), ("b", "0")]), None).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 1..200 {
                    let text = i.to_string();
                    write(&path, &files(&[("a", &text), ("b", &text)]), None).unwrap();
                }
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // One resolution of ..data stands for both reads, as with an open directory. It may vanish between.
                let version = path.join(std::fs::read_link(path.join(CURRENT)).unwrap());
                let read = |name| std::fs::read_to_string(version.join(name)).ok();
                if let (Some(a), Some(b)) = (read("a"), read("b")) {
                    assert_eq!(a, b);
                }
            }
        });
    }
}
