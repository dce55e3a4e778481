//! What one copied piece costs the processor, with devices that do nothing.

use super::report::Row;
use super::{allocations, cpu};
use crate::failure::Failure;
use crate::size::Size;
use blkmirror::clock::Nanos;
use blkmirror::device::{Device, Limits, Null, NullOptions};
use blkmirror::engine::{Event, Options, Sync};
use blkmirror::error::Result;
use blkmirror::filter::Filter;
use blkmirror::job::{Job, JobOptions};
use blkmirror::range::ByteRange;
use clap::{Args, ValueEnum};
use std::time::Instant;

/// The copy loop between two devices that do nothing: what the library itself costs for each copied piece
///
/// `cpu_ns_per_op` is processor time of the whole process from start to ready, divided by the pieces copied; a piece is one
/// read and one write. `allocs_per_op` is memory allocations.
#[derive(Args)]
pub(super) struct Arguments {
    /// Which chunks are dirty [default: both, one after the other]
    #[arg(long, value_enum)]
    pattern: Option<Pattern>,

    /// Bytes in a chunk, and in a piece
    #[arg(long, value_name = "SIZE", default_value = "64K")]
    granularity: Size,

    /// Most bytes in a piece [default: a chunk]
    #[arg(long, value_name = "SIZE")]
    max_io: Option<Size>,

    /// Copies at a time
    #[arg(long, value_name = "N", default_value_t = 16)]
    in_flight: u32,

    /// The disk's length
    #[arg(long, value_name = "SIZE", default_value = "16G")]
    size: Size,

    /// How often; the median is told
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pattern {
    /// All of them
    Contiguous,
    /// Every second one
    EverySecond,
}

struct Measured {
    ops: u64,
    bytes: u64,
    cpu_ns: u64,
    seconds: f64,
    allocations: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<Vec<Row>, Failure> {
    let patterns = match arguments.pattern {
        Some(pattern) => vec![pattern],
        None => vec![Pattern::Contiguous, Pattern::EverySecond],
    };
    let mut rows = Vec::new();
    for pattern in patterns {
        let rounds: Vec<_> =
            (0..arguments.rounds.max(1)).map(|_| one_job(arguments, pattern)).collect::<Result<_>>()?;
        let median = |figure: &dyn Fn(&Measured) -> f64| cpu::median(rounds.iter().map(figure).collect());
        rows.push(
            Row::new()
                .with("pattern", if pattern == Pattern::Contiguous { "contiguous" } else { "every-second" })
                .with("granularity", arguments.granularity.0)
                .with("in_flight", arguments.in_flight)
                .with("bytes", rounds[0].bytes)
                .with("ops", rounds[0].ops)
                .figure("cpu_ns_per_op", median(&|round| round.cpu_ns as f64 / round.ops as f64))
                .figure("ops_per_s", median(&|round| round.ops as f64 / round.seconds))
                .figure("allocs_per_op", median(&|round| round.allocations as f64 / round.ops as f64)),
        );
    }
    Ok(rows)
}

fn null(length: u64) -> Result<Device> {
    Null::device(length, Limits::default(), NullOptions::default())
}

/// As a host learns it: by the events after each poll.
fn has_become_ready(job: &Job) -> bool {
    std::iter::from_fn(|| job.next_event()).any(|event| event == Event::Ready)
}

/// One job from start to ready; making and freeing it is not measured.
fn one_job(arguments: &Arguments, pattern: Pattern) -> Result<Measured> {
    let (length, chunk) = (arguments.size.0, arguments.granularity.0);
    let filter = Filter::new(&null(length)?)?;
    let options = Options {
        sync: if pattern == Pattern::Contiguous { Sync::Full } else { Sync::None },
        granularity: chunk,
        max_io: arguments.max_io.map_or(chunk, |Size(bytes)| bytes),
        max_in_flight: arguments.in_flight,
        detect_zeroes: false,
        ..Options::default()
    };
    let job = Job::new(&filter, &null(length)?, JobOptions { options, ..JobOptions::default() })?;
    if pattern == Pattern::EverySecond {
        for at in (0..length).step_by(2 * chunk as usize) {
            filter.mark_dirty(ByteRange::new(at, chunk.min(length - at))?)?;
        }
    }
    job.start()?;
    // The first round makes what is then used again and again.
    let mut now = 1;
    job.poll(Nanos(now))?;
    let before = job.query();
    let (allocations, cpu, began) = (allocations::count(), cpu::cpu_ns(), Instant::now());
    while !has_become_ready(&job) {
        now += 1_000_000;
        job.poll(Nanos(now))?;
    }
    let (seconds, cpu_ns) = (began.elapsed().as_secs_f64(), cpu::cpu_ns() - cpu);
    let allocations = allocations::count() - allocations;
    let after = job.query();
    Ok(Measured {
        ops: (after.writes.ops - before.writes.ops).max(1),
        bytes: after.writes.bytes - before.writes.bytes,
        cpu_ns,
        seconds,
        allocations,
    })
}
