//! The buffers of a request: pieces with guards between them, placed as badly as the device's memory alignment allows.
//!
//! While a request is out its memory is the device's. It comes back with the completion; what is never completed is never
//! given back, because the device may still write to it.

use crate::device::{AlignedBuffer, IoVec, gather, scatter};
use crate::error::Result;

/// Bytes between two pieces, and before the first and after the last, that the device must leave alone.
const GUARD: usize = 64;
/// What they hold: neither zero nor a plausible fill.
const CANARY: u8 = 0xc7;

/// Where pieces begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// On pages, as most hosts have them.
    Pages,
    /// On multiples of the device's memory alignment that are multiples of nothing larger.
    Barely,
}

/// Memory that is lent to a device.
#[derive(Debug)]
pub(super) struct Lent {
    memory: AlignedBuffer,
    /// Where the pieces begin, and how long they are.
    pieces: Vec<(usize, usize)>,
}

impl Lent {
    /// Pieces of these lengths, the guards in place.
    pub(super) fn new(lengths: &[usize], alignment: usize, placement: Placement) -> Result<Self> {
        const PAGE: usize = 4096;
        let (step, odd) = match placement {
            Placement::Pages => (alignment.max(PAGE), 0),
            Placement::Barely => (2 * alignment, alignment),
        };
        let mut at = 0;
        let mut pieces = Vec::with_capacity(lengths.len());
        for length in lengths {
            let start = (at + GUARD).next_multiple_of(step) + odd;
            pieces.push((start, *length));
            at = start + length;
        }
        let memory = AlignedBuffer::new(at + GUARD, step)?;
        let lent = Self { memory, pieces };
        lent.whole_guards(|iov, length| scatter(&[iov], 0, &vec![CANARY; length]));
        Ok(lent)
    }

    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn iov(&self) -> Vec<IoVec> {
        self.pieces.iter().map(|(start, length)| self.part(*start, *length)).collect()
    }

    /// Fills the pieces, in order. Only while it is not lent.
    pub(super) fn fill(&self, bytes: &[u8]) {
        scatter(&self.iov(), 0, bytes);
    }

    /// What the pieces hold. Only while it is not lent.
    pub(super) fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.pieces.iter().map(|(_, length)| length).sum()];
        gather(&self.iov(), 0, &mut bytes);
        bytes
    }

    /// Whether nothing beside the pieces was changed. Only while it is not lent.
    pub(super) fn guards_are_whole(&self) -> bool {
        let mut whole = true;
        self.whole_guards(|iov, length| {
            let mut bytes = vec![0; length];
            gather(&[iov], 0, &mut bytes);
            whole &= bytes.iter().all(|byte| *byte == CANARY);
        });
        whole
    }

    /// Visits the memory between the pieces, all of it.
    fn whole_guards(&self, mut visit: impl FnMut(IoVec, usize)) {
        let mut at = 0;
        for (start, length) in self.pieces.iter().copied().chain([(self.memory.len(), 0)]) {
            if start > at {
                visit(self.part(at, start - at), start - at);
            }
            at = start + length;
        }
    }

    fn part(&self, start: usize, length: usize) -> IoVec {
        // SAFETY: the slot of the request owns this memory until the request is completed; what is never completed
        // stays with the device until that is gone (`seat`). Who looks at the bytes here does so before or after.
        unsafe { self.memory.lend(start, length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_stand_where_they_were_wanted_and_guards_tell() {
        for (placement, alignment, modulus, rest) in [
            (Placement::Pages, 1, 4096, 0),
            (Placement::Barely, 1, 2, 1),
            (Placement::Barely, 512, 1024, 512),
        ] {
            let lent = Lent::new(&[512, 0, 7], alignment, placement).expect("memory");
            lent.fill(&[9; 519]);
            assert_eq!(lent.contents(), [9; 519]);
            let iov = lent.iov();
            assert!(iov.iter().all(|piece| piece.base() as usize % modulus == rest), "{placement:?}");
            assert!(lent.guards_are_whole());
            scatter(
                &[lent.part(iov[2].base() as usize - iov[0].base() as usize + lent.pieces[0].0 + 7, 1)],
                0,
                &[0],
            );
            assert!(!lent.guards_are_whole(), "{placement:?}: a byte beyond the last piece");
        }
    }
}
