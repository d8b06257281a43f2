//! What sources count.

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use super::directory::Report;

/// Counters and gauges of all sources, by directory.
#[derive(Debug, Clone)]
pub struct Metrics {
    syncs: IntCounterVec,
    objects: IntGaugeVec,
    faults: IntGaugeVec,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// A name is taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["directory"]);
        let metrics = Self {
            syncs: IntCounterVec::new(
                Opts::new("nodelet_source_syncs_total", "Passes over a manifest directory, by how they ended."),
                &["directory", "result"],
            )?,
            objects: gauge("nodelet_source_objects", "Objects in a manifest directory.")?,
            faults: gauge("nodelet_source_faults", "Things that are wrong in a manifest directory.")?,
        };
        registry.register(Box::new(metrics.syncs.clone()))?;
        registry.register(Box::new(metrics.objects.clone()))?;
        registry.register(Box::new(metrics.faults.clone()))?;
        Ok(metrics)
    }

    pub(super) fn observe(&self, report: &Report) {
        let directory = report.directory.as_str();
        let faults = report.faults.len() + report.pending.len() + usize::from(report.unusable.is_some());
        let result = if report.is_ready() { "ready" } else { "faults" };
        self.syncs.with_label_values(&[directory, result]).inc();
        self.objects.with_label_values(&[directory]).set(i64::try_from(report.objects).unwrap_or(i64::MAX));
        self.faults.with_label_values(&[directory]).set(i64::try_from(faults).unwrap_or(i64::MAX));
    }
}
