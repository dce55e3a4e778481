//! The copy buffers: one block of memory, cut into chunks by number (SPEC C-6).

use crate::device::{AlignedBuffer, IoVec, slice_into};
use crate::engine::Segment;
use crate::error::{Errno, Error, Result};

/// Pages are what operating systems and devices like best.
const MIN_ALIGNMENT: u32 = 4096;

#[derive(Debug)]
pub(super) struct Buffers {
    memory: AlignedBuffer,
    chunk: u64,
}

impl Buffers {
    /// `bytes` in chunks of `chunk`, aligned for both devices.
    pub(super) fn new(bytes: u64, chunk: u64, alignment: u32) -> Result<Self> {
        let length = usize::try_from(bytes).map_err(|_| {
            Error::new(Errno::ENOMEM, format!("buf_size {bytes}: more than can be addressed"))
        })?;
        let memory = AlignedBuffer::new(length, alignment.max(MIN_ALIGNMENT) as usize)?;
        Ok(Self { memory, chunk })
    }

    /// All of them.
    pub(super) fn whole(&self) -> IoVec {
        // SAFETY: it is only looked at; requests get their buffers by `lend`.
        unsafe { self.memory.lend(0, self.memory.len()) }
    }

    /// Appends the buffers of a part of an operation that has these segments; says how many bytes they hold.
    #[inline]
    pub(super) fn lend(
        &self,
        segments: &[Segment],
        skip: u64,
        length: u64,
        max: usize,
        out: &mut Vec<IoVec>,
    ) -> u64 {
        // Most have one, and use all of it.
        if let (&[segment], 0) = (segments, skip) {
            let whole = self.segment(segment);
            if whole.len() as u64 <= length && max > 0 {
                out.push(whole);
                return whole.len() as u64;
            }
        }
        self.lend_parts(segments, skip, length, max, out)
    }

    fn lend_parts(
        &self,
        segments: &[Segment],
        mut skip: u64,
        length: u64,
        max: usize,
        out: &mut Vec<IoVec>,
    ) -> u64 {
        let mut held = 0;
        let room = out.len() + max;
        for segment in segments {
            let bytes = u64::from(segment.count) * self.chunk;
            if skip >= bytes {
                skip -= bytes;
                continue;
            }
            if held == length || out.len() == room {
                break;
            }
            held += slice_into(&[self.segment(*segment)], skip, length - held, 1, out);
            skip = 0;
        }
        held
    }

    /// Whether the first `length` bytes of these segments are all zero. Nothing may be reading into them.
    pub(super) fn is_zero(&self, segments: &[Segment], length: u64) -> bool {
        let mut left = length;
        segments.iter().all(|segment| {
            let bytes = left.min(u64::from(segment.count) * self.chunk);
            left -= bytes;
            // SAFETY: the operation's read is done and its write not begun, so nobody writes to its buffers.
            unsafe { self.memory.is_zero(self.offset(*segment), bytes as usize) }
        })
    }

    fn segment(&self, segment: Segment) -> IoVec {
        // SAFETY: the engine lends a chunk to one operation at a time, and the driver keeps the memory until no
        // request is out (`Shared`).
        unsafe { self.memory.lend(self.offset(segment), (u64::from(segment.count) * self.chunk) as usize) }
    }

    fn offset(&self, segment: Segment) -> usize {
        (u64::from(segment.first) * self.chunk) as usize
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::device::scatter;

    #[test]
    fn zeroes_are_looked_for_in_every_buffer_and_not_beyond_the_length() {
        // SPEC C-4: a cluster's buffers may lie apart.
        let buffers = Buffers::new(8 * 512, 512, 512).expect("memory");
        let segments = [Segment { first: 5, count: 1 }, Segment { first: 1, count: 2 }];
        let write = |at: u64, byte: u8| {
            let mut lent = Vec::new();
            assert_eq!(buffers.lend(&segments, at, 1, 8, &mut lent), 1);
            scatter(&lent, 0, &[byte]);
        };
        for at in 0..3 * 512 {
            write(at, 0);
        }
        assert!(buffers.is_zero(&segments, 3 * 512));
        for at in [0, 511, 512, 1023, 1024, 1535] {
            write(at, 1);
            assert!(!buffers.is_zero(&segments, 3 * 512), "byte {at}");
            assert!(buffers.is_zero(&segments, at), "before byte {at}");
            write(at, 0);
        }
    }
}
