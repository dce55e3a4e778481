//! What must not grow with the disk, or with how many jobs there are: few dirty chunks on a huge disk, and jobs that have
//! nothing to do.

use super::cpu;
use super::report::Row;
use crate::failure::Failure;
use crate::size::Size;
use blkmirror::clock::{Nanos, monotonic};
use blkmirror::device::{Device, Limits, Null, NullOptions};
use blkmirror::engine::{Options, Sync};
use blkmirror::error::Result;
use blkmirror::filter::Filter;
use blkmirror::job::{Job, JobOptions, PollState};
use blkmirror::range::ByteRange;
use clap::Args;
use std::time::Instant;

/// Few dirty chunks on a huge disk, and many jobs that have nothing to do
///
/// The first table is a job between null devices in chunks of 64 KiB, with dirty runs spread evenly over the disk. `create`
/// makes it, `mark` marks by hand, `start` is the start with the first poll, `ready` the polls until nothing is dirty,
/// `finish` the switch. All should go with the dirty chunks and not with the disk. `memory_mib` is what the process
/// grew by until ready, without copy buffers, as null devices don't touch them; a lone dirty chunk costs the page of the
/// bitmap that its bit lies in, and a disk's bitmap is never more than a bit for each chunk and 1.6 %.
///
/// The second table is processor time for a poll of a job that is ready and has nothing to do, of that many jobs polled one
/// after the other by one thread.
#[derive(Args)]
pub(super) struct Arguments {
    /// Only a disk of this size [default: 1T, 32T and 1P]
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,

    /// Only this many of a million chunks dirty [default: 0.1, 1 and 10, which is 0.001 %]
    #[arg(long, value_name = "N")]
    dirty_ppm: Option<f64>,

    /// Dirty chunks that lie side by side
    #[arg(long, value_name = "N", default_value_t = 1)]
    run: u64,

    /// Only this many idle jobs [default: 1, 16 and 256]
    #[arg(long, value_name = "N")]
    jobs: Option<u32>,

    /// Polls of all idle jobs together, each time
    #[arg(long, value_name = "N", default_value_t = 500_000)]
    polls: u32,

    /// How often; the median is told
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: u32,
}

const CHUNK: u64 = 64 << 10;
const TIB: u64 = 1 << 40;
const MILLION: f64 = 1e6;
/// Of each disk whose job is idle.
const IDLE_LENGTH: u64 = TIB;

pub(super) fn run(arguments: &Arguments) -> std::result::Result<Vec<Row>, Failure> {
    let sizes = arguments.size.map_or(vec![TIB, 32 * TIB, 1024 * TIB], |Size(bytes)| vec![bytes]);
    let shares = arguments.dirty_ppm.map_or(vec![0.1, 1.0, 10.0], |ppm| vec![ppm]);
    if shares.iter().any(|ppm| !(0.0..=MILLION).contains(ppm)) || arguments.run == 0 {
        return Err(Failure::Usage("dirty-ppm must be from 0 to a million, and run at least 1".into()));
    }
    if sizes.iter().any(|size| *size < CHUNK) || arguments.jobs == Some(0) {
        return Err(Failure::Usage("size must be at least 64K, and jobs at least 1".into()));
    }
    let mut rows = Vec::new();
    for size in sizes {
        for ppm in &shares {
            rows.push(sparse(arguments, size, *ppm)?);
        }
    }
    for jobs in arguments.jobs.map_or(vec![1, 16, 256], |jobs| vec![jobs]) {
        rows.push(idle(arguments, jobs)?);
    }
    Ok(rows)
}

/// Where the dirty runs are.
#[derive(Clone, Copy)]
struct Runs {
    count: u64,
    chunks: u64,
    stride: u64,
}

impl Runs {
    fn spread(size: u64, ppm: f64, chunks: u64) -> Self {
        let disk = size / CHUNK;
        let chunks = chunks.min(disk);
        let count = ((disk as f64 * ppm / MILLION / chunks as f64) as u64).clamp(1, disk / chunks);
        Self { count, chunks, stride: disk / count }
    }

    fn dirty_chunks(&self) -> u64 {
        self.count * self.chunks
    }

    fn ranges(self) -> impl Iterator<Item = Result<ByteRange>> {
        (0..self.count).map(move |run| ByteRange::new(run * self.stride * CHUNK, self.chunks * CHUNK))
    }
}

/// Milliseconds, and bytes of memory.
struct Measured {
    create: f64,
    mark: f64,
    start: f64,
    ready: f64,
    finish: f64,
    memory: f64,
}

fn sparse(arguments: &Arguments, size: u64, ppm: f64) -> Result<Row> {
    let runs = Runs::spread(size, ppm, arguments.run);
    let rounds: Vec<_> = (0..arguments.rounds.max(1)).map(|_| one_job(size, runs)).collect::<Result<_>>()?;
    let median = |figure: fn(&Measured) -> f64| cpu::median(rounds.iter().map(figure).collect());
    let dirty = runs.dirty_chunks() as f64;
    Ok(Row::new()
        .with("size", size)
        .with("dirty_ppm", ppm)
        .with("dirty_chunks", runs.dirty_chunks())
        .figure("create_ms", median(|round| round.create))
        .figure("mark_ms", median(|round| round.mark))
        .figure("start_ms", median(|round| round.start))
        .figure("ready_ms", median(|round| round.ready))
        .figure("finish_ms", median(|round| round.finish))
        .figure("ns_per_chunk", median(|round| round.start + round.ready + round.finish) * 1e6 / dirty)
        .figure("memory_mib", median(|round| round.memory) / f64::from(1 << 20))
        .figure("bytes_per_chunk", median(|round| round.memory) / dirty))
}

fn one_job(size: u64, runs: Runs) -> Result<Measured> {
    let filter = Filter::new(&null(size)?)?;
    let target = null(size)?;
    let memory_before = cpu::memory();
    let mut watch = Stopwatch::start();
    let job = job(&filter, &target)?;
    let create = watch.lap_ms();
    for range in runs.ranges() {
        filter.mark_dirty(range?)?;
    }
    let mark = watch.lap_ms();
    let mut now = 1;
    job.start()?;
    job.poll(Nanos(now))?;
    let start = watch.lap_ms();
    while !job.query().ready {
        now += 1_000_000;
        job.poll(Nanos(now))?;
    }
    let ready = watch.lap_ms();
    let memory = cpu::memory().saturating_sub(memory_before) as f64;
    let copied = job.query().writes.bytes;
    assert_eq!(copied, runs.dirty_chunks() * CHUNK, "what was dirty is copied, and nothing else");
    watch.lap_ms();
    job.complete()?;
    while job.poll(Nanos(now))?.state != PollState::Concluded {
        now += 1_000_000;
    }
    let finish = watch.lap_ms();
    Ok(Measured { create, mark, start, ready, finish, memory })
}

fn idle(arguments: &Arguments, jobs: u32) -> std::result::Result<Row, Failure> {
    let made: Vec<_> = (0..jobs).map(|_| ready_job()).collect::<Result<_>>()?;
    let sweeps = (arguments.polls / jobs).max(1);
    let polls = f64::from(sweeps) * f64::from(jobs);
    let round = || {
        let began = cpu::cpu_ns();
        let mut all_idle = true;
        for _ in 0..sweeps {
            let now = monotonic();
            for (_, job) in &made {
                all_idle &= job.poll(now)?.state == PollState::Idle;
            }
        }
        let spent = cpu::cpu_ns() - began;
        if all_idle { Ok(spent as f64 / polls) } else { Err(Failure::failed("a job was not idle")) }
    };
    let rounds =
        (0..arguments.rounds.max(1)).map(|_| round()).collect::<std::result::Result<_, Failure>>()?;
    Ok(Row::new().with("idle_jobs", jobs).figure("ns_per_poll", cpu::median(rounds)))
}

/// A job that has reached its target, and the filter that it is on.
fn ready_job() -> Result<(Filter, Job)> {
    let filter = Filter::new(&null(IDLE_LENGTH)?)?;
    let job = job(&filter, &null(IDLE_LENGTH)?)?;
    job.start()?;
    // Once more after it is ready: the events are out, and it sleeps.
    while !job.query().ready || job.poll(monotonic())?.state != PollState::Idle {
        job.poll(monotonic())?;
    }
    Ok((filter, job))
}

fn null(length: u64) -> Result<Device> {
    Null::device(length, Limits::default(), NullOptions::default())
}

fn job(filter: &Filter, target: &Device) -> Result<Job> {
    let options = Options {
        sync: Sync::None,
        granularity: CHUNK,
        detect_zeroes: false,
        auto_dismiss: false,
        ..Options::default()
    };
    Job::new(filter, target, JobOptions { options, ..JobOptions::default() })
}

struct Stopwatch(Instant);

impl Stopwatch {
    fn start() -> Self {
        Self(Instant::now())
    }

    /// Milliseconds since the start, or since it was asked last.
    fn lap_ms(&mut self) -> f64 {
        let now = Instant::now();
        let lap = now.duration_since(self.0);
        self.0 = now;
        lap.as_secs_f64() * 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_runs_are_spread_over_the_disk_and_stay_on_it() {
        for (size, ppm, chunks) in [(TIB, 10.0, 1), (CHUNK, 5e5, 8), (1000 * CHUNK, 1e6, 7), (TIB, 0.0, 3)] {
            let runs = Runs::spread(size, ppm, chunks);
            let ranges: Vec<_> = runs.ranges().collect::<Result<_>>().expect("on the disk");
            assert!(ranges.windows(2).all(|two| two[0].end() <= two[1].offset()), "apart from each other");
            assert!(ranges.last().is_some_and(|last| last.end() <= size));
            let dirty: u64 = ranges.iter().map(|range| range.len() / CHUNK).sum();
            assert_eq!(dirty, runs.dirty_chunks());
        }
        assert_eq!(Runs::spread(TIB, 10.0, 1).dirty_chunks(), 167);
    }
}
