//! Processes that the kernel killed for want of memory, as its log has them: which one, what it had, and whose limit was
//! reached. cgroups only count them.
//!
//! Facts: `mm/oom_kill.c` of the kernel. A report is several lines; the one with `oom-kill:` names the cgroups (kernel
//! 5.0), the one with `Killed process` ends it.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel's log.
pub const KERNEL_LOG: &str = "/dev/kmsg";

/// One killed process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OomKill {
    /// Its PID in the node's first namespace.
    pub pid: u32,
    /// Its program's name, as the kernel has it.
    pub program: String,
    /// Memory it had, in bytes.
    pub had: u64,
    /// Its cgroup.
    pub cgroup: String,
    /// What there was no more of.
    pub constraint: Constraint,
}

/// Why a process was killed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Constraint {
    /// The node had no memory left.
    #[default]
    Node,
    /// A cgroup's limit was reached.
    Cgroup(Limited),
    /// A cgroup's limit was reached; the kernel, which reports 10 kills in 5 seconds, left out which one's.
    SomeCgroup,
}

/// A cgroup that had reached its limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limited {
    /// Its path.
    pub cgroup: String,
    /// What it used, in bytes.
    pub used: u64,
    /// What it may use, in bytes.
    pub limit: u64,
}

/// The kernel's log from now on.
#[derive(Debug)]
pub struct KernelLog {
    file: AsyncFd<File>,
    report: Report,
}

impl KernelLog {
    /// Opens it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// There is none here, or we may not read it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        file.seek(SeekFrom::End(0))?;
        Self::of(file)
    }

    fn of(file: File) -> io::Result<Self> {
        // SAFETY: a `File` owns its descriptor and has the same one for as long as it lives.
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }?;
        Ok(Self { file, report: Report::default() })
    }

    /// Waits for the next killed process. Cancel-safe.
    ///
    /// # Errors
    /// The log cannot be read any more.
    pub async fn next(&mut self) -> io::Result<OomKill> {
        // One record for each read; longer ones do not exist.
        let mut record = [0; 8192];
        loop {
            let read = self.file.async_io(Interest::READABLE, |mut file| file.read(&mut record)).await;
            let length = match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                // Records were overwritten before we came to read them: those after them are next.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => continue,
                Err(error) => return Err(error),
            };
            let text = String::from_utf8_lossy(&record[..length]);
            // `level,number,microseconds,flags;text`, and lines of keys that begin with a blank.
            let line = text.split_once(';').map_or("", |(_, rest)| rest).lines().next().unwrap_or_default();
            if let Some(kill) = self.report.read(line) {
                return Ok(kill);
            }
        }
    }
}

/// Whether the log, as far back as the kernel keeps it, tells of a process of this cgroup that was killed. Reads all of it,
/// which takes a few milliseconds. A log that cannot be read tells of none.
pub(crate) fn was_killed_in(log: &Path, cgroup: &str) -> bool {
    let Ok(mut file) = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(log) else { return false };
    let mut record = [0; 8192];
    loop {
        match file.read(&mut record) {
            Ok(0) => return false,
            Ok(length) if names(&String::from_utf8_lossy(&record[..length]), cgroup) => return true,
            // Records that were overwritten meanwhile: those after them are next.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return false,
            _ => {}
        }
    }
}

fn names(record: &str, cgroup: &str) -> bool {
    record
        .split_once(";oom-kill:")
        .is_some_and(|(_, names)| names.split([',', '\n']).any(|part| part.strip_prefix("task_memcg=") == Some(cgroup)))
}

/// What was read of a report so far.
#[derive(Debug, Default)]
struct Report {
    used: u64,
    limit: u64,
    cgroup: String,
    limited: Option<String>,
}

impl Report {
    /// Takes one line; the last one of a report completes it.
    fn read(&mut self, line: &str) -> Option<OomKill> {
        if let Some(figures) = line.strip_prefix("memory: usage ") {
            let mut numbers = figures.split(',').filter_map(|part| kib(part.trim().trim_start_matches("limit ")));
            (self.used, self.limit) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        } else if let Some(names) = line.strip_prefix("oom-kill:") {
            let of = |key: &str| names.split(',').find_map(|part| part.strip_prefix(key)?.strip_prefix('='));
            self.cgroup = of("task_memcg").unwrap_or_default().to_owned();
            self.limited = of("oom_memcg").map(str::to_owned);
        } else if let Some((whose, killed)) = line.split_once("ut of memory: Killed process ") {
            return std::mem::take(self).complete(killed, whose.starts_with("Memory cgroup"));
        }
        None
    }

    /// `25978 (tail) total-vm:19076kB, anon-rss:16256kB, file-rss:1676kB, shmem-rss:0kB, …`
    fn complete(self, killed: &str, of_a_cgroup: bool) -> Option<OomKill> {
        let (pid, rest) = killed.split_once(" (")?;
        // A program's name may have brackets.
        let (program, figures) = rest.rsplit_once(") total-vm:")?;
        let resident = figures.split([',', ' ']).filter_map(|part| {
            let (name, amount) = part.split_once(':')?;
            name.ends_with("-rss").then(|| kib(amount)).flatten()
        });
        let pid = pid.trim_end_matches(',').parse().ok()?;
        let (used, limit) = (self.used, self.limit);
        Some(OomKill {
            pid,
            program: program.to_owned(),
            had: resident.sum(),
            cgroup: if self.cgroup.is_empty() { cgroup_of(pid).unwrap_or_default() } else { self.cgroup },
            constraint: match self.limited {
                Some(cgroup) => Constraint::Cgroup(Limited { cgroup, used, limit }),
                None if of_a_cgroup => Constraint::SomeCgroup,
                None => Constraint::Node,
            },
        })
    }
}

/// The memory cgroup of a process that is about to end, as it is in the log: `/proc/PID/cgroup`, cgroups(7).
fn cgroup_of(pid: u32) -> Option<String> {
    let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let of = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        Some((controllers.to_owned(), path.to_owned()))
    };
    let all: Vec<(String, String)> = lines.lines().filter_map(of).collect();
    let found = all.iter().find(|(controllers, _)| controllers.split(',').any(|one| one == "memory"));
    found.or_else(|| all.iter().find(|(controllers, _)| controllers.is_empty())).map(|(_, path)| path.clone())
}

fn kib(text: &str) -> Option<u64> {
    text.trim().strip_suffix("kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Vec<OomKill> {
        let mut report = Report::default();
        lines.iter().filter_map(|line| report.read(line)).collect()
    }

    #[test]
    fn reports_are_read() {
        let of_a_group = read(&[
            "tail invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
            "memory: usage 16384kB, limit 16384kB, failcnt 47",
            "swap: usage 0kB, limit 9007199254740988kB, failcnt 0",
            "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/nodelet/limit-a.b,\
             task_memcg=/nodelet/limit-a.b/web-1/main,task=ta) il,pid=25978,uid=0",
            "Memory cgroup out of memory: Killed process 25978 (ta) il) total-vm:19076kB, anon-rss:16256kB, \
             file-rss:1676kB, shmem-rss:8kB, UID:0 pgtables:80kB oom_score_adj:0",
        ]);
        let expected = OomKill {
            pid: 25978,
            program: "ta) il".to_owned(),
            had: (16256 + 1676 + 8) << 10,
            cgroup: "/nodelet/limit-a.b/web-1/main".to_owned(),
            constraint: Constraint::Cgroup(Limited {
                cgroup: "/nodelet/limit-a.b".to_owned(),
                used: 16 << 20,
                limit: 16 << 20,
            }),
        };
        assert_eq!(of_a_group, [expected]);
        let of_the_node = read(&[
            "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/a,task=x,pid=7,uid=0",
            "Out of memory: Killed process 7 (x) total-vm:8kB, anon-rss:4kB, file-rss:0kB, shmem-rss:0kB, UID:0",
            "Out of memory: Killed process",
        ]);
        assert_eq!(of_the_node.len(), 1);
        assert_eq!((of_the_node[0].pid, of_the_node[0].had, &of_the_node[0].constraint), (7, 4096, &Constraint::Node));
    }

    #[test]
    fn the_cgroup_of_a_report_cut_short_is_looked_up() {
        let own = std::process::id();
        let line = format!("Memory cgroup out of memory: Killed process {own} (x) total-vm:8kB, anon-rss:4kB, UID:0");
        let kills = read(&[&line]);
        assert_eq!((kills[0].pid, &kills[0].constraint), (own, &Constraint::SomeCgroup));
        let listed = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        assert!(listed.lines().any(|line| line.ends_with(&format!(":{}", kills[0].cgroup))), "{kills:?}");
    }

    #[test]
    fn a_record_names_a_cgroup() {
        let record = "6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/a,task_memcg=/a/b.scope,task=x,pid=7\n SUBSYSTEM=x\n";
        assert!(names(record, "/a/b.scope") && !names(record, "/a/b") && !names(record, "/a"));
        assert!(!was_killed_in(Path::new("/nonexistent"), "/a"));
    }

    #[tokio::test]
    async fn the_log_is_followed() {
        let opened = KernelLog::open(Path::new(KERNEL_LOG));
        let Ok(mut log) = opened else { return crate::testing::leave_out(KERNEL_LOG) };
        // From now on: what is in it already is not told.
        let next = tokio::time::timeout(std::time::Duration::from_millis(1), log.next()).await;
        assert!(next.is_err() || next.is_ok_and(|kill| kill.is_ok()));
    }

    #[tokio::test]
    async fn records_come_one_by_one() {
        let (kernel, ours) = std::os::unix::net::UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut log = KernelLog::of(File::from(std::os::fd::OwnedFd::from(ours))).unwrap();
        let write = |records: &[&str]| {
            for record in records {
                assert_eq!(kernel.send(record.as_bytes()).unwrap(), record.len());
            }
        };
        write(&[
            "6,1,2,-;something else\n SUBSYSTEM=pci\n",
            "6,2,3,-;oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/a,task_memcg=/a/b,task=x,pid=7\n",
            "no record",
        ]);
        let early = tokio::time::timeout(std::time::Duration::from_millis(1), log.next()).await;
        assert!(early.is_err(), "the report is not at its end: {early:?}");
        write(&["3,3,4,-;Memory cgroup out of memory: Killed process 7 (x) total-vm:8kB, anon-rss:4kB, UID:0\n"]);
        let kill = log.next().await.unwrap();
        assert_eq!((kill.pid, kill.had, kill.cgroup.as_str()), (7, 4096, "/a/b"));
    }
}
