//! How far a slow target slows the copy.

use super::report::Row;
use super::timeline::{Link, LinkOptions, Time, Timeline};
use crate::failure::Failure;
use crate::size::Size;
use blkmirror::clock::Nanos;
use blkmirror::engine::{Options, Sync};
use blkmirror::error::Result;
use blkmirror::filter::Filter;
use blkmirror::job::{Job, JobOptions, PollState};
use blkmirror::range::ByteRange;
use clap::Args;

/// A target that takes its time: MB/s by latency, requests in flight and how the dirty chunks lie
///
/// Chunks are 64 KiB; `fragmented` is every second one. The target takes any number of requests at a time and answers each
/// after its latency. In virtual time the figures are the same on every machine: they show what the copy loop's policy
/// leaves unused. `in_flight` 0 lets the library choose.
#[derive(Args)]
pub(super) struct Arguments {
    /// Wait in real time, so that what the library costs counts
    #[arg(long)]
    real: bool,

    /// Only this latency, in milliseconds [default: 0.1, 1 and 10]
    #[arg(long, value_name = "MS")]
    latency: Option<f64>,

    /// Only this many in flight [default: 0, 16, 64, 256 and 1024]
    #[arg(long, value_name = "N")]
    in_flight: Option<u32>,

    /// Bytes to copy [default: 100 times what is in flight, at least 400M]
    #[arg(long, value_name = "SIZE")]
    data: Option<Size>,
}

const CHUNK: u64 = 64 << 10;
/// Enough that beginning and end don't count.
const ROUND_TRIPS: u64 = 100;

pub(super) fn run(arguments: &Arguments) -> Result<Vec<Row>, Failure> {
    let latencies = arguments.latency.map_or(vec![0.1, 1.0, 10.0], |ms| vec![ms]);
    let in_flight = arguments.in_flight.map_or(vec![0, 16, 64, 256, 1024], |count| vec![count]);
    let time = if arguments.real { Time::Real } else { Time::Virtual };
    let mut rows = Vec::new();
    for latency in latencies {
        for in_flight in &in_flight {
            let chunks = match arguments.data {
                Some(Size(bytes)) => (bytes / CHUNK).max(1),
                None => ROUND_TRIPS * u64::from((*in_flight).max(64)),
            };
            let contiguous = rate(time, latency, *in_flight, chunks, false)?;
            let fragmented = rate(time, latency, *in_flight, chunks, true)?;
            rows.push(
                Row::new()
                    .with("latency_ms", latency)
                    .with("in_flight", *in_flight)
                    .figure("contiguous_mb_per_s", contiguous)
                    .figure("fragmented_mb_per_s", fragmented),
            );
        }
    }
    Ok(rows)
}

/// Megabytes (10^6 bytes) per second from start to ready.
fn rate(time: Time, latency_ms: f64, in_flight: u32, chunks: u64, fragmented: bool) -> Result<f64> {
    let length = chunks * CHUNK * if fragmented { 2 } else { 1 };
    let timeline = Timeline::new(time);
    let source = Link::device(&timeline, LinkOptions { length, rate: 0, latency_ns: 0 })?;
    let latency_ns = (latency_ms * 1e6) as u64;
    let target = Link::device(&timeline, LinkOptions { length, rate: 0, latency_ns })?;
    let filter = Filter::new(&source)?;
    let options = Options {
        sync: if fragmented { Sync::None } else { Sync::Full },
        granularity: CHUNK,
        max_in_flight: in_flight,
        buf_size: (u64::from(in_flight) * CHUNK).max(16 << 20),
        detect_zeroes: false,
        ..Options::default()
    };
    let job = Job::new(&filter, &target, JobOptions { options, ..JobOptions::default() })?;
    if fragmented {
        for chunk in 0..chunks {
            filter.mark_dirty(ByteRange::new(chunk * 2 * CHUNK, CHUNK)?)?;
        }
    }
    job.start()?;
    let began = timeline.now();
    loop {
        timeline.complete_due();
        let poll = job.poll(Nanos(timeline.now()))?;
        if job.query().ready {
            break;
        }
        if poll.state == PollState::Idle {
            timeline.wait_until(timeline.next_due().min(poll.wake_at.0));
        }
    }
    let seconds = (timeline.now() - began).max(1) as f64 / 1e9;
    Ok((chunks * CHUNK) as f64 / seconds / 1e6)
}
