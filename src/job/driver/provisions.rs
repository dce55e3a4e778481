//! Memory that is had before it is needed, where memory has an end: in the middle of a round there is nobody to refuse.
//!
//! What a job's own operations need is taken when the job is made, as many of them as may be in flight. What guests need is
//! taken one by one, before each is let in: who has no room waits in the inbox until another is done.

use super::super::Shared;
use super::super::requests::{Requests, slot_of};
use super::Driver;
use crate::engine::{Engine, OpId, Side};
use crate::error::{Errno, Error, Result};
use crate::reserve;
use std::collections::TryReserveError;

impl Driver {
    /// Whether another guest can be let in.
    pub(super) fn has_guest_room(&mut self, shared: &Shared, engine: &mut Engine) -> bool {
        engine.make_way_for_guest(false);
        if shared.inbox.is_empty() || !engine.has_guest_room() {
            return false;
        }
        if !cfg!(target_family = "wasm") {
            return true;
        }
        let (op, out) = (engine.next_guest(), engine.most_out() + 2);
        let provided = reserve::may_fail(|| {
            let slots = shared.filter.slots_made();
            self.guests.try_reserve(slots.saturating_sub(self.guests.len()))?;
            self.provide_for(&shared.requests, op, out)
        });
        // The first is let in all the same: what it needs is little, and nobody else will be done.
        let has_room = provided.is_ok() || out == 2;
        engine.make_way_for_guest(!has_room);
        has_room
    }

    /// Takes what the job's own operations will need. `ENOMEM`.
    pub(in super::super) fn provide(&mut self, requests: &Requests, engine: &mut Engine) -> Result<()> {
        if !cfg!(target_family = "wasm") {
            return Ok(());
        }
        let most = engine.most_operations();
        let provided: Result<(), TryReserveError> = reserve::may_fail(|| {
            engine.outbox().requests.try_reserve(most as usize)?;
            self.spare.try_reserve(most as usize)?;
            (0..most).try_for_each(|index| self.provide_for(requests, OpId::background(index), most as usize))
        });
        provided.map_err(|_| Error::new(Errno::ENOMEM, format!("no memory for {most} operations at a time")))
    }

    /// One operation at both sides, with so many requests out in all.
    fn provide_for(&mut self, requests: &Requests, op: OpId, out: usize) -> Result<(), TryReserveError> {
        for slot in [Side::Source, Side::Target].map(|side| slot_of(op, side)) {
            self.parts.provide(slot)?;
            requests.provide(slot)?;
        }
        self.requests.try_reserve(out)?;
        self.completed.try_reserve(out)?;
        self.finished.try_reserve(out)?;
        self.guests_done.try_reserve(out)?;
        self.again.iter_mut().try_for_each(|waiting| waiting.try_reserve(out))
    }
}
