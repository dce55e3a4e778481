//! What a job shares with the threads that mark guest writes for it.

use super::DirtyBitmap;
use crate::error::Result;
use crate::range::{ByteRange, Geometry};
use crate::sync::atomic::{AtomicBool, Ordering, fence};

/// The dirty bitmap of a job, and whether what is not dirty is known to be equal.
#[derive(Debug)]
pub struct Tracking {
    /// One bit per chunk that may differ.
    pub dirty: DirtyBitmap,
    geometry: Geometry,
    /// Every chunk that is not dirty is equal on both sides, and every write is being carried. Whoever marks lowers it.
    synced: AtomicBool,
    /// The driver sleeps and is to be woken by the next mark.
    sleeping: AtomicBool,
}

impl Tracking {
    /// Nothing dirty, nothing known to be equal. `ENOMEM` if the bitmap can't be had.
    pub fn new(geometry: Geometry) -> Result<Self> {
        Ok(Self {
            dirty: DirtyBitmap::new(geometry.chunks())?,
            geometry,
            synced: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
        })
    }

    /// Marks what a guest request touched, rounded out; for use after the request is done, well or not
    /// (SPEC G-2). Any thread.
    pub fn mark(&self, range: ByteRange) {
        self.dirty.mark(self.geometry.touched(range));
        order_after_mark();
        // A store only where it changes something: many threads mark, and each would take the line from the others.
        if self.synced.load(Ordering::SeqCst) {
            self.synced.store(false, Ordering::SeqCst);
        }
    }

    /// As [`Tracking::mark`], and says whether the driver is to be woken: true once after each
    /// [`Tracking::fall_asleep`].
    pub fn mark_and_see(&self, range: ByteRange) -> bool {
        self.mark(range);
        self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst)
    }

    /// The driver has nothing to do until something is marked. `false`: something has been, don't sleep.
    pub fn fall_asleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        // Either this sees the mark, or the marker, who looks at `sleeping` after marking, sees it raised.
        if self.dirty.next_dirty(0).is_some() {
            self.sleeping.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// Whether source and target are known to be equal but for dirty chunks.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::SeqCst)
    }

    /// Raises or lowers the flag. Whoever raises it checks afterwards that nothing was marked meanwhile.
    pub(crate) fn set_synced(&self, synced: bool) {
        self.synced.store(synced, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }
}

/// What was marked comes before what is loaded next. On x86 the locked instruction that marked has seen to that.
fn order_after_mark() {
    #[cfg(not(target_arch = "x86_64"))]
    fence(Ordering::SeqCst);
    #[cfg(target_arch = "x86_64")]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_mark_wakes_the_driver_once_and_it_sleeps_only_while_nothing_is_marked() {
        let tracking = Tracking::new(Geometry::new(1 << 20, 4096)).expect("memory");
        let mark = || tracking.mark_and_see(ByteRange::between(5000, 5001));
        assert!(!mark(), "nobody sleeps");
        assert!(!tracking.fall_asleep(), "something is marked");
        assert!(!mark(), "so it has not fallen asleep");
        tracking.dirty.clear(crate::range::ChunkRange::new(0, 256));
        assert!(tracking.fall_asleep());
        assert_eq!([mark(), mark()], [true, false]);
    }
}
