//! What is tried, one thing after the other. Each stage leaves the model true, so that the next can build on it.

mod company;
mod data;
mod life;
mod space;

use super::checker::{Checker, Judge, Step, Stop};
use super::{Asked, Rule};
use crate::device::Kind;
use crate::range::ByteRange;

/// Why a stage had nothing to do.
pub(super) type Skip = Option<&'static str>;

/// A stage: its name, whether it changes what the device holds, and what it does.
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) changes: bool,
    pub(super) run: fn(&mut Checker<'_>) -> Result<Skip, Stop>,
}

/// All of them, in order.
pub(super) const STAGES: &[Stage] = &[
    Stage { name: "promises", changes: false, run: data::promises },
    Stage { name: "fill", changes: true, run: data::fill },
    Stage { name: "reads", changes: false, run: data::reads },
    Stage { name: "ends", changes: true, run: data::ends },
    Stage { name: "sizes", changes: true, run: data::sizes },
    Stage { name: "buffers", changes: true, run: data::buffers },
    Stage { name: "overlaps", changes: true, run: company::overlaps },
    Stage { name: "zeroes", changes: true, run: space::zeroes },
    Stage { name: "discards", changes: true, run: space::discards },
    Stage { name: "flushes", changes: true, run: life::flushes },
    Stage { name: "extents", changes: false, run: space::extents },
    Stage { name: "parallel", changes: true, run: company::parallel },
    Stage { name: "threads", changes: true, run: company::threads },
    Stage { name: "refusals", changes: false, run: life::refusals },
    Stage { name: "cancel", changes: false, run: life::cancel },
    Stage { name: "truncate", changes: true, run: life::truncate },
    Stage { name: "rest", changes: false, run: data::rest },
];

impl Checker<'_> {
    /// A range of about this length somewhere in the windows; shorter where they are.
    fn spot(&mut self, length: u64) -> Option<ByteRange> {
        let windows: Vec<ByteRange> = self.model.windows().iter().map(|window| window.range).collect();
        if windows.is_empty() {
            return None;
        }
        let window = self.random.pick(&windows);
        let length = length.max(1).next_multiple_of(self.unit());
        let last = window.end().saturating_sub(length).max(window.offset());
        let start = self.random.within(window.offset(), last.saturating_add(1)) / self.unit() * self.unit();
        Some(ByteRange::between(start, window.end().min(start.saturating_add(length))))
    }

    /// The longest range in one window.
    fn longest(&self) -> u64 {
        self.model.windows().iter().map(|window| window.range.len()).max().unwrap_or(0)
    }

    /// The places where off-by-one and overflow show, for a length: the device's first and last bytes, the insides of the
    /// windows' ends, and both sides of what lies in the middle of a window.
    fn corners(&self, length: u64) -> Vec<ByteRange> {
        let unit = self.unit();
        let length = length.max(1).next_multiple_of(unit);
        let mut corners = Vec::new();
        for window in self.model.windows() {
            let (start, end) = (window.range.offset(), window.range.end());
            let middle = (start + window.range.len() / 2) / unit * unit;
            corners.push(ByteRange::between(start, end.min(start.saturating_add(length))));
            corners.push(ByteRange::between((end.saturating_sub(length) / unit * unit).max(start), end));
            if window.range.len() >= 4 * length {
                corners.push(ByteRange::between(middle - length, middle));
                corners.push(ByteRange::between(middle, middle + length));
                corners.push(ByteRange::between(middle - length, middle + length));
            }
        }
        corners.dedup();
        corners
    }

    /// Lengths around which devices go wrong, up to `most`, which comes last.
    fn lengths(&self, most: u64) -> Vec<u64> {
        let unit = self.unit();
        let most = most.min(self.longest());
        let usual = [1, 511, 512, 513, 4095, 4096, 4097, (64 << 10) - 1, (64 << 10) + 1, 1 << 20];
        let mut lengths: Vec<u64> = usual
            .into_iter()
            .chain([most.saturating_sub(unit)])
            .map(|length: u64| length.max(1).next_multiple_of(unit))
            .filter(|length| *length < most)
            .chain([most])
            .filter(|length| *length > 0)
            .collect();
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    /// Fills a range, and what lies around it, with what is not zero.
    fn prepare(&mut self, range: ByteRange) -> Result<(), Stop> {
        let around = self.model.around(range, self.unit().max(4096));
        for piece in super::checker::pieces(around, self.plain()) {
            self.one(Step::new(Kind::Write, piece))?;
        }
        Ok(())
    }
}

/// A read that is compared for this rule alone.
fn read(range: ByteRange, rule: Rule) -> Step {
    Step { judge: Some(Judge::plain(rule)), fails: Some(failing(rule)), ..Step::new(Kind::Read, range) }
}

/// What a failure breaks where a limit is tried: the limit; else that requests succeed.
fn failing(rule: Rule) -> Rule {
    match rule {
        Rule::MaxTransfer
        | Rule::MaxZero
        | Rule::MaxDiscard
        | Rule::MemoryAlignment
        | Rule::BufferLists
        | Rule::Fua
        | Rule::FlushKeeps
        | Rule::Cancel
        | Rule::Truncate => rule,
        _ => Rule::Succeeds,
    }
}

/// What a difference after a change is put down to.
fn judge(changed: ByteRange, inside: Rule, outside: Rule, cause: Option<Asked>) -> Judge {
    Judge { inside, outside, changed, cause }
}
