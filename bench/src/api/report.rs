//! The section about the API server.

use std::time::Duration;

use super::Options;
use super::figures::{Creates, Figures, List, Memory, percentile};
use super::load::Disk;

/// Figures of kube-apiserver 1.36 with etcd 3.4 from an earlier day on a like machine, in the words of the table.
/// They are what the aims were set by, and no part of a run.
const KUBE_EARLIER: &str =
    "565 creates/s from 8 clients, 326 MiB idle, 2.7 s to ready, 9.2 ms to the last of 100 watchers";

/// Aims, by the first words of a row.
const AIMS: [(&str, &str); 4] = [
    ("creates/s, TLS, 8 ", "≥ 2,825"),
    ("memory idle", "< 32 MiB"),
    ("ready, empty", "< 100 ms"),
    ("last of 100 watchers, acknowledged, p99", "< 5 ms"),
];

struct Row {
    what: String,
    values: Vec<String>,
}

/// The section in Markdown. The first server is the one that the others are compared with.
pub(super) fn section(all: &[Figures], options: &Options, disk: &Disk) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut text = format!(
        "## The API server\n\n\
         Made by `make bench-api`; do not edit. One run on {cores} cores; the disk does {:.0} synced writes a second.\n\n\
         | |",
        disk.syncs
    );
    for figures in all {
        text += &format!(" {} |", figures.name);
    }
    text += &format!(" aim |\n|---|{}\n", "---:|".repeat(all.len() + 1));
    for Row { what, values } in rows(all, options) {
        let aim = AIMS.iter().find(|(row, _)| what.starts_with(row)).map_or("", |(_, aim)| aim);
        text += &format!("| {what} | {} | {aim} |\n", values.join(" | "));
    }
    text += &format!(
        "\nObjects are ConfigMaps of 1 KiB; a create counts when it is acknowledged, which is after it is on disk. The server is a\n\
         process of its own, and the load comes from another on the same cores: *cores* are those that the server and the\n\
         load generator kept busy. Clients keep one connection each (HTTP/1.1; TLS 1.3 and a bearer token, or the unix\n\
         socket) and wait for each answer. Lists are of {} objects in one answer. Watchers have a TLS connection each. Memory\n\
         is RSS / PSS. *Ready* is from the start of the process to 200 from `/readyz` over TLS; the *first start* makes the\n\
         store, the keys and the certificates. Ratios in parentheses are to {}.\n",
        thousands(options.objects as u64),
        all.first().map_or("the first", |first| &first.name),
    );
    if all.len() == 1 {
        text += &format!(
            "\nkube-apiserver and etcd were not in `$KUBEBUILDER_ASSETS` in this run. The aims come from earlier figures of them on\n\
             a like machine, **not from this run**: {KUBE_EARLIER}.\n"
        );
    }
    text
}

fn rows(all: &[Figures], options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |what: String, value: &dyn Fn(&Figures) -> Option<(String, f64)>| {
        let base = all.first().and_then(value).map(|(_, number)| number);
        let values = all.iter().enumerate().map(|(at, figures)| match (value(figures), base) {
            (None, _) => "—".to_owned(),
            (Some((text, number)), Some(base)) if at > 0 && base > 0.0 => format!("{text} ({:.2}×)", number / base),
            (Some((text, _)), _) => text,
        });
        rows.push(Row { what, values: values.collect() });
    };
    for transport in ["TLS", "unix socket"] {
        for &clients in &options.clients {
            let label = if clients == 1 { "client" } else { "clients" };
            add(format!("creates/s, {transport}, {clients} {label}"), &|f| {
                let found = f.creates.iter().find(|(t, c, _)| *t == transport && *c == clients);
                found.map(|(_, _, creates)| (created(creates), creates.per_second))
            });
        }
    }
    add("list, JSON: first / last byte".into(), &|f| listed(&f.list_json));
    add("list, Table: first / last byte".into(), &|f| listed(&f.list_table));
    let watchers = options.watchers;
    for (since, p) in [("sent", 50), ("sent", 99), ("acknowledged", 50), ("acknowledged", 99)] {
        add(format!("last of {watchers} watchers, {since}, p{p}"), &|f| {
            let times = if since == "sent" { &f.fan_out.sent } else { &f.fan_out.acknowledged };
            time(percentile(times, p))
        });
    }
    let objects = thousands(options.objects as u64);
    add("memory idle".into(), &|f| memory(f.idle));
    add(format!("memory, {objects} objects made"), &|f| memory(f.loaded));
    add(format!("memory, {objects} objects listed"), &|f| memory(f.listed));
    add(format!("memory, {objects} objects, restarted"), &|f| memory(f.restarted));
    add("ready, first start".into(), &|f| time(percentile(&f.first_start, 50)));
    add("ready, empty".into(), &|f| time(percentile(&f.empty_start, 50)));
    add(format!("ready, {objects} objects"), &|f| time(percentile(&f.full_start, 50)));
    rows
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a positive rate
fn created(creates: &Creates) -> String {
    let Creates { per_second, p50, p99, server_cores, load_cores } = creates;
    format!(
        "{}; p50 {}, p99 {}; cores {server_cores:.2} + {load_cores:.2}",
        thousands(*per_second as u64),
        duration(*p50),
        duration(*p99)
    )
}

fn listed(runs: &[List]) -> Option<(String, f64)> {
    let middle = |part: fn(&List) -> Duration| {
        let mut times: Vec<Duration> = runs.iter().map(part).collect();
        super::sorted(&mut times)
    };
    let bytes = runs.first()?.bytes;
    let (first, last) = (middle(|run| run.first), middle(|run| run.last));
    #[allow(clippy::cast_precision_loss)] // some megabytes
    let size = bytes as f64 / (1 << 20) as f64;
    Some((format!("{} / {}, {size:.1} MiB", duration(first), duration(last)), last.as_secs_f64()))
}

#[allow(clippy::unnecessary_wraps)] // as every column
fn time(time: Duration) -> Option<(String, f64)> {
    Some((duration(time), time.as_secs_f64()))
}

#[allow(clippy::unnecessary_wraps, clippy::cast_precision_loss)] // as every column; KiB
fn memory(memory: Memory) -> Option<(String, f64)> {
    Some((memory.to_string(), memory.pss as f64))
}

fn duration(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds if seconds >= 0.1 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{:.2} ms", seconds * 1e3),
    }
}

/// `2,825`
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(5), "5");
        assert_eq!(thousands(565), "565");
        assert_eq!(thousands(2825), "2,825");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }

    #[test]
    fn times_have_a_fitting_unit() {
        assert_eq!(duration(Duration::from_micros(1234)), "1.23 ms");
        assert_eq!(duration(Duration::from_millis(123)), "123 ms");
        assert_eq!(duration(Duration::from_millis(2700)), "2.70 s");
    }
}
