//! The slow path: requests that a device doesn't take in one piece, or not now.
//!
//! Such a request goes in steps, one after the other. A step may be completed while it is still being submitted, by
//! another thread or by the host inside its own callback; `Slot::step` decides which of the two goes on with the next, so
//! that however a device completes, the steps are a loop and never a recursion.
//!
//! A device that answers "again" has the request queued (`held_back`), and everything that comes after it behind it, until
//! a completion or the host says that there may be room (SPEC D-2).

use super::bounce;
use super::core::{Attached, Core};
use super::held_back::{Offered, Place};
use super::shard;
use super::slots::Guest;
use crate::device::{Answer, IoVec, Kind, Request, is_aligned, most_zeroes, slice_into, zeroes};
use crate::error::{Errno, IoResult, to_c};
use crate::range::ByteRange;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// No step is under way.
const IDLE: u8 = 0;
/// A thread is in the device's `submit`.
const SUBMITTING: u8 = 1;
/// The step was completed before `submit` returned: who submitted goes on.
const EARLY: u8 = 2;
/// `submit` has returned: who completes goes on.
const WAITING: u8 = 3;

impl Core {
    /// Sends a request step by step, behind those that wait for room. The caller owns the slot.
    pub(super) fn send_stepped(&self, index: u16) {
        if !self.held_back.any() {
            match self.run_steps(index) {
                Offered::Taken => return,
                Offered::Again => {}
            }
        }
        self.wait_for_room(index);
    }

    /// Queues a request that the device had no room for.
    pub(super) fn wait_for_room(&self, index: u16) {
        self.hold_back(index, Place::Last);
    }

    fn hold_back(&self, index: u16, place: Place) {
        let fed = self.held_back.hold(index, place, |starving| {
            let device = self.device()?;
            if starving.is_some_and(|starving| Arc::ptr_eq(starving.core(), device.core())) {
                return None;
            }
            device.core().set_starved(true);
            Some(device)
        });
        if let Some(device) = fed {
            device.core().set_starved(false);
        }
        // Room may have come before this request was seen to wait.
        self.retry_held_back();
    }

    /// Offers what was held back, until the device has no room.
    pub(super) fn retry_held_back(&self) {
        self.held_back.offer_all(|index| self.run_steps(index), |device| device.core().set_starved(false));
    }

    /// Submits step after step for as long as they finish at once.
    fn run_steps(&self, index: u16) -> Offered {
        let Some(slot) = self.slots.get(index) else { return Offered::Taken };
        loop {
            let inside = self.gate.step_in(shard());
            // Nothing is taken down while a request is counted.
            let Some(attached) = self.current.get(&inside) else {
                self.see(self.gate.step_out(inside));
                return Offered::Taken;
            };
            // SAFETY: the caller owns the slot, or this loop has claimed the last step.
            let guest = unsafe { self.slots.owned(index) };
            let mut iov = Vec::new();
            let (kind, range) = match self.next_step(guest, attached, &mut iov) {
                Ok(step) => step,
                Err(errno) => {
                    self.see(self.gate.step_out(inside));
                    self.finish(index, Err(errno)).run();
                    return Offered::Taken;
                }
            };
            let request = Request { kind, range, flags: guest.flags, iov: &iov, from: None };
            slot.step.store(SUBMITTING, Ordering::Release);
            let generation = slot.open_for(attached.number);
            let answer = attached.submit(index, generation, &request);
            self.see(self.gate.step_out(inside));
            let claimed = !matches!(answer, Answer::Pending) && slot.state.claim(generation);
            let result = match answer {
                Answer::Done(result) if claimed => result,
                Answer::Again if claimed => {
                    self.forget_told(index);
                    slot.step.store(IDLE, Ordering::Release);
                    return Offered::Again;
                }
                // Pending; or the host has completed it and answers otherwise as well, and the completion counts.
                _ => {
                    let wait =
                        slot.step.compare_exchange(SUBMITTING, WAITING, Ordering::AcqRel, Ordering::Acquire);
                    if wait.is_ok() {
                        return Offered::Taken;
                    }
                    Errno::check(slot.step_result.load(Ordering::Acquire))
                }
            };
            slot.step.store(IDLE, Ordering::Release);
            if let Some(result) = self.after_step(index, result) {
                self.finish(index, result).run();
                return Offered::Taken;
            }
        }
    }

    /// The completion of this slot was claimed. The result of the request if that was all of it; `None` if it goes on,
    /// here or where it was submitted.
    pub(super) fn step_completed(&self, index: u16, result: IoResult) -> Option<IoResult> {
        let slot = self.slots.get(index)?;
        if slot.step.load(Ordering::Acquire) == IDLE {
            return Some(result);
        }
        slot.step_result.store(to_c(result), Ordering::Release);
        if slot.step.compare_exchange(SUBMITTING, EARLY, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            return None;
        }
        slot.step.store(IDLE, Ordering::Release);
        let finished = self.after_step(index, result);
        if finished.is_none()
            && let Offered::Again = self.run_steps(index)
        {
            self.hold_back(index, Place::First);
        }
        finished
    }

    /// Takes account of a step. The result of the request if that was the last.
    fn after_step(&self, index: u16, result: IoResult) -> Option<IoResult> {
        // SAFETY: the step was claimed by the caller.
        let guest = unsafe { self.slots.owned(index) };
        let inside = self.gate.step_in(shard());
        let length = self.current.get(&inside).map_or(0, |attached| step_length(guest, attached));
        self.see(self.gate.step_out(inside));
        guest.stepped += length;
        (result.is_err() || guest.stepped >= guest.range.len()).then_some(result)
    }

    /// The next step of a request: its kind, range and buffers.
    fn next_step(
        &self,
        guest: &mut Guest,
        attached: &Attached,
        iov: &mut Vec<IoVec>,
    ) -> Result<(Kind, ByteRange), Errno> {
        let limits = attached.device.limits();
        if matches!(guest.kind, Kind::Read | Kind::Write)
            && guest.bounce.is_none()
            && (!is_aligned(&guest.iov, limits.memory_alignment) || guest.iov.len() > limits.max_iov as usize)
        {
            let buffer = self
                .bounce
                .take(guest.range.len(), limits.memory_alignment)
                .map_err(|error| error.errno())?;
            if guest.kind == Kind::Write {
                bounce::fill(&buffer, &guest.iov);
            }
            guest.bounce = Some(buffer);
        }
        let start = guest.range.offset() + guest.stepped;
        let length = step_length(guest, attached);
        let range = ByteRange::between(start, start + length);
        match guest.kind {
            Kind::Read | Kind::Write => {
                let held = match &guest.bounce {
                    Some(buffer) => {
                        slice_into(&[bounce::whole(buffer)], guest.stepped, length, usize::MAX, iov)
                    }
                    None => slice_into(&guest.iov, guest.stepped, length, usize::MAX, iov),
                };
                debug_assert_eq!(held, length);
                Ok((guest.kind, range))
            }
            Kind::Zero if !attached.zeroes => {
                zeroes(length, iov)?;
                Ok((Kind::Write, range))
            }
            _ => Ok((guest.kind, range)),
        }
    }
}

/// How many bytes the next step of a request takes.
fn step_length(guest: &Guest, attached: &Attached) -> u64 {
    let limits = attached.device.limits();
    let left = guest.range.len() - guest.stepped;
    left.min(match guest.kind {
        Kind::Read | Kind::Write => limits.max_transfer,
        Kind::Zero if attached.zeroes => limits.max_zero,
        Kind::Zero => most_zeroes(limits.max_transfer, limits.max_iov),
        Kind::Discard => limits.max_discard,
        _ => u64::MAX,
    })
}
