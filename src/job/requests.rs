//! The requests that a job has out: found by token from any thread, and handed to the driver when they are done.

use super::completed::{Completed, Link};
use super::shared::Shared;
use crate::device::{Client, Extent, Followup, Refused, SlotState, Wake};
use crate::engine::{OpId, Side};
use crate::error::{Errno, IoResult};
use crate::reserve;
use once_cell::sync::OnceCell;
use std::collections::TryReserveError;
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
    done: Link,
    told: Mutex<Told>,
}

impl RequestSlot {
    fn new() -> Self {
        Self { state: SlotState::new(0), done: Link::new(), told: Mutex::default() }
    }
}

/// What a device has told for an extents request.
#[derive(Debug, Default)]
struct Told {
    extents: Vec<Extent>,
    /// There is no room for more. What comes then is dropped, all of it: an extent begins where the one before it ends.
    full: bool,
}

impl Told {
    fn add(&mut self, extent: Extent) {
        let room =
            self.extents.len() < MAX_EXTENTS && reserve::may_fail(|| self.extents.try_reserve(1)).is_ok();
        if room && !self.full {
            self.extents.push(extent);
        }
        self.full |= !room || self.extents.len() == MAX_EXTENTS;
    }
}

/// All slots, and the list of those that were completed.
#[derive(Debug)]
pub(super) struct Requests {
    pages: Box<[OnceCell<Box<[RequestSlot]>>]>,
    completed: Completed,
}

impl Requests {
    pub(super) fn new() -> Self {
        Self { pages: (0..SLOTS / PAGE).map(|_| OnceCell::new()).collect(), completed: Completed::new() }
    }

    /// The slot, made if it wasn't used before.
    pub(super) fn make(&self, slot: u16) -> &RequestSlot {
        let (page, place) = (usize::from(slot) / PAGE, usize::from(slot) % PAGE);
        let page = self.pages[page].get_or_init(|| (0..PAGE).map(|_| RequestSlot::new()).collect());
        &page[place]
    }

    /// Makes a slot's page beforehand, so that `make` takes no memory.
    pub(super) fn provide(&self, slot: u16) -> Result<(), TryReserveError> {
        let page = &self.pages[usize::from(slot) / PAGE];
        if page.get().is_none() {
            let mut made = Vec::new();
            made.try_reserve_exact(PAGE)?;
            made.resize_with(PAGE, RequestSlot::new);
            // Somebody else may have made it meanwhile.
            let _ = page.set(made.into_boxed_slice());
        }
        Ok(())
    }

    fn get(&self, slot: u16) -> Option<&RequestSlot> {
        self.pages.get(usize::from(slot) / PAGE)?.get()?.get(usize::from(slot) % PAGE)
    }

    /// Records the completion of a slot that was claimed. Whether there is somebody to tell.
    fn push(&self, index: u16, slot: &RequestSlot, result: IoResult) -> bool {
        self.completed.push(index, &slot.done, result)
    }

    pub(super) fn any_completed(&self) -> bool {
        self.completed.any()
    }

    /// Takes all completions, oldest first.
    pub(super) fn take_completed(&self, out: &mut Vec<(u16, IoResult)>) {
        self.completed.take(|index| &self.make(index).done, out);
    }

    /// Moves what was told for an extents request to `out`, which is empty, and whose memory the next are told in.
    pub(super) fn take_extents(&self, slot: u16, out: &mut Vec<Extent>) {
        let mut told = self.make(slot).told.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.extents.is_empty() {
            std::mem::swap(out, &mut told.extents);
        }
        told.full = false;
    }

    /// What a device told of extents before it said that it had no room is not part of the answer that it will give.
    pub(super) fn forget_extents(&self, slot: u16) {
        let mut told = self.make(slot).told.lock().unwrap_or_else(PoisonError::into_inner);
        told.extents.clear();
        told.full = false;
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
        let mut told = slot.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !slot.state.is_open(self.generation(generation)) {
            return Err(Refused);
        }
        // An extent of length 0 says nothing (SPEC D-6).
        if extent.length > 0 {
            told.add(extent);
        }
        Ok(!told.full)
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::device::ExtentFlags;

    #[test]
    fn after_an_extent_that_had_no_room_there_is_room_for_none() {
        // SPEC D-6: one that was left out would move all that follow it.
        let mut told = Told::default();
        for length in 1..=MAX_EXTENTS as u64 {
            assert!(!told.full);
            told.add(Extent { length, flags: ExtentFlags::DATA });
        }
        assert!(told.full);
        told.extents.pop();
        told.add(Extent { length: 7, flags: ExtentFlags::DATA });
        assert!(told.full && told.extents.len() == MAX_EXTENTS - 1);
    }
}
