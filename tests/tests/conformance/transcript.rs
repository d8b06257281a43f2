//! Sessions of a command line, with what it prints.
//!
//! A transcript is prose with indented commands, as one would show them to a colleague:
//!
//! ```text
//! A label is added.
//!   $ kubectl label configmap a tier=web
//!   configmap/a labeled
//!   $ kubectl get configmap b
//!   Error from server (NotFound): configmaps "b" not found
//!   [1]
//! ```
//!
//! `$ ` begins a command and `> ` goes on with it; what follows is what it prints, on standard output and standard
//! error together; a last line such as `[1]` is its exit code if that is not 0. All commands of a transcript run in one
//! shell, in a namespace named after the transcript. An expected line may end with ` (re)`: a regular expression for
//! the whole line; `...` stands for any number of lines. A line that ends with ` (nodelet)` or ` (kubernetes)` is
//! expected of that server only. What no two runs share is written as `UUID`, `TIME`, `AGE`, `VERSION` and `SERVER`, by
//! [`normalise`].
//!
//! A line of prose `needs: controllers` leaves the transcript out where nobody follows owners, `needs: nodelet` where
//! the server is another, `needs: helm` without Helm. `UPDATE_GENERATED=1` writes what was printed into the transcripts
//! instead of failing; look at the difference before believing it.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use regex::Regex;

use crate::subject::{Kind, Subject};

/// Transcripts at work at a time: most of what they do is waiting for the server.
const PARALLEL: usize = 4;

/// The programs that transcripts use, in a directory of their own.
pub struct Tools {
    programs: PathBuf,
    cache: PathBuf,
    helm: bool,
}

impl Tools {
    /// This kubectl, and Helm if there is one.
    pub fn new(subject: &Subject, kubectl: &Path) -> Result<Self> {
        let [programs, cache] = ["programs", "cache"].map(|name| subject.directory.path().join(name));
        fs::create_dir_all(&programs)?;
        // Nothing waits longer than this, so that a test which hangs names the command.
        let limited = format!("#!/bin/sh\nexec timeout 30 {} \"$@\"\n", kubectl.display());
        fs::write(programs.join("kubectl"), limited)?;
        fs::set_permissions(programs.join("kubectl"), fs::Permissions::from_mode(0o755))?;
        let helm = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("bin/fetch-helm")).output()?;
        let path = String::from_utf8(helm.stdout)?;
        let found = helm.status.success() && Path::new(path.trim()).exists();
        if found {
            symlink(path.trim(), programs.join("helm"))?;
        }
        Ok(Self { programs, cache, helm: found })
    }
}

#[derive(Debug)]
struct Step {
    /// Where its output begins, counted in lines.
    at: usize,
    command: String,
    expected: Vec<String>,
    code: i32,
}

#[derive(Debug)]
struct Transcript {
    name: String,
    path: PathBuf,
    lines: Vec<String>,
    needs: Vec<String>,
    steps: Vec<Step>,
}

impl Transcript {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)?;
        let name = path.file_stem().and_then(|s| s.to_str()).context("a transcript without a name")?.to_owned();
        let mut transcript = Self {
            name,
            path: path.to_owned(),
            lines: text.lines().map(str::to_owned).collect(),
            needs: Vec::new(),
            steps: Vec::new(),
        };
        let mut in_step = false;
        for (at, line) in transcript.lines.iter().enumerate() {
            let Some(indented) = line.strip_prefix("  ") else {
                in_step = in_step && line.is_empty();
                if let Some(needs) = line.strip_prefix("needs: ") {
                    transcript.needs.extend(needs.split(", ").map(str::to_owned));
                }
                continue;
            };
            if let Some(command) = indented.strip_prefix("$ ") {
                in_step = true;
                let step = Step { at: at + 1, command: command.to_owned(), expected: Vec::new(), code: 0 };
                transcript.steps.push(step);
            } else if let (true, Some(step)) = (in_step, transcript.steps.last_mut()) {
                let code = indented.strip_prefix('[').and_then(|l| l.strip_suffix(']')).and_then(|n| n.parse().ok());
                if let Some(more) = indented.strip_prefix("> ").or((indented == ">").then_some("")) {
                    step.command = format!("{}\n{more}", step.command);
                    step.at = at + 1;
                } else if let Some(code) = code {
                    step.code = code;
                } else {
                    step.expected.push(indented.to_owned());
                }
            }
        }
        ensure!(!transcript.steps.is_empty(), "no commands in {}", path.display());
        Ok(transcript)
    }

    /// Runs all commands; answers what each printed and its exit code.
    fn run(&self, subject: &Subject, tools: &Tools) -> Result<Vec<(Vec<String>, i32)>> {
        subject.namespace(&self.name)?;
        let home = subject.directory.path().join("home").join(&self.name);
        fs::create_dir_all(&home)?;
        let mut script = String::from("exec 2>&1\n");
        for (i, step) in self.steps.iter().enumerate() {
            script += &format!("{{ {}\n}} </dev/null\nprintf '\\n\\001%d %d\\n' {i} $?\n", step.command);
        }
        let inherited = std::env::var("PATH").unwrap_or_default();
        let output = Command::new("timeout")
            .args(["150", "bash", "-c", &script])
            .current_dir(&home)
            .env_clear()
            .env("PATH", format!("{}:{inherited}", tools.programs.display()))
            .env("HOME", &home)
            .env("KUBECACHEDIR", &tools.cache)
            .env("KUBECONFIG", subject.kubeconfig_for(&self.name)?)
            .env("EDITOR", "true")
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut answers = Vec::new();
        let mut printed = Vec::new();
        for line in text.lines() {
            match line.strip_prefix('\u{1}') {
                None => printed.push(line.to_owned()),
                Some(end) => {
                    // The mark begins a line of its own whatever was printed before it.
                    printed.pop_if(|last| last.is_empty());
                    let code = end.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(-1);
                    answers.push((normalise(&std::mem::take(&mut printed)), code));
                }
            }
        }
        if answers.len() < self.steps.len() {
            printed.push("(the shell ended here)".to_owned());
            answers.resize(self.steps.len(), (printed, -1));
        }
        Ok(answers)
    }

    /// The transcript as it would be with what was printed.
    fn rewritten(&self, kind: Kind, answers: &[(Vec<String>, i32)]) -> String {
        let mut text = String::new();
        let mut from = 0;
        for (step, (printed, code)) in self.steps.iter().zip(answers) {
            let end = step.at + self.lines[step.at..].iter().take_while(|line| is_output(line)).count();
            self.lines[from..step.at].iter().for_each(|line| text += &format!("{line}\n"));
            if matches(&expected_of(kind, &step.expected), printed) && step.code == *code {
                self.lines[step.at..end].iter().for_each(|line| text += &format!("{line}\n"));
            } else {
                printed.iter().for_each(|line| text += &format!("  {line}\n"));
                if *code != 0 {
                    text += &format!("  [{code}]\n");
                }
            }
            from = end;
        }
        self.lines[from..].iter().for_each(|line| text += &format!("{line}\n"));
        text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

fn is_output(line: &str) -> bool {
    line.strip_prefix("  ").is_some_and(|line| !line.starts_with("$ ")) || line.trim() == ">"
}

/// Runs the transcripts, some at a time, and fails with every difference.
pub fn run_all(subject: &Subject, tools: &Tools) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/transcripts");
    let only = std::env::var("TRANSCRIPT").ok();
    let mut paths: Vec<PathBuf> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| only.as_deref().is_none_or(|only| path.file_stem().is_some_and(|stem| stem == only)));
    paths.sort();
    let mut transcripts: VecDeque<Transcript> = paths.iter().map(|path| Transcript::read(path).unwrap()).collect();
    transcripts.retain(|transcript| {
        transcript.needs.iter().all(|need| match need.as_str() {
            "controllers" => subject.controllers,
            "helm" => tools.helm,
            other => other == subject.kind.name(),
        })
    });
    let (waiting, failures) = (Mutex::new(transcripts), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                loop {
                    let Some(transcript) = waiting.lock().unwrap().pop_front() else { return };
                    failures.lock().unwrap().extend(check(subject, tools, &transcript));
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

/// Every step that printed something else than expected.
fn check(subject: &Subject, tools: &Tools, transcript: &Transcript) -> Vec<String> {
    let start = Instant::now();
    let answers = match transcript.run(subject, tools) {
        Ok(answers) => answers,
        Err(error) => return vec![format!("{}: {error:#}", transcript.name)],
    };
    eprintln!("{}: {:.1} s", transcript.name, start.elapsed().as_secs_f64());
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(&transcript.path, transcript.rewritten(subject.kind, &answers)).unwrap();
        return Vec::new();
    }
    let mut failures = Vec::new();
    for (step, (printed, code)) in transcript.steps.iter().zip(&answers) {
        let expected = expected_of(subject.kind, &step.expected);
        if !matches(&expected, printed) || step.code != *code {
            let indent = |lines: &[String]| lines.iter().map(|line| format!("\n    {line}")).collect::<String>();
            failures.push(format!(
                "{}.txt:{}: $ {}\n  expected [{}]:{}\n  printed [{code}]:{}",
                transcript.name,
                step.at,
                step.command,
                step.code,
                indent(&expected),
                indent(printed)
            ));
        }
    }
    failures
}

/// The lines that are expected of this server.
fn expected_of(kind: Kind, lines: &[String]) -> Vec<String> {
    let of = |line: &String| {
        for each in [Kind::Nodelet, Kind::Kubernetes] {
            if let Some(line) = line.strip_suffix(&format!(" ({})", each.name())) {
                return (each == kind).then(|| line.to_owned());
            }
        }
        Some(line.clone())
    };
    lines.iter().filter_map(of).collect()
}

fn matches(expected: &[String], printed: &[String]) -> bool {
    match (expected.split_first(), printed.split_first()) {
        (None, None) => true,
        (Some((line, rest)), _) if line == "..." => {
            matches(rest, printed) || printed.split_first().is_some_and(|(_, after)| matches(expected, after))
        }
        (Some((line, rest)), Some((found, after))) => line_matches(line, found) && matches(rest, after),
        _ => false,
    }
}

/// Columns are as wide as what happens to be in them, so the number of spaces inside a line does not count.
fn line_matches(expected: &str, printed: &str) -> bool {
    let printed = narrow(printed);
    match expected.strip_suffix(" (re)") {
        Some(pattern) => Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|pattern| pattern.is_match(&printed)),
        None => narrow(expected) == printed,
    }
}

fn narrow(line: &str) -> String {
    let indent = line.len() - line.trim_start().len();
    let words: Vec<&str> = line.split_whitespace().collect();
    format!("{}{}", &line[..indent], words.join(" "))
}

/// What no two runs share, in the order in which it is looked for.
static VOLATILE: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| [-+]\d{4} UTC)?", "TIME"),
        (r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [-+]\d{4}", "TIME"),
        (r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}", "TIME"),
        (r"https://127\.0\.0\.1:\d+", "SERVER"),
        (r#"((resourceVersion|Resource Version)"?: *"?)\d+"#, "${1}VERSION"),
        (r"\b(\d+[smhd])+( +|$)", "AGE "),
        (r"over \d+s\)", "over AGE)"),
        (r" deleted from \S+ namespace", " deleted"), // said by later clients
        (r"/tmp/[A-Za-z]+-\d+", "TEMPORARY"),
        (r"kubectl-edit-\d+", "TEMPORARY"),
    ]
    .into_iter()
    .map(|(pattern, name)| (Regex::new(pattern).unwrap(), name))
    .collect()
});

/// Puts names in the place of what no two runs share, and takes away empty lines and the space at the end of lines.
fn normalise(lines: &[String]) -> Vec<String> {
    lines
        .iter()
        .map(|line| {
            let mut line = line.clone();
            for (pattern, name) in VOLATILE.iter() {
                line = pattern.replace_all(&line, *name).into_owned();
            }
            line.trim_end().to_owned()
        })
        .filter(|line| !line.is_empty())
        .collect()
}
