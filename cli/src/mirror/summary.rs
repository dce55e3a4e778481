//! What a copy came to: one line for a person, or JSON for a script.

use super::endpoints::Endpoints;
use super::options::Arguments;
use super::run::Outcome;
use crate::failure::Failure;
use crate::size::Size;
use blkmirror::device::Device;
use blkmirror::engine::Counter;
use serde::Serialize;
use std::fmt;

/// What the comparison afterwards has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verified {
    NotAsked,
    Equal,
    Differs { offset: u64 },
    Interrupted,
}

/// The summary. Its fields are the keys of the JSON object; sizes are in bytes.
#[derive(Serialize)]
pub(super) struct Summary {
    source: String,
    target: String,
    /// What carried out their requests: `io_uring` or `threads`.
    source_engine: Option<&'static str>,
    target_engine: Option<&'static str>,
    /// `ok`, `failed` or `cancelled`.
    result: &'static str,
    /// The message that standard error has too.
    error: Option<String>,
    /// The disk's.
    length: u64,
    /// Of the disk, copied or zero on both sides.
    bytes: u64,
    seconds: f64,
    /// `bytes` per second.
    rate: u64,
    /// What was zeroed, or asked whether it holds data, before the copy began.
    prepared: u64,
    /// Of `bytes`, what reads zero on the target without having been written.
    zeroes_skipped: u64,
    /// How many requests failed, those that were tried again included.
    errors: u64,
    granularity: u64,
    passes: u64,
    operations: Operations,
    /// `null` if it was not asked for, or not finished.
    verified: Option<bool>,
    first_difference: Option<u64>,
}

#[derive(Serialize)]
struct Operations {
    reads: Count,
    writes: Count,
    zeroes: Count,
    discards: Count,
    copies: Count,
    flushes: Count,
}

#[derive(Serialize)]
struct Count {
    ops: u64,
    bytes: u64,
    errors: u64,
}

impl From<Counter> for Count {
    fn from(Counter { ops, bytes, errors }: Counter) -> Self {
        Self { ops, bytes, errors }
    }
}

impl Summary {
    pub(super) fn new(
        arguments: &Arguments,
        endpoints: &Endpoints,
        outcome: &Outcome,
        verified: Verified,
        failure: Option<&Failure>,
    ) -> Self {
        let info = &outcome.info;
        let seconds = outcome.elapsed.as_secs_f64();
        let (verified, first_difference) = match verified {
            Verified::NotAsked | Verified::Interrupted => (None, None),
            Verified::Equal => (Some(true), None),
            Verified::Differs { offset } => (Some(false), Some(offset)),
        };
        Self {
            source: arguments.source.display().to_string(),
            target: arguments.target.display().to_string(),
            source_engine: engine(&endpoints.source),
            target_engine: engine(&endpoints.target),
            result: match failure {
                None => "ok",
                Some(Failure::Interrupted(_)) => "cancelled",
                Some(_) => "failed",
            },
            error: failure.map(ToString::to_string),
            length: endpoints.source.length(),
            bytes: info.done,
            seconds,
            rate: (info.done as f64 / seconds.max(1e-9)) as u64,
            prepared: info.prepared,
            zeroes_skipped: info.skipped_zeroes,
            errors: info.errors,
            granularity: info.granularity,
            passes: info.passes,
            operations: Operations {
                reads: info.reads.into(),
                writes: info.writes.into(),
                zeroes: info.zeroes.into(),
                discards: info.discards.into(),
                copies: info.copies.into(),
                flushes: info.flushes.into(),
            },
            verified,
            first_difference,
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("it is made of strings and numbers")
    }
}

fn engine(device: &Device) -> Option<&'static str> {
    device.engine().and_then(|word| word.to_str().ok())
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, target, seconds, .. } = self;
        write!(
            f,
            "{source} -> {target}: {} copied, {} in all, in {seconds:.1} s ({}/s)",
            Size(self.operations.writes.bytes),
            Size(self.length),
            Size(self.rate),
        )?;
        if self.verified == Some(true) {
            f.write_str(", verified")?;
        }
        Ok(())
    }
}
