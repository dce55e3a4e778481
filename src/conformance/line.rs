//! The line to the device: sends requests, offers again what was not taken, and waits, but not for ever.

use super::Asked;
use super::memory::Lent;
use super::seat::{Ended, Odd, Reply, Seat};
use crate::clock::{self, Nanos};
use crate::device::{Answer, Client, Device, IoVec, Request, Token};
use crate::error::{Errno, Error, IoResult, Result};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

/// How long to wait before the device's poll hook is called again.
const MOMENT: Duration = Duration::from_millis(1);
/// So many times the patience is enough for a device that says again and again that there may be room.
const KICKED: u64 = 4;

/// A request to send.
pub(super) struct Ask {
    pub(super) asked: Asked,
    lent: Option<Lent>,
    iov: Vec<IoVec>,
    /// How many extents are enough.
    enough: usize,
}

impl Ask {
    pub(super) fn new(asked: Asked, lent: Option<Lent>, enough: usize) -> Result<Self> {
        let iov = lent.as_ref().map(Lent::iov).transpose()?.unwrap_or_default();
        Ok(Self { asked, lent, iov, enough })
    }
}

/// What became of a request.
pub(super) enum Fate {
    /// It is done, and its memory is ours again.
    Ended { result: IoResult, lent: Option<Lent>, reply: Reply },
    /// It was taken and not completed: its memory stays with the device.
    Unanswered,
    /// It was not taken, for as long as one may wait.
    NotTaken,
}

pub(super) struct Line {
    pub(super) device: Device,
    seat: Arc<Seat>,
    client: u8,
    patience: u64,
    /// Completions that the device had had refused before.
    refused_before: u64,
}

impl Line {
    /// Takes a seat at the device. `EBUSY` if somebody else has one.
    pub(super) fn new(device: &Device, patience_ns: u64) -> Result<Self> {
        let place = device.core().reserve_alone().ok_or_else(|| {
            Error::new(
                Errno::EBUSY,
                "the device is used by a filter or a job, or an earlier check has requests out that were not completed",
            )
        })?;
        let client = place.client();
        let seat = Arc::new(Seat::new(device.core(), client, place.base())?);
        let line = Self {
            device: device.clone(),
            seat: Arc::clone(&seat),
            client,
            patience: patience_ns,
            refused_before: device.refused_completions(),
        };
        place.take(seat as Arc<dyn Client>);
        Ok(line)
    }

    /// Sends the requests, in order and without waiting for one before the next; calls `between` once they are sent, and
    /// waits for all. Any thread, several at once.
    pub(super) fn run(&self, asks: Vec<Ask>, between: &dyn Fn()) -> Vec<Fate> {
        let offered: Vec<Option<u16>> = asks.into_iter().map(|ask| self.offer(ask)).collect();
        between();
        let clock = Clock::new(self.patience);
        offered
            .into_iter()
            .map(|slot| match slot {
                None => Fate::NotTaken,
                Some(slot) => match self.wait_for(slot, &clock) {
                    Some(Ended { result, lent, reply }) => Fate::Ended { result, lent, reply },
                    None => Fate::Unanswered,
                },
            })
            .collect()
    }

    /// Lets what is under way come in for a while, so that a second completion is seen.
    pub(super) fn settle(&self, while_ns: u64) {
        let clock = Clock::new(while_ns);
        while !clock.is_over() {
            self.device.poll();
            self.seat.wait(self.seat.news(), MOMENT);
        }
    }

    /// Takes the completions that should not have come, and how many there were of tokens of nobody, so far.
    pub(super) fn take_odd(&self) -> (Vec<Odd>, u64) {
        let (odd, ours) = self.seat.take_odd();
        // Ours were counted by the device too, or are about to be.
        let all = self.device.refused_completions() - self.refused_before;
        (odd, all.saturating_sub(ours))
    }

    /// The slot of a request that was taken; `None` if it was not.
    fn offer(&self, ask: Ask) -> Option<u16> {
        let Ask { asked, lent, iov, enough } = ask;
        let slot = self.seat.take(asked, lent, enough)?;
        let Asked { kind, range, flags, .. } = asked;
        let request = Request { kind, range, flags, iov: &iov, from: None };
        let patience = Clock::new(self.patience * KICKED);
        loop {
            let seen = self.seat.news();
            let generation = self.seat.open(slot);
            match self.device.submit(Token::new(self.client, slot, generation), &request) {
                Answer::Pending => return Some(slot),
                Answer::Done(result) => {
                    self.seat.answered(slot, generation, result);
                    return Some(slot);
                }
                Answer::Again if !self.seat.not_taken(slot, generation) => return Some(slot),
                Answer::Again => {}
            }
            if !self.wait_for_room(seen) || patience.is_over() {
                self.seat.give_back(slot);
                return None;
            }
        }
    }

    /// Whether something was completed, or the device said that there may be room, since `seen`.
    fn wait_for_room(&self, seen: u64) -> bool {
        let clock = Clock::new(self.patience);
        loop {
            self.device.poll();
            if self.seat.wait(seen, MOMENT) > seen {
                return true;
            }
            if clock.is_over() {
                return false;
            }
        }
    }

    /// Waits for a request, for as long as others are still being completed.
    fn wait_for(&self, slot: u16, clock: &Clock) -> Option<Ended> {
        let mut seen = self.seat.news();
        loop {
            if let Some(ended) = self.seat.take_ended(slot) {
                clock.restart();
                return Some(ended);
            }
            if clock.is_over() {
                return None;
            }
            self.device.poll();
            let now = self.seat.wait(seen, MOMENT);
            if now != seen {
                seen = now;
                clock.restart();
            }
        }
    }
}

impl Drop for Line {
    /// Also where a device panics.
    fn drop(&mut self) {
        self.seat.leave();
    }
}

/// Runs out after a while. Where there is no clock each look at it takes a moment.
struct Clock {
    begin: Cell<Nanos>,
    looks: Cell<u64>,
    length: u64,
}

impl Clock {
    fn new(length: u64) -> Self {
        Self { begin: Cell::new(clock::monotonic()), looks: Cell::new(0), length }
    }

    fn restart(&self) {
        self.begin.set(clock::monotonic());
        self.looks.set(0);
    }

    fn is_over(&self) -> bool {
        if cfg!(target_family = "wasm") {
            self.looks.set(self.looks.get() + 1);
            return self.looks.get() * MOMENT.as_nanos() as u64 > self.length;
        }
        clock::monotonic().since(self.begin.get()) > self.length
    }
}
