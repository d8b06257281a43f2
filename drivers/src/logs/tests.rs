use std::fs::File;
use std::io::Write;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use proptest::prelude::*;

use super::files::{Cursor, Progress, numbered};
use super::*;

/// Writes and rotates as `nodelet-logger` does.
struct Writer {
    path: PathBuf,
    file: File,
    max_files: u32,
    written: u64,
}

impl Writer {
    fn new(dir: &Path, max_files: u32) -> Self {
        let path = path(dir, 0);
        Self { file: File::create(&path).unwrap(), path, max_files, written: 0 }
    }

    fn write(&mut self, lines: u64) {
        let mut batch = String::new();
        for _ in 0..lines {
            let n = self.written;
            let second = n % 60;
            batch.push_str(&format!("2026-01-01T00:00:{second:02}.000000000Z stdout P line \n"));
            batch.push_str(&format!("2026-01-01T00:00:{second:02}.000000000Z stdout F {n}\n"));
            self.written += 1;
        }
        self.file.write_all(batch.as_bytes()).unwrap();
    }

    fn rotate(&mut self) {
        for number in (1..self.max_files - 1).rev() {
            let _ = std::fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1));
        }
        std::fs::rename(&self.path, numbered(&self.path, 1)).unwrap();
        self.file = File::create(&self.path).unwrap();
    }
}

fn expected(lines: std::ops::Range<u64>) -> String {
    lines.map(|n| format!("line {n}\n")).collect()
}

async fn read(path: &Path, options: Options) -> String {
    let chunks: Vec<_> = LogReader::new(path, options).read().collect().await;
    let bytes: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.unwrap().to_vec()).collect();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn all_files_are_read_the_oldest_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path(), 10);
    for _ in 0..4 {
        writer.write(5000);
        writer.rotate();
    }
    writer.write(3);
    assert_eq!(read(&writer.path, Options::default()).await, expected(0..20_003));
    for tail in [0, 1, 2, 3, 4, 5003, 5004, 20_003, 50_000] {
        let options = Options { tail_lines: Some(tail), ..Options::default() };
        assert_eq!(read(&writer.path, options).await, expected(20_003_u64.saturating_sub(tail)..20_003), "{tail}");
    }
    let options = Options { limit_bytes: Some(10), ..Options::default() };
    assert_eq!(read(&writer.path, options).await, "line 0\nlin");
    assert_eq!(read(&path(dir.path(), 7), Options::default()).await, "", "a log that is not there is empty");
}

#[tokio::test]
async fn tail_counts_what_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(dir.path(), 0);
    let text: String = (0..20)
        .map(|n| format!("2026-01-01T00:00:{n:02}.0Z {} F {n}\n", if n % 2 == 0 { "stdout" } else { "stderr" }))
        .collect();
    std::fs::write(&path, text).unwrap();
    let stderr = Options { source: Some(Source::Stderr), tail_lines: Some(2), ..Options::default() };
    assert_eq!(read(&path, stderr).await, "17\n19\n");
    let since: jiff::Timestamp = "2026-01-01T00:00:18Z".parse().unwrap();
    let since = Options { since: Some(since.into()), tail_lines: Some(9), ..Options::default() };
    assert_eq!(read(&path, since.clone()).await, "18\n19\n");
    assert_eq!(
        read(&path, Options { timestamps: true, ..since }).await.lines().next(),
        Some("2026-01-01T00:00:18.0Z 18")
    );
}

#[test]
fn attempts_are_found_by_their_files() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["0.log", "2.log.1", "10.log", "10.log.3", "x.log", "3.txt", "4.log.old"] {
        File::create(dir.path().join(name)).unwrap();
    }
    assert_eq!(attempts(dir.path()), [0, 2, 10]);
    assert_eq!(attempts(&dir.path().join("absent")), [] as [u32; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_gets_every_line_once_while_the_log_is_rotated() {
    for max_files in [3, 1000] {
        let dir = tempfile::tempdir().unwrap();
        let (done, told) = tokio::sync::oneshot::channel::<()>();
        let directory = dir.path().to_owned();
        let log = path(&directory, 0);
        let mut writer = Writer::new(&directory, max_files);
        let follow = LogReader::new(log, Options::default()).follow(told.map(|_| ()).boxed());
        let writing = tokio::task::spawn_blocking(move || {
            for round in 0..300 {
                writer.write(1 + round % 7);
                // With few files the reader has to be given the time to come along.
                if round % 3 == 0 {
                    writer.rotate();
                    if max_files == 3 {
                        #[allow(clippy::disallowed_methods)]
                        std::thread::sleep(Duration::from_millis(2));
                    }
                }
            }
            let _ = done.send(());
            writer.written
        });
        let text: Vec<u8> = follow.map(|chunk| chunk.unwrap().to_vec()).concat().await;
        let written = writing.await.unwrap();
        let text = String::from_utf8(text).unwrap();
        if max_files == 1000 {
            assert_eq!(text, expected(0..written));
        } else {
            // Never twice, never out of order, and the end is there.
            let numbers: Vec<u64> = text.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect();
            assert!(numbers.is_sorted_by(|a, b| a < b));
            assert_eq!(numbers.last(), Some(&(written - 1)));
        }
    }
}

#[tokio::test]
async fn a_follower_waits_for_a_log_and_ends_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let (done, told) = tokio::sync::oneshot::channel::<()>();
    let log = LogReader::new(path(dir.path(), 0), Options::default());
    let mut follow = Box::pin(log.follow(told.map(|_| ()).boxed()));
    assert!(futures::poll!(follow.next()).is_pending());
    let mut writer = Writer::new(dir.path(), 5);
    writer.write(1);
    assert_eq!(follow.next().await.unwrap().unwrap(), "line 0\n");
    // Written after the end was told, and without a newline: the logger's last words.
    done.send(()).unwrap();
    write!(writer.file, "2026-01-01T00:00:00.0Z stderr P rest").unwrap();
    assert_eq!(follow.next().await.unwrap().unwrap(), "rest\n");
    assert!(follow.next().await.is_none());
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64),
    Rotate,
    Read(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![(1..400_u64).prop_map(Step::Write), Just(Step::Rotate), (1..20_usize).prop_map(Step::Read)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// However writes, rotations and reads follow one another, nothing is lost or doubled.
    #[test]
    fn nothing_is_lost(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path(), 1000);
        let mut cursor = Cursor::new(writer.path.clone(), None);
        let mut found = Vec::new();
        let mut advance = |cursor: &mut Cursor| cursor.advance(|line| {
            let line = std::str::from_utf8(line).unwrap();
            if let Some((_, number)) = line.split_once(" F ") {
                found.push(number.parse::<u64>().unwrap());
            }
        }).unwrap();
        for step in steps {
            match step {
                Step::Write(lines) => writer.write(lines),
                Step::Rotate => writer.rotate(),
                Step::Read(times) => for _ in 0..times {
                    advance(&mut cursor);
                },
            }
        }
        while advance(&mut cursor) != Progress::CaughtUp {}
        prop_assert_eq!(found, (0..writer.written).collect::<Vec<_>>());
    }
}
