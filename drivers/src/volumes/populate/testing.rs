//! Trees to be copied, and what counts of them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, XattrFlags};

/// A tree with all kinds of things.
pub(in crate::volumes) fn tree(dir: &Path) -> PathBuf {
    let app = dir.join("app");
    fs::create_dir_all(app.join("deep/er")).unwrap();
    fs::write(app.join("deep/er/file"), "content").unwrap();
    fs::hard_link(app.join("deep/er/file"), app.join("other-name")).unwrap();
    symlink("/etc/passwd", app.join("link")).unwrap();
    chown(app.join("deep"), Some(70), Some(71)).unwrap();
    fs::set_permissions(app.join("deep"), Permissions::from_mode(0o2750)).unwrap();
    fs::write(app.join("program"), "#!").unwrap();
    fs::set_permissions(app.join("program"), Permissions::from_mode(0o4755)).unwrap();
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(app.join("program"), name, value, XattrFlags::empty()).unwrap();
    };
    // cap_net_bind_service=ep
    set("security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    set("user.note", b"kept");
    rustix::fs::mknodat(CWD, app.join("pipe"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
    chown(&app, Some(999), Some(998)).unwrap();
    fs::set_permissions(&app, Permissions::from_mode(0o700)).unwrap();
    app
}

/// All of a tree that counts, one line for each entry.
pub(in crate::volumes) fn listing(root: &Path) -> Vec<String> {
    fn walk(root: &Path, at: &Path, lines: &mut Vec<String>) {
        let stat = fs::symlink_metadata(at).unwrap();
        let xattr = |name: &str| {
            let mut value = [0; 64];
            rustix::fs::lgetxattr(at, name, &mut value).map(|length| value[..length].to_vec()).unwrap_or_default()
        };
        lines.push(format!(
            "{} {:o} {}:{} links={} time={} {:?} {:?}",
            at.strip_prefix(root).unwrap().display(),
            stat.mode(),
            stat.uid(),
            stat.gid(),
            if stat.is_dir() { 0 } else { stat.nlink() },
            if stat.is_dir() && at == root { 0 } else { stat.mtime() },
            xattr("security.capability"),
            xattr("user.note"),
        ));
        if stat.is_dir() {
            let mut entries: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
            entries.sort();
            entries.iter().for_each(|entry| walk(root, entry, lines));
        }
    }
    let mut lines = Vec::new();
    walk(root, root, &mut lines);
    lines
}
