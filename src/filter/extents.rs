//! What the disk holds, for a guest that asks (NBD's block status, SCSI's logical block status).
//!
//! It is a guest's request like any other: it passes the gate, so that its answer is of one device, and goes to the device
//! of the moment. What that tells is gathered in a [`Found`], which the request's slot names while the request is open.

use super::core::Core;
use super::lock;
use super::slots::Slot;
use crate::device::{Extent, ExtentFlags, Refused};
use crate::range::ByteRange;
use crate::reserve;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex};

/// Extents that one answer may have, so that nobody's answer grows without bound.
pub(crate) const MAX_EXTENTS: usize = 1024;

/// What a request for extents has found.
pub struct Found {
    range: ByteRange,
    /// Most extents that are wanted.
    most: usize,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    extents: Vec<Extent>,
    /// Bytes from the range's beginning that they are about.
    covered: u64,
    /// There was more than is wanted, or than there is memory for: the rest is to be asked for again.
    full: bool,
}

impl Found {
    /// For the extents of a range, at most so many of them, and at most 1024; at least one.
    #[must_use]
    pub fn new(range: ByteRange, most: usize) -> Arc<Self> {
        // Room for one, without which an answer could be empty when memory is short.
        let told = Told { extents: Vec::with_capacity(1), ..Told::default() };
        Arc::new(Self { range, most: most.clamp(1, MAX_EXTENTS), told: Mutex::new(told) })
    }

    pub(super) fn range(&self) -> ByteRange {
        self.range
    }

    /// Takes the extents, once the request is done: from the range's beginning on, no two neighbours alike, none empty or
    /// beyond the range (SPEC D-6). They end before the range does only if there were more of them, or no memory. What was not told is
    /// data (SPEC D-1).
    #[must_use]
    pub fn take(&self) -> Vec<Extent> {
        let mut told = mem::take(&mut *lock(&self.told));
        let left = self.range.len() - told.covered;
        if !told.full {
            told.add(Extent { length: left, flags: ExtentFlags::DATA }, self.most, left);
        }
        told.extents
    }

    /// Whether more is wanted.
    fn add(&self, extent: Extent) -> bool {
        let mut told = lock(&self.told);
        let left = self.range.len() - told.covered;
        told.add(extent, self.most, left)
    }

    /// The device tells all again.
    fn clear(&self) {
        let mut told = lock(&self.told);
        told.extents.clear();
        (told.covered, told.full) = (0, false);
    }
}

impl Told {
    fn add(&mut self, extent: Extent, most: usize, left: u64) -> bool {
        let length = extent.length.min(left);
        if self.full || length == 0 {
            return !self.full;
        }
        // Without memory for more, what there is is the answer, and the rest is asked for again.
        let room = self.extents.len() < most && reserve::may_fail(|| self.extents.try_reserve(1)).is_ok();
        match self.extents.last_mut() {
            Some(last) if last.flags == extent.flags => last.length += length,
            _ if room => self.extents.push(Extent { length, flags: extent.flags }),
            _ => self.full = true,
        }
        if !self.full {
            self.covered += length;
        }
        !self.full
    }
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("range", &self.range).finish_non_exhaustive()
    }
}

impl Slot {
    /// A part of the answer to the request that is open in this slot. Completing it needs no lock, so it may end while this
    /// looks; then what is told goes to an answer that nobody reads, and never to the slot's next request, which takes this
    /// lock to begin.
    pub(super) fn tell(&self, generation: u64, extent: Extent) -> Result<bool, Refused> {
        let found = lock(&self.found);
        let open = self.state.is_open(generation);
        found.as_ref().filter(|_| open).map(|found| found.add(extent)).ok_or(Refused)
    }
}

impl Core {
    /// A device that has no room has told nothing, whatever it told before it said so (SPEC D-2).
    pub(super) fn forget_told(&self, index: u16) {
        if let Some(found) = self.slots.get(index).and_then(|slot| lock(&slot.found).clone()) {
            found.clear();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn extent(length: u64, flags: ExtentFlags) -> Extent {
        Extent { length, flags }
    }

    #[test]
    fn an_answer_is_clipped_joined_and_made_whole() {
        // SPEC D-6
        let (data, hole) = (ExtentFlags::DATA, ExtentFlags::HOLE);
        let rows: [(&[Extent], &[Extent]); 6] = [
            (&[], &[extent(100, data)]),
            (&[extent(30, hole)], &[extent(30, hole), extent(70, data)]),
            (&[extent(30, data)], &[extent(100, data)]),
            (&[extent(0, hole), extent(u64::MAX, hole), extent(1, data)], &[extent(100, hole)]),
            (&[extent(10, hole), extent(20, hole), extent(70, data)], &[extent(30, hole), extent(70, data)]),
            // Three are one too many: the last is asked for again.
            (
                &[extent(10, hole), extent(10, data), extent(10, data), extent(10, hole), extent(60, data)],
                &[extent(10, hole), extent(20, data)],
            ),
        ];
        for (told, expected) in rows {
            let found = Found::new(ByteRange::between(1000, 1100), 2);
            for extent in told {
                found.add(*extent);
            }
            assert_eq!(found.take(), expected, "{told:?}");
        }
    }
}
