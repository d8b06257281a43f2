//! The section about networks.

use std::time::Duration;

use super::Options;
use super::node::Figures;
use super::throughput::Way;

fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}

/// In Markdown.
pub(super) fn section(figures: &Figures, options: &Options) -> String {
    let Figures { attach, publish, flush, names, throughput } = figures;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let part = (publish.len() / 10).max(1);
    let (first, last) = (percentile(&publish[..part], 50), percentile(&publish[publish.len() - part..], 50));
    let mut text = format!(
        "## Networks\n\n\
         Made by `make bench-networks`; do not edit. The driver alone, {} attachments with a published port each on one bridge\n\
         network, {cores} cores. *By hand* is a veth pair each and a bridge, made with `ip`, and one\n\
         `nft` rule for the published port.\n\n\
         | what | median | 99th percentile |\n|---|---:|---:|\n\
         | attach | {:.2} ms | {:.2} ms |\n\
         | publish a port | {:.2} ms | {:.2} ms |\n\
         | ports answer again after `nft flush ruleset` | {:.2} ms | {:.2} ms |\n\
         | a name, asked for 10,000 times a second | {:.3} ms | {:.3} ms |\n\n\
         - Publishing the last tenth of the ports took {:.2} times as long as the first tenth.\n\
         - Of {} questions {} were answered.\n",
        attach.len(),
        percentile(attach, 50),
        percentile(attach, 99),
        percentile(publish, 50),
        percentile(publish, 99),
        percentile(flush, 50),
        percentile(flush, 99),
        names.p50.as_secs_f64() * 1000.0,
        names.p99.as_secs_f64() * 1000.0,
        last / first,
        names.asked,
        names.answered,
    );
    let Some(ways) = throughput else { return text + "- Throughput was not measured: iperf3 is not installed.\n" };
    text += &format!(
        "\nGbit/s, and Gbit/s for each processor that sender and receiver keep busy, medians of {} times {} s:\n\n\
         | | by hand | nodelet | ratio | by hand, per processor | nodelet, per processor | ratio |\n\
         |---|---:|---:|---:|---:|---:|---:|\n",
        options.rounds, options.seconds
    );
    for Way { name, by_hand, ours } in ways {
        let columns = |by_hand: f64, ours: f64| format!("{by_hand:.2} | {ours:.2} | {:.3}", ours / by_hand);
        let (speeds, busy) = (columns(by_hand.speed, ours.speed), columns(by_hand.per_cpu, ours.per_cpu));
        text += &format!("| {name} | {speeds} | {busy} |\n");
    }
    text
}
