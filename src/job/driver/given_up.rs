//! After an internal failure: guests get their requests back, and what is out is only waited for (SPEC E-3).
//!
//! A carried write's data may be read by both devices at once, from the guest's own memory if that is stable. A guest
//! that is told may free or reuse that memory; so it is not told before the target has let go of it, although nobody
//! cares any more for what the target does. Where the data is the library's copy, the copy stays with the target's request
//! and the guest goes ahead.

use super::super::shared::Shared;
use super::{Driver, GuestState};
use crate::device::Kind;
use crate::engine::{Data, GuestId, Side};
use crate::error::{Errno, IoResult};

impl Driver {
    /// The engine can't be trusted any more.
    pub(in super::super) fn give_up(&mut self, shared: &Shared) {
        self.finished.clear();
        self.requests.clear();
        self.orders.clear();
        self.guests_done.clear();
        if let Some(slot) = self.offering.take()
            && shared.requests.make(slot).state.claim_any()
        {
            self.give_up_part(shared, slot, Err(Errno::EIO));
        }
        for slot in std::mem::take(&mut self.again).into_iter().flatten() {
            // It never got there: the guest's request begins anew.
            if let Some(part) = self.parts.take(slot)
                && let (Data::Guest(guest, _), Side::Source) = (part.submit.data, part.submit.side)
            {
                *self.guest_state(guest.0 as u16) = GuestState::Submitted;
            }
        }
        for index in 0..self.guests.len() {
            self.give_back_guest(shared, index as u16);
        }
    }

    /// A request that was out when the engine was given up has come back.
    fn give_up_part(&mut self, shared: &Shared, slot: u16, result: IoResult) {
        let Some(part) = self.parts.take(slot) else { return };
        let Data::Guest(guest, _) = part.submit.data else { return };
        let index = guest.0 as u16;
        if part.submit.side == Side::Source {
            let done = part.done + part.step_length(&shared.links[Side::Source as usize]);
            let more = result.is_ok() && done < part.submit.range.len();
            // A step of several: all of it again, by the filter.
            *self.guest_state(index) = if more { GuestState::Submitted } else { GuestState::Done(result) };
        }
        self.give_back_guest(shared, index);
    }

    /// A guest's request goes back to the filter, if it is not at the source and the target can do without its data.
    fn give_back_guest(&mut self, shared: &Shared, index: u16) {
        let state = *self.guest_state(index);
        match state {
            GuestState::NotHere | GuestState::AtSource => {}
            GuestState::Submitted if !self.target_reads(shared, index, false) => {
                *self.guest_state(index) = GuestState::NotHere;
                shared.filter.forward_carried(index);
            }
            GuestState::Done(result) if !self.target_reads(shared, index, true) => {
                *self.guest_state(index) = GuestState::NotHere;
                shared.filter.finish_carried(index, result);
            }
            GuestState::Submitted | GuestState::Done(_) => {}
        }
    }

    /// Whether the target still reads a guest's data from where the guest, or the filter, may change or free it.
    /// `may_move`: a copy that nobody else needs is given to the target's request.
    fn target_reads(&mut self, shared: &Shared, index: u16, may_move: bool) -> bool {
        let of_guest = GuestId(u32::from(index));
        let reader = self.parts.iter_mut().find(|part| {
            let submit = &part.submit;
            submit.side == Side::Target && submit.kind == Kind::Write && submit.data.is_of(of_guest)
        });
        let Some(part) = reader.filter(|part| part.copy.is_none()) else { return false };
        if may_move && let Data::Guest(_, skip) = part.submit.data {
            part.copy = shared.filter.take_bounce(index).map(|copy| (copy, skip));
        }
        part.copy.is_none()
    }

    /// After [`Driver::give_up`]: takes account of what comes back.
    pub(in super::super) fn drive_given_up(&mut self, shared: &Shared) {
        let mut completed = std::mem::take(&mut self.completed);
        shared.requests.take_completed(&mut completed);
        for (slot, result) in completed.drain(..) {
            self.give_up_part(shared, slot, result);
        }
        self.completed = completed;
    }
}
