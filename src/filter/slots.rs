//! The guest requests that are under way, in slots that are found by number without a lock.
//!
//! A slot belongs to whoever took it until it is opened for a completion, and then to whoever claims that
//! completion; the two hand over through the slot's [`SlotState`]. Free slots are kept in one stack per shard of the
//! gate, so that threads don't contend.

use super::extents::Found;
use super::gate::SHARDS;
use crate::device::{AlignedBuffer, Callback, Flags, IoVec, Kind, SlotState};
use crate::error::{Errno, Error, Result};
use crate::range::ByteRange;
use crate::reserve;
use crossbeam::utils::CachePadded;
use once_cell::sync::OnceCell;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Slots are made in pages, as many as the guest needs at a time.
const PAGE: usize = 256;
const PAGES: usize = 64;

/// Everything about one guest request.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) kind: Kind,
    pub(super) range: ByteRange,
    pub(super) flags: Flags,
    pub(super) done: Option<Callback>,
    pub(super) path: Path,
    pub(super) shard: u8,
    /// The buffers, kept where the request can't be sent in one piece at once.
    pub(super) iov: Vec<IoVec>,
    /// Aligned memory that stands in for buffers that the device can't take.
    pub(super) bounce: Option<AlignedBuffer>,
    /// Bytes that are done, of a request that goes in several steps.
    pub(super) stepped: u64,
    /// The caller vouches that the data doesn't change until the request is done.
    pub(super) stable: bool,
}

/// Which way a request takes, and as what it is counted at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// To the device in one piece.
    Direct(super::gate::Counted),
    /// To the device in several steps.
    Stepped(super::gate::Counted),
    /// Done by the host itself, between `begin` and `end`.
    Host(super::gate::Counted),
    /// Through the job, to both devices.
    Carried,
    /// Not let in yet.
    Waiting,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            kind: Kind::Flush,
            range: ByteRange::default(),
            flags: Flags::default(),
            done: None,
            path: Path::Waiting,
            shard: 0,
            iov: Vec::new(),
            bounce: None,
            stepped: 0,
            stable: false,
        }
    }
}

/// One place for a guest request.
#[derive(Debug)]
pub(super) struct Slot {
    /// For completions by the device.
    pub(super) state: SlotState,
    /// For `end`, of a request that the host does itself.
    pub(super) ticket: SlotState,
    /// The hand-over between whoever submits a step and whoever completes it; see `steps`.
    pub(super) step: AtomicU8,
    pub(super) step_result: AtomicI32,
    /// Where what the device tells of extents goes, while a request for them is under way.
    pub(super) found: Mutex<Option<Arc<Found>>>,
    /// The seat that the last request went through.
    seat: AtomicU32,
    /// Requests that changed data and ended here. Only the slot's owner writes it, so that counting costs no atomic step.
    changes: AtomicU64,
    next_free: AtomicU32,
    guest: UnsafeCell<Guest>,
}

// SAFETY: `guest` is reached only through `Slots::owned`, whose callers own the slot by the protocol above.
unsafe impl Sync for Slot {}

impl Slot {
    /// Opens the slot, by its owner, for a request through this seat; the generation is for the token.
    pub(super) fn open_for(&self, seat: u32) -> u64 {
        self.seat.store(seat, Ordering::Relaxed);
        self.state.open()
    }

    /// Claims the open request if it went through this seat. The slot may be used for another one at any time: then the
    /// generation that was seen first is over, and the claim fails.
    pub(super) fn claim_sent_to(&self, seat: u32) -> bool {
        let open = self.state.open_generation();
        open.is_some_and(|generation| {
            self.seat.load(Ordering::Relaxed) == seat && self.state.claim(generation)
        })
    }
}

#[derive(Debug)]
pub(super) struct Slots {
    pages: [OnceCell<Box<[Slot]>>; PAGES],
    made: Mutex<usize>,
    /// Heads of the stacks of free slots: a slot's number plus one in the low half, and a count of changes in the high
    /// half, without which a thread that slept could put back an old head (the "ABA" problem of Treiber's stack).
    free: [CachePadded<AtomicU64>; SHARDS],
    highest_generation: AtomicU64,
    made_count: AtomicUsize,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            pages: [const { OnceCell::new() }; PAGES],
            made: Mutex::new(0),
            free: std::array::from_fn(|_| CachePadded::new(AtomicU64::new(0))),
            highest_generation: AtomicU64::new(0),
            made_count: AtomicUsize::new(0),
        }
    }

    /// The slot with this number, if there is one.
    pub(super) fn get(&self, index: u16) -> Option<&Slot> {
        let index = usize::from(index);
        self.pages.get(index / PAGE)?.get()?.get(index % PAGE)
    }

    /// The request in a slot.
    ///
    /// # Safety
    /// The caller took the slot and has not opened it, or has claimed the completion that it was opened for, and has not
    /// put it back; and holds no other reference to the request.
    #[expect(clippy::mut_from_ref, reason = "ownership of the slot is what makes it exclusive")]
    pub(super) unsafe fn owned(&self, index: u16) -> &mut Guest {
        // The slot exists: the caller took it.
        let slot = self.get(index).expect("a slot that was taken exists");
        // SAFETY: exclusive, as the caller vouches.
        unsafe { &mut *slot.guest.get() }
    }

    /// Takes a free slot. `EBUSY` if there are as many requests as there can be, `ENOMEM` if there is no memory for more.
    pub(super) fn take(&self, shard: usize) -> Result<u16> {
        let taken = self.pop(shard).or_else(|| self.make_page(shard)).or_else(|| {
            // The others may have some left.
            (0..SHARDS).find_map(|other| self.pop(other))
        });
        taken.ok_or_else(|| {
            if self.made_count.load(Ordering::Acquire) == PAGES * PAGE {
                super::too_many()
            } else {
                Error::new(Errno::ENOMEM, "no memory for another guest request: wait for one to finish")
            }
        })
    }

    /// Makes the first slots, so that a guest needs no memory for requests one after the other.
    pub(super) fn prepare(&self, shard: usize) -> Result<()> {
        self.put_back(shard, self.take(shard)?);
        Ok(())
    }

    /// Puts a slot back, after its request was taken out of it.
    pub(super) fn put_back(&self, shard: usize, index: u16) {
        let Some(slot) = self.get(index) else { return };
        let head = &self.free[shard];
        let mut seen = head.load(Ordering::Relaxed);
        loop {
            slot.next_free.store(seen as u32, Ordering::Relaxed);
            let next = (seen & !0xffff_ffff).wrapping_add(1 << 32) | (u64::from(index) + 1);
            match head.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    fn pop(&self, shard: usize) -> Option<u16> {
        let head = &self.free[shard];
        let mut seen = head.load(Ordering::Acquire);
        loop {
            let index = (seen as u32).checked_sub(1)? as u16;
            let below = self.get(index)?.next_free.load(Ordering::Relaxed);
            let next = (seen & !0xffff_ffff).wrapping_add(1 << 32) | u64::from(below);
            match head.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(index),
                Err(now) => seen = now,
            }
        }
    }

    fn make_page(&self, shard: usize) -> Option<u16> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have made one while this thread waited.
        if let Some(index) = self.pop(shard) {
            return Some(index);
        }
        let page = *made;
        let cell = self.pages.get(page)?;
        let mut slots = Vec::new();
        reserve::may_fail(|| slots.try_reserve_exact(PAGE)).ok()?;
        slots.extend((0..PAGE).map(|_| Slot {
            state: SlotState::new(0),
            ticket: SlotState::new(0),
            step: AtomicU8::new(0),
            step_result: AtomicI32::new(0),
            found: Mutex::new(None),
            seat: AtomicU32::new(0),
            changes: AtomicU64::new(0),
            next_free: AtomicU32::new(0),
            guest: UnsafeCell::new(Guest::default()),
        }));
        // Only this function, under its lock, fills cells.
        let _ = cell.set(slots.into_boxed_slice());
        *made += 1;
        self.made_count.store(*made * PAGE, Ordering::Release);
        let first = (page * PAGE) as u16;
        for index in (first + 1..=first + (PAGE as u16 - 1)).rev() {
            self.put_back(shard, index);
        }
        Some(first)
    }

    /// Where what the device tells of extents is to go from now on. The caller owns the slot.
    pub(super) fn ask(&self, index: u16, found: Option<&Arc<Found>>) {
        if let Some(slot) = self.get(index) {
            let before = std::mem::replace(&mut *super::lock(&slot.found), found.map(Arc::clone));
            drop(before);
        }
    }

    /// Counts a request that changed data. The caller owns the slot.
    pub(super) fn count_change(&self, index: u16) {
        if let Some(slot) = self.get(index) {
            slot.changes.store(slot.changes.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    /// Requests that changed data and have ended, in all.
    pub(super) fn changes(&self) -> u64 {
        self.all().map(|(_, slot)| slot.changes.load(Ordering::Relaxed)).sum()
    }

    /// How many there are.
    pub(super) fn made(&self) -> usize {
        self.made_count.load(Ordering::Acquire)
    }

    /// Every slot that was ever made.
    pub(super) fn all(&self) -> impl Iterator<Item = (u16, &Slot)> {
        let made = self.made_count.load(Ordering::Acquire) as u32;
        (0..made).filter_map(|index| Some((index as u16, self.get(index as u16)?)))
    }

    /// Not smaller than any generation that was used.
    pub(super) fn last_generation(&self) -> u64 {
        let last = self.all().map(|(_, slot)| slot.state.generation()).max().unwrap_or(0);
        self.highest_generation.fetch_max(last, Ordering::Relaxed).max(last)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn there_is_a_bound_and_every_slot_comes_back() {
        let slots = Slots::new();
        let taken: HashSet<u16> =
            (0..PAGE * PAGES).map(|_| slots.take(0).expect("below the bound")).collect();
        assert_eq!(taken.len(), PAGE * PAGES);
        slots.take(0).expect_err("the bound");
        assert_eq!(slots.take(5).expect_err("the bound").errno(), Errno::EBUSY);
        slots.put_back(7, 3);
        assert_eq!(slots.take(5).expect("room"), 3, "another shard's");
        slots.take(7).expect_err("the bound");
    }

    #[test]
    fn threads_never_get_the_same_slot() {
        let slots = Slots::new();
        let owners: Vec<AtomicU8> = (0..PAGE * PAGES).map(|_| AtomicU8::new(0)).collect();
        crossbeam::thread::scope(|scope| {
            for thread in 0..4usize {
                let (slots, owners) = (&slots, &owners);
                scope.spawn(move |_| {
                    let mut held = Vec::new();
                    for round in 0..50_000usize {
                        // All on two shards, to contend.
                        if let Ok(index) = slots.take(thread % 2) {
                            assert_eq!(owners[usize::from(index)].swap(1, Ordering::SeqCst), 0);
                            held.push(index);
                        }
                        if held.len() > round % 7 {
                            let index = held.swap_remove(round % held.len());
                            owners[usize::from(index)].store(0, Ordering::SeqCst);
                            slots.put_back(thread % 2, index);
                        }
                    }
                });
            }
        })
        .expect("no thread panics");
    }

    #[test]
    fn slots_of_every_page_are_looked_at() {
        let slots = Slots::new();
        let taken: Vec<u16> = (0..=PAGE).map(|_| slots.take(0).expect("room")).collect();
        assert_eq!(slots.all().count(), 2 * PAGE);
        for index in [taken[0], taken[PAGE], taken[PAGE]] {
            slots.count_change(index);
        }
        assert_eq!(slots.changes(), 3);
    }

    #[test]
    fn a_stack_that_has_changed_to_and_fro_is_another_stack() {
        // A thread that slept meanwhile must not take the old head for the new one.
        let slots = Slots::new();
        let first = slots.take(3).expect("room");
        let head = || slots.free[3].load(Ordering::Relaxed);
        let mut seen = HashSet::from([head()]);
        for _ in 0..10 {
            slots.put_back(3, first);
            assert!(seen.insert(head()), "put back");
            assert_eq!(slots.pop(3), Some(first));
            assert!(seen.insert(head()), "taken");
        }
    }
}
