//! A guest that writes while its disk is mirrored over a link that is hardly faster than it.

use super::cpu::percentile;
use super::report::Row;
use super::timeline::{Link, LinkOptions, Time, Timeline};
use crate::failure::Failure;
use crate::size::Size;
use blkmirror::clock::Nanos;
use blkmirror::device::{Callback, Device, IoVec, Kind};
use blkmirror::engine::{CopyMode, Options};
use blkmirror::error::Result;
use blkmirror::filter::{Filter, GuestFlags, GuestIo};
use blkmirror::job::{ClockHook, Job, JobOptions, PollState};
use blkmirror::range::ByteRange;
use clap::{Args, ValueEnum};
use std::sync::{Arc, Mutex, PoisonError};

/// A guest writes at random at a steady rate while the disk is copied over a slow link
///
/// `ready_s` is the time until the job was ready, `-` if it was not within the time limit; `copied_x` how many times the
/// disk's size went over the link until then (1 would be nothing twice). `guest_share` is what the guest got of the rate
/// that it wanted while the disk was copied, `p50_ms` and `p99_ms` the latencies of its writes, each counted from the
/// moment when it was to begin. In virtual time the figures are the same on every machine.
#[derive(Args)]
pub(super) struct Arguments {
    /// The link to the target, bytes per second
    #[arg(long, value_name = "SIZE", default_value = "105000000")]
    link: Size,

    /// Only this share of the link for the guest's writes [default: 0.0625, 0.25, 0.5, 0.7 and 0.8]
    #[arg(long, value_name = "SHARE")]
    guest: Option<f64>,

    /// Only this mode [default: both]
    #[arg(long, value_enum)]
    mode: Option<Mode>,

    /// The disk's length
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    size: Size,

    /// Bytes in one of the guest's writes
    #[arg(long, value_name = "SIZE", default_value = "4K")]
    write: Size,

    /// Bytes in a chunk [default: the library's]
    #[arg(long, value_name = "SIZE", default_value = "0")]
    granularity: Size,

    /// Writes that the guest has out at most
    #[arg(long, value_name = "N", default_value_t = 32)]
    depth: usize,

    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    limit: u64,

    /// Wait in real time, so that what the library costs counts
    #[arg(long)]
    real: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Background,
    WriteBlocking,
}

pub(super) fn run(arguments: &Arguments) -> Result<Vec<Row>, Failure> {
    if arguments.write.0 == 0 || arguments.size.0 < arguments.write.0 || arguments.link.0 == 0 {
        return Err(Failure::Usage(
            "size, write and link must not be 0, nor a write larger than the disk".into(),
        ));
    }
    let shares = arguments.guest.map_or(vec![0.0625, 0.25, 0.5, 0.7, 0.8], |share| vec![share]);
    let modes = arguments.mode.map_or(vec![Mode::Background, Mode::WriteBlocking], |mode| vec![mode]);
    let mut rows = Vec::new();
    for mode in modes {
        for share in &shares {
            rows.push(one(arguments, mode, *share)?);
        }
    }
    Ok(rows)
}

fn one(arguments: &Arguments, mode: Mode, share: f64) -> Result<Row> {
    let time = if arguments.real { Time::Real } else { Time::Virtual };
    let timeline = Timeline::new(time);
    let length = arguments.size.0 / arguments.write.0 * arguments.write.0;
    let source = Link::device(&timeline, LinkOptions { length, rate: 0, latency_ns: 50_000 })?;
    let link = LinkOptions { length, rate: arguments.link.0, latency_ns: 100_000 };
    let target = Link::device(&timeline, link)?;
    let filter = Filter::new(&source)?;
    let job = start(arguments, mode, &filter, &target, &timeline)?;
    let began = timeline.now();
    let mut guest = Guest::new(arguments, share, length, began);
    let deadline = began + arguments.limit * 1_000_000_000;
    let info = loop {
        timeline.complete_due();
        guest.write_what_is_due(&filter, &timeline)?;
        let poll = job.poll(Nanos(timeline.now()))?;
        let info = job.query();
        if info.ready || timeline.now() >= deadline {
            break info;
        }
        if poll.state == PollState::Idle {
            let next = timeline.next_due().min(poll.wake_at.0).min(guest.next_write());
            timeline.wait_until(next.min(deadline));
        }
    };
    let elapsed = (timeline.now() - began).max(1) as f64 / 1e9;
    let moved = info.writes.bytes + info.active.bytes;
    let (written, mut latencies) = guest.results();
    latencies.sort_unstable();
    let wanted = share * arguments.link.0 as f64 * elapsed;
    let ms = |share| percentile(&latencies, share) as f64 / 1e6;
    drop(job);
    while timeline.next_due() != u64::MAX {
        timeline.wait_until(timeline.next_due());
        timeline.complete_due();
    }
    Ok(Row::new()
        .with("mode", if mode == Mode::Background { "background" } else { "write-blocking" })
        .with("guest_of_link", share)
        .with("ready_s", info.ready.then_some((elapsed * 1000.0).round() / 1000.0))
        .figure("copied_x", moved as f64 / length as f64)
        .figure("guest_share", written as f64 / wanted.max(1.0))
        .figure("p50_ms", ms(0.5))
        .figure("p99_ms", ms(0.99)))
}

fn start(
    arguments: &Arguments,
    mode: Mode,
    filter: &Filter,
    target: &Device,
    timeline: &Arc<Timeline>,
) -> Result<Job> {
    let options = Options {
        copy_mode: if mode == Mode::Background { CopyMode::Background } else { CopyMode::WriteBlocking },
        granularity: arguments.granularity.0,
        detect_zeroes: false,
        ..Options::default()
    };
    let inline = mode == Mode::WriteBlocking;
    let timeline = Arc::clone(timeline);
    let clock: Option<ClockHook> = Some(Box::new(move || Nanos(timeline.now())));
    let job = Job::new(filter, target, JobOptions { options, inline, clock, ..JobOptions::default() })?;
    job.start()?;
    Ok(job)
}

/// Latencies of the writes that are done, and how many are out.
#[derive(Default)]
struct Done {
    latencies_ns: Vec<u64>,
    out: usize,
}

/// Writes one after the other at a steady rate, wherever chance says, as long as not too many are out.
struct Guest {
    memory: Vec<u8>,
    places: u64,
    interval_ns: f64,
    began: u64,
    made: u64,
    depth: usize,
    random: u64,
    done: Arc<Mutex<Done>>,
}

impl Guest {
    fn new(arguments: &Arguments, share: f64, length: u64, began: u64) -> Self {
        let per_second = share * arguments.link.0 as f64 / arguments.write.0 as f64;
        Self {
            memory: vec![0x5a; arguments.write.0 as usize],
            places: length / arguments.write.0,
            interval_ns: 1e9 / per_second.max(1e-9),
            began,
            made: 0,
            depth: arguments.depth.max(1),
            random: 0x1234_5678_9abc_def1,
            done: Arc::default(),
        }
    }

    fn due(&self) -> u64 {
        self.began + (self.made as f64 * self.interval_ns) as u64
    }

    /// When it is to write again, if a write that is done doesn't come before that.
    fn next_write(&self) -> u64 {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if done.out < self.depth { self.due() } else { u64::MAX }
    }

    fn write_what_is_due(&mut self, filter: &Filter, timeline: &Arc<Timeline>) -> Result<()> {
        while self.next_write() <= timeline.now() {
            // Xorshift (Marsaglia, 2003).
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let length = self.memory.len() as u64;
            let range = ByteRange::new(self.random % self.places * length, length)?;
            let due = self.due();
            self.made += 1;
            self.done.lock().unwrap_or_else(PoisonError::into_inner).out += 1;
            let (done, clock) = (Arc::clone(&self.done), Arc::clone(timeline));
            let tell = Callback::from_closure(move |_| {
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                done.latencies_ns.push(clock.now() - due);
                done.out -= 1;
            });
            // SAFETY: the memory is only read, and given back after the last request is done.
            let iov = [unsafe { IoVec::new(self.memory.as_ptr().cast_mut().cast(), self.memory.len()) }];
            let flags = GuestFlags { stable: true, ..GuestFlags::default() };
            filter.submit(&GuestIo { kind: Kind::Write, range, flags, iov: &iov }, tell)?;
        }
        Ok(())
    }

    /// Bytes that were written, and how long each write took.
    fn results(&self) -> (u64, Vec<u64>) {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        (done.latencies_ns.len() as u64 * self.memory.len() as u64, done.latencies_ns.clone())
    }
}
