//! The reconcilers' metrics, in Prometheus' naming conventions.

use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Handles of all metrics; cheap to clone.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Metrics {
    pub reconciles: IntCounterVec,
    pub reconcile_seconds: HistogramVec,
    pub container_restarts: IntCounterVec,
    pub workloads: IntGaugeVec,
    pub containers_running: IntGauge,
    pub repairs: IntCounterVec,
    pub archives: GaugeVec,
    pub images_collected: IntCounter,
    pub images_collected_bytes: IntCounter,
    pub images_disk_used_ratio: Gauge,
}

impl Metrics {
    /// Makes and registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            reconciles: IntCounterVec::new(
                Opts::new("nodelet_reconciles_total", "Reconciles by kind and result."),
                &["kind", "result"],
            )?,
            reconcile_seconds: HistogramVec::new(
                HistogramOpts::new("nodelet_reconcile_duration_seconds", "Duration of one reconcile by kind.")
                    .buckets(vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]),
                &["kind"],
            )?,
            container_restarts: IntCounterVec::new(
                Opts::new("nodelet_container_restarts_total", "Restarts of containers by workload."),
                &["namespace", "workload", "container"],
            )?,
            workloads: IntGaugeVec::new(Opts::new("nodelet_workloads", "Workloads by phase."), &["phase"])?,
            containers_running: IntGauge::new("nodelet_containers_running", "Containers that run.")?,
            repairs: IntCounterVec::new(
                Opts::new("nodelet_repairs_total", "Things put back that somebody else had removed or changed."),
                &["what"],
            )?,
            archives: GaugeVec::new(
                Opts::new("nodelet_archives", "Archives of the drop-in directory: imported, or failed."),
                &["state"],
            )?,
            images_collected: IntCounter::new(
                "nodelet_images_collected_total",
                "Images removed because nobody needed them.",
            )?,
            images_collected_bytes: IntCounter::new(
                "nodelet_images_collected_bytes_total",
                "Disk space that removing images gave back.",
            )?,
            images_disk_used_ratio: Gauge::new(
                "nodelet_images_disk_used_ratio",
                "How full the images' disk is, 0 to 1.",
            )?,
        };
        registry.register(Box::new(metrics.reconciles.clone()))?;
        registry.register(Box::new(metrics.reconcile_seconds.clone()))?;
        registry.register(Box::new(metrics.container_restarts.clone()))?;
        registry.register(Box::new(metrics.workloads.clone()))?;
        registry.register(Box::new(metrics.containers_running.clone()))?;
        registry.register(Box::new(metrics.repairs.clone()))?;
        registry.register(Box::new(metrics.archives.clone()))?;
        registry.register(Box::new(metrics.images_collected.clone()))?;
        registry.register(Box::new(metrics.images_collected_bytes.clone()))?;
        registry.register(Box::new(metrics.images_disk_used_ratio.clone()))?;
        Ok(metrics)
    }
}
