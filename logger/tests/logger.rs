//! The built binary, with pipes where the shim puts them.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)] // helpers of tests are tests too

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// A running logger and the ends that a container would hold.
struct Logger {
    child: Child,
    stdout: Option<File>,
    stderr: Option<File>,
    ready: File,
}

impl Logger {
    /// Starts it and waits until it is ready, as the shim does.
    fn start(args: &[&str], with_stderr: bool) -> Self {
        let (out_read, out_write) = pipe();
        let (err_read, err_write) = pipe();
        let (ready_read, ready_write) = pipe();
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodelet-logger"));
        command.args(args);
        let stderr_source = if with_stderr { err_read.as_raw_fd() } else { -1 };
        let sources = [out_read.as_raw_fd(), stderr_source, ready_write.as_raw_fd()];
        // SAFETY: only calls that are allowed between fork and exec.
        unsafe { command.pre_exec(move || place(sources)) };
        let child = command.spawn().unwrap();
        drop((out_read, err_read, ready_write));
        let mut ready = File::from(ready_read);
        ready.read_exact(&mut [0]).expect_err("closed without a byte");
        Self { child, stdout: Some(out_write.into()), stderr: with_stderr.then(|| err_write.into()), ready }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stdout.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Ends both streams and waits for the logger.
    fn end(mut self) -> ExitStatus {
        self.stdout = None;
        self.stderr = None;
        self.child.wait().unwrap()
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = &self.ready;
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

/// Puts the descriptors at 3, 4 and 5; a negative one stays closed there.
fn place(sources: [RawFd; 3]) -> std::io::Result<()> {
    // SAFETY: dup and close of numbers are async-signal-safe. First out of the way, so that none is overwritten.
    unsafe {
        let high = sources.map(|fd| if fd < 0 { -1 } else { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 100) });
        for (target, fd) in (3..).zip(high) {
            if fd < 0 {
                libc::close(target);
            } else if libc::dup2(fd, target) < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Stream, flag and message of each record of a file; panics on anything that is not a record.
fn records(path: &Path) -> Vec<(String, String, String)> {
    let text = String::from_utf8(std::fs::read(path).unwrap()).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "a torn record at the end of {}", path.display());
    let record = |line: &str| {
        let mut parts = line.splitn(4, ' ');
        let time = parts.next().unwrap();
        assert!(time.len() == 30 && time.starts_with("20") && time.ends_with('Z'), "{line:?}");
        let mut next = || parts.next().unwrap_or_else(|| panic!("torn: {line:?}")).to_owned();
        (next(), next(), next())
    };
    text.lines().map(record).collect()
}

fn messages(path: &Path) -> Vec<String> {
    records(path).into_iter().map(|(_, _, message)| message).collect()
}

/// All files of a log, oldest first.
fn files(path: &Path) -> Vec<PathBuf> {
    let rotated = |n: u32| PathBuf::from(format!("{}.{n}", path.display()));
    let mut all: Vec<_> = (1..).map(rotated).take_while(|file| file.exists()).collect();
    all.reverse();
    all.push(path.to_owned());
    all
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_prompt_is_written_at_once_if_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let mut logger = Logger::start(&["unfinished-lines", "now", "path", path.to_str().unwrap()], false);
    logger.write(b"one\r\n$ ");
    wait_for("the prompt", || messages(&path).len() == 2);
    logger.write(b"ls\r\n");
    wait_for("the rest", || messages(&path).len() == 3);
    assert!(logger.end().success());
    let record = |flag: &str, message: &str| ("stdout".to_owned(), flag.to_owned(), message.to_owned());
    // `lines` of the standard library takes the carriage return off.
    assert_eq!(records(&path), [record("F", "one"), record("P", "$ "), record("F", "ls")]);
}

#[test]
fn lines_of_both_streams() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ns_web_uid/main/0.log");
    let mut logger = Logger::start(&["max-files", "3", "path", path.to_str().unwrap()], true);
    assert!(path.exists(), "the file is open before readiness is told");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o755);
    logger.write(b"one\n\ntwo");
    wait_for("the first line", || messages(&path).len() == 2);
    logger.stderr.as_mut().unwrap().write_all(b"oh\n").unwrap();
    wait_for("stderr", || messages(&path).len() == 3);
    assert!(logger.end().success());
    let expected = [("stdout", "one"), ("stdout", ""), ("stderr", "oh"), ("stdout", "two")];
    let found = records(&path);
    assert_eq!(found.iter().map(|(s, _, m)| (s.as_str(), m.as_str())).collect::<Vec<_>>(), expected);
    assert!(found.iter().all(|(_, flag, _)| flag == "F"));
}

#[test]
fn appends_to_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    for text in ["first\n", "second\n"] {
        let mut logger = Logger::start(&["path", path.to_str().unwrap()], true);
        logger.write(text.as_bytes());
        assert!(logger.end().success());
    }
    assert_eq!(messages(&path), ["first", "second"]);
}

#[test]
fn long_lines_come_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let mut logger = Logger::start(&["path", path.to_str().unwrap()], true);
    let line: String = (0..50_000).map(|i| char::from(b'a' + (i % 26) as u8)).collect();
    logger.write(format!("{line}\nshort\n").as_bytes());
    assert!(logger.end().success());
    let found = records(&path);
    let flags: String = found.iter().map(|(_, flag, _)| flag.as_str()).collect();
    assert_eq!(flags, "PPPFF");
    assert!(found[..3].iter().all(|(_, _, part)| part.len() == 16 << 10));
    assert_eq!(found[..4].iter().map(|(_, _, part)| part.as_str()).collect::<String>(), line);
}

#[test]
fn a_flood_loses_nothing_across_rotations() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let max_size = 100_000;
    let args = ["path", path.to_str().unwrap(), "max-size", "100000", "max-files", "1000"];
    let mut logger = Logger::start(&args, true);
    let count = 100_000;
    let text: String = (0..count).map(|i| format!("line {i}\n")).collect();
    logger.write(text.as_bytes());
    assert!(logger.end().success());
    let files = files(&path);
    assert!(files.len() > 30, "{} files", files.len());
    for file in &files {
        assert!(std::fs::metadata(file).unwrap().len() <= max_size);
    }
    let found: Vec<_> = files.iter().flat_map(|file| messages(file)).collect();
    assert_eq!(found, (0..count).map(|i| format!("line {i}")).collect::<Vec<_>>());
}

#[test]
fn the_total_size_is_bounded() {
    for max_files in [1, 2, 3] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let number = max_files.to_string();
        let args = ["path", path.to_str().unwrap(), "max-size", "20000", "max-files", &number];
        let mut logger = Logger::start(&args, true);
        for i in 0..20 {
            logger.write("x".repeat(5000 * i).as_bytes());
            logger.write(b"\nline\n");
            let total: u64 = std::fs::read_dir(dir.path())
                .unwrap()
                .filter_map(|entry| entry.unwrap().metadata().ok().map(|metadata| metadata.len()))
                .sum();
            // The current file may be seen twice while it is renamed.
            assert!(total <= 20_000 * (max_files + 1), "{total} bytes with {max_files} files");
        }
        assert!(logger.end().success());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count() as u64, max_files);
        assert_eq!(messages(&path).last().unwrap(), "line");
    }
}

#[test]
fn a_terminal_has_no_stderr() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let mut logger = Logger::start(&["path", path.to_str().unwrap()], false);
    logger.write(b"$ ls\r\n");
    assert!(logger.end().success());
    assert_eq!(messages(&path), ["$ ls\r"].map(|line| line.trim_end_matches('\r')));
    assert_eq!(std::fs::read(&path).unwrap().last_chunk(), Some(b"\r\n"));
}

#[test]
fn signals_end_it_only_after_a_drain() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let mut logger = Logger::start(&["path", path.to_str().unwrap()], true);
    let pid = rustix::process::Pid::from_child(&logger.child);
    let signal = |signal| rustix::process::kill_process(pid, signal).unwrap();
    for ignored in [rustix::process::Signal::PIPE, rustix::process::Signal::HUP, rustix::process::Signal::INT] {
        signal(ignored);
    }
    let begin = Instant::now();
    signal(rustix::process::Signal::TERM);
    logger.write(b"written after SIGTERM\nand a rest");
    wait_for("the line", || messages(&path) == ["written after SIGTERM"]);
    signal(rustix::process::Signal::TERM);
    assert!(logger.child.wait().unwrap().success(), "it ends although the pipes are open");
    let took = begin.elapsed();
    assert!((4..8).contains(&took.as_secs()), "{took:?}");
    assert_eq!(messages(&path), ["written after SIGTERM", "and a rest"]);
}

#[test]
fn sigterm_with_ended_pipes_ends_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let mut logger = Logger::start(&["path", path.to_str().unwrap()], true);
    logger.write(b"last words\n");
    logger.stdout = None;
    rustix::process::kill_process(rustix::process::Pid::from_child(&logger.child), rustix::process::Signal::TERM)
        .unwrap();
    let begin = Instant::now();
    assert!(logger.end().success());
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert_eq!(messages(&path), ["last words"]);
}

#[test]
fn unusable_arguments_are_said_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let logger = Logger::start(&["path", path.to_str().unwrap(), "max-size", "many"], true);
    assert_eq!(logger.end().code(), Some(2));
    assert_eq!(messages(&path), ["nodelet-logger: many is not a usable max-size"]);
    assert_eq!(Logger::start(&[], true).end().code(), Some(2));
}

/// A tmpfs of one mebibyte in a mount namespace that only this thread and its children see.
fn on_a_small_file_system(test: impl FnOnce(&Path) + Send + 'static) {
    std::thread::spawn(|| {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        use rustix::thread::{UnshareFlags, unshare_unsafe};
        // SAFETY: only this thread's view of mounts changes; no descriptor is affected.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let dir = tempfile::tempdir().unwrap();
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=1m")).unwrap();
        test(dir.path());
        rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    })
    .join()
    .unwrap();
}

#[test]
fn a_full_disk_drops_lines_and_says_so() {
    on_a_small_file_system(|dir| {
        let path = dir.join("log/0.log");
        let ballast = dir.join("ballast");
        let args = ["path", path.to_str().unwrap(), "max-size", "400000", "max-files", "5"];
        let mut logger = Logger::start(&args, true);
        logger.write(b"before\n");
        wait_for("the first line", || messages(&path) == ["before"]);
        // The rest of the file system, to the last byte.
        let mut file = File::create(&ballast).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        drop(file);
        // Never blocked, however much is written: far more than pipe and disk hold.
        for i in 0..3000 {
            logger.write(format!("lost {i} {}\n", "x".repeat(1000)).as_bytes());
        }
        std::fs::remove_file(&ballast).unwrap();
        logger.write(b"after\n");
        wait_for("the line after", || messages(&path).last().is_some_and(|line| line == "after"));
        assert!(logger.end().success());
        let found = messages(&path);
        assert_eq!(found[0], "before");
        let lost =
            |line: &String| -> Option<u64> { line.strip_prefix("nodelet-logger: ")?.split(' ').next()?.parse().ok() };
        let dropped: u64 = found.iter().filter_map(lost).sum();
        let kept = found.iter().filter(|line| line.starts_with("lost ")).count() as u64;
        assert!(found.iter().any(|line| line.contains("No space left on device")), "{:?}", found.last());
        assert!(dropped > 0);
        assert_eq!(dropped + kept, 3000, "every line is in the log or counted");
    });
}
