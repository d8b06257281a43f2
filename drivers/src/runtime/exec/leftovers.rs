//! Programs in containers whose agent died: their streams lead nowhere, so they are ended.

use std::sync::Arc;

use super::super::containerd::Shared;
use super::fifos::{directory, ids};
use super::interactive::Exec;

/// Ends them, removes their pipes and says which they were.
pub(in super::super) async fn clear(shared: Arc<Shared>) -> Vec<String> {
    let directory = directory(&shared.options.run_dir);
    let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
    let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let mut freed = Vec::new();
    for name in names.into_iter().filter(|name| !shared.execs.contains(name)) {
        let path = directory.join(&name);
        let Some((id, exec)) = ids(&name) else {
            let _ = std::fs::remove_file(&path);
            continue;
        };
        if Exec::found(shared.clone(), id.clone(), exec).clear().await {
            let _ = std::fs::remove_dir_all(&path);
            freed.push(format!("a program in container {id}, which nobody talked to any more"));
        }
    }
    freed
}
