//! Memory that begins where direct I/O wants it to.

use crate::device::IoVec;
use crate::error::Errno;
use std::alloc::{self, Layout};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

/// Bytes at an aligned address, zero at first.
pub(super) struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its bytes, like a `Box<[u8]>`.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// `len` bytes, not 0, on a multiple of `alignment`, a power of two.
    pub(super) fn new(len: usize, alignment: usize) -> Result<Self, Errno> {
        debug_assert!(len > 0);
        let layout = Layout::from_size_align(len.max(1), alignment).map_err(|_| Errno::ENOMEM)?;
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc::alloc_zeroed(layout) };
        let start = NonNull::new(start).ok_or(Errno::ENOMEM)?;
        Ok(Self { start, layout })
    }

    /// The first `len` bytes, as a buffer of a read.
    pub(super) fn buffer_to_fill(&mut self, len: usize) -> IoVec {
        let bytes = &mut self[..len];
        // SAFETY: callers in this module keep `self` for as long as the read that they make goes on.
        unsafe { IoVec::new(bytes.as_mut_ptr().cast(), bytes.len()) }
    }

    /// The first `len` bytes, as a buffer of a write, which only reads them.
    pub(super) fn buffer_to_write(&self, len: usize) -> IoVec {
        let bytes = &self[..len];
        // SAFETY: callers in this module keep `self` for as long as the write that they make goes on.
        unsafe { IoVec::new(bytes.as_ptr().cast_mut().cast(), bytes.len()) }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: allocated with this size, initialised with zeroes, and only ever written as bytes.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed only here.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.layout.size())
    }
}
