//! The names of requests: a token is answered once, and an old one never names a new request (SPEC D-3).

use crate::sync::atomic::{AtomicU64, Ordering};
use std::fmt;

/// Names one request at one device: which client of the device it is of (8 bits), which of the client's slots
/// it is in (16), and which use of that slot it is (40).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u64);

/// How many uses of a slot are told apart before the numbers come round again; at a million requests a second
/// through the same slot that takes twelve days.
const GENERATIONS: u64 = 1 << 40;

impl Token {
    pub(crate) fn new(client: u8, slot: u16, generation: u64) -> Self {
        Self((generation % GENERATIONS) << 24 | u64::from(slot) << 8 | u64::from(client))
    }

    /// The token with this number, as a host hands it back.
    #[must_use]
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The number that a host sees.
    #[must_use]
    pub fn raw(self) -> u64 {
        self.0
    }

    pub(crate) fn client(self) -> u8 {
        self.0 as u8
    }

    pub(crate) fn slot(self) -> u16 {
        (self.0 >> 8) as u16
    }

    pub(crate) fn generation(self) -> u64 {
        self.0 >> 24
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// One slot's side of the bargain: open while a request is out, claimed by exactly one completion.
#[derive(Debug)]
pub(crate) struct SlotState(AtomicU64);

const OPEN: u64 = 1;

impl SlotState {
    /// A closed slot whose first use will have this generation.
    pub(crate) fn new(generation: u64) -> Self {
        Self(AtomicU64::new(generation << 1))
    }

    /// Opens the slot, by its owner, for a request; its generation is for the token.
    pub(crate) fn open(&self) -> u64 {
        let state = self.0.load(Ordering::Relaxed);
        debug_assert_eq!(state & OPEN, 0, "a slot has one request at a time");
        self.0.store(state | OPEN, Ordering::Release);
        state >> 1
    }

    /// Claims the right to complete this use of the slot: true for exactly one caller, and only while it is open.
    pub(crate) fn claim(&self, generation: u64) -> bool {
        let next = (generation + 1) % GENERATIONS;
        let open = generation << 1 | OPEN;
        self.0.compare_exchange(open, next << 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether this use of the slot is still open.
    pub(crate) fn is_open(&self, generation: u64) -> bool {
        self.0.load(Ordering::Acquire) == generation << 1 | OPEN
    }

    /// The use that is open.
    pub(crate) fn open_generation(&self) -> Option<u64> {
        let state = self.0.load(Ordering::Acquire);
        (state & OPEN != 0).then_some(state >> 1)
    }

    /// Claims whichever use is open.
    pub(crate) fn claim_any(&self) -> bool {
        self.open_generation().is_some_and(|generation| self.claim(generation))
    }

    /// The generation of this use, or of the next if the slot is closed.
    pub(crate) fn generation(&self) -> u64 {
        self.0.load(Ordering::Relaxed) >> 1
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_answered_once() {
        // SPEC D-3
        let slot = SlotState::new(7);
        let first = slot.open();
        assert!(slot.is_open(first));
        assert!(slot.claim(first));
        assert!(!slot.claim(first), "a second completion");
        let second = slot.open();
        assert_ne!(first, second);
        assert!(!slot.claim(first), "a stale completion");
        assert!(slot.claim(second));
        assert!(!slot.claim(slot.generation()), "a completion of what was never sent");
    }

    #[test]
    fn a_token_carries_its_three_parts() {
        let token = Token::new(200, 65_000, GENERATIONS - 1);
        assert_eq!((token.client(), token.slot(), token.generation()), (200, 65_000, GENERATIONS - 1));
        assert_eq!(Token::from_raw(token.raw()), token);
    }
}
