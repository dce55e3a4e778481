//! Which chunks are dirty, in flight, written or known to be zero.
//!
//! [`DirtyBitmap`] is shared: any thread marks, one scanner searches and clears. [`ChunkMap`] has a single owner
//! and stays small when few chunks are set, or when nearly all are.

mod chunk_map;
mod dirty;
mod tracking;

pub use chunk_map::ChunkMap;
pub use dirty::DirtyBitmap;
pub use tracking::Tracking;

use crate::range::ChunkRange;

/// The part of the range that lies below `chunks`.
fn clip(range: ChunkRange, chunks: u64) -> ChunkRange {
    ChunkRange::new(range.start.min(chunks), range.end.min(chunks))
}

/// A type whose default value is all zero bytes.
///
/// # Safety
/// All zero bytes must be a valid value of the type, with nothing that has to be dropped.
unsafe trait ZeroByDefault: Default {}

// SAFETY: an integer, and 0 is its default.
unsafe impl ZeroByDefault for u32 {}

// SAFETY: laid out as a `u64`, whose default is 0. (Loom's model of it isn't, and is never made from bytes.)
unsafe impl ZeroByDefault for crate::sync::atomic::AtomicU64 {}

/// `length` zeros, or `None` if there is no memory for them.
///
/// A large allocation comes from the system as pages that are zero until touched and cost nothing before that,
/// which is what makes a bitmap of billions of clean chunks cheap.
#[cfg(not(loom))]
fn zeroed<T: ZeroByDefault>(length: u64) -> Option<Box<[T]>> {
    let length = usize::try_from(length).ok()?;
    let layout = std::alloc::Layout::array::<T>(length).ok()?;
    if layout.size() == 0 {
        return Some(Box::default());
    }
    // SAFETY: the layout's size isn't zero.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<T>();
    if memory.is_null() {
        return None;
    }
    // SAFETY: the memory was just allocated by the global allocator with the layout of `[T; length]`, nothing
    // else refers to it, and zero bytes are a valid `T` by the contract of `ZeroByDefault`.
    Some(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(memory, length)) })
}

/// Loom's atomics are registered with the model and have to be made one by one.
#[cfg(loom)]
fn zeroed<T: ZeroByDefault>(length: u64) -> Option<Box<[T]>> {
    Some((0..length).map(|_| T::default()).collect())
}
