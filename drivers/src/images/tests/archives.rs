//! Archives and layouts, good and bad.

use std::error::Error as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::fixture::*;
use crate::images::{Error, Images as _, Options};
use crate::testing::{BUSYBOX, PrivateContainerd, busybox_archive};

struct Case {
    node: PrivateContainerd,
    dir: tempfile::TempDir,
}

impl Case {
    async fn new() -> Self {
        Self { node: PrivateContainerd::start().await, dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn oci_archive(&self) -> PathBuf {
        let path = self.path("oci.tar");
        busybox_archive(&path, BUSYBOX);
        path
    }

    fn docker_archive(&self) -> PathBuf {
        let path = self.path("docker.tar");
        let from = format!("oci-archive:{}", self.oci_archive().display());
        skopeo(vec!["copy", "-q"], &[&from, &format!("docker-archive:{}:{BUSYBOX}", path.display())]);
        path
    }

    async fn fails(&self, path: &Path) -> String {
        let images = images(&self.node, Options::default());
        let error = images.fetch(&from_archive("x.test/bad:1", path), silent()).await.unwrap_err();
        assert!(matches!(&error, Error::Archive { path: named, .. } if named == path), "{error:?}");
        assert_eq!(inventory(&self.node), Vec::<String>::new(), "nothing is left of {}", path.display());
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

fn compress(from: &Path, to: &Path, zstd: bool) {
    let bytes = std::fs::read(from).unwrap();
    let packed = if zstd {
        zstd::encode_all(bytes.as_slice(), 1).unwrap()
    } else {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&bytes).unwrap();
        encoder.finish().unwrap()
    };
    std::fs::write(to, packed).unwrap();
}

/// Rewrites a tar; `None` drops an entry.
fn edit(from: &Path, to: &Path, change: impl Fn(&str, Vec<u8>) -> Option<(String, Vec<u8>)>) {
    let mut archive = tar::Archive::new(std::fs::File::open(from).unwrap());
    let mut out = tar::Builder::new(std::fs::File::create(to).unwrap());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut data = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut data).unwrap();
        let Some((name, data)) = change(&name, data) else { continue };
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        // Past the checks of the library: hostile archives are not made with it.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        out.append(&header, data.as_slice()).unwrap();
    }
    out.finish().unwrap();
}

#[tokio::test]
async fn every_form_gives_the_same_root_filesystem() {
    let case = Case::new().await;
    let (oci, docker) = (case.oci_archive(), case.docker_archive());
    let layout = case.path("layout");
    let from = format!("oci-archive:{}", oci.display());
    skopeo(vec!["copy", "-q"], &[&from, &format!("oci:{}:1", layout.display())]);
    let mut forms = vec![oci.clone(), docker.clone(), layout];
    for (from, zstd) in [(&oci, false), (&oci, true), (&docker, false), (&docker, true)] {
        let to = case.path(&format!("{}.{zstd}", from.file_name().unwrap().to_str().unwrap()));
        compress(from, &to, zstd);
        forms.push(to);
    }
    let images = images(&case.node, Options::default());
    let mut tops = std::collections::BTreeSet::new();
    for (i, form) in forms.iter().enumerate() {
        let name = format!("x.test/form{i}:1");
        let image = images.fetch(&from_archive(&name, form), silent()).await.unwrap_or_else(|e| {
            panic!("{}: {e:?}", form.display());
        });
        assert_eq!(image.reference, name);
        assert_eq!(images.get(&name).await.unwrap().as_ref(), Some(&image));
        assert_eq!(images.resolve(&from_archive(&name, form)).await.unwrap(), image.digest);
        tops.insert(crate::images::config::image_config(&case.node.containerd(), &name).await.unwrap().1);
        images.remove(&name).await.unwrap();
        assert_eq!(inventory(&case.node), Vec::<String>::new());
    }
    assert_eq!(tops.len(), 1, "{tops:?}");
}

#[tokio::test]
async fn malformed_archives_say_what_is_wrong_and_leave_nothing() {
    let case = Case::new().await;
    let (oci, docker) = (case.oci_archive(), case.docker_archive());
    let bad = case.path("bad.tar");
    assert!(case.fails(&case.path("missing.tar")).await.contains("No such file"));

    std::fs::write(&bad, b"").unwrap();
    assert!(case.fails(&bad).await.contains("empty or not a tar"));
    std::fs::write(&bad, vec![b'x'; 4096]).unwrap();
    case.fails(&bad).await;
    std::fs::write(&bad, [0x1f, 0x8b, 8, 0, 1, 2, 3]).unwrap();
    case.fails(&bad).await;

    for from in [&oci, &docker] {
        let bytes = std::fs::read(from).unwrap();
        std::fs::write(&bad, &bytes[..bytes.len() / 2]).unwrap();
        let text = case.fails(&bad).await;
        assert!(text.contains("cut off"), "{text}");
        let packed = case.path("packed");
        compress(from, &packed, false);
        let bytes = std::fs::read(&packed).unwrap();
        std::fs::write(&bad, &bytes[..bytes.len() / 2]).unwrap();
        case.fails(&bad).await;
    }

    edit(&oci, &bad, |name, data| Some((format!("../{name}"), data)));
    assert!(case.fails(&bad).await.contains("outside"));
    edit(&oci, &bad, |name, data| {
        (data.len() < 1 << 16 || !name.starts_with("blobs/")).then(|| (name.to_owned(), data))
    });
    assert!(case.fails(&bad).await.contains("is missing"));
    edit(&oci, &bad, |name, mut data| {
        if data.len() > 1 << 16 {
            data[1 << 15] ^= 1;
        }
        Some((name.to_owned(), data))
    });
    assert!(case.fails(&bad).await.contains("is damaged"));
    edit(&oci, &bad, |name, data| {
        let data =
            if name.starts_with("blobs/") && data.starts_with(b"{") { [data, b" ".to_vec()].concat() } else { data };
        Some((name.to_owned(), data))
    });
    assert!(case.fails(&bad).await.contains("has the digest"));
    edit(&oci, &bad, |name, data| (name != "index.json").then(|| (name.to_owned(), data)));
    assert!(case.fails(&bad).await.contains("neither index.json nor manifest.json"));
    edit(&docker, &bad, |name, data| {
        let text = String::from_utf8(data.clone()).unwrap_or_default();
        let data = if name == "manifest.json" { text.replace(".tar\"", ".tar/../../x\"").into_bytes() } else { data };
        Some((name.to_owned(), data))
    });
    assert!(case.fails(&bad).await.contains("outside"));
    edit(&docker, &bad, |name, mut data| {
        if data.len() > 1 << 16 {
            data[1 << 15] ^= 1;
        }
        Some((name.to_owned(), data))
    });
    assert!(case.fails(&bad).await.contains("is damaged"));
}

#[tokio::test]
async fn of_several_images_the_named_one_is_taken() {
    let case = Case::new().await;
    let docker = case.docker_archive();
    let several = case.path("several.tar");
    edit(&docker, &several, |name, data| {
        let data = if name == "manifest.json" {
            let text = String::from_utf8(data).unwrap();
            let item = text.trim().trim_start_matches('[').trim_end_matches(']').to_owned();
            format!("[{item},{}]", item.replace(BUSYBOX, "nodelet.test/other:2")).into_bytes()
        } else {
            data
        };
        Some((name.to_owned(), data))
    });
    let images = images(&case.node, Options::default());
    let error = images.fetch(&from_archive("x.test/none:1", &several), silent()).await.unwrap_err();
    let cause = error.source().unwrap().to_string();
    assert!(cause.contains(BUSYBOX) && cause.contains("nodelet.test/other:2"), "{cause}");
    images.fetch(&from_archive("nodelet.test/other:2", &several), silent()).await.unwrap();
    assert_eq!(images.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_archive_of_another_platform_says_which() {
    let case = Case::new().await;
    let fetch = crate::images::Fetch {
        platform: Some("linux/riscv64".to_owned()),
        ..from_archive("x.test/x:1", &case.oci_archive())
    };
    let error = images(&case.node, Options::default()).fetch(&fetch, silent()).await.unwrap_err();
    assert!(matches!(&error, Error::Platform { platform, .. } if platform == "linux/riscv64"), "{error:?}");
}
