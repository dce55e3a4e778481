//! What was found: which rule was broken by what.

use super::Rule;
use super::memory::Lent;
use crate::device::{Flags, Kind};
use crate::range::ByteRange;
use std::fmt;

/// Most findings of one rule that are told: a device that breaks one everywhere is understood after a few.
const MOST_PER_RULE: u64 = 4;

/// A request of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What it asked for.
    pub kind: Kind,
    /// Where.
    pub range: ByteRange,
    /// How.
    pub flags: Flags,
    /// How many buffers it had.
    pub buffers: usize,
}

impl Asked {
    pub(super) fn new(kind: Kind, range: ByteRange, flags: Flags, lent: Option<&Lent>) -> Self {
        Self { kind, range, flags, buffers: lent.map_or(0, Lent::pieces) }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (offset, length) = (self.range.offset(), self.range.len());
        match self.kind {
            Kind::Flush => f.write_str("flush")?,
            Kind::Truncate => write!(f, "truncate to {} bytes", self.range.end())?,
            kind => {
                let unit = if length == 1 { "byte" } else { "bytes" };
                write!(f, "{} of {length} {unit} at offset {offset}", kind.name())?;
            }
        }
        if self.buffers > 1 {
            write!(f, " in {} buffers", self.buffers)?;
        }
        if self.flags.may_unmap {
            f.write_str(" with MAY_UNMAP")?;
        }
        if self.flags.fua {
            f.write_str(" with FUA")?;
        }
        Ok(())
    }
}

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Which.
    pub rule: Rule,
    /// The request that broke it, if it was one that did.
    pub request: Option<Asked>,
    /// What was asked for, in words.
    pub asked: String,
    /// What was to be expected.
    pub expected: String,
    /// What came instead.
    pub came: String,
}

impl fmt::Display for Finding {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, asked, expected, came, .. } = self;
        write!(f, "{rule}: {asked}: expected {expected}; {came}")
    }
}

/// Collects findings and tells each to whoever asked for the check.
pub(super) struct Findings<'a> {
    tell: &'a mut dyn FnMut(&Finding),
    counts: Vec<(Rule, u64)>,
    pub(super) told: Vec<Finding>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(tell: &'a mut dyn FnMut(&Finding)) -> Self {
        Self { tell, counts: Vec::new(), told: Vec::new() }
    }

    /// Of a request.
    pub(super) fn of(
        &mut self,
        rule: Rule,
        request: &Asked,
        expected: impl fmt::Display,
        came: impl fmt::Display,
    ) {
        self.add(Finding {
            rule,
            request: Some(*request),
            asked: request.to_string(),
            expected: expected.to_string(),
            came: came.to_string(),
        });
    }

    /// Of the device as such.
    pub(super) fn general(&mut self, rule: Rule, asked: &str, expected: &str, came: impl fmt::Display) {
        self.add(Finding {
            rule,
            request: None,
            asked: asked.to_owned(),
            expected: expected.to_owned(),
            came: came.to_string(),
        });
    }

    fn add(&mut self, finding: Finding) {
        let count = match self.counts.iter_mut().find(|(rule, _)| *rule == finding.rule) {
            Some((_, count)) => count,
            None => {
                self.counts.push((finding.rule, 0));
                &mut self.counts.last_mut().expect("one was pushed").1
            }
        };
        *count += 1;
        if *count <= MOST_PER_RULE {
            (self.tell)(&finding);
            self.told.push(finding);
        }
    }

    /// Whether this rule was found to be broken.
    pub(super) fn has(&self, rule: Rule) -> bool {
        self.counts.iter().any(|(counted, _)| *counted == rule)
    }

    /// How many were not told, because they were more of the same.
    pub(super) fn untold(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count.saturating_sub(MOST_PER_RULE)).sum()
    }
}
