//! A database with a Volume under load, while its container, the agent and containerd are killed in turn: nothing that it
//! acknowledged is lost, and nothing is damaged.
//!
//! The ordinary run has six rounds; `NODELET_POSTGRES_ROUNDS` sets another number, such as the thirty of the full proof.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context as _, Result, ensure};
use nodelet_tests::node::{Node, PATIENCE, api};
use nodelet_tests::wait::until;

nodelet_tests::on_containerd!(what_a_database_acknowledged_outlives_every_kill);

const ROUNDS: u32 = 6;
/// So many writes are acknowledged between two kills.
const BETWEEN: usize = 20;

const DATABASE: &str = "
apiVersion: nodelet.dev/v1alpha1
kind: Volume
metadata: {name: rows}
spec: {local: {}, accessMode: ReadWriteOnce, populateFrom: image, reclaimPolicy: Delete}
---
apiVersion: nodelet.dev/v1alpha1
kind: Workload
metadata: {name: database}
spec:
  networks: [{name: host}]
  crashLoopBackOff: {initialSeconds: 1, maxSeconds: 1}
  terminationGracePeriodSeconds: 20
  volumes: [{name: rows, volume: {name: rows}}]
  containers:
  - name: main
    image: localhost:5000/shop/postgres:1
    env: [{name: POSTGRES_PASSWORD, value: secret}]
    readinessProbe: {tcpSocket: {port: 5432}, periodSeconds: 1}
    volumeMounts: [{name: rows, mountPath: /var/lib/postgresql/data}]
";

/// Writes one number after the other, each in a transaction of its own, and notes those that were acknowledged. A number
/// whose fate is unknown is left behind.
const LOAD: &str = r#"
n=0
while [ ! -e /run/stop ]; do
  n=$((n + 1))
  PSQL -qAt -c "insert into rows (n, filler) values ($n, repeat(md5('$n'), 20))" >/dev/null 2>&1 && echo $n >>/run/acknowledged
done
"#;

/// The programs of the newest version.
fn programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql")?.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    versions.filter(|bin| bin.join("psql").exists()).max().context("no postgres on this machine")
}

fn sql(node: &Node, bin: &Path, text: &str) -> Result<String> {
    let psql = bin.join("psql").display().to_string();
    node.namespaces.run(["env", "PGPASSWORD=secret", &psql, "-h127.0.0.1", "-Upostgres", "-qAt", "-c", text])
}

fn acknowledged(node: &Node) -> Vec<u64> {
    let text = fs::read_to_string(node.namespaces.path("/run/acknowledged")).unwrap_or_default();
    // The last line may be under way.
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    text[..whole].lines().filter_map(|line| line.parse().ok()).collect()
}

struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

#[allow(clippy::print_stderr)] // shown by the test runner
fn what_a_database_acknowledged_outlives_every_kill(node: &mut Node) -> Result<()> {
    let bin = programs()?;
    let rounds = std::env::var("NODELET_POSTGRES_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    node.apply(DATABASE)?;
    node.until_ready("database")?;
    let answers = |node: &Node| until(PATIENCE, "the database to answer", || Ok(sql(node, &bin, "select 1").ok()));
    answers(node)?;
    sql(node, &bin, "create table rows (n bigint primary key, filler text)")?;
    let psql = format!("env PGPASSWORD=secret {}/psql -h127.0.0.1 -Upostgres", bin.display());
    let mut load = Load(node.background(&LOAD.replace("PSQL", &psql))?);
    let mut kills = [0; 3];
    for round in 0..rounds {
        let seen = acknowledged(node).len();
        until(PATIENCE, "writes to be acknowledged", || Ok((acknowledged(node).len() >= seen + BETWEEN).then_some(())))
            .with_context(|| node.explain())?;
        match round % 3 {
            0 => {
                let workload = node.object("workloads", "database")?.context("the database")?;
                let id = api::container_id(&workload).context("a container")?;
                node.ctr(&["task", "kill", "-s", "KILL", &id])?;
            }
            1 => {
                node.kill_agent()?;
                node.start_agent()?;
            }
            _ => {
                node.kill_containerd()?;
                node.start_containerd()?;
            }
        }
        kills[round as usize % 3] += 1;
    }
    let seen = acknowledged(node).len();
    until(PATIENCE, "writes after the last kill", || Ok((acknowledged(node).len() > seen).then_some(())))
        .with_context(|| node.explain())?;
    fs::write(node.namespaces.path("/run/stop"), "")?;
    load.0.wait()?;

    let acknowledged = acknowledged(node);
    answers(node)?;
    let there: std::collections::BTreeSet<u64> =
        sql(node, &bin, "select n from rows")?.lines().filter_map(|line| line.parse().ok()).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|n| !there.contains(n)).collect();
    ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let wrong = sql(node, &bin, "select count(*) from rows where filler <> repeat(md5(n::text), 20)")?;
    ensure!(wrong.trim() == "0", "{wrong} rows have changed");
    let counted = sql(node, &bin, "select count(*) from rows")?;
    ensure!(counted.trim() == there.len().to_string(), "{counted} rows by count, {} by number", there.len());
    let check = bin.join("pg_amcheck").display().to_string();
    let checked = node.namespaces.run([
        "env",
        "PGPASSWORD=secret",
        &check,
        "-h127.0.0.1",
        "-Upostgres",
        "--install-missing",
        "--all",
        "--heapallindexed",
        "--parent-check",
    ])?;
    ensure!(checked.trim().is_empty(), "{checked}");
    eprintln!(
        "{} writes acknowledged through kills of container {}, agent {}, containerd {}; {} rows, none lost, none damaged",
        acknowledged.len(),
        kills[0],
        kills[1],
        kills[2],
        there.len()
    );
    Ok(())
}
