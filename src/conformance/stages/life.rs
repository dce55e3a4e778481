//! What happens in a device's life beside data: flushes, cancels, growth, and changes that it must refuse.

use super::super::Rule;
use super::super::checker::{Checker, Step, Stop};
use super::Skip;
use crate::device::{Flags, Kind};
use crate::range::ByteRange;

/// Requests that are out when the device is told to hurry.
const HURRIED: usize = 8;

/// Flushes alone, with others under way, and writes that are durable by themselves.
pub(super) fn flushes(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    let flush = || Step { fails: Some(Rule::FlushKeeps), ..Step::new(Kind::Flush, ByteRange::default()) };
    checker.one(flush())?;
    for _ in 0..4 {
        let Some(range) = checker.spot(8192.min(checker.limits.max_transfer)) else { continue };
        let seen = checker.run(&[Step::new(Kind::Write, range), flush(), flush()])?;
        checker.inspect(&seen[1].asked, range, Rule::FlushKeeps, Rule::FlushKeeps)?;
        let flags = Flags { may_unmap: false, fua: true };
        let step = Step { flags, fails: Some(Rule::Fua), ..Step::new(Kind::Write, range) };
        checker.change(step, Rule::Fua, Rule::WriteKeepsToRange)?;
    }
    checker.run(&[flush(), flush(), flush(), flush()])?;
    Ok(None)
}

/// A device that says it is read-only is asked to change all the same, as a guest may.
pub(super) fn refusals(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    if !checker.limits.read_only {
        return Ok(Some("the device is not read-only"));
    }
    for kind in [Kind::Write, Kind::Zero, Kind::Discard] {
        let Some(range) = checker.spot(4096).filter(|_| checker.device.supports(kind)) else { continue };
        let step = Step { fails: None, ..Step::new(kind, range) };
        checker.change(step, Rule::ReadOnly, Rule::ReadOnly)?;
    }
    Ok(None)
}

/// The cancel hook is called while requests are out: each must still be completed, and the device must go on.
pub(super) fn cancel(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    let kind = if checker.limits.read_only { Kind::Read } else { Kind::Write };
    for _ in 0..2 {
        let length = checker.unit().max(4096).min(checker.limits.max_transfer);
        let spots: Vec<_> = (0..HURRIED).filter_map(|_| checker.spot(length)).collect();
        let steps: Vec<_> = apart(spots).into_iter().map(|range| hurried(kind, range)).collect();
        let device = checker.device.clone();
        checker.run_between(&steps, &|| device.cancel())?;
        if let Some(range) = checker.spot(length) {
            let step = Step { fails: Some(Rule::Cancel), ..Step::new(kind, range) };
            checker.change(step, Rule::Cancel, Rule::WriteKeepsToRange)?;
        }
    }
    Ok(None)
}

fn hurried(kind: Kind, range: ByteRange) -> Step {
    Step { fails: None, lost: Rule::Cancel, ..Step::new(kind, range) }
}

/// Those that overlap none before them.
fn apart(ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    let mut apart: Vec<ByteRange> = Vec::new();
    for range in ranges {
        if !apart.iter().any(|other| other.overlaps(range)) {
            apart.push(range);
        }
    }
    apart
}

/// The device grows a little, and is asked to be what it was; that it need not do.
pub(super) fn truncate(checker: &mut Checker<'_>) -> Result<Skip, Stop> {
    if !checker.device.supports(Kind::Truncate) {
        return Ok(Some("the device has no truncate"));
    }
    let unit = checker.unit();
    let before = checker.device.length();
    let room = unit.max(4096).min(checker.limits.max_transfer / 2 / unit * unit);
    let after = before.checked_next_multiple_of(unit).and_then(|end| end.checked_add(room));
    let Some(after) = after.filter(|_| room > 0 && before > 0) else {
        return Ok(Some("the device can't be longer"));
    };
    let seen = checker.one(to(after))?;
    if !seen.is_well() {
        return Ok(None);
    }
    checker.device.core().set_length(after);
    checker.model.grow(after)?;
    let tail = ByteRange::between(before / unit * unit, after);
    checker.inspect(&seen.asked, tail, Rule::Truncate, Rule::Truncate)?;
    let step = Step { fails: Some(Rule::Truncate), ..Step::new(Kind::Write, tail) };
    checker.change(step, Rule::Truncate, Rule::WriteKeepsToRange)?;
    let back = checker.one(Step { fails: None, ..to(before) })?;
    if back.is_well() {
        checker.device.core().set_length(before);
        checker.model.shrink(before)?;
        let end = ByteRange::between(before.saturating_sub(1) / unit * unit, before);
        checker.inspect(&back.asked, end, Rule::Truncate, Rule::Truncate)?;
    }
    Ok(None)
}

fn to(length: u64) -> Step {
    Step { fails: Some(Rule::Truncate), ..Step::new(Kind::Truncate, ByteRange::between(0, length)) }
}
