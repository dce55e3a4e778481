//! Zeroes, discards and extents: what takes no room, and what is said of it.

use super::super::checker::{Checker, PLAIN, Step, Stop};
use super::super::{Asked, Rule};
use super::{Skip, failing, judge};
use crate::device::{Extent, Flags, Kind};
use crate::range::ByteRange;

/// Blocks of the pattern that extents are asked for.
const BLOCKS: u64 = 24;

/// Zeroes of every length, with each flag, among bytes that are not zero.
pub(super) fn zeroes(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    if !checker.device.supports(Kind::Zero) {
        return Ok(Some("the device has no zero"));
    }
    let longest = checker.limits.max_zero;
    let mut flags = [
        Flags::default(),
        Flags { may_unmap: true, fua: false },
        Flags { may_unmap: false, fua: true },
        Flags { may_unmap: true, fua: true },
    ]
    .into_iter()
    .cycle();
    for (range, is_longest) in ranges(checker, longest) {
        let flags = flags.next().unwrap_or_default();
        let inside = match (is_longest, flags.fua) {
            (true, _) => Rule::MaxZero,
            // Without FUA it is known to be wrong.
            (_, true) if checker.trusts(Kind::Zero) => Rule::Fua,
            _ => Rule::ZeroReadsZero,
        };
        let step = Step { flags, fails: Some(failing(inside)), ..Step::new(Kind::Zero, range) };
        checker.prepare(range)?;
        checker.change(step, inside, Rule::ZeroKeepsToRange)?;
    }
    Ok(None)
}

/// Discards of every length among bytes that are not zero.
pub(super) fn discards(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    if !checker.device.supports(Kind::Discard) {
        return Ok(Some("the device has no discard"));
    }
    let longest = checker.limits.max_discard;
    for (range, is_longest) in ranges(checker, longest) {
        let rule = if is_longest { Rule::MaxDiscard } else { Rule::DiscardZeroes };
        let step = Step { fails: Some(failing(rule)), ..Step::new(Kind::Discard, range) };
        checker.prepare(range)?;
        checker.change(step, Rule::DiscardZeroes, Rule::DiscardKeepsToRange)?;
        // Whatever it holds now, it can be written again.
        checker.prepare(range)?;
        checker.verify(range, judge(range, Rule::WriteStores, Rule::WriteStores, None))?;
    }
    Ok(None)
}

/// What is tried with zeroes and discards: each length somewhere, and the corners. Whether it is the longest there may be.
fn ranges(checker: &mut Checker<'_>, longest: u64) -> Vec<(ByteRange, bool)> {
    let mut ranges = Vec::new();
    for length in checker.lengths(longest) {
        // A short one comes by more than once, so that it meets other flags.
        for _ in 0..if length > PLAIN { 1 } else { 3 } {
            let spot = checker.spot(length);
            ranges.extend(spot.map(|range| (range, length == longest)));
        }
    }
    for length in [1, 4096] {
        ranges.extend(checker.corners(length).into_iter().map(|range| (range, false)));
    }
    ranges.retain(|(range, _)| range.len() <= longest);
    ranges
}

/// What the device says of a pattern of data, zeroes and holes, whole and in parts.
pub(super) fn extents(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    if !checker.device.supports(Kind::Extents) {
        return Ok(Some("the device has no extents"));
    }
    let pattern = lay_pattern(checker)?;
    let windows: Vec<ByteRange> = checker.model.windows().iter().map(|window| window.range).collect();
    for range in windows {
        truthful(checker, range)?;
    }
    for range in checker.corners(1).into_iter().chain(checker.corners(4096)) {
        truthful(checker, range)?;
    }
    for length in [1, 4097, 100_000, 1 << 20] {
        if let Some(range) = checker.spot(length) {
            truthful(checker, range)?;
        }
    }
    for enough in 1..4 {
        if let Some(pattern) = pattern {
            checker.extents(pattern, enough)?;
        }
    }
    Ok(None)
}

/// Data, zeroes, data, holes and so on, in one place; where that is. Of a read-only device nothing.
fn lay_pattern(checker: &mut Checker<'_>) -> Result<Option<ByteRange>, Stop> {
    if checker.limits.read_only {
        return Ok(None);
    }
    let block = checker.unit().max(checker.limits.cluster_size).max(64 << 10).min(checker.longest() / BLOCKS);
    let block = block / checker.unit() * checker.unit();
    let Some(place) = checker.spot(block * BLOCKS).filter(|_| block > 0) else { return Ok(None) };
    // What is allocated in blocks is to be hit by whole ones.
    let start = place.offset().next_multiple_of(block).min(place.end());
    let pattern = ByteRange::between(start, place.end());
    for piece in super::super::checker::pieces(pattern, checker.plain()) {
        checker.one(Step::new(Kind::Write, piece))?;
    }
    for index in 0..pattern.len() / block {
        let start = pattern.offset() + index * block;
        let range = ByteRange::between(start, start + block);
        let (kind, flags, most) = match index % 8 {
            1 => (Kind::Zero, Flags { may_unmap: true, fua: false }, checker.limits.max_zero),
            3 => (Kind::Zero, Flags::default(), checker.limits.max_zero),
            5 => (Kind::Discard, Flags::default(), checker.limits.max_discard),
            _ => continue,
        };
        if checker.trusts(kind) && block <= most {
            checker.one(Step { flags, ..Step::new(kind, range) })?;
        }
    }
    Ok((!pattern.is_empty()).then_some(pattern))
}

/// Asks for the extents of a range and compares each with what is there.
fn truthful(checker: &mut Checker<'_>, range: ByteRange) -> Result<(), Stop> {
    let Some((asked, extents)) = checker.extents(range, usize::MAX)? else { return Ok(()) };
    let mut at = range.offset();
    for Extent { length, flags } in extents {
        let part = ByteRange::between(at, range.end().min(at.saturating_add(length)));
        at = part.end();
        if flags.holds_data() || part.is_empty() {
            continue;
        }
        let lie = if flags.zero { not_zero(checker, part)? } else { written(checker, part)? };
        if let Some(place) = lie {
            tell_lie(checker, &asked, part, flags.zero, place);
            return Ok(());
        }
    }
    Ok(())
}

/// The first byte in the range that does not read as zero.
fn not_zero(checker: &mut Checker<'_>, range: ByteRange) -> Result<Option<u64>, Stop> {
    for piece in super::super::checker::pieces(range, checker.plain()) {
        let piece = aligned(checker, piece);
        let seen = checker.one(Step::new(Kind::Read, piece))?;
        let skip = range.offset().saturating_sub(piece.offset()) as usize;
        let until = (range.end().min(piece.end()) - piece.offset()) as usize;
        if seen.is_well()
            && checker.trusts(Kind::Read)
            && let Some(found) = seen.bytes[skip..until].iter().position(|byte| *byte != 0)
        {
            return Ok(Some(piece.offset() + (skip + found) as u64));
        }
    }
    Ok(None)
}

/// The first byte in the range that was written and is not zero.
fn written(checker: &Checker<'_>, range: ByteRange) -> Result<Option<u64>, Stop> {
    Ok(checker.model.known(range)?.into_iter().find_map(|part| {
        let found = checker.model.expected(part).iter().position(|byte| *byte != 0)?;
        Some(part.offset() + found as u64)
    }))
}

/// Rounded out to what can be read: extents may begin and end anywhere.
fn aligned(checker: &Checker<'_>, range: ByteRange) -> ByteRange {
    let unit = checker.unit();
    let end = range.end().next_multiple_of(unit).min(checker.device.length());
    ByteRange::between(range.offset() / unit * unit, end)
}

fn tell_lie(checker: &mut Checker<'_>, asked: &Asked, part: ByteRange, zero: bool, place: u64) {
    let (offset, length) = (part.offset(), part.len());
    let (expected, what) = if zero {
        ("what is told to be zero to read as zero", "zero")
    } else {
        ("what was written to be told as data", "unallocated")
    };
    checker.findings.of(
        Rule::ExtentsTruthful,
        asked,
        expected,
        format_args!(
            "{length} bytes at offset {offset} are told to be {what}, and the byte at offset {place} is not"
        ),
    );
}
