//! What a job that is ready takes from the guest whose writes it copies.

use super::cpu::{self, median, percentile};
use super::file::fill;
use super::report::Row;
use crate::drive::{drive, wake_hook};
use crate::failure::Failure;
use crate::size::Size;
use blkmirror::device::{Callback, Device, IoVec, Kind, file};
use blkmirror::engine::{Options, Sync};
use blkmirror::error::Result as Outcome;
use blkmirror::filter::{Filter, GuestFlags, GuestIo};
use blkmirror::job::{Job, JobOptions};
use blkmirror::range::ByteRange;
use clap::Args;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A guest that writes at random to a file as fast as it can, without a job and beside one that is ready
///
/// The job mirrors to a second file in background mode, on a thread of its own. Both ways take turns within a round.
/// `iops` is what the guest got, `p50_us` and `p99_us` how long its writes took; `iops_share` and `p99_x` are those beside
/// the job by those without one, medians of the rounds. `job_cpu` is the share of a processor that the job's thread took,
/// `copied_mb_per_s` (10^6 bytes) what it copied. Confine it to one processor (`taskset -c 0`) to see guest and job
/// contend for it.
#[derive(Args)]
pub(super) struct Arguments {
    /// Where the two files are made, and removed afterwards
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// The disk's length
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    size: Size,

    /// Bytes in one of the guest's writes
    #[arg(long, value_name = "SIZE", default_value = "4K")]
    write: Size,

    /// Writes that the guest has out
    #[arg(long, value_name = "N", default_value_t = 32)]
    depth: usize,

    /// Bytes in a chunk [default: the library's]
    #[arg(long, value_name = "SIZE", default_value = "0")]
    granularity: Size,

    /// Copies that the job has on their way at most [default: as many as the storage takes]
    #[arg(long, value_name = "N", default_value_t = 0)]
    in_flight: u32,

    /// Milliseconds between the beginnings of two of the job's passes over what is dirty [default: the library's]
    #[arg(long, value_name = "MS")]
    pass_interval: Option<u64>,

    /// Bypass the page cache
    #[arg(long)]
    direct: bool,

    /// Leave the work to threads, even where io_uring is to be had
    #[arg(long)]
    threads: bool,

    /// How long each way is measured in a round
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    seconds: f64,

    /// How often; the median is told
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: u32,
}

/// What the guest and the job did in one round, one way.
#[derive(Clone, Copy, Default)]
struct Measured {
    iops: f64,
    p50_us: f64,
    p99_us: f64,
    job_cpu: f64,
    copied_mb_per_s: f64,
}

/// Aligned as bypassing the page cache may need it.
const ALIGNMENT: usize = 4096;

pub(super) fn run(arguments: &Arguments) -> Result<Vec<Row>, Failure> {
    let write = arguments.write.0;
    if write == 0
        || !write.is_multiple_of(ALIGNMENT as u64)
        || arguments.size.0 < write
        || arguments.depth == 0
    {
        return Err(Failure::Usage(
            "write must be a multiple of 4K and not larger than the disk, depth at least 1".into(),
        ));
    }
    if !(0.01..=3600.0).contains(&arguments.seconds) {
        return Err(Failure::Usage("seconds must be from 0.01 to 3600".into()));
    }
    let dir = tempfile::tempdir_in(&arguments.dir).map_err(Failure::with(arguments.dir.display()))?;
    let length = arguments.size.0 / write * write;
    let (mut without, mut beside) = (Vec::new(), Vec::new());
    let [source, target] = [("source", 1), ("target", 2)].map(|(name, seed)| (dir.path().join(name), seed));
    for (path, seed) in [&source, &target] {
        fill(path, length, length, *seed).map_err(Failure::with(path.display()))?;
    }
    let source = open(arguments, &source.0)?;
    let target = open(arguments, &target.0)?;
    for round in 0..arguments.rounds.max(1) {
        for first in [true, false] {
            if first == (round % 2 == 0) {
                without.push(Guest::new(arguments, &source)?.write_for(arguments.seconds)?);
            } else {
                beside.push(beside_a_job(arguments, &source, &target)?);
            }
        }
    }
    Ok(vec![row("without a job", &without, &without), row("beside a job", &beside, &without)])
}

fn open(arguments: &Arguments, path: &Path) -> Outcome<Device> {
    let (direct, threads) = (arguments.direct, arguments.threads);
    file::open(path, &file::OpenOptions { direct, threads, ..file::OpenOptions::default() })
}

fn row(way: &'static str, rounds: &[Measured], without: &[Measured]) -> Row {
    let median_of = |figure: &dyn Fn(&Measured) -> f64| median(rounds.iter().map(figure).collect());
    let ratio = |figure: &dyn Fn(&Measured) -> f64| {
        median(rounds.iter().zip(without).map(|(one, other)| figure(one) / figure(other)).collect())
    };
    Row::new()
        .with("way", way)
        .figure("iops", median_of(&|round| round.iops))
        .figure("p50_us", median_of(&|round| round.p50_us))
        .figure("p99_us", median_of(&|round| round.p99_us))
        .figure("iops_share", ratio(&|round| round.iops))
        .figure("p99_x", ratio(&|round| round.p99_us))
        .figure("job_cpu", median_of(&|round| round.job_cpu))
        .figure("copied_mb_per_s", median_of(&|round| round.copied_mb_per_s))
}

/// The same guest while a job, which is ready, copies what it writes.
fn beside_a_job(arguments: &Arguments, source: &Device, target: &Device) -> Outcome<Measured> {
    let guest = Guest::new(arguments, source)?;
    let mut options = Options {
        sync: Sync::None,
        granularity: arguments.granularity.0,
        max_in_flight: arguments.in_flight,
        ..Options::default()
    };
    if let Some(ms) = arguments.pass_interval {
        options.pass_interval_ns = ms.saturating_mul(1_000_000);
    }
    let job_options = JobOptions { options, wake: wake_hook(), ..JobOptions::default() };
    let job = Job::new(&guest.filter, target, job_options)?;
    job.start()?;
    drive(&job, |job| {
        Ok(if job.query().ready { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    let stop = AtomicBool::new(false);
    let until_stopped = |_: &Job| {
        Ok(if stop.load(Ordering::Acquire) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    let job_ns = cpu::thread_ns();
    let measured = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let measured = guest.write_for(arguments.seconds);
            stop.store(true, Ordering::Release);
            measured
        });
        let driven = drive(&job, until_stopped);
        let measured = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        driven.and(measured)
    })?;
    let copied = job.query().writes.bytes;
    let job_ns = cpu::thread_ns() - job_ns;
    // Until its last requests are done the target is its own.
    job.cancel(true)?;
    drive(&job, |_| Ok(ControlFlow::Continue(())))?;
    let per_second = |figure: u64| figure as f64 / arguments.seconds;
    Ok(Measured { job_cpu: per_second(job_ns) / 1e9, copied_mb_per_s: per_second(copied) / 1e6, ..measured })
}

/// Writes that are done: which of those that are out, and how long all of them took.
#[derive(Default)]
struct Done {
    slots: Vec<usize>,
    latencies_ns: Vec<u64>,
}

#[derive(Default)]
struct Bell {
    done: Mutex<Done>,
    rung: Condvar,
}

/// Keeps as many writes out as it may.
struct Guest {
    filter: Filter,
    memory: Box<[u8]>,
    /// Where the memory is aligned.
    offset: usize,
    bytes: usize,
    places: u64,
    depth: usize,
    bell: Arc<Bell>,
}

impl Guest {
    fn new(arguments: &Arguments, source: &Device) -> Outcome<Self> {
        let bytes = arguments.write.0 as usize;
        let memory = vec![0x5a; bytes + ALIGNMENT].into_boxed_slice();
        Ok(Self {
            filter: Filter::new(source)?,
            offset: memory.as_ptr().align_offset(ALIGNMENT),
            memory,
            bytes,
            places: source.length() / bytes as u64,
            depth: arguments.depth,
            bell: Arc::default(),
        })
    }

    /// All of this time, and until the last write is done.
    fn write_for(&self, seconds: f64) -> Outcome<Measured> {
        let (began, lasts) = (Instant::now(), Duration::from_secs_f64(seconds));
        let mut free: Vec<usize> = (0..self.depth).collect();
        let mut random = 0x1234_5678_9abc_def1_u64;
        let mut result = Ok(());
        while result.is_ok() && began.elapsed() < lasts {
            while let Some(slot) = free.pop() {
                // Xorshift (Marsaglia, 2003).
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                result = self.write(random % self.places, slot);
                if result.is_err() {
                    free.push(slot);
                    break;
                }
            }
            self.wait(&mut free);
        }
        while free.len() < self.depth {
            self.wait(&mut free);
        }
        let seconds = began.elapsed().as_secs_f64();
        let mut done = self.bell.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.latencies_ns.sort_unstable();
        let us = |share| percentile(&done.latencies_ns, share) as f64 / 1e3;
        let iops = done.latencies_ns.len() as f64 / seconds;
        result.map(|()| Measured { iops, p50_us: us(0.5), p99_us: us(0.99), ..Measured::default() })
    }

    fn write(&self, place: u64, slot: usize) -> Outcome<()> {
        let (bell, began) = (Arc::clone(&self.bell), Instant::now());
        let tell = Callback::from_closure(move |_| {
            let mut done = bell.done.lock().unwrap_or_else(PoisonError::into_inner);
            done.latencies_ns.push(began.elapsed().as_nanos() as u64);
            done.slots.push(slot);
            bell.rung.notify_one();
        });
        let range = ByteRange::new(place * self.bytes as u64, self.bytes as u64)?;
        let memory = self.memory[self.offset..][..self.bytes].as_ptr();
        // SAFETY: the memory is only read, and given back after the last write is done.
        let iov = [unsafe { IoVec::new(memory.cast_mut().cast(), self.bytes) }];
        let flags = GuestFlags { stable: true, ..GuestFlags::default() };
        self.filter.submit(&GuestIo { kind: Kind::Write, range, flags, iov: &iov }, tell)
    }

    /// Until some write is done, if any is out.
    fn wait(&self, free: &mut Vec<usize>) {
        let mut done = self.bell.done.lock().unwrap_or_else(PoisonError::into_inner);
        while done.slots.is_empty() && free.len() < self.depth {
            done = self.bell.rung.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
        free.append(&mut done.slots);
    }
}
