//! Memory of which a check takes much, or any number of pieces: where there is none it is an error (SPEC E-3).
//!
//! The rest, a few small things for each request, is what `Checker::run_between` demands before it sends any.

use crate::error::{Errno, Error, Result};
use crate::reserve;

/// An empty list with room for so many.
pub(super) fn with_capacity<T>(count: usize) -> Result<Vec<T>> {
    let mut list = Vec::new();
    more(&mut list, count)?;
    Ok(list)
}

/// So many zeroes.
pub(super) fn zeroed(count: usize) -> Result<Vec<u8>> {
    let mut bytes = with_capacity(count)?;
    bytes.resize(count, 0);
    Ok(bytes)
}

/// A list of the same.
pub(super) fn copied<T: Copy>(from: &[T]) -> Result<Vec<T>> {
    let mut list = with_capacity(from.len())?;
    list.extend_from_slice(from);
    Ok(list)
}

/// Room for so many more, and no more than that.
pub(super) fn more<T>(list: &mut Vec<T>, count: usize) -> Result<()> {
    reserve::may_fail(|| list.try_reserve_exact(count)).map_err(|_| no_memory())
}

/// Adds one.
pub(super) fn push<T>(list: &mut Vec<T>, item: T) -> Result<()> {
    reserve::may_fail(|| list.try_reserve(1)).map_err(|_| no_memory())?;
    list.push(item);
    Ok(())
}

pub(super) fn no_memory() -> Error {
    Error::new(Errno::ENOMEM, "no memory to go on with the check: give it more, or a smaller max_bytes")
}
