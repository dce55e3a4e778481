//! Memory for requests: aligned as devices want it, zeroed, and given back when nobody uses it.

use super::IoVec;
use crate::error::{Errno, Error, Result};
use crate::reserve;
use once_cell::sync::OnceCell;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// An owned block of memory, aligned for the devices that it is for.
///
/// It is lent out as [`IoVec`]s while requests are under way, so nobody gets a slice of it: who reads or writes its
/// bytes goes through [`super::gather`] and [`super::scatter`].
///
/// Of a large one only what is touched takes memory. That is what the system does for a block of zeroes with no alignment
/// of its own, so the buffer is a part of such a block; an allocator that is asked to align it would clear it by hand.
#[derive(Debug)]
pub struct AlignedBuffer {
    base: NonNull<u8>,
    length: usize,
    block: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the block is owned; access to its bytes goes through raw copies, by whoever the request protocol allows.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above: a shared buffer gives out pointers only.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// `length` zeroed bytes on a multiple of `alignment`, a power of two. `ENOMEM` with the size if it can't be had.
    pub fn new(length: usize, alignment: usize) -> Result<Self> {
        let no_memory = || Error::new(Errno::ENOMEM, format!("no memory for a buffer of {length} bytes"));
        let (length, alignment) = (length.max(1), alignment.max(64));
        debug_assert!(alignment.is_power_of_two(), "alignment {alignment}");
        let with_room = length.checked_add(alignment - 1).ok_or_else(no_memory)?;
        let layout = Layout::array::<u8>(with_room).map_err(|_| no_memory())?;
        // SAFETY: the layout's size is not zero.
        let block = reserve::may_fail(|| unsafe { alloc_zeroed(layout) });
        let block = NonNull::new(block).ok_or_else(no_memory)?;
        let skip = block.as_ptr().addr().wrapping_neg() & (alignment - 1);
        // SAFETY: less than the alignment, for which the block has room before `length` bytes.
        let base = unsafe { block.add(skip) };
        Ok(Self { base, length, block, layout })
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds no bytes; it always does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// A part of it, for a request. Clipped to the buffer.
    ///
    /// # Safety
    /// The buffer outlives the request, and whoever else uses these bytes meanwhile only reads them or expects them
    /// to change.
    #[must_use]
    pub unsafe fn lend(&self, offset: usize, length: usize) -> IoVec {
        let offset = offset.min(self.len());
        // SAFETY: the part lies in the block, which the caller keeps for as long as the request is out.
        unsafe { IoVec::new(self.base.as_ptr().add(offset).cast(), length.min(self.len() - offset)) }
    }

    /// Whether the first `length` bytes from `offset` are all zero; looks no further than the first that isn't.
    ///
    /// # Safety
    /// No request that writes to these bytes is out.
    #[must_use]
    pub unsafe fn is_zero(&self, offset: usize, length: usize) -> bool {
        let offset = offset.min(self.len());
        let length = length.min(self.len() - offset);
        // SAFETY: the part lies in the block, which is initialised, and nobody writes to it, as the caller vouches.
        let bytes = unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset), length) };
        is_zero(bytes)
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.block.as_ptr(), self.layout) }
    }
}

/// How much of a scan for zeroes is looked at in one go: enough to be worth wide loads, little enough to stop soon.
const BLOCK: usize = 256;

/// Whether every byte is zero.
#[must_use]
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks();
    are_zero(blocks.iter()) && rest.iter().all(|byte| *byte == 0)
}

/// Takes no more blocks than up to the first that isn't zero. Written so that the compiler turns the inner loop into
/// wide loads.
fn are_zero<'a>(mut blocks: impl Iterator<Item = &'a [u8; BLOCK]>) -> bool {
    blocks.all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Zeroes for devices that have no zero request are written from one block of memory, listed as often as is needed.
const ZEROES: usize = 64 << 10;

/// Most zeroes in one write.
pub(crate) fn most_zeroes(max_transfer: u64, max_iov: u32) -> u64 {
    max_transfer.min(u64::from(max_iov) * ZEROES as u64)
}

/// Appends buffers that hold `length` zeroes.
pub(crate) fn zeroes(length: u64, iov: &mut Vec<IoVec>) -> Result<(), Errno> {
    static BLOCK: OnceCell<AlignedBuffer> = OnceCell::new();
    // Where there is no memory for it now, there may be later.
    let block =
        BLOCK.get_or_try_init(|| AlignedBuffer::new(ZEROES, ZEROES)).map_err(|error: Error| error.errno())?;
    let mut left = length;
    while left > 0 {
        let part = left.min(ZEROES as u64);
        // SAFETY: the block lives for ever and nobody writes to it.
        iov.push(unsafe { block.lend(0, part as usize) });
        left -= part;
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_single_byte_counts() {
        for length in [0, 1, 255, 256, 257, 1000] {
            let mut bytes = vec![0u8; length];
            assert!(is_zero(&bytes));
            for at in 0..length {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "byte {at} of {length}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn the_scan_for_zeroes_ends_where_something_else_is() {
        // SPEC O-5
        for (first_other, looked_at) in [(0, 1), (255, 1), (256, 2), (5 * 256 + 7, 6), (999_999, 3907)] {
            let mut bytes = vec![0u8; 1_000_192];
            bytes[first_other] = 1;
            let mut count = 0;
            let (blocks, _) = bytes.as_chunks();
            assert!(!are_zero(blocks.iter().inspect(|_| count += 1)));
            assert_eq!(count, looked_at, "blocks, though byte {first_other} is not zero");
        }
    }

    #[test]
    fn memory_that_can_not_be_had_is_an_error() {
        assert_eq!(AlignedBuffer::new(usize::MAX / 2, 4096).expect_err("too much").errno(), Errno::ENOMEM);
        let buffer = AlignedBuffer::new(10_000, 4096).expect("little");
        // SAFETY: no request is made.
        assert_eq!(unsafe { buffer.lend(0, 10) }.base() as usize % 4096, 0);
        // SAFETY: as above.
        assert_eq!(unsafe { buffer.lend(9_999, 10) }.len(), 1);
    }

    #[test]
    fn any_alignment_is_kept_and_all_of_it_is_zero() {
        for (length, alignment) in [(1, 1), (1, 4096), (100_000, 512), (1 << 20, 1 << 16), (3 << 20, 1 << 21)]
        {
            let buffer = AlignedBuffer::new(length, alignment).expect("little");
            // SAFETY: no request is made.
            let whole = unsafe { buffer.lend(0, length) };
            assert_eq!((whole.base().addr() % alignment, whole.len(), buffer.len()), (0, length, length));
            // SAFETY: as above.
            assert!(unsafe { buffer.is_zero(0, length) });
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_not_touched_takes_no_memory() {
        let resident_pages = || -> usize {
            let text = std::fs::read_to_string("/proc/self/statm").expect("readable");
            text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number")
        };
        let before = resident_pages();
        let buffer = AlignedBuffer::new(1 << 30, 4096).expect("address space");
        let grown = resident_pages().saturating_sub(before);
        // Other tests run at the same time, so it is not nothing.
        assert!(grown < buffer.len() / 4096 / 2, "{grown} pages");
    }
}
