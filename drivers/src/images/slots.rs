//! A bounded number of places, which nobody keeps who does not use the node: one that waits for a slow server gives
//! its place back and goes on beside the others, so that slow images delay no quick one.
//!
//! Those who want a place get it by priority, and in the order in which they came. The number that may go on without a place is bounded
//! as well; beyond that even a slow one keeps its place.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// Who gets less in so long is slow.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes in a second that are not slow.
const QUICK: u64 = 256 << 10;

/// For each place, so many may go on without one.
const BESIDE: usize = 8;

/// The places.
#[derive(Debug)]
pub(super) struct Slots(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    free_beside: usize,
    /// Who waits: the highest priority first, then who came first.
    waiting: BTreeMap<(Reverse<i32>, u64), oneshot::Sender<Place>>,
    came: u64,
}

/// A place, or the right to go on without.
#[derive(Debug)]
pub(super) struct Slot {
    place: Place,
    since: Instant,
    bytes: u64,
}

/// What is given back when it is dropped.
#[derive(Debug)]
struct Place {
    state: Arc<Mutex<State>>,
    beside: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let next = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if self.beside {
                state.free_beside += 1;
                return;
            }
            let next = state.waiting.pop_first();
            if next.is_none() {
                state.free += 1;
            }
            next
        };
        if let Some((_, next)) = next {
            // One who no longer waits lets it drop, and so passes it on.
            let _ = next.send(Place { state: self.state.clone(), beside: false });
        }
    }
}

impl Slots {
    /// So many places, at least one.
    pub(super) fn new(places: usize) -> Self {
        let free = places.max(1);
        let state = State { free, free_beside: free.saturating_mul(BESIDE), waiting: BTreeMap::new(), came: 0 };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Waits for a place; a higher priority waits before the lower ones.
    pub(super) async fn take(&self, priority: i32) -> Slot {
        let turn = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.free > 0 {
                state.free -= 1;
                None
            } else {
                let (sender, turn) = oneshot::channel();
                state.came += 1;
                let came = state.came;
                state.waiting.insert((Reverse(priority), came), sender);
                Some(turn)
            }
        };
        let place = match turn {
            None => Place { state: self.0.clone(), beside: false },
            Some(turn) => turn.await.expect("a sender stays in the queue until it has sent"),
        };
        Slot { place, since: Instant::now(), bytes: 0 }
    }
}

impl Slot {
    /// Waits for something that others do, and gives the place back if it takes long.
    pub(super) async fn wait<F: Future>(&mut self, work: F) -> F::Output {
        let mut work = std::pin::pin!(work);
        // Both arms are cancel-safe: the work is pinned and goes on.
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(PATIENCE), if !self.place.beside => {}
        }
        self.step_aside();
        work.await
    }

    /// So many bytes have come in all; gives the place back if that is slow.
    pub(super) fn progress(&mut self, bytes: u64) {
        let time = self.since.elapsed();
        if self.place.beside || time < PATIENCE {
            return;
        }
        let rate = u128::from(bytes.saturating_sub(self.bytes)) * 1000 / time.as_millis().max(1);
        if rate < u128::from(QUICK) {
            self.step_aside();
        }
        (self.since, self.bytes) = (Instant::now(), bytes);
    }

    /// Gives the place back if there is room beside.
    pub(super) fn step_aside(&mut self) {
        if self.place.beside {
            return;
        }
        {
            let mut state = self.place.state.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(left) = state.free_beside.checked_sub(1) else { return };
            state.free_beside = left;
        }
        // The old place is dropped, and so goes to the next who waits.
        self.place = Place { state: self.place.state.clone(), beside: true };
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_slow_one_makes_room_and_a_quick_one_does_not() {
        let slots = Slots::new(1);
        let mut first = slots.take(0).await;
        for second in 1..10 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            first.progress(second * QUICK * 2);
        }
        assert!(slots.take(0).now_or_never().is_none(), "a quick one keeps its place");
        first.wait(tokio::time::sleep(Duration::from_secs(10))).await;
        let mut second = slots.take(0).await;
        for bytes in 0..4 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            second.progress(bytes * 1000);
        }
        slots.take(0).await;
    }

    #[tokio::test(start_paused = true)]
    async fn even_slow_ones_are_bounded() {
        let slots = Slots::new(1);
        let mut held = Vec::new();
        for _ in 0..=BESIDE {
            let mut slot = slots.take(0).await;
            slot.step_aside();
            held.push(slot);
        }
        assert!(slots.take(0).now_or_never().is_none());
        held.pop();
        slots.take(0).await;
    }

    #[tokio::test]
    async fn the_highest_priority_goes_first_and_who_gave_up_is_passed_over() {
        let slots = Slots::new(1);
        let held = slots.take(0).await;
        let (mut low, mut gone, mut high) = (Box::pin(slots.take(0)), Box::pin(slots.take(9)), Box::pin(slots.take(5)));
        for waiting in [&mut low, &mut gone, &mut high] {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        drop(gone);
        drop(held);
        assert!(low.as_mut().now_or_never().is_none());
        let held = high.now_or_never().expect("its turn");
        drop(held);
        assert!(low.now_or_never().is_some());
    }
}
