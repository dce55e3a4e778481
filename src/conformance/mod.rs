//! Is this device what a mirror takes it for? A judgement for whoever has written one.
//!
//! [`check`] sends requests to a device as filters and jobs do, at and within its limits, and compares what comes of each
//! with the rules (SPEC D-1 to D-6): data, buffers, zeroes, discards, extents, flushes, completions, AGAIN, cancel. What
//! the device holds is lost. Each broken rule is told as a [`Finding`] that says what was asked, what was to be expected
//! and what came.
//!
//! It is one more client of the device: `seat` is its place there, `line` sends and waits, `checker` judges, `model` knows
//! what the device must hold, `stages` are what is tried. The requests follow from the seed; only what several threads do
//! at a time, and how long the device takes, does not.
//!
//! Memory that runs out ends the check with `ENOMEM` and is nobody's broken rule.
//!
//! A device that never completes a request is left alone after a few: the memory of those requests stays with the device
//! until that is dropped.

mod checker;
mod finding;
mod line;
mod memory;
mod model;
mod room;
mod rule;
mod seat;
mod stages;

pub use finding::{Asked, Finding};
pub use rule::Rule;

use crate::device::Device;
use crate::error::{Error, Result};
use checker::{Checker, Stop};
use finding::Findings;

/// Bytes that are touched unless more or fewer are asked for.
pub const DEFAULT_BYTES: u64 = 64 << 20;
/// Fewest bytes that a check makes sense with: a few of the largest units.
pub const MIN_BYTES: u64 = 1 << 20;
/// How long a device may take for a request, unless otherwise said, in nanoseconds.
pub const DEFAULT_TIMEOUT_NS: u64 = 5_000_000_000;

/// What a check may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The caller vouches that the device holds nothing that anybody needs. Without it nothing is done.
    pub destroy: bool,
    /// Another seed tries other places and lengths.
    pub seed: u64,
    /// Most bytes of the device that are touched. A longer one is sampled: its ends, its middle, and around the offsets
    /// 2^31, 2^32 and 2^41. 0 is [`DEFAULT_BYTES`].
    pub max_bytes: u64,
    /// Nanoseconds without any completion after which what is out counts as lost. 0 is [`DEFAULT_TIMEOUT_NS`].
    pub timeout_ns: u64,
}

impl Options {
    fn max_bytes(&self) -> u64 {
        if self.max_bytes == 0 { DEFAULT_BYTES } else { self.max_bytes }
    }

    fn timeout_ns(&self) -> u64 {
        if self.timeout_ns == 0 { DEFAULT_TIMEOUT_NS } else { self.timeout_ns }
    }

    fn check(&self) -> Result<()> {
        if !self.destroy {
            return Err(Error::invalid("destroy: must be set, because what the device holds is lost"));
        }
        if self.max_bytes() < MIN_BYTES {
            return Err(Error::invalid(format!(
                "max_bytes {}: must be 0 or at least {MIN_BYTES}",
                self.max_bytes
            )));
        }
        Ok(())
    }
}

/// How far a stage of the check came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// To its end.
    Done,
    /// There was nothing to do, for this reason.
    Skipped(&'static str),
    /// The check was given up in it, or before it, because the device does not answer.
    GivenUp,
}

/// What a check has come to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The broken rules; a few of each at most.
    pub findings: Vec<Finding>,
    /// How many more there were of those rules.
    pub untold: u64,
    /// Requests that were sent.
    pub requests: u64,
    /// Bytes of the device that were touched.
    pub bytes: u64,
    /// The stages by name, in order.
    pub stages: Vec<(&'static str, Progress)>,
}

impl Report {
    /// Whether no rule was found to be broken.
    #[must_use]
    pub fn conforms(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Checks a device that nobody else uses, and **destroys what it holds**. `found` is told each finding when it is made.
///
/// If nothing was written through the device before, it is held to its promise that it reads as zero. One that can change its length is
/// grown by a few kilobytes, and asked to shrink again. The calling thread sends the requests, calls the device's poll hook
/// while it waits, and starts four threads of its own for a moment; no lock is held while the device or `found` is called.
///
/// A device that keeps no data (a null device) is told to break what it breaks.
///
/// `EINVAL` without `destroy` and for a `max_bytes` that makes no sense; `EBUSY` if a filter or a job uses the device, or an
/// earlier check has requests out; `ENOMEM`, after which what the device holds is lost all the same.
pub fn check(device: &Device, options: &Options, found: &mut dyn FnMut(&Finding)) -> Result<Report> {
    options.check()?;
    let mut checker = Checker::new(device, options, Findings::new(found))?;
    let bytes = checker.model.windows().iter().map(|window| window.range.len()).sum();
    let mut stages = Vec::with_capacity(stages::STAGES.len());
    let mut given_up = false;
    for stage in stages::STAGES {
        let progress = if given_up {
            Progress::GivenUp
        } else if stage.changes && checker.limits.read_only {
            Progress::Skipped("the device is read-only")
        } else {
            match (stage.run)(&mut checker) {
                Ok(None) => Progress::Done,
                Ok(Some(why)) => Progress::Skipped(why),
                Err(Stop::GaveUp) => Progress::GivenUp,
                Err(Stop::Failed(error)) => return Err(error),
            }
        };
        given_up |= progress == Progress::GivenUp;
        stages.push((stage.name, progress));
    }
    let Checker { findings, requests, .. } = checker;
    Ok(Report { untold: findings.untold(), findings: findings.told, requests, bytes, stages })
}
