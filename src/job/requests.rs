//! The requests that a job has out: found by token from any thread, and handed to the driver when they are done.

use super::Shared;
use crate::device::{Client, Extent, Followup, Refused, SlotState, Wake};
use crate::engine::{OpId, Side};
use crate::error::{Errno, IoResult, to_c};
use once_cell::sync::OnceCell;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Two for each operation, one at each side.
const SLOTS: usize = OpId::COUNT * 2;
/// Slots are made in pages, as many as operations are used.
const PAGE: usize = 64;
/// Extents that one answer may have; a longer one is cut, and the rest is asked for again.
const MAX_EXTENTS: usize = 1024;

/// The place of an operation's request at one side.
pub(super) fn slot_of(op: OpId, side: Side) -> u16 {
    (op.index() * 2 + side as usize) as u16
}

#[derive(Debug)]
pub(super) struct RequestSlot {
    pub(super) state: SlotState,
    result: AtomicI32,
    /// The next in the list of completions: a slot's number plus one, 0 for none.
    next: AtomicU32,
    extents: Mutex<Vec<Extent>>,
}

/// All slots, and the list of those that were completed.
///
/// The list is a stack that completing threads push to and the driver takes whole, so one atomic step takes any
/// number of completions, and a slot can't be pushed twice because its completion was claimed.
#[derive(Debug)]
pub(super) struct Requests {
    pages: Box<[OnceCell<Box<[RequestSlot]>>]>,
    completed: AtomicU32,
}

impl Requests {
    pub(super) fn new() -> Self {
        Self { pages: (0..SLOTS / PAGE).map(|_| OnceCell::new()).collect(), completed: AtomicU32::new(0) }
    }

    /// The slot, made if it wasn't used before.
    pub(super) fn make(&self, slot: u16) -> &RequestSlot {
        let (page, place) = (usize::from(slot) / PAGE, usize::from(slot) % PAGE);
        let page = self.pages[page].get_or_init(|| {
            (0..PAGE)
                .map(|_| RequestSlot {
                    state: SlotState::new(0),
                    result: AtomicI32::new(0),
                    next: AtomicU32::new(0),
                    extents: Mutex::default(),
                })
                .collect()
        });
        &page[place]
    }

    fn get(&self, slot: u16) -> Option<&RequestSlot> {
        self.pages.get(usize::from(slot) / PAGE)?.get()?.get(usize::from(slot) % PAGE)
    }

    /// Records the completion of a slot that was claimed. Whether the list was empty.
    fn push(&self, index: u16, slot: &RequestSlot, result: IoResult) -> bool {
        slot.result.store(to_c(result), Ordering::Relaxed);
        let mut head = self.completed.load(Ordering::Relaxed);
        loop {
            slot.next.store(head, Ordering::Relaxed);
            let pushed = u32::from(index) + 1;
            match self.completed.compare_exchange_weak(head, pushed, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return head == 0,
                Err(now) => head = now,
            }
        }
    }

    pub(super) fn any_completed(&self) -> bool {
        self.completed.load(Ordering::Acquire) != 0
    }

    /// Takes all completions, oldest first.
    pub(super) fn take_completed(&self, out: &mut Vec<(u16, IoResult)>) {
        if !self.any_completed() {
            return;
        }
        let first = out.len();
        let mut head = self.completed.swap(0, Ordering::AcqRel);
        while let Some(index) = head.checked_sub(1) {
            let slot = self.make(index as u16);
            out.push((index as u16, Errno::check(slot.result.load(Ordering::Relaxed))));
            head = slot.next.load(Ordering::Relaxed);
        }
        out[first..].reverse();
    }

    /// Moves what was told for an extents request to `out`.
    pub(super) fn take_extents(&self, slot: u16, out: &mut Vec<Extent>) {
        let mut extents = self.make(slot).extents.lock().unwrap_or_else(PoisonError::into_inner);
        out.append(&mut extents);
    }

    /// What a device told of extents before it said that it had no room is not part of the answer that it will give.
    pub(super) fn forget_extents(&self, slot: u16) {
        self.make(slot).extents.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn all(&self) -> impl Iterator<Item = (u16, &RequestSlot)> {
        (0..SLOTS as u16).filter_map(|index| Some((index, self.get(index)?)))
    }
}

/// The job's seat at one of its devices.
pub(super) struct Seat {
    shared: Arc<Shared>,
    side: Side,
    base: u64,
}

impl Seat {
    pub(super) fn new(shared: Arc<Shared>, side: Side, base: u64) -> Self {
        Self { shared, side, base }
    }

    fn slot(&self, slot: u16) -> Result<&RequestSlot, Refused> {
        if usize::from(slot) % 2 != self.side as usize {
            return Err(Refused);
        }
        self.shared.requests.get(slot).ok_or(Refused)
    }

    fn generation(&self, generation: u64) -> u64 {
        generation.wrapping_sub(self.base) & ((1 << 40) - 1)
    }

    fn news(&self) -> Followup {
        Followup { tell: None, wake: Some(Arc::clone(&self.shared) as Arc<dyn Wake>) }
    }
}

impl Client for Seat {
    fn complete(&self, index: u16, generation: u64, result: IoResult) -> Result<Followup, Refused> {
        let slot = self.slot(index)?;
        if !slot.state.claim(self.generation(generation)) {
            return Err(Refused);
        }
        let first = self.shared.requests.push(index, slot, result);
        Ok(if first { self.news() } else { Followup::default() })
    }

    fn extent(&self, index: u16, generation: u64, extent: Extent) -> Result<bool, Refused> {
        let slot = self.slot(index)?;
        let mut extents = slot.extents.lock().unwrap_or_else(PoisonError::into_inner);
        if !slot.state.is_open(self.generation(generation)) {
            return Err(Refused);
        }
        // An extent of length 0 says nothing (SPEC D-6).
        if extent.length > 0 && extents.len() < MAX_EXTENTS {
            extents.push(extent);
        }
        Ok(extents.len() < MAX_EXTENTS)
    }

    fn room(&self) -> Followup {
        self.news()
    }

    fn abandon(&self) -> Vec<Followup> {
        let side = self.side as u16;
        let open =
            self.shared.requests.all().filter(|(index, slot)| index % 2 == side && slot.state.claim_any());
        open.map(|(index, slot)| {
            self.shared.requests.push(index, slot, Err(Errno::ECANCELED));
            self.news()
        })
        .collect()
    }

    fn last_generation(&self) -> u64 {
        self.base + self.shared.requests.all().map(|(_, slot)| slot.state.generation()).max().unwrap_or(0)
    }
}
