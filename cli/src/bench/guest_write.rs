//! What the filter adds to a guest's write.

use super::cpu;
use super::report::Row;
use crate::failure::Failure;
use crate::size::Size;
use blkmirror::clock::Nanos;
use blkmirror::device::{Answer, Backend, Callback, Device, Flags, IoVec, Kind, Limits, Request, Token};
use blkmirror::engine::{CopyMode, Options, Sync};
use blkmirror::error::Result;
use blkmirror::filter::{Filter, GuestFlags, GuestIo};
use blkmirror::job::{Job, JobOptions};
use blkmirror::range::ByteRange;
use clap::Args;
use std::ffi::{c_int, c_void};
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A guest's 4 KiB write: on the device directly, and through the filter in each mode
///
/// The devices do nothing, so that what is told is the library's own cost. `ns` is the time of one write as each of the
/// threads sees it, `added_ns` what is above the direct call with as many threads. In write-blocking mode a write goes to
/// two devices, on the thread that makes it.
#[derive(Args)]
pub(super) struct Arguments {
    /// Threads that write at the same time; 1 up to this many, doubling
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: u32,

    /// Bytes in a write
    #[arg(long, value_name = "SIZE", default_value = "4K")]
    bytes: Size,

    /// Writes of each thread in a round
    #[arg(long, value_name = "N", default_value_t = 500_000)]
    writes: u64,

    /// How often; the median is told
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: u32,
}

const LENGTH: u64 = 1 << 30;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    NoJob,
    Background,
    WriteBlocking,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::NoJob => "filter, no job",
            Self::Background => "filter, background",
            Self::WriteBlocking => "filter, write-blocking",
        }
    }
}

/// Takes everything at once.
struct Sink;

impl Backend for Sink {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        black_box((token, request.range, request.iov.as_ptr()));
        Answer::Done(Ok(()))
    }
}

fn sink() -> Result<Device> {
    Device::new(LENGTH, Limits::default(), |_| Ok(Sink))
}

pub(super) fn run(arguments: &Arguments) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let mut threads = 1;
    while threads <= arguments.threads {
        let mut direct = 0.0;
        for way in [Way::Direct, Way::NoJob, Way::Background, Way::WriteBlocking] {
            let ns = measure(arguments, way, threads)?;
            if way == Way::Direct {
                direct = ns;
            }
            rows.push(
                Row::new()
                    .with("way", way.name())
                    .with("threads", threads)
                    .figure("ns", ns)
                    .figure("added_ns", ns - direct),
            );
        }
        threads *= 2;
    }
    Ok(rows)
}

fn measure(arguments: &Arguments, way: Way, threads: u32) -> Result<f64> {
    let filter = Filter::new(&sink()?)?;
    let job =
        if matches!(way, Way::Background | Way::WriteBlocking) { Some(ready(&filter, way)?) } else { None };
    let round = || {
        let barrier = Barrier::new(threads as usize);
        let each = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..u64::from(threads))
                .map(|thread| {
                    let (filter, barrier) = (&filter, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        write(arguments, way, filter, thread)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(f64::NAN)).collect::<Vec<_>>()
        });
        each.iter().sum::<f64>() / each.len() as f64
    };
    let ns = cpu::median((0..arguments.rounds.max(1)).map(|_| round()).collect());
    drop(job);
    Ok(ns)
}

/// A job that is ready, in the mode that is to be measured, and asleep.
fn ready(filter: &Filter, way: Way) -> Result<Job> {
    let blocking = way == Way::WriteBlocking;
    let options = Options {
        sync: Sync::None,
        copy_mode: if blocking { CopyMode::WriteBlocking } else { CopyMode::Background },
        ..Options::default()
    };
    let job = Job::new(filter, &sink()?, JobOptions { options, inline: blocking, ..JobOptions::default() })?;
    job.start()?;
    while !job.query().ready {
        job.poll(Nanos(1))?;
    }
    Ok(job)
}

/// Counts the requests that are done.
unsafe extern "C" fn count(done: *mut c_void, _: c_int) {
    // SAFETY: the counter outlives the requests: whoever makes them waits for the last.
    let done = unsafe { &*done.cast::<AtomicU64>() };
    done.fetch_add(1, Ordering::Release);
}

/// Nanoseconds of one write.
fn write(arguments: &Arguments, way: Way, filter: &Filter, thread: u64) -> f64 {
    let mut memory = vec![0u8; arguments.bytes.0 as usize];
    // SAFETY: the memory outlives the requests: each is done before the next is made.
    let iov = [unsafe { IoVec::new(memory.as_mut_ptr().cast(), memory.len()) }];
    let places = (LENGTH / arguments.bytes.0 / 64).max(1);
    let range = |index: u64| {
        let at = (thread * 17 + index % 16) % places * arguments.bytes.0;
        ByteRange::new(at, arguments.bytes.0).unwrap_or_default()
    };
    let done = AtomicU64::new(0);
    let began = Instant::now();
    for index in 0..arguments.writes {
        if way == Way::Direct {
            let flags = Flags::default();
            let request = Request { kind: Kind::Write, range: range(index), flags, iov: &iov, from: None };
            black_box(&Sink as &dyn Backend).submit(Token::from_raw(index), &request);
            continue;
        }
        let flags = GuestFlags { stable: true, ..GuestFlags::default() };
        let io = GuestIo { kind: Kind::Write, range: range(index), flags, iov: &iov };
        // SAFETY: the counter lives until all requests are done, and is the callback's alone and this thread's.
        let tell = unsafe { Callback::from_raw(count, (&raw const done).cast_mut().cast()) };
        if filter.submit(&io, tell).is_err() {
            return f64::NAN;
        }
        // Another thread may be driving the job; it finishes this write as well.
        while done.load(Ordering::Acquire) <= index {
            std::thread::yield_now();
        }
    }
    began.elapsed().as_nanos() as f64 / arguments.writes as f64
}
