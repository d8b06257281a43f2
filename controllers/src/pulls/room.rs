//! Refusing a pull that cannot fit, before it starts.
//!
//! A disk that runs full in the middle of a pull fails everything on it. What a pull needs is known from the image's
//! manifest; when that is not there, images that nobody needs go first, and only then the pull is refused.

use nodelet_drivers::images::{Disk, Fetch, Images, normalize};
use nodelet_drivers::room::size;

use crate::image_collector::Collector;

/// With so much left nothing is asked beforehand: it would cost every pull two requests to the registry.
const PLENTY: u64 = 32 << 30;
/// Part of the disk, as 1/n, that pulls leave alone, so that logs, databases and the recovery from a full disk go on …
const RESERVED_PART: u64 = 50;
/// … but not more than this.
const RESERVED_AT_MOST: u64 = 1 << 30;

/// An image does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{reference} does not fit: it needs about {} ({} to download, about {} unpacked), and of {} that are left {} stay \
     reserved; remove data or images (`nodelet images prune`), or use a larger disk",
    size(missing + unpacked), size(*missing), size(*unpacked), size(*available), size(*reserved)
)]
pub struct NoRoom {
    reference: String,
    missing: u64,
    unpacked: u64,
    available: u64,
    reserved: u64,
}

/// Sees to it that `fetch` fits. What cannot be known refuses nothing: the pull itself will tell.
pub(super) async fn ensure(images: &dyn Images, collector: &Collector, fetch: &Fetch) -> Result<(), NoRoom> {
    let Ok(disk) = images.disk().await else { return Ok(()) };
    if disk.total == 0 || disk.available >= PLENTY {
        return Ok(());
    }
    let Ok(estimate) = images.estimate(fetch).await else { return Ok(()) };
    let needs = estimate.bytes_missing.saturating_add(estimate.bytes_unpacked).saturating_add(reserved(disk));
    if needs <= disk.available || estimate.bytes_missing + estimate.bytes_unpacked == 0 {
        return Ok(());
    }
    if let Err(error) = collector.make_room(needs).await {
        tracing::debug!(reference = fetch.reference, "making room: {error}");
    }
    let disk = images.disk().await.unwrap_or(disk);
    if needs <= disk.available {
        return Ok(());
    }
    Err(NoRoom {
        reference: normalize(&fetch.reference).unwrap_or_else(|_| fetch.reference.clone()),
        missing: estimate.bytes_missing,
        unpacked: estimate.bytes_unpacked,
        available: disk.available,
        reserved: reserved(disk),
    })
}

fn reserved(disk: Disk) -> u64 {
    (disk.total / RESERVED_PART).min(RESERVED_AT_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image_collector::Marks;
    use nodelet_drivers::images::FakeImages;
    use nodelet_drivers::images::fake::Offer;
    use std::time::Duration;

    /// Nothing collects: the room must be there.
    fn stopped() -> Collector {
        Collector::stopped(Marks { high_percent: 85, low_percent: 80, min_age: Duration::ZERO })
    }

    #[tokio::test]
    async fn what_cannot_fit_is_refused_with_the_numbers() {
        let images = FakeImages::new();
        images.push("big:1", Offer { size: 400 << 20, ..Offer::new("big") });
        images.push("small:1", Offer { size: 10 << 20, ..Offer::new("small") });
        images.set_disk(Disk { total: 10 << 30, available: 1 << 30 });
        let refused = ensure(&images, &stopped(), &Fetch::new("big:1")).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "docker.io/library/big:1 does not fit: it needs about 1.6 GiB (400.0 MiB to download, about 1.2 GiB \
             unpacked), and of 1.0 GiB that are left 204.8 MiB stay reserved; remove data or images (`nodelet images \
             prune`), or use a larger disk"
        );
        assert_eq!(ensure(&images, &stopped(), &Fetch::new("small:1")).await, Ok(()));
        assert_eq!(ensure(&images, &stopped(), &Fetch::new("absent:1")).await, Ok(()), "the pull tells why");
        images.set_disk(Disk { total: 100 << 30, available: 40 << 30 });
        assert_eq!(ensure(&images, &stopped(), &Fetch::new("big:1")).await, Ok(()));
    }
}
