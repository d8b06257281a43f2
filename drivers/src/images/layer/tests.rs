//! Layers of every kind, the hostile ones included, into a directory on the machine's own disk.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::compare::compare;
use super::extract::{adopt, extract};
use super::*;

struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// Any name, also one that the library would refuse to write.
    fn add(mut self, name: &str, kind: EntryType, link: &str, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(if kind == EntryType::Directory { 0o750 } else { 0o640 });
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.add(name, EntryType::Regular, "", data)
    }

    fn dir(self, name: &str) -> Self {
        self.add(name, EntryType::Directory, "", b"")
    }

    fn write(self, to: &Path) -> Digest {
        let bytes = self.0.into_inner().unwrap();
        std::fs::write(to, &bytes).unwrap();
        Digest::of(&bytes)
    }
}

struct World(tempfile::TempDir);

impl World {
    /// The blob beside the target, on a filesystem that has extended attributes.
    fn new() -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(world.root()).unwrap();
        world
    }

    fn root(&self) -> std::path::PathBuf {
        self.0.path().join("fs")
    }

    fn blob(&self) -> std::path::PathBuf {
        self.0.path().join("blob")
    }

    fn extract(&self, tar: Tar, base: bool) -> Result<extract::Extracted, Problem> {
        tar.write(&self.blob());
        extract(&self.blob(), &self.root(), base, &AtomicBool::new(false))
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.root().join(name)).unwrap()
    }
}

#[test]
fn everything_arrives_with_its_attributes() {
    let world = World::new();
    let tar = Tar::new()
        .dir("./")
        .dir("etc/")
        .file("etc/name", b"one")
        .file("etc/name", b"two")
        .add("etc/link", EntryType::Link, "etc/name", b"")
        .add("sym", EntryType::Symlink, "/etc/name", b"")
        .add("pipe", EntryType::Fifo, "", b"")
        .file("deep/er/file", &vec![7; 300_000]);
    let done = world.extract(tar, true).unwrap();
    assert_eq!(done.implied, [b"deep".to_vec(), b"deep/er".to_vec()]);
    assert_eq!(world.read("etc/name"), "two");
    let metadata = std::fs::metadata(world.root().join("etc/name")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.permissions().mode() & 0o7777), (7, 8, 0o640));
    assert_eq!((metadata.mtime(), metadata.nlink()), (1_700_000_000, 2));
    assert_eq!(std::fs::metadata(world.root().join("etc")).unwrap().mtime(), 1_700_000_000);
    assert_eq!(std::fs::read_link(world.root().join("sym")).unwrap(), Path::new("/etc/name"));
    assert_eq!(std::fs::metadata(world.root()).unwrap().permissions().mode() & 0o7777, 0o750);
    let same = compare(&world.blob(), &world.root(), true, &done.diff_id, &AtomicBool::new(false)).unwrap();
    assert_eq!(same, None);
}

#[test]
fn what_is_hidden_is_marked_for_overlayfs() {
    let world = World::new();
    let tar = Tar::new()
        .file("dir/.wh.gone", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"n")
        .file(".wh.again", b"")
        .dir("again/");
    world.extract(tar, false).unwrap();
    let gone = std::fs::symlink_metadata(world.root().join("dir/gone")).unwrap();
    assert_eq!((gone.mode() & 0o170_000, gone.rdev()), (0o020_000, 0));
    for directory in ["opaque", "again"] {
        let mut value = [0; 8];
        let path = world.root().join(directory);
        let length = rustix::fs::lgetxattr(&path, "trusted.overlay.opaque", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"y", "{directory}");
    }
    let base = World::new();
    base.extract(Tar::new().file("a", b"a").file(".wh.b", b""), true).unwrap();
    assert!(!base.root().join("b").exists());
}

#[test]
fn a_hostile_layer_is_refused_and_reaches_nothing_outside() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "untouched").unwrap();
    let out = outside.path().display().to_string();
    let link = |name: &'static str, target: &str| Tar::new().add(name, EntryType::Symlink, target, b"");
    for (case, tar) in [
        ("..", Tar::new().file("../victim", b"x")),
        ("within", Tar::new().file("a/../../victim", b"x")),
        ("link out", Tar::new().add("a", EntryType::Link, "../../victim", b"")),
        ("disk", Tar::new().add("dev/sda", EntryType::Block, "", b"")),
        ("memory", {
            let mut tar = Tar::new();
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(EntryType::Char);
            header.set_device_major(1).unwrap();
            header.set_device_minor(1).unwrap();
            header.set_size(0);
            header.set_mode(0o666);
            tar.0.append_data(&mut header, "dev/mem", &b""[..]).unwrap();
            tar
        }),
        ("parent mark", Tar::new().file("a/.wh...", b"")),
        ("own mark", Tar::new().file("a/.wh..", b"")),
    ] {
        let world = World::new();
        let error = world.extract(tar, false).unwrap_err();
        assert!(matches!(error, Problem::Refused { .. }), "{case}: {error:?}");
    }
    // Links may lead anywhere, as those of every root filesystem do; what goes through them stays in the layer.
    for tar in [
        link("a", &out).file("a/victim", b"x"),
        link("a", "../../../../../../../../../../../..").file(&format!("a{out}/victim")[..], b"x"),
        link("victim", victim.to_str().unwrap()).file("victim", b"x"),
    ] {
        let world = World::new();
        let outcome = world.extract(tar, false);
        assert!(!matches!(outcome, Err(Problem::Refused { .. })), "{outcome:?}");
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
    }
    let world = World::new();
    let absolute =
        world.extract(Tar::new().file("/etc/passwd", b"ours").add("l", EntryType::Link, "/etc/passwd", b""), false);
    absolute.unwrap();
    assert_eq!((world.read("etc/passwd"), world.read("l")), ("ours".to_owned(), "ours".to_owned()));
}

#[test]
fn attributes_and_long_names_come_from_extended_headers() {
    let name = "x".repeat(150) + "/" + &"y".repeat(120);
    let record = |key: &str, value: &[u8]| {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = body.len() + 1;
        while length != body.len() + length.to_string().len() {
            length = body.len() + length.to_string().len();
        }
        [length.to_string().as_bytes(), &body].concat()
    };
    let extended = [
        record("path", name.as_bytes()),
        record("mtime", b"1700000000.25"),
        record("uid", b"123456"),
        record("SCHILY.xattr.trusted.test", b"a\nb=c"),
    ]
    .concat();
    let world = World::new();
    world.extract(Tar::new().add("h", EntryType::XHeader, "", &extended).file("short", b"s"), true).unwrap();
    let path = world.root().join(&name);
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.mtime(), metadata.mtime_nsec()), (123_456, 1_700_000_000, 250_000_000));
    let mut value = [0; 16];
    let length = rustix::fs::lgetxattr(&path, "trusted.test", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"a\nb=c");

    let redirect = record("SCHILY.xattr.trusted.overlay.redirect", b"/etc");
    let hostile = Tar::new().add("h", EntryType::XHeader, "", &redirect).dir("d/");
    assert!(matches!(World::new().extract(hostile, false), Err(Problem::Refused { .. })));
    let endless = Tar::new().add("h", EntryType::XHeader, "", &vec![b'1'; 2 << 20]).dir("d/");
    assert!(matches!(World::new().extract(endless, false), Err(Problem::Io { .. })));
}

#[test]
fn directories_without_a_description_look_as_below() {
    let (below, above) = (World::new(), World::new());
    below.extract(Tar::new().dir("a/").file("a/x", b""), true).unwrap();
    let done = above.extract(Tar::new().file("a/b/c", b"c"), false).unwrap();
    adopt(&above.root(), &done.implied, &[&below.root()]).unwrap();
    let mode = |name: &str| std::fs::metadata(above.root().join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("a"), mode("a/b")), (0o750, 0o755));
}

#[test]
fn every_loss_is_noticed() {
    let fresh = || {
        let world = World::new();
        let tar = Tar::new().dir("d/").file("d/f", &vec![1; 10_000]).add("s", EntryType::Symlink, "t", b"");
        let done = world.extract(tar, true).unwrap();
        (world, done.diff_id)
    };
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 5] = [
        ("truncated", |root| std::fs::File::options().write(true).open(root.join("d/f")).unwrap().set_len(5).unwrap()),
        ("zeroed", |root| std::fs::write(root.join("d/f"), vec![0; 10_000]).unwrap()),
        ("missing", |root| std::fs::remove_file(root.join("d/f")).unwrap()),
        ("mode", |root| std::fs::set_permissions(root.join("d"), std::fs::Permissions::from_mode(0o700)).unwrap()),
        ("link", |root| {
            std::fs::remove_file(root.join("s")).unwrap();
            std::os::unix::fs::symlink("u", root.join("s")).unwrap();
        }),
    ];
    for (case, harm) in harms {
        let (world, diff_id) = fresh();
        harm(&world.root());
        let found = compare(&world.blob(), &world.root(), true, &diff_id, &AtomicBool::new(false)).unwrap();
        assert!(found.is_some(), "{case}");
    }
}
