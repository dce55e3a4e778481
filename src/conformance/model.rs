//! What the device must hold, in the windows of it that the check touches.

use super::room;
use crate::error::Result;
use crate::range::ByteRange;

/// A part of the device, and what it must hold.
pub(super) struct Window {
    pub(super) range: ByteRange,
    bytes: Vec<u8>,
    /// What may hold anything: discarded without a promise, or a change that failed.
    unknown: Vec<ByteRange>,
    /// What may change at any time: a change that the device took and never finished.
    haunted: Vec<ByteRange>,
}

/// The windows, in order and apart.
pub(super) struct Model {
    windows: Vec<Window>,
}

/// Offsets at which 32-bit arithmetic goes wrong: of bytes, signed and unsigned, and of sectors.
const EDGES: [u64; 3] = [1 << 31, 1 << 32, 1 << 41];

impl Model {
    /// Windows of at most `budget` bytes in all: the whole device, or its ends, its middle and what lies around the places
    /// where numbers overflow. Nothing is known yet. `ENOMEM`.
    pub(super) fn new(length: u64, unit: u64, budget: u64) -> Result<Self> {
        let ranges =
            if length <= budget { vec![ByteRange::between(0, length)] } else { sample(length, unit, budget) };
        let windows = ranges.into_iter().filter(|range| !range.is_empty()).map(|range| {
            let bytes = room::zeroed(range.len() as usize)?;
            Ok(Window { range, bytes, unknown: vec![range], haunted: Vec::new() })
        });
        Ok(Self { windows: windows.collect::<Result<_>>()? })
    }

    pub(super) fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// The window that holds this range, which is never empty.
    fn window(&self, range: ByteRange) -> &Window {
        let found = self.windows.iter().find(|window| range.offset() < window.range.end());
        found.expect("requests lie in windows")
    }

    fn window_mut(&mut self, range: ByteRange) -> &mut Window {
        let found = self.windows.iter_mut().find(|window| range.offset() < window.range.end());
        found.expect("requests lie in windows")
    }

    /// The range and what lies around it, as far as the window goes. `margin` is a multiple of the alignment.
    pub(super) fn around(&self, range: ByteRange, margin: u64) -> ByteRange {
        let window = self.window(range).range;
        let start = range.offset().saturating_sub(margin).max(window.offset());
        // The device's end need not be aligned; what lies before it does.
        let end = range.end().checked_next_multiple_of(margin).unwrap_or(u64::MAX);
        let end = end.saturating_add(margin).min(window.end());
        ByteRange::between(start, end)
    }

    /// The range holds this now.
    pub(super) fn set(&mut self, range: ByteRange, bytes: &[u8]) -> Result<()> {
        let window = self.window_mut(range);
        let at = (range.offset() - window.range.offset()) as usize;
        window.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        subtract(&mut window.unknown, range)
    }

    /// The range holds zeroes now.
    pub(super) fn set_zero(&mut self, range: ByteRange) -> Result<()> {
        let window = self.window_mut(range);
        let at = (range.offset() - window.range.offset()) as usize;
        window.bytes[at..at + range.len() as usize].fill(0);
        subtract(&mut window.unknown, range)
    }

    /// The range may hold anything until it is written.
    pub(super) fn forget(&mut self, range: ByteRange) -> Result<()> {
        room::push(&mut self.window_mut(range).unknown, range)
    }

    /// The range may change at any time from now on.
    pub(super) fn haunt(&mut self, range: ByteRange) -> Result<()> {
        room::push(&mut self.window_mut(range).haunted, range)
    }

    /// What the range must hold, where that is known.
    pub(super) fn expected(&self, range: ByteRange) -> &[u8] {
        let window = self.window(range);
        let at = (range.offset() - window.range.offset()) as usize;
        &window.bytes[at..at + range.len() as usize]
    }

    /// The parts of the range whose content is known, in order.
    pub(super) fn known(&self, range: ByteRange) -> Result<Vec<ByteRange>> {
        let window = self.window(range);
        let mut known = vec![range];
        for hole in window.unknown.iter().chain(&window.haunted) {
            subtract(&mut known, *hole)?;
        }
        // They are apart, so none is equal to another. A sort that keeps the order of equals would take memory.
        known.sort_unstable_by_key(|part| part.offset());
        Ok(known)
    }

    /// The device is longer now: its last window reaches to the new end.
    pub(super) fn grow(&mut self, length: u64) -> Result<()> {
        if let Some(window) = self.windows.last_mut() {
            room::more(&mut window.bytes, (length - window.range.end()) as usize)?;
            let added = ByteRange::between(window.range.end(), length);
            window.range = ByteRange::between(window.range.offset(), length);
            window.bytes.resize(window.range.len() as usize, 0);
            room::push(&mut window.unknown, added)?;
        }
        Ok(())
    }

    /// The device is as short as it was before it grew.
    pub(super) fn shrink(&mut self, length: u64) -> Result<()> {
        if let Some(window) = self.windows.last_mut() {
            window.range = ByteRange::between(window.range.offset(), length);
            window.bytes.truncate(window.range.len() as usize);
            subtract(&mut window.unknown, ByteRange::between(length, u64::MAX))?;
        }
        Ok(())
    }
}

/// The ends, the middle, and what lies around the edges, in equal shares.
fn sample(length: u64, unit: u64, budget: u64) -> Vec<ByteRange> {
    let edges: Vec<u64> = EDGES.into_iter().filter(|edge| *edge < length).collect();
    let share = budget / (edges.len() as u64 + 3) / unit * unit;
    let half = share / 2 / unit * unit;
    let around = |at: u64| ByteRange::between(at.saturating_sub(half), at.saturating_add(half).min(length));
    let mut ranges = vec![ByteRange::between(0, share)];
    ranges.extend(edges.into_iter().map(around));
    ranges.push(around(length / 2 / unit * unit));
    ranges.push(ByteRange::between((length - share).next_multiple_of(unit), length));
    ranges.sort_by_key(|range| range.offset());
    let mut apart: Vec<ByteRange> = Vec::new();
    for range in ranges {
        match apart.last_mut() {
            Some(last) if range.offset() <= last.end() => {
                *last = ByteRange::between(last.offset(), last.end().max(range.end()));
            }
            _ => apart.push(range),
        }
    }
    apart
}

/// Takes `hole` out of the ranges.
fn subtract(ranges: &mut Vec<ByteRange>, hole: ByteRange) -> Result<()> {
    let mut left = room::with_capacity(ranges.len() + 1)?;
    for range in ranges.drain(..) {
        let before = ByteRange::between(range.offset(), range.end().min(hole.offset()));
        let after = ByteRange::between(range.offset().max(hole.end()), range.end());
        for part in [before, after].into_iter().filter(|part| !part.is_empty()) {
            room::push(&mut left, part)?;
        }
    }
    *ranges = left;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(start, end)
    }

    #[test]
    fn a_long_device_is_sampled_within_the_budget() {
        for (length, unit) in
            [(1 << 44, 512), ((1 << 32) + 4097, 4096), ((1 << 33) + 7, 1), ((8 << 20) + 100, 512)]
        {
            let model = Model::new(length, unit, 8 << 20).expect("memory");
            let windows: Vec<_> = model.windows().iter().map(|window| window.range).collect();
            assert!(windows.iter().map(|window| window.len()).sum::<u64>() <= 8 << 20, "{windows:?}");
            assert_eq!(windows[0].offset(), 0);
            assert_eq!(windows.last().expect("one").end(), length);
            for edge in EDGES.into_iter().filter(|edge| *edge < length) {
                assert!(
                    windows.iter().any(|window| window.offset() < edge && edge < window.end()),
                    "{edge:#x}"
                );
            }
            for window in &windows {
                assert!(window.offset() % unit == 0 && (window.end() % unit == 0 || window.end() == length));
            }
            assert!(windows.windows(2).all(|pair| pair[0].end() < pair[1].offset()), "{windows:?}");
        }
    }

    #[test]
    fn what_is_known_is_what_was_set_and_not_forgotten() {
        what_is_known().expect("memory");
    }

    fn what_is_known() -> Result<()> {
        let mut model = Model::new(100, 1, 1000)?;
        assert_eq!(model.known(range(0, 100))?, []);
        model.set(range(10, 20), &[7; 10])?;
        model.set_zero(range(30, 40))?;
        assert_eq!(model.known(range(0, 100))?, [range(10, 20), range(30, 40)]);
        model.forget(range(15, 16))?;
        assert_eq!(model.known(range(0, 20))?, [range(10, 15), range(16, 20)]);
        model.haunt(range(30, 35))?;
        model.set_zero(range(0, 100))?;
        assert_eq!(model.known(range(0, 100))?, [range(0, 30), range(35, 100)], "a haunted range stays so");
        assert_eq!(model.expected(range(9, 11)), [0, 0]);
        model.grow(120)?;
        assert_eq!(model.known(range(90, 120))?, [range(90, 100)]);
        model.shrink(100)?;
        assert_eq!(model.around(range(50, 60), 8), range(42, 72));
        assert_eq!(model.around(range(95, 100), 8), range(87, 100));
        Ok(())
    }
}
