use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};

use rustix::mount::{MountFlags, mount, mount_remount};

use super::testing::{listing, tree};
use super::*;
use crate::testing::in_mount_namespace;

fn image(dir: &Path) -> std::path::PathBuf {
    let image = dir.join("image");
    fs::create_dir_all(image.join("var/lib")).unwrap();
    fs::rename(tree(dir), image.join("var/lib/app")).unwrap();
    symlink("/var/lib/app", image.join("data")).unwrap();
    image
}

#[test]
fn an_empty_volume_gets_everything_once() {
    let dir = tempfile::tempdir().unwrap();
    let (image, volume) = (image(dir.path()), dir.path().join("volume"));
    fs::create_dir_all(volume.join("lost+found")).unwrap();
    assert!(is_wanted(&volume).unwrap());
    // By way of a link, as a container would go.
    populate(&volume, &image, "/data", false).unwrap();
    fs::remove_dir(volume.join("lost+found")).unwrap();
    assert_eq!(listing(&volume), listing(&image.join("var/lib/app")));
    assert_eq!(fs::read_to_string(volume.join("other-name")).unwrap(), "content");
    assert!(!is_wanted(&volume).unwrap());

    fs::remove_dir_all(volume.join("deep")).unwrap();
    for name in ["other-name", "link", "program", "pipe"] {
        fs::remove_file(volume.join(name)).unwrap();
    }
    assert!(!is_wanted(&volume).unwrap(), "what its users emptied stays empty");
    populate(&volume, &image, "/data", false).unwrap();
    assert_eq!(fs::read_dir(&volume).unwrap().count(), 0);
}

#[test]
fn what_has_content_or_no_counterpart_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (image, volume) = (image(dir.path()), dir.path().join("volume"));
    fs::create_dir_all(&volume).unwrap();
    for nothing in ["/absent", "/var/lib/app/program", "/../../../../nowhere"] {
        populate(&volume, &image, nothing, false).unwrap();
        assert_eq!(fs::read_dir(&volume).unwrap().count(), 0, "{nothing}");
    }
    fs::write(volume.join("row"), "1").unwrap();
    assert!(!is_wanted(&volume).unwrap());
    populate(&volume, &image, "/data", false).unwrap();
    assert_eq!(fs::read_dir(&volume).unwrap().count(), 1);
    fs::remove_file(volume.join("row")).unwrap();
    chown(&volume, Some(5), Some(6)).unwrap();
    populate(&volume, &image, "/data", true).unwrap();
    assert_eq!((fs::metadata(&volume).unwrap().uid(), fs::read_dir(&volume).unwrap().count()), (5, 5));
}

#[test]
fn a_copy_that_was_cut_off_is_thrown_away_or_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let (image, volume) = (image(dir.path()), dir.path().join("volume"));
    let whole = listing(&image.join("var/lib/app"));
    // While copying.
    fs::create_dir_all(volume.join(HALF).join("deep")).unwrap();
    fs::write(volume.join(HALF).join("torn"), "x").unwrap();
    assert!(is_wanted(&volume).unwrap());
    populate(&volume, &image, "/data", false).unwrap();
    assert_eq!(listing(&volume), whole);
    // While moving: one entry has moved, the image is no longer there.
    fs::remove_dir_all(&volume).unwrap();
    fs::create_dir(&volume).unwrap();
    make_copy(&open(&volume).unwrap(), &find(&image, "/data").unwrap().unwrap()).unwrap();
    fs::rename(volume.join(WHOLE).join("deep"), volume.join("deep")).unwrap();
    assert!(is_wanted(&volume).unwrap());
    populate(&volume, Path::new("/nonexistent"), "/data", false).unwrap();
    assert_eq!(listing(&volume), whole);
}

#[test]
fn a_full_disk_leaves_nothing_half_and_recovers() {
    in_mount_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let (image, volume) = (image(dir.path()), dir.path().join("volume"));
        fs::write(image.join("var/lib/app/large"), vec![7; 3 << 20]).unwrap();
        fs::create_dir(&volume).unwrap();
        let size = |text: &str| CString::new(format!("size={text}")).unwrap();
        mount("t", &volume, "tmpfs", MountFlags::empty(), Some(size("1m").as_c_str())).unwrap();
        let error = populate(&volume, &image, "/data", false).unwrap_err();
        let cause = super::super::told(&error);
        assert!(cause.contains("1.0 MiB free of 1.0 MiB") && cause.contains("No space left"), "{cause}");
        assert_eq!(fs::read_dir(&volume).unwrap().count(), 0, "and the space is free again");
        mount_remount(&volume, MountFlags::empty(), size("8m").as_c_str()).unwrap();
        populate(&volume, &image, "/data", false).unwrap();
        assert_eq!(fs::metadata(volume.join("large")).unwrap().len(), 3 << 20);
        mounts::unmount_all(&volume).unwrap();
    });
}
