//! The buffers of a request: pieces with guards between them, placed as badly as the device's memory alignment allows.
//!
//! While a request is out its memory is the device's. It comes back with the completion; what is never completed is never
//! given back, because the device may still write to it.

use super::room;
use crate::device::{AlignedBuffer, IoVec, gather, scatter};
use crate::error::Result;

/// Bytes between two pieces, and before the first and after the last, that the device must leave alone.
const GUARD: usize = 64;
/// What they hold: neither zero nor a plausible fill.
const CANARY: u8 = 0xc7;
/// So many bytes are looked at at a time, on the stack.
const BLOCK: usize = 512;

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
        let mut pieces = room::with_capacity(lengths.len())?;
        for length in lengths {
            let start = (at + GUARD).next_multiple_of(step) + odd;
            pieces.push((start, *length));
            at = start + length;
        }
        let memory = AlignedBuffer::new(at + GUARD, step)?;
        let lent = Self { memory, pieces };
        lent.each_guard(|guard| scatter(&[guard], 0, &[CANARY; BLOCK][..guard.len()]));
        Ok(lent)
    }

    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn iov(&self) -> Result<Vec<IoVec>> {
        let mut iov = room::with_capacity(self.pieces.len())?;
        iov.extend(self.pieces.iter().map(|(start, length)| self.part(*start, *length)));
        Ok(iov)
    }

    /// Fills the pieces, in order. Only while it is not lent.
    pub(super) fn fill(&self, bytes: &[u8]) {
        self.each_piece(|piece, at| scatter(&[piece], 0, &bytes[at..at + piece.len()]));
    }

    /// What the pieces hold. Only while it is not lent.
    pub(super) fn contents(&self) -> Result<Vec<u8>> {
        let mut bytes = room::zeroed(self.pieces.iter().map(|(_, length)| length).sum())?;
        self.each_piece(|piece, at| gather(&[piece], 0, &mut bytes[at..at + piece.len()]));
        Ok(bytes)
    }

    /// Whether the pieces hold these bytes. Only while it is not lent.
    pub(super) fn holds(&self, bytes: &[u8]) -> bool {
        let mut same = true;
        self.each_piece(|piece, at| {
            for (block, skip) in blocks(piece) {
                same &= held(block, &mut [0; BLOCK]) == &bytes[at + skip..at + skip + block.len()];
            }
        });
        same
    }

    /// Whether nothing beside the pieces was changed. Only while it is not lent.
    pub(super) fn guards_are_whole(&self) -> bool {
        let mut whole = true;
        self.each_guard(|guard| {
            whole &= held(guard, &mut [0; BLOCK]).iter().all(|byte| *byte == CANARY);
        });
        whole
    }

    /// Visits the memory between the pieces, all of it, in blocks.
    fn each_guard(&self, mut visit: impl FnMut(IoVec)) {
        let mut at = 0;
        for (start, length) in self.pieces.iter().copied().chain([(self.memory.len(), 0)]) {
            blocks(self.part(at, start - at)).for_each(|(block, _)| visit(block));
            at = start + length;
        }
    }

    /// Visits the pieces, and says which of all their bytes is the first of each.
    fn each_piece(&self, mut visit: impl FnMut(IoVec, usize)) {
        let mut at = 0;
        for (start, length) in self.pieces.iter().copied() {
            visit(self.part(start, length), at);
            at += length;
        }
    }

    fn part(&self, start: usize, length: usize) -> IoVec {
        // SAFETY: the slot of the request owns this memory until the request is completed; what is never completed
        // stays with the device until that is gone (`seat`). Who looks at the bytes here does so before or after.
        unsafe { self.memory.lend(start, length) }
    }
}

/// The blocks of a buffer, and where in it each begins.
fn blocks(buffer: IoVec) -> impl Iterator<Item = (IoVec, usize)> {
    (0..buffer.len()).step_by(BLOCK).map(move |at| (buffer.slice(at, BLOCK), at))
}

/// What a block holds.
fn held(block: IoVec, bytes: &mut [u8; BLOCK]) -> &[u8] {
    let bytes = &mut bytes[..block.len()];
    gather(&[block], 0, bytes);
    bytes
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
            assert_eq!(lent.contents().expect("memory"), [9; 519]);
            assert!(lent.holds(&[9; 519]) && !lent.holds(&[[9; 518].as_slice(), &[8]].concat()));
            let iov = lent.iov().expect("memory");
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
