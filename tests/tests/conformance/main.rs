//! The same cases through every client, and where there is one, against a real kube-apiserver.
//!
//! Two tables hold the cases. `transcripts/` are sessions of kubectl and Helm: commands with what they print.
//! `cases/` are single actions with what is answered, and each client carries out all it can say: kubectl, kube-rs and
//! the Python client. Both run against nodelet's API server and, where `$KUBEBUILDER_ASSETS` has the programs, against
//! etcd and kube-apiserver with nodelet's kinds installed, so that the expectations are checked against the original.
//! What is meant to differ is marked in the tables and listed in `docs/api-compatibility.md`.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod client;
mod subject;
mod table;
mod transcript;

use std::path::PathBuf;

use anyhow::Result;
use client::{KubeRs, Kubectl, Python};
use subject::Subject;
use transcript::Tools;

/// Runs every transcript against a server.
fn transcripts(name: &str, subject: Result<Option<Subject>>, kubectl: Option<PathBuf>) {
    let (Some(kubectl), Some(subject)) = (kubectl, subject.unwrap()) else {
        eprintln!("SKIPPED {name}: this machine lacks the program or the server");
        return;
    };
    let tools = Tools::new(&subject, &kubectl).unwrap();
    transcript::run_all(&subject, &tools);
}

/// The machine's kubectl.
fn system_kubectl() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join("kubectl")).find(|program| program.exists())
}

/// The kubectl of a later Debian release, where `tests/bin/fetch-containerd` put it.
fn current_kubectl() -> Option<PathBuf> {
    let program = nodelet_tests::cache().join("containerd-2/bin/kubectl");
    program.exists().then(|| program.canonicalize().unwrap_or(program))
}

#[test]
fn kubectl_of_the_machine() {
    transcripts("kubectl_of_the_machine", Subject::nodelet().map(Some), system_kubectl());
}

#[test]
fn kubectl_current() {
    transcripts("kubectl_current", Subject::nodelet().map(Some), current_kubectl());
}

#[test]
fn kubectl_against_kubernetes() {
    transcripts("kubectl_against_kubernetes", Subject::kubernetes(), system_kubectl());
}

/// Runs the table against a server: through kubectl, kube-rs and the Python client, as far as they are there.
fn cases(name: &str, subject: Result<Option<Subject>>, client: &str) {
    let Some(subject) = subject.unwrap() else {
        eprintln!("SKIPPED {name}: no kube-apiserver in $KUBEBUILDER_ASSETS");
        return;
    };
    match client {
        "kube-rs" => table::run_all(&subject, &mut KubeRs::new(&subject).unwrap()),
        "python" => match Python::start(&subject).unwrap() {
            Some(mut python) => table::run_all(&subject, &mut python),
            None => eprintln!("SKIPPED {name}: the Python client cannot be had here"),
        },
        _ => match current_kubectl().or_else(system_kubectl) {
            Some(program) => table::run_all(&subject, &mut Kubectl::new(&subject, &program)),
            None => eprintln!("SKIPPED {name}: no kubectl"),
        },
    }
}

#[test]
fn kube_rs() {
    cases("kube_rs", Subject::nodelet().map(Some), "kube-rs");
}

#[test]
fn python() {
    cases("python", Subject::nodelet().map(Some), "python");
}

#[test]
fn cases_through_kubectl() {
    cases("cases_through_kubectl", Subject::nodelet().map(Some), "kubectl");
}

#[test]
fn kube_rs_against_kubernetes() {
    cases("kube_rs_against_kubernetes", Subject::kubernetes(), "kube-rs");
}

#[test]
fn python_against_kubernetes() {
    cases("python_against_kubernetes", Subject::kubernetes(), "python");
}
