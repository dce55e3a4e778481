//! The gate that guest requests pass: counts those that are running, and can be closed so that they drain.
//!
//! It is spread over shards, each a single word with the flags and two counts, so that entering reads the flags and
//! counts the request in one atomic step: no request slips in between "closed" and "nothing runs". A thread uses
//! one shard, so threads don't contend; closing and asking for the sums visits all shards, which only a finishing
//! job does.

use crate::sync::atomic::{AtomicU64, Ordering};
use crossbeam::utils::CachePadded;

/// More than a host has I/O threads that never sleep, few enough to be visited in no time.
#[cfg(not(loom))]
pub(super) const SHARDS: usize = 16;
#[cfg(loom)]
pub(super) const SHARDS: usize = 2;

const CLOSED: u64 = 1;
/// Writes are handed to the job.
const CARRY: u64 = 2;
/// One request whose writing is not carried.
const MARKED: u64 = 1 << 2;
const MARKED_MASK: u64 = ((1 << 31) - 1) << 2;
/// One request of any other kind.
const OTHER: u64 = 1 << 33;
const RUNNING_MASK: u64 = !(CLOSED | CARRY);

/// As what a request was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// A write that only the current device gets; it is marked when it is done.
    Marked,
    /// A read, a flush, or a write that is carried.
    Other,
}

impl Counted {
    fn unit(self) -> u64 {
        match self {
            Self::Marked => MARKED,
            Self::Other => OTHER,
        }
    }
}

/// What a request may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Go to the current device.
    Pass(Counted),
    /// Be handed to the job.
    Carry,
    /// Wait.
    Closed,
}

#[derive(Debug)]
pub(super) struct Gate {
    shards: [CachePadded<AtomicU64>; SHARDS],
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| CachePadded::new(AtomicU64::new(0))) }
    }

    /// Lets a request in and counts it, unless the gate is closed.
    pub(super) fn enter(&self, shard: usize, changes_data: bool) -> Entry {
        self.try_enter(shard, changes_data, CLOSED)
    }

    /// Lets a request in that waited, before the gate is open for others.
    pub(super) fn enter_first(&self, shard: usize, changes_data: bool) -> Entry {
        self.try_enter(shard, changes_data, 0)
    }

    fn try_enter(&self, shard: usize, changes_data: bool, keeps_out: u64) -> Entry {
        let word = &self.shards[shard];
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            if seen & keeps_out != 0 {
                return Entry::Closed;
            }
            let carry = changes_data && seen & CARRY != 0;
            let counted = if changes_data && !carry { Counted::Marked } else { Counted::Other };
            match word.compare_exchange_weak(seen, seen + counted.unit(), Ordering::SeqCst, Ordering::Relaxed)
            {
                Ok(_) => return if carry { Entry::Carry } else { Entry::Pass(counted) },
                Err(now) => seen = now,
            }
        }
    }

    /// A request that was to be carried goes to the device after all.
    pub(super) fn recount_as_marked(&self, shard: usize) {
        self.shards[shard].fetch_add(MARKED.wrapping_sub(OTHER), Ordering::SeqCst);
    }

    /// Counts a request out, after everything that it did is visible. Whether somebody may be waiting for that: the
    /// gate is closed and this shard is empty, or writes are carried and the last one of this shard that wasn't is
    /// done.
    pub(super) fn exit(&self, shard: usize, counted: Counted) -> bool {
        let left = self.shards[shard].fetch_sub(counted.unit(), Ordering::SeqCst) - counted.unit();
        let drained = left & CLOSED != 0 && left & RUNNING_MASK == 0;
        let last_marked = counted == Counted::Marked && left & CARRY != 0 && left & MARKED_MASK == 0;
        drained || last_marked
    }

    pub(super) fn close(&self) {
        for shard in &self.shards {
            shard.fetch_or(CLOSED, Ordering::SeqCst);
        }
    }

    pub(super) fn open(&self) {
        for shard in &self.shards {
            shard.fetch_and(!CLOSED, Ordering::SeqCst);
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.shards[0].load(Ordering::SeqCst) & CLOSED != 0
    }

    pub(super) fn set_carry(&self, carry: bool) {
        for shard in &self.shards {
            if carry {
                shard.fetch_or(CARRY, Ordering::SeqCst);
            } else {
                shard.fetch_and(!CARRY, Ordering::SeqCst);
            }
        }
    }

    /// Whether nothing runs. Meaningful while the gate is closed: then a shard that was seen empty stays so.
    pub(super) fn is_drained(&self) -> bool {
        self.shards.iter().all(|shard| shard.load(Ordering::SeqCst) & RUNNING_MASK == 0)
    }

    /// Whether every write that is not carried is done. Meaningful while writes are carried.
    pub(super) fn uncarried_writes_done(&self) -> bool {
        self.shards.iter().all(|shard| shard.load(Ordering::SeqCst) & MARKED_MASK == 0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_drains_and_lets_nobody_in() {
        let gate = Gate::new();
        assert_eq!(gate.enter(0, true), Entry::Pass(Counted::Marked));
        assert_eq!(gate.enter(1, false), Entry::Pass(Counted::Other));
        gate.close();
        assert_eq!(gate.enter(0, false), Entry::Closed);
        assert!(!gate.is_drained());
        assert!(gate.exit(0, Counted::Marked), "the shard is empty");
        assert!(!gate.is_drained());
        assert!(gate.exit(1, Counted::Other));
        assert!(gate.is_drained());
        assert_eq!(gate.enter_first(0, false), Entry::Pass(Counted::Other));
        gate.open();
        assert!(!gate.exit(0, Counted::Other));
    }

    #[test]
    fn carrying_is_decided_in_the_step_that_counts() {
        let gate = Gate::new();
        assert_eq!(gate.enter(3, true), Entry::Pass(Counted::Marked));
        gate.set_carry(true);
        assert!(!gate.uncarried_writes_done());
        assert_eq!(gate.enter(3, true), Entry::Carry);
        assert_eq!(gate.enter(3, false), Entry::Pass(Counted::Other));
        assert!(gate.exit(3, Counted::Marked), "the last write of the old kind");
        assert!(gate.uncarried_writes_done());
        gate.recount_as_marked(3);
        assert!(!gate.uncarried_writes_done());
        gate.set_carry(false);
        assert!(!gate.exit(3, Counted::Marked));
        assert!(!gate.exit(3, Counted::Other));
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicUsize};

    #[test]
    fn what_a_drained_gate_let_through_is_visible() {
        loom::model(|| {
            let gate = Arc::new(Gate::new());
            let written = Arc::new(AtomicUsize::new(0));
            let told = Arc::new(AtomicBool::new(false));
            let guest = {
                let (gate, written, told) = (gate.clone(), written.clone(), told.clone());
                loom::thread::spawn(move || {
                    if gate.enter(1, true) == Entry::Closed {
                        return false;
                    }
                    written.store(1, Ordering::Relaxed);
                    if gate.exit(1, Counted::Marked) {
                        told.store(true, Ordering::SeqCst);
                    }
                    true
                })
            };
            gate.close();
            let drained = gate.is_drained();
            let seen = written.load(Ordering::Relaxed);
            let passed = guest.join().unwrap();
            if drained && passed {
                assert_eq!(seen, 1, "drained, and the write of a request that passed is not visible");
            }
            if !drained {
                assert!(told.load(Ordering::SeqCst), "nobody says that the gate has drained");
            }
            assert!(gate.is_drained());
        });
    }
}
