//! How a run ended, and what it has seen.

use super::super::faults::{Fault, FaultCounts};
use super::draw::Shape;
use std::collections::BTreeMap;
use std::fmt;

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The rule of the specification, or the oracle.
    pub rule: &'static str,
    /// What was seen.
    pub text: String,
}

/// For `Err`.
pub(super) fn broken<T>(rule: &'static str, text: impl Into<String>) -> Result<T, Broken> {
    Err(Broken { rule, text: text.into() })
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it has seen.
    pub outcome: Outcome,
    /// The first rule that was broken.
    pub result: Result<(), Broken>,
    /// When it ended, in nanoseconds of its own time.
    pub ended_ns: u64,
    /// All that happened, a line each, if that was asked for.
    pub history: String,
}

/// A run that broke a rule.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// How many steps it was to take.
    pub steps: u32,
    /// What was broken.
    pub broken: Broken,
    /// The last things that happened.
    pub history: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, steps, broken: Broken { rule, text }, history } = self;
        write!(f, "seed {seed}, {steps} steps: {rule}: {text}\n{history}")
    }
}

/// What became of the jobs of one shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Jobs begun.
    pub begun: u64,
    /// Filters switched.
    pub pivots: u64,
    /// Of these, another than the job's own.
    pub replaced: u64,
    /// Jobs that ended as a copy of an instant.
    pub copies: u64,
}

/// What a run has seen, to tell whether it was worth anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Steps taken.
    pub steps: u64,
    /// Guest requests submitted.
    pub guest_requests: u64,
    /// Jobs by their shape.
    pub jobs: BTreeMap<Shape, Tally>,
    /// Jobs that ended without success, or were freed early.
    pub failures: u64,
    /// States in which a verb was tried: (status, verb, accepted) and how often.
    pub verbs: BTreeMap<(&'static str, &'static str, bool), u64>,
    /// What went wrong.
    pub faults: FaultCounts,
    /// The same by the state of the job.
    pub faults_in: BTreeMap<(&'static str, Fault), u64>,
    /// Times that source and target were held against each other while the job said that they were equal.
    pub synced_checks: u64,
    /// Chunks that were clean and held against the source.
    pub clean_chunks: u64,
    /// Chunks that were known to be zero and held against the target.
    pub zero_chunks: u64,
    /// Times that a job that had nothing to do was polled again to see whether that was true.
    pub idle_checks: u64,
}

impl Outcome {
    /// Adds what another run has seen.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.guest_requests += other.guest_requests;
        self.failures += other.failures;
        self.synced_checks += other.synced_checks;
        self.clean_chunks += other.clean_chunks;
        self.zero_chunks += other.zero_chunks;
        self.idle_checks += other.idle_checks;
        self.faults.add(&other.faults);
        for (shape, tally) in &other.jobs {
            let sum = self.jobs.entry(*shape).or_default();
            sum.begun += tally.begun;
            sum.pivots += tally.pivots;
            sum.replaced += tally.replaced;
            sum.copies += tally.copies;
        }
        for (cell, count) in &other.verbs {
            *self.verbs.entry(*cell).or_default() += count;
        }
        for (cell, count) in &other.faults_in {
            *self.faults_in.entry(*cell).or_default() += count;
        }
    }
}
