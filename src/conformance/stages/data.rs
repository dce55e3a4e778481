//! Reads and writes: at the limits, at the ends, and in lists of buffers.

use super::super::Rule;
use super::super::checker::{Checker, Judge, PLAIN, Step, Stop, pieces};
use super::super::memory::Placement;
use super::{Skip, failing, read};
use crate::device::Kind;
use crate::range::ByteRange;

/// Lists of buffers that are drawn.
const LISTS: usize = 12;

/// What the device says of itself, before anything was changed. What it holds is known afterwards.
pub(super) fn promises(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    for window in windows(checker) {
        for piece in pieces(window, checker.plain()) {
            if checker.device.reads_zero() {
                checker.model.set_zero(piece)?;
                checker.one(read(piece, Rule::ReadsZero))?;
                continue;
            }
            let seen = checker.one(Step { judge: None, ..Step::new(Kind::Read, piece) })?;
            if seen.is_well() {
                // A second read, into other bytes, shows what was not filled.
                checker.model.set(piece, &seen.bytes)?;
                checker.one(read(piece, Rule::ReadsSame))?;
            }
        }
    }
    Ok(checker.model.windows().is_empty().then_some("the device has no bytes"))
}

/// Everything is written, and then read: an offset that wraps around shows as damage elsewhere.
pub(super) fn fill(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    let most = checker.plain();
    for window in windows(checker) {
        for piece in pieces(window, most) {
            checker.one(Step::new(Kind::Write, piece))?;
        }
    }
    for window in windows(checker) {
        checker.verify(window, Judge::plain(Rule::WriteStores))?;
    }
    Ok(None)
}

/// Reads of every length, of one buffer and of several.
pub(super) fn reads(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    let longest = checker.limits.max_transfer;
    for length in checker.lengths(longest) {
        let rule = if length == longest { Rule::MaxTransfer } else { Rule::ReadsSame };
        for _ in 0..places(length) {
            let Some(range) = checker.spot(length) else { continue };
            checker.one(read(range, rule))?;
        }
    }
    for range in checker.corners(1).into_iter().chain(checker.corners(4096)) {
        checker.one(read(range, Rule::ReadsSame))?;
    }
    for _ in 0..LISTS {
        let Some(range) = list_spot(checker) else { continue };
        let cut = odd_cut(checker, range.len());
        checker.one(Step { cut, ..read(range, Rule::BufferLists) })?;
        let Some(range) = checker.spot(checker.plain()) else { continue };
        checker.one(Step { placement: Placement::Barely, ..read(range, Rule::MemoryAlignment) })?;
    }
    Ok(None)
}

/// The first and the last bytes, and those where numbers overflow.
pub(super) fn ends(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    for length in [1, 512, 4096] {
        for range in checker.corners(length) {
            if range.len() <= checker.limits.max_transfer {
                let step = Step::new(Kind::Write, range);
                checker.change(step, Rule::WriteStores, Rule::WriteKeepsToRange)?;
            }
        }
    }
    Ok(None)
}

/// Writes of every length.
pub(super) fn sizes(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    let longest = checker.limits.max_transfer;
    for length in checker.lengths(longest) {
        let rule = if length == longest { Rule::MaxTransfer } else { Rule::WriteStores };
        for _ in 0..places(length) {
            let Some(range) = checker.spot(length) else { continue };
            let step = Step { fails: Some(failing(rule)), ..Step::new(Kind::Write, range) };
            checker.change(step, rule, Rule::WriteKeepsToRange)?;
        }
    }
    Ok(None)
}

/// Writes from lists of buffers, and from buffers that are barely aligned.
pub(super) fn buffers(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    for index in 0..LISTS {
        let Some((range, cut)) = list(checker, index == 0) else { continue };
        let step = Step { cut: cut.clone(), fails: Some(Rule::BufferLists), ..Step::new(Kind::Write, range) };
        checker.change(step, Rule::BufferLists, Rule::WriteKeepsToRange)?;
        checker.one(Step { cut, ..read(range, Rule::BufferLists) })?;
        let Some(range) = checker.spot(checker.plain()) else { continue };
        let step = Step {
            placement: Placement::Barely,
            fails: Some(Rule::MemoryAlignment),
            ..Step::new(Kind::Write, range)
        };
        checker.change(step, Rule::MemoryAlignment, Rule::WriteKeepsToRange)?;
    }
    Ok(None)
}

/// Everything is read once more, and late completions are waited for.
pub(super) fn rest(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    const WHILE_NS: u64 = 20_000_000;
    for window in windows(checker) {
        checker.verify(window, Judge::plain(Rule::ReadsSame))?;
    }
    checker.line.settle(WHILE_NS);
    checker.tell_odd();
    Ok(None)
}

/// How many places are tried for a length.
fn places(length: u64) -> usize {
    if length > PLAIN { 1 } else { 3 }
}

fn windows(checker: &Checker<'_>) -> Vec<ByteRange> {
    checker.model.windows().iter().map(|window| window.range).collect()
}

/// A range and how it is cut into buffers: as many as there may be, or a few odd ones.
fn list(checker: &mut Checker<'_>, longest: bool) -> Option<(ByteRange, Vec<usize>)> {
    if !longest {
        let range = list_spot(checker)?;
        let cut = odd_cut(checker, range.len());
        return Some((range, cut));
    }
    let piece = u64::from(checker.limits.memory_alignment) * 3;
    let most = u64::from(checker.limits.max_iov);
    let range = checker.spot((most * piece).min(checker.limits.max_transfer))?;
    let full = (range.len() / piece).min(most - 1) as usize;
    let mut cut = vec![piece as usize; full];
    let last = range.len() as usize - full * piece as usize;
    if last > 0 {
        cut.push(last);
    }
    Some((range, cut))
}

fn list_spot(checker: &mut Checker<'_>) -> Option<ByteRange> {
    let length = checker.random.within(1, checker.plain() + 1);
    checker.spot(length)
}

/// Buffers of odd lengths, empty ones too; all but the last are multiples of the memory alignment, as the library's are.
fn odd_cut(checker: &mut Checker<'_>, length: u64) -> Vec<usize> {
    let unit = checker.limits.memory_alignment as usize;
    let most = (checker.limits.max_iov as usize).min(64);
    let mut cut = Vec::new();
    let mut left = length as usize;
    while left > 0 && cut.len() + 1 < most {
        let drawn = checker.random.pick(&[0, 1, 3, 7, 255, 511, 512, 4095, 4096, 10_001]);
        let piece = if unit == 1 { drawn } else { (drawn % 16) * unit };
        cut.push(piece.min(left));
        left -= piece.min(left);
    }
    if left > 0 {
        cut.push(left);
    }
    cut
}
