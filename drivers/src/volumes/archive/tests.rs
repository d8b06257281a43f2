use super::*;
use crate::volumes::populate::testing::{listing, tree};

#[test]
fn a_volume_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let original = tree(dir.path());
    let long = "n".repeat(200);
    std::fs::create_dir(original.join(&long)).unwrap();
    std::fs::write(original.join(&long).join(&long), "long").unwrap();
    let mut file = Vec::new();
    let (files, bytes) = write(&original, &mut file).unwrap();
    assert!(files >= 8 && bytes >= 9, "{files} files, {bytes} bytes");
    let restored = dir.path().join("restored");
    std::fs::create_dir(&restored).unwrap();
    read(&restored, &file[..]).unwrap();
    assert_eq!(listing(&restored), listing(&original));
    let error = read(&restored, &file[..]).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("is not empty"), "never over something");
}

#[test]
fn half_an_archive_restores_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let original = tree(dir.path());
    std::fs::write(original.join("zz"), vec![3; 1 << 20]).unwrap();
    let mut file = Vec::new();
    write(&original, &mut file).unwrap();
    let restored = dir.path().join("restored");
    std::fs::create_dir(&restored).unwrap();
    assert!(read(&restored, &file[..file.len() - 9]).is_err());
    assert!(read(&restored, &b"no archive"[..]).is_err());
    assert_eq!(std::fs::read_dir(&restored).unwrap().count(), 0);
    read(&restored, &file[..]).unwrap();
}

#[test]
fn an_archive_of_somebody_else_stays_inside() {
    let dir = tempfile::tempdir().unwrap();
    let restored = dir.path().join("volume");
    std::fs::create_dir(&restored).unwrap();
    let mut tar = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
    let entry = |kind, name: &str, link: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(0o777);
        header.set_size(0);
        header.set_cksum();
        header
    };
    tar.append(&entry(tar::EntryType::Symlink, "out", ".."), io::empty()).unwrap();
    tar.append(&entry(tar::EntryType::Regular, "out/escaped", ""), io::empty()).unwrap();
    let file = tar.into_inner().unwrap().finish().unwrap();
    let _ = read(&restored, &file[..]);
    assert!(!dir.path().join("escaped").exists() && !dir.path().join("volume/../escaped").exists());
}
