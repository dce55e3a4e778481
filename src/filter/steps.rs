//! The slow path: requests that a device doesn't take in one piece, or not now.
//!
//! Such a request goes in steps, one after the other. A step may be completed while it is still being submitted, by
//! another thread or by the host inside its own callback; `Slot::step` decides which of the two goes on with the next, so
//! that however a device completes, the steps are a loop and never a recursion.
//!
//! A device that answers "again" has the request queued here, and everything that comes after it behind it, until a
//! completion or the host says that there may be room (SPEC D-2).

use super::slots::Guest;
use super::{Attached, Core, bounce, lock};
use crate::device::{Answer, Device, IoVec, Kind, Request, is_aligned, most_zeroes, slice_into, zeroes};
use crate::error::{Errno, IoResult, to_c};
use crate::range::ByteRange;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// No step is under way.
const IDLE: u8 = 0;
/// A thread is in the device's `submit`.
const SUBMITTING: u8 = 1;
/// The step was completed before `submit` returned: who submitted goes on.
const EARLY: u8 = 2;
/// `submit` has returned: who completes goes on.
const WAITING: u8 = 3;

/// Requests that the device had no room for, first come first served.
#[derive(Debug, Default)]
pub(super) struct HeldBack {
    queue: Mutex<VecDeque<u16>>,
    /// The device that was told that requests wait for room, for as long as any do. It may be another than the
    /// filter's when the last of them ends, because that may have let the filter be switched.
    starving: Mutex<Option<Device>>,
    /// Those in the queue, and the one that is being offered.
    count: AtomicUsize,
    /// Reasons to offer that have not been acted on.
    kicks: AtomicU32,
}

impl HeldBack {
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }
}

/// What became of a request that was offered.
enum Offered {
    /// It is under way or done.
    Taken,
    /// The device has no room.
    Again,
}

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
        lock(&self.held_back.queue).push_back(index);
        self.count_held_back();
        // Room may have come before this request was seen to wait.
        self.retry_held_back();
    }

    fn count_held_back(&self) {
        let mut starving = lock(&self.held_back.starving);
        if self.held_back.count.fetch_add(1, Ordering::SeqCst) == 0 {
            *starving = self.device();
            if let Some(device) = &*starving {
                device.core().set_starved(true);
            }
        }
    }

    fn uncount_held_back(&self) {
        let device = {
            let mut starving = lock(&self.held_back.starving);
            if self.held_back.count.fetch_sub(1, Ordering::SeqCst) == 1 { starving.take() } else { None }
        };
        // Outside the lock: this may be the last that is left of the device.
        if let Some(device) = device {
            device.core().set_starved(false);
        }
    }

    /// Offers what was held back, in order, until the device has no room. Whoever comes while another thread does
    /// this leaves it a note and goes: nothing recurses and no reason to offer is lost.
    pub(super) fn retry_held_back(&self) {
        if !self.held_back.any() || self.held_back.kicks.fetch_add(1, Ordering::SeqCst) > 0 {
            return;
        }
        let mut seen = 1;
        loop {
            self.offer_in_order();
            let left = self.held_back.kicks.fetch_sub(seen, Ordering::SeqCst) - seen;
            if left == 0 {
                return;
            }
            seen = left;
        }
    }

    fn offer_in_order(&self) {
        loop {
            let Some(index) = lock(&self.held_back.queue).pop_front() else { return };
            match self.run_steps(index) {
                Offered::Taken => self.uncount_held_back(),
                Offered::Again => {
                    lock(&self.held_back.queue).push_front(index);
                    return;
                }
            }
        }
    }

    /// Submits step after step for as long as they finish at once.
    fn run_steps(&self, index: u16) -> Offered {
        let Some(slot) = self.slots.get(index) else { return Offered::Taken };
        loop {
            let current = self.current.load();
            let Some(attached) = current.as_ref() else { return Offered::Taken };
            // SAFETY: the caller owns the slot, or this loop has claimed the last step.
            let guest = unsafe { self.slots.owned(index) };
            let mut iov = Vec::new();
            let (kind, range) = match self.next_step(guest, attached, &mut iov) {
                Ok(step) => step,
                Err(errno) => {
                    drop(current);
                    self.finish(index, Err(errno)).run();
                    return Offered::Taken;
                }
            };
            let request = Request { kind, range, flags: guest.flags, iov: &iov };
            slot.step.store(SUBMITTING, Ordering::Release);
            let generation = slot.state.open();
            let answer = attached.device.submit(attached.token(index, generation), &request);
            drop(current);
            let claimed = !matches!(answer, Answer::Pending) && slot.state.claim(generation);
            let result = match answer {
                Answer::Done(result) if claimed => result,
                Answer::Again if claimed => {
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
        if finished.is_none() {
            // Not the first any more: it is in the middle of its way and goes before those that wait.
            if let Offered::Again = self.run_steps(index) {
                lock(&self.held_back.queue).push_front(index);
                self.count_held_back();
                self.retry_held_back();
            }
        }
        finished
    }

    /// Takes account of a step. The result of the request if that was the last.
    fn after_step(&self, index: u16, result: IoResult) -> Option<IoResult> {
        // SAFETY: the step was claimed by the caller.
        let guest = unsafe { self.slots.owned(index) };
        let length = self.current.load().as_ref().map_or(0, |attached| step_length(guest, attached));
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
            let buffer = self.bounce.take(guest.range.len()).map_err(|error| error.errno())?;
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
            Kind::Zero if !attached.device.supports(Kind::Zero) => {
                zeroes(length, iov);
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
        Kind::Zero if attached.device.supports(Kind::Zero) => limits.max_zero,
        Kind::Zero => most_zeroes(limits.max_transfer, limits.max_iov),
        Kind::Discard => limits.max_discard,
        _ => u64::MAX,
    })
}
