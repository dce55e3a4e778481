//! How long a guest's write takes whose copy is made before the guest is told.

use super::cpu::median;
use super::report::Row;
use super::timeline::{Link, LinkOptions, Time, Timeline};
use crate::failure::Failure;
use blkmirror::clock::Nanos;
use blkmirror::device::{Callback, IoVec, Kind};
use blkmirror::engine::{CopyMode, Options, Sync};
use blkmirror::error::Result;
use blkmirror::filter::{Filter, GuestFlags, GuestIo};
use blkmirror::job::{ClockHook, Job, JobOptions, PollState};
use blkmirror::range::ByteRange;
use clap::Args;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A guest's 4 KiB write in write-blocking mode, where source and target take their time
///
/// One write at a time, to a job that is ready. Both devices get it at once, so it takes as long as the slower: `of_slower`
/// is its latency by that of the slower device, 1 if the library takes no time. If one waited for the other it would be
/// their sum. Waits in real time.
#[derive(Args)]
pub(super) struct Arguments {
    /// Only a source with this latency, in milliseconds [default: 0.1, 1 and 10]
    #[arg(long, value_name = "MS")]
    source: Option<f64>,

    /// Only a target with this latency, in milliseconds [default: 0.1, 1 and 10]
    #[arg(long, value_name = "MS")]
    target: Option<f64>,

    /// Writes for each; the median is told
    #[arg(long, value_name = "N", default_value_t = 200)]
    writes: u32,
}

const WRITE: u64 = 4096;
const LENGTH: u64 = 64 << 20;

pub(super) fn run(arguments: &Arguments) -> Result<Vec<Row>, Failure> {
    let of = |only: Option<f64>| only.map_or(vec![0.1, 1.0, 10.0], |ms| vec![ms]);
    if [arguments.source, arguments.target].into_iter().flatten().any(|ms| !(0.001..=10_000.0).contains(&ms))
    {
        return Err(Failure::Usage("a latency must be from 0.001 to 10000 milliseconds".into()));
    }
    let mut rows = Vec::new();
    for source in of(arguments.source) {
        for target in of(arguments.target) {
            let took = one([source, target], arguments.writes.max(1))?;
            rows.push(
                Row::new()
                    .with("source_ms", source)
                    .with("target_ms", target)
                    .figure("write_ms", took)
                    .figure("of_slower", took / source.max(target)),
            );
        }
    }
    Ok(rows)
}

/// Milliseconds of a write.
fn one(latencies_ms: [f64; 2], writes: u32) -> Result<f64> {
    let timeline = Timeline::new(Time::Real);
    let [source, target] = latencies_ms.map(|ms| {
        Link::device(&timeline, LinkOptions { length: LENGTH, rate: 0, latency_ns: (ms * 1e6) as u64 })
    });
    let (source, target) = (source?, target?);
    let filter = Filter::new(&source)?;
    let options = Options { sync: Sync::None, copy_mode: CopyMode::WriteBlocking, ..Options::default() };
    let now = Arc::clone(&timeline);
    let clock: Option<ClockHook> = Some(Box::new(move || Nanos(now.now())));
    let job =
        Job::new(&filter, &target, JobOptions { options, inline: true, clock, ..JobOptions::default() })?;
    job.start()?;
    drive(&job, &timeline, || job.query().ready)?;
    let memory = vec![0x5a; WRITE as usize];
    let done_at = Arc::new(AtomicU64::new(0));
    let mut took = Vec::new();
    for index in 0..u64::from(writes) {
        let range = ByteRange::new(index * WRITE % LENGTH, WRITE)?;
        // SAFETY: the memory is only read, and lives until the request is done.
        let iov = [unsafe { IoVec::new(memory.as_ptr().cast_mut().cast(), memory.len()) }];
        let (at, clock) = (Arc::clone(&done_at), Arc::clone(&timeline));
        let tell = Callback::from_closure(move |_| at.store(clock.now(), Ordering::Relaxed));
        done_at.store(0, Ordering::Relaxed);
        let began = timeline.now();
        let flags = GuestFlags { stable: true, ..GuestFlags::default() };
        filter.submit(&GuestIo { kind: Kind::Write, range, flags, iov: &iov }, tell)?;
        drive(&job, &timeline, || done_at.load(Ordering::Relaxed) != 0)?;
        took.push((done_at.load(Ordering::Relaxed) - began) as f64 / 1e6);
    }
    job.cancel(true)?;
    drive(&job, &timeline, || job.query().status.is_over())?;
    Ok(median(took))
}

/// Lets devices and job go on until this is so.
fn drive(job: &Job, timeline: &Timeline, so: impl Fn() -> bool) -> Result<()> {
    while !so() {
        timeline.complete_due();
        let poll = job.poll(Nanos(timeline.now()))?;
        if poll.state == PollState::Idle && !so() {
            timeline.wait_until(timeline.next_due().min(poll.wake_at.0));
        }
    }
    Ok(())
}
