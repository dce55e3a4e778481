//! What the library itself costs: whole jobs from a null device to a null device, per copied piece.

use blkmirror::clock::Nanos;
use blkmirror::device::{Device, Limits, Null, NullOptions};
use blkmirror::engine::{Options, Sync};
use blkmirror::filter::Filter;
use blkmirror::job::{Job, JobOptions};
use blkmirror::range::ByteRange;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::{Duration, Instant};

const PIECE: u64 = 64 << 10;
const PIECES: u64 = 1 << 16;

fn null(length: u64) -> Device {
    Null::device(length, Limits::default(), NullOptions::default()).expect("a null device")
}

/// The time from start to ready, with nothing or every second chunk marked by hand.
fn one_job(every_second: bool) -> Duration {
    let length = PIECE * PIECES * if every_second { 2 } else { 1 };
    let filter = Filter::new(&null(length)).expect("a seat");
    let options = Options {
        sync: if every_second { Sync::None } else { Sync::Full },
        granularity: PIECE,
        max_io: PIECE,
        max_in_flight: 16,
        detect_zeroes: false,
        ..Options::default()
    };
    let job =
        Job::new(&filter, &null(length), JobOptions { options, ..JobOptions::default() }).expect("a job");
    if every_second {
        for piece in 0..PIECES {
            filter
                .mark_dirty(ByteRange::new(piece * 2 * PIECE, PIECE).expect("in range"))
                .expect("on the disk");
        }
    }
    job.start().expect("starts");
    let began = Instant::now();
    let mut now = 1;
    while !job.query().ready {
        black_box(job.poll(Nanos(now)).expect("nobody else polls"));
        now += 1_000_000;
    }
    began.elapsed()
}

fn copy_loop(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy_loop");
    group.throughput(Throughput::Elements(PIECES));
    for (name, every_second) in [("contiguous_64k", false), ("every_second_64k", true)] {
        group.bench_function(name, |b| {
            b.iter_custom(|times| (0..times).map(|_| one_job(every_second)).sum());
        });
    }
    group.finish();
}

criterion_group!(benches, copy_loop);
criterion_main!(benches);
