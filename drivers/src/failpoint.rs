//! Points between two effects, at which a test can kill this process.
//!
//! With the feature `failpoints`, and only then, the file that `NODELET_FAILPOINTS` names may hold a number: every
//! point that is passed from then on counts it down, and the one that reaches zero removes the file, writes its name
//! to standard error and kills the process as `kill -9` would. A test that counts up from one so visits every point
//! of an operation, in the order in which they are passed. Without the feature nothing of this is compiled.

/// Marks that the effect of this name has happened and the next has not.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn passed(_effect: &'static str) {}

/// Marks that the effect of this name has happened and the next has not.
#[cfg(feature = "failpoints")]
pub fn passed(effect: &'static str) {
    use std::sync::{LazyLock, Mutex, PoisonError};
    static COUNTER: LazyLock<Option<Mutex<std::path::PathBuf>>> =
        LazyLock::new(|| std::env::var_os("NODELET_FAILPOINTS").map(|path| Mutex::new(path.into())));
    let Some(counter) = &*COUNTER else { return };
    let path = counter.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(left) = std::fs::read_to_string(&*path).ok().and_then(|text| text.trim().parse::<u32>().ok()) else {
        return;
    };
    if left > 1 {
        let _ = std::fs::write(&*path, (left - 1).to_string());
        return;
    }
    let _ = std::fs::remove_file(&*path);
    #[allow(clippy::print_stderr)] // the log may be buffered, and nothing comes after this
    {
        eprintln!("killed after {effect}");
    }
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}
