//! Copies of guest data: because the guest may change it while two devices read it, or because a device wants
//! better aligned memory than the guest has.

use crate::device::{AlignedBuffer, IoVec, gather, scatter};
use crate::error::{Errno, Result};
use crossbeam::queue::ArrayQueue;
use std::sync::atomic::{AtomicU64, Ordering};

/// Enough for every device that an operating system has. One that wants more gets memory of its own.
const ALIGNMENT: usize = 4096;
/// Sizes that are kept for the next request: powers of two from 4 KiB to 1 MiB.
const SMALLEST: u32 = 12;
const CLASSES: usize = 9;
/// How many of each size are kept.
const KEPT: usize = 32;

#[derive(Debug)]
pub(super) struct Pool {
    classes: [ArrayQueue<AlignedBuffer>; CLASSES],
    /// Buffers that were ever taken: each is one request whose data is copied.
    taken: AtomicU64,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self { classes: std::array::from_fn(|_| ArrayQueue::new(KEPT)), taken: AtomicU64::new(0) }
    }

    /// A buffer of at least this length, for a device that wants its memory aligned so.
    pub(super) fn take(&self, length: u64, alignment: u32) -> Result<AlignedBuffer> {
        let length = usize::try_from(length).map_err(|_| Errno::ENOMEM)?;
        self.taken.fetch_add(1, Ordering::Relaxed);
        if alignment as usize > ALIGNMENT {
            return AlignedBuffer::new(length, alignment as usize);
        }
        match self.class(length) {
            Some((class, size)) => class.pop().map_or_else(|| AlignedBuffer::new(size, ALIGNMENT), Ok),
            None => AlignedBuffer::new(length, ALIGNMENT),
        }
    }

    /// How many copies were made so far.
    pub(super) fn copies(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    pub(super) fn give_back(&self, buffer: AlignedBuffer) {
        if let Some((class, size)) = self.class(buffer.len())
            && size == buffer.len()
        {
            // A full class lets it go.
            let _ = class.push(buffer);
        }
    }

    fn class(&self, length: usize) -> Option<(&ArrayQueue<AlignedBuffer>, usize)> {
        let bits = length.max(1).next_power_of_two().trailing_zeros().max(SMALLEST);
        Some((self.classes.get((bits - SMALLEST) as usize)?, 1 << bits))
    }
}

/// The whole buffer, for a request.
pub(super) fn whole(buffer: &AlignedBuffer) -> IoVec {
    // SAFETY: a request's copy is kept until the request is done.
    unsafe { buffer.lend(0, buffer.len()) }
}

/// Copies the guest's data into the buffer.
pub(super) fn fill(buffer: &AlignedBuffer, iov: &[IoVec]) {
    let mut at = 0;
    for part in iov {
        copy(part, &whole(buffer).slice(at, part.len()));
        at += part.len();
    }
}

/// Copies what was read into the guest's buffers.
pub(super) fn spill(buffer: &AlignedBuffer, iov: &[IoVec]) {
    let mut at = 0;
    for part in iov {
        copy(&whole(buffer).slice(at, part.len()), part);
        at += part.len();
    }
}

fn copy(from: &IoVec, to: &IoVec) {
    let mut piece = [0u8; 4096];
    let mut at = 0;
    while at < from.len() {
        let piece = &mut piece[..(from.len() - at).min(4096)];
        gather(&[*from], at as u64, piece);
        scatter(&[*to], at as u64, piece);
        at += piece.len();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn take(pool: &Pool, length: u64, alignment: u32) -> AlignedBuffer {
        pool.take(length, alignment).expect("memory")
    }

    /// Whether a buffer that is given back is the one that such a request gets next.
    fn is_kept(length: u64, alignment: u32) -> bool {
        let pool = Pool::new();
        let buffer = take(&pool, length, alignment);
        assert!(buffer.len() as u64 >= length);
        let place = whole(&buffer).base();
        pool.give_back(buffer);
        // Whatever is made now lies elsewhere, if the first one was kept.
        let others = [take(&pool, 2 << 20, 4096), take(&pool, length, alignment)];
        assert_eq!(pool.copies(), 3);
        whole(&others[1]).base() == place && pool.classes.iter().all(ArrayQueue::is_empty)
    }

    #[test]
    fn buffers_of_usual_sizes_are_kept_and_used_again() {
        for (length, size) in [(1, 4096), (4096, 4096), (4097, 8192), (1 << 20, 1 << 20)] {
            let pool = Pool::new();
            let buffer = take(&pool, length, 4096);
            assert_eq!(buffer.len(), size);
            pool.give_back(buffer);
            assert_eq!(pool.classes.iter().map(ArrayQueue::len).sum::<usize>(), 1, "{length}");
            assert!(is_kept(length, 4096), "{length}");
        }
    }

    #[test]
    fn unusual_sizes_and_alignments_get_exactly_what_they_want_and_are_not_kept() {
        for (length, alignment) in [((1 << 20) + 1, 512), (5000, 8192)] {
            let pool = Pool::new();
            let buffer = take(&pool, length, alignment);
            assert_eq!(buffer.len() as u64, length);
            assert_eq!(whole(&buffer).base() as usize % alignment as usize, 0);
            pool.give_back(buffer);
            assert!(pool.classes.iter().all(ArrayQueue::is_empty), "{length} aligned to {alignment}");
        }
    }

    #[test]
    fn what_is_copied_to_a_buffer_comes_back_to_the_parts_that_it_came_from() {
        let mut parts = [vec![1_u8; 5000], vec![2; 1], vec![3; 4096]];
        // SAFETY: the parts outlive their use.
        let iov = parts.each_mut().map(|part| unsafe { IoVec::new(part.as_mut_ptr().cast(), part.len()) });
        let buffer = take(&Pool::new(), 9097, 512);
        fill(&buffer, &iov);
        let mut held = vec![0; 9097];
        gather(&[whole(&buffer)], 0, &mut held);
        assert!(held == parts.concat());
        for part in &mut parts {
            part.fill(9);
        }
        spill(&buffer, &iov);
        assert!(parts.concat() == held);
    }
}
