//! Images of files of this machine, so that compression finds what it finds in real images.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result};
use nodelet_tests::images::{Image, LayerBuilder};

/// An image of so many layers, each of so many bytes unpacked.
pub(super) fn make(layers: usize, bytes: usize) -> Result<Image> {
    let mut sources = Vec::new();
    for directory in ["/usr/bin", "/usr/lib", "/usr/sbin", "/usr/share"] {
        collect(Path::new(directory), &mut sources);
    }
    sources.sort();
    let mut sources = sources.into_iter().cycle();
    let mut finished = Vec::new();
    for number in 0..layers {
        let mut layer = LayerBuilder::default();
        let (mut left, mut file) = (bytes, 0);
        while left > 0 {
            let content = fs::read(sources.next().context("this machine has files")?)?;
            let content = &content[..content.len().min(left)];
            layer.file(&format!("srv/{number}/{file}"), content, 0o644)?;
            left -= content.len();
            file += 1;
        }
        finished.push(Rc::new(layer.finish()?));
    }
    Ok(Image { layers: finished, config: serde_json::json!({"Cmd": ["true"]}) })
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            collect(&entry.path(), found);
        } else if kind.is_file() && entry.metadata().is_ok_and(|m| m.len() > 1000) {
            found.push(entry.path());
        }
    }
}
