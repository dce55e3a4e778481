//! Lists of buffers: memory that belongs to somebody else while a request is under way.

use std::ffi::c_void;
use std::ptr;

/// One buffer, laid out as POSIX `struct iovec`.
///
/// Holding one asserts what [`IoVec::new`] demands, so that the methods here are safe to call.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IoVec {
    base: *mut c_void,
    len: usize,
}

// SAFETY: the memory is handed over for the duration of a request, to whichever thread carries it out
// (`IoVec::new`).
unsafe impl Send for IoVec {}
// SAFETY: as above; a shared `IoVec` only copies bytes through raw pointers.
unsafe impl Sync for IoVec {}

impl IoVec {
    /// A buffer of `len` bytes at `base`.
    ///
    /// # Safety
    /// Until the request that this buffer is part of is done, the memory is valid for reads (of a write) or for
    /// writes (of a read) of `len` bytes from any thread. A guest may change what it is writing meanwhile: the bytes
    /// are only copied, never looked at twice.
    #[must_use]
    pub unsafe fn new(base: *mut c_void, len: usize) -> Self {
        Self { base, len }
    }

    /// A buffer of no bytes.
    #[must_use]
    pub const fn none() -> Self {
        Self { base: ptr::null_mut(), len: 0 }
    }

    /// The first byte.
    #[must_use]
    pub fn base(&self) -> *mut c_void {
        self.base
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part of the buffer from `start`, at most `len` bytes.
    #[must_use]
    pub fn slice(&self, start: usize, len: usize) -> Self {
        let start = start.min(self.len);
        Self { base: self.base.cast::<u8>().wrapping_add(start).cast(), len: len.min(self.len - start) }
    }

    fn fill_from(&self, source: &[u8]) {
        debug_assert!(source.len() <= self.len);
        // SAFETY: `new` vouches for `len` writable bytes; `source` is a live slice of at most that length, and a
        // slice that the library owns doesn't overlap a request's buffer.
        unsafe { ptr::copy_nonoverlapping(source.as_ptr(), self.base.cast(), source.len()) }
    }

    fn copy_into(&self, target: &mut [u8]) {
        debug_assert!(target.len() <= self.len);
        // SAFETY: `new` vouches for `len` readable bytes; `target` is a live exclusive slice of at most that length.
        unsafe { ptr::copy_nonoverlapping(self.base.cast_const().cast(), target.as_mut_ptr(), target.len()) }
    }
}

/// The bytes in a list, `None` if the sum overflows.
#[must_use]
pub fn total(iov: &[IoVec]) -> Option<u64> {
    iov.iter().try_fold(0u64, |sum, buffer| sum.checked_add(buffer.len as u64))
}

/// Copies `source` into the buffers from byte `skip` of the list on, as far as they reach.
pub fn scatter(iov: &[IoVec], skip: u64, source: &[u8]) {
    let mut left = source;
    for_each_from(iov, skip, |buffer| {
        let (now, later) = left.split_at(buffer.len.min(left.len()));
        buffer.fill_from(now);
        left = later;
        !left.is_empty()
    });
}

/// Copies from the buffers, from byte `skip` of the list on, into `target`, as far as they reach.
pub fn gather(iov: &[IoVec], skip: u64, target: &mut [u8]) {
    let mut done = 0;
    for_each_from(iov, skip, |buffer| {
        let len = buffer.len.min(target.len() - done);
        buffer.copy_into(&mut target[done..done + len]);
        done += len;
        done < target.len()
    });
}

/// Appends to `out` the buffers that hold `length` bytes from byte `skip` of the list on, at most `max` of them;
/// says how many bytes they hold.
pub fn slice_into(iov: &[IoVec], skip: u64, length: u64, max: usize, out: &mut Vec<IoVec>) -> u64 {
    let mut done = 0;
    let room = out.len() + max;
    for_each_from(iov, skip, |buffer| {
        let want = usize::try_from(length - done).unwrap_or(usize::MAX);
        let part = buffer.slice(0, want);
        if part.len > 0 {
            out.push(part);
        }
        done += part.len as u64;
        done < length && out.len() < room
    });
    done
}

/// Whether every buffer begins on a multiple of `alignment`, a power of two, and every one but the last ends there.
#[must_use]
pub(crate) fn is_aligned(iov: &[IoVec], alignment: u32) -> bool {
    let mask = alignment as usize - 1;
    let inner = iov.len().saturating_sub(1);
    mask == 0
        || (iov.iter().all(|buffer| buffer.base as usize & mask == 0)
            && iov[..inner].iter().all(|buffer| buffer.len & mask == 0))
}

fn for_each_from(iov: &[IoVec], mut skip: u64, mut visit: impl FnMut(IoVec) -> bool) {
    for buffer in iov {
        let len = buffer.len as u64;
        if skip >= len {
            skip -= len;
            continue;
        }
        // `skip` is smaller than a usize here.
        if !visit(buffer.slice(skip as usize, usize::MAX)) {
            return;
        }
        skip = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(buffers: &mut [Vec<u8>]) -> Vec<IoVec> {
        // SAFETY: the vectors outlive the list in each test.
        buffers.iter_mut().map(|b| unsafe { IoVec::new(b.as_mut_ptr().cast(), b.len()) }).collect()
    }

    #[test]
    fn scatter_and_gather_cross_buffers() {
        let mut memory = [vec![0u8; 3], vec![], vec![0; 5]];
        let iov = list(&mut memory);
        assert_eq!(total(&iov), Some(8));
        scatter(&iov, 2, &[1, 2, 3]);
        let mut out = [9u8; 8];
        gather(&iov, 0, &mut out);
        assert_eq!(out, [0, 0, 1, 2, 3, 0, 0, 0]);
        scatter(&iov, 7, &[7, 8, 9]);
        gather(&iov, 7, &mut out[..1]);
        assert_eq!(out[0], 7);
    }

    #[test]
    fn a_slice_stops_at_its_length_and_at_its_count() {
        let mut memory = [vec![0u8; 3], vec![0; 5], vec![0; 4]];
        let iov = list(&mut memory);
        let mut out = Vec::new();
        assert_eq!(slice_into(&iov, 1, 100, 2, &mut out), 7);
        assert_eq!(out.iter().map(IoVec::len).collect::<Vec<_>>(), [2, 5]);
        out.clear();
        assert_eq!(slice_into(&iov, 3, 6, 8, &mut out), 6);
        assert_eq!(out.iter().map(IoVec::len).collect::<Vec<_>>(), [5, 1]);
    }
}
