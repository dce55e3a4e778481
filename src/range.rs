//! Ranges of bytes and of chunks, and the geometry that turns one into the other.

use crate::error::{Errno, Error, Result};
use std::fmt;

/// A range of bytes whose end doesn't overflow. It can be empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ByteRange {
    offset: u64,
    length: u64,
}

impl ByteRange {
    /// `length` bytes from `offset`; `EINVAL` if the end overflows.
    pub fn new(offset: u64, length: u64) -> Result<Self> {
        if offset.checked_add(length).is_none() {
            return Err(Error::invalid(format!("offset {offset} + length {length} overflows")));
        }
        Ok(Self { offset, length })
    }

    /// From `start` to `end`, empty if `end` is not beyond `start`.
    #[must_use]
    pub fn between(start: u64, end: u64) -> Self {
        Self { offset: start, length: end.saturating_sub(start) }
    }

    /// The first byte.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.offset
    }

    /// How many bytes.
    #[must_use]
    pub fn len(self) -> u64 {
        self.length
    }

    /// Whether there is no byte in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.length == 0
    }

    /// One past the last byte.
    #[must_use]
    pub fn end(self) -> u64 {
        self.offset + self.length
    }

    /// Whether the two have a byte in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// What lies in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self::between(self.offset.max(other.offset), self.end().min(other.end()))
    }

    /// Whether both ends are multiples of `alignment`, a power of two or 0 for "any".
    #[must_use]
    pub fn is_aligned(self, alignment: u64) -> bool {
        alignment <= 1 || (self.offset | self.length) & (alignment - 1) == 0
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.offset, self.length)
    }
}

/// A range of chunk indexes, `start..end`. It can be empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ChunkRange {
    /// The first chunk.
    pub start: u64,
    /// One past the last chunk.
    pub end: u64,
}

impl ChunkRange {
    /// `start..end`, empty if `end` is not beyond `start`.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Self {
        Self { start, end: end.max(start) }
    }

    /// How many chunks.
    #[must_use]
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether there is no chunk in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether the two have a chunk in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether `chunk` is in it.
    #[must_use]
    pub fn contains(self, chunk: u64) -> bool {
        (self.start..self.end).contains(&chunk)
    }
}

impl fmt::Debug for ChunkRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}..{}", self.start, self.end)
    }
}

/// A device's length and the size of the chunks that it is tracked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    length: u64,
    shift: u32,
}

impl Geometry {
    /// A device of `length` bytes in chunks of `granularity`, a power of two.
    #[must_use]
    pub fn new(length: u64, granularity: u64) -> Self {
        debug_assert!(granularity.is_power_of_two());
        Self { length, shift: granularity.trailing_zeros() }
    }

    /// The device's length in bytes.
    #[must_use]
    pub fn length(self) -> u64 {
        self.length
    }

    /// The size of a chunk in bytes; the last one may be shorter.
    #[must_use]
    pub fn granularity(self) -> u64 {
        1 << self.shift
    }

    /// How many chunks cover the device.
    #[must_use]
    pub fn chunks(self) -> u64 {
        let whole = self.length >> self.shift;
        whole + u64::from(whole << self.shift != self.length)
    }

    /// The chunks that the range touches, rounded out.
    #[must_use]
    pub fn touched(self, range: ByteRange) -> ChunkRange {
        if range.is_empty() {
            let start = range.offset() >> self.shift;
            return ChunkRange { start, end: start };
        }
        ChunkRange { start: range.offset() >> self.shift, end: ((range.end() - 1) >> self.shift) + 1 }
    }

    /// The chunks that lie wholly in the range; the device's short last chunk counts as whole when the range
    /// reaches the device's end. Empty if the range is smaller than a chunk.
    #[must_use]
    pub fn contained(self, range: ByteRange) -> ChunkRange {
        let start = range.offset() >> self.shift;
        let start = start + u64::from(start << self.shift != range.offset());
        let end = if range.end() == self.length { self.chunks() } else { range.end() >> self.shift };
        ChunkRange::new(start, end.max(start))
    }

    /// The bytes of these chunks, clipped at the device's end.
    #[must_use]
    pub fn bytes(self, chunks: ChunkRange) -> ByteRange {
        ByteRange::between(self.byte(chunks.start), self.byte(chunks.end))
    }

    /// The first byte of a chunk, clipped at the device's end.
    #[must_use]
    pub fn byte(self, chunk: u64) -> u64 {
        chunk.checked_mul(self.granularity()).map_or(self.length, |byte| byte.min(self.length))
    }

    /// Checks that a range lies on the device.
    pub fn check(self, range: ByteRange) -> Result<()> {
        check_bounds(range, self.length)
    }
}

/// `ERANGE` unless the range lies within `length` bytes.
pub fn check_bounds(range: ByteRange, length: u64) -> Result<()> {
    if range.end() > length {
        return Err(Error::new(
            Errno::ERANGE,
            format!(
                "offset {} length {}: ends beyond the device's {length} bytes",
                range.offset(),
                range.len()
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(offset: u64, length: u64) -> ByteRange {
        ByteRange::new(offset, length).expect("in range")
    }

    #[test]
    fn overflow_is_refused() {
        // SPEC D-5
        assert_eq!(ByteRange::new(u64::MAX, 1).expect_err("overflows").errno(), Errno::EINVAL);
        assert!(ByteRange::new(u64::MAX, 0).is_ok());
        assert_eq!(check_bounds(bytes(10, 7), 16).expect_err("beyond").errno(), Errno::ERANGE);
    }

    #[test]
    fn a_short_last_chunk_is_a_chunk() {
        let geometry = Geometry::new(10_000, 4096);
        assert_eq!(geometry.chunks(), 3);
        assert_eq!(geometry.bytes(ChunkRange::new(2, 3)), bytes(8192, 1808));
        assert_eq!(geometry.contained(bytes(8192, 1808)), ChunkRange::new(2, 3));
        assert_eq!(geometry.contained(bytes(8192, 1000)), ChunkRange::new(2, 2));
    }

    #[test]
    fn a_range_inside_a_chunk_contains_none() {
        let geometry = Geometry::new(1 << 20, 4096);
        assert_eq!(geometry.touched(bytes(100, 10)), ChunkRange::new(0, 1));
        assert!(geometry.contained(bytes(100, 10)).is_empty());
        assert_eq!(geometry.touched(bytes(4095, 2)), ChunkRange::new(0, 2));
        assert!(geometry.contained(bytes(4095, 2)).is_empty());
        assert_eq!(geometry.contained(bytes(4095, 4098)), ChunkRange::new(1, 2));
        assert!(geometry.touched(bytes(5000, 0)).is_empty());
    }

    #[test]
    fn the_largest_device_does_not_overflow() {
        let length = (1 << 63) - 512;
        let geometry = Geometry::new(length, 1 << 26);
        assert_eq!(geometry.chunks(), 1 << 37);
        assert_eq!(geometry.bytes(ChunkRange::new(geometry.chunks() - 1, geometry.chunks())).end(), length);
        assert_eq!(Geometry::new(u64::MAX, 512).chunks(), 1 << 55);
        assert_eq!(Geometry::new(u64::MAX, 512).byte(1 << 55), u64::MAX);
    }
}
