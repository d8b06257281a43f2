//! The reconcilers' metrics, in Prometheus' naming conventions.

use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Handles of all metrics; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    /// Reconciles by kind and result.
    pub reconciles: IntCounterVec,
    /// How long one takes, by kind.
    pub reconcile_seconds: HistogramVec,
    /// By namespace, workload and container.
    pub container_restarts: IntCounterVec,
    /// By phase.
    pub workloads: IntGaugeVec,
    /// Containers that run.
    pub containers_running: IntGauge,
    /// Workloads that had to go for want of memory or disk.
    pub evictions: IntCounter,
    /// Processes that the kernel killed for memory.
    pub oom_kills: IntCounter,
    /// Things put back, by what they are.
    pub repairs: IntCounterVec,
    /// Archives of the drop-in directory, by state.
    pub archives: GaugeVec,
    /// Images removed because nobody needed them.
    pub images_collected: IntCounter,
    /// Bytes that this gave back.
    pub images_collected_bytes: IntCounter,
    /// How full the images' disk is, 0 to 1.
    pub images_disk_used_ratio: Gauge,
    /// Bytes, by namespace and Volume.
    pub volume_capacity: IntGaugeVec,
    /// Bytes, by namespace and Volume.
    pub volume_used: IntGaugeVec,
    /// 1 or 0, by namespace and Volume.
    pub volume_ready: IntGaugeVec,
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
            evictions: IntCounter::new(
                "nodelet_evictions_total",
                "Workloads that had to go because the node was short of memory or disk.",
            )?,
            oom_kills: IntCounter::new(
                "nodelet_oom_kills_total",
                "Processes of Workloads that the kernel killed for memory, as its log tells.",
            )?,
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
            volume_capacity: of_volume("nodelet_volume_capacity_bytes", "Size of the Volume, or of what holds it.")?,
            volume_used: of_volume("nodelet_volume_used_bytes", "Use of the Volume, where its filesystem tells it.")?,
            volume_ready: of_volume("nodelet_volume_ready", "Whether the Volume can be used: 1, else 0.")?,
        };
        registry.register(Box::new(metrics.reconciles.clone()))?;
        registry.register(Box::new(metrics.reconcile_seconds.clone()))?;
        registry.register(Box::new(metrics.container_restarts.clone()))?;
        registry.register(Box::new(metrics.workloads.clone()))?;
        registry.register(Box::new(metrics.containers_running.clone()))?;
        registry.register(Box::new(metrics.evictions.clone()))?;
        registry.register(Box::new(metrics.oom_kills.clone()))?;
        registry.register(Box::new(metrics.repairs.clone()))?;
        registry.register(Box::new(metrics.archives.clone()))?;
        registry.register(Box::new(metrics.images_collected.clone()))?;
        registry.register(Box::new(metrics.images_collected_bytes.clone()))?;
        registry.register(Box::new(metrics.images_disk_used_ratio.clone()))?;
        for volumes in [&metrics.volume_capacity, &metrics.volume_used, &metrics.volume_ready] {
            registry.register(Box::new(volumes.clone()))?;
        }
        Ok(metrics)
    }

    /// What is known of a Volume; forgets it with `None`.
    pub fn tell_of_volume(&self, namespace: &str, volume: &str, told: Option<ToldOfVolume>) {
        let labels = [namespace, volume];
        let set = |metric: &IntGaugeVec, value: Option<u64>| match value {
            Some(value) => metric.with_label_values(&labels).set(i64::try_from(value).unwrap_or(i64::MAX)),
            // Absence is success.
            None => drop(metric.remove_label_values(&labels)),
        };
        set(&self.volume_capacity, told.and_then(|told| told.capacity));
        set(&self.volume_used, told.and_then(|told| told.used));
        set(&self.volume_ready, told.map(|told| u64::from(told.ready)));
    }
}

/// What the metrics tell of a Volume, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct ToldOfVolume {
    /// Its size, if it has one.
    pub capacity: Option<u64>,
    /// What of it is used, where that is known.
    pub used: Option<u64>,
    /// It can be used.
    pub ready: bool,
}

fn of_volume(name: &str, help: &str) -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(Opts::new(name, help), &["namespace", "volume"])
}
