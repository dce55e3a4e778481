//! The dirty bitmap's operations by themselves.

use super::cpu;
use super::report::Row;
use crate::failure::Failure;
use blkmirror::bitmap::DirtyBitmap;
use blkmirror::error::Result;
use blkmirror::range::ChunkRange;
use clap::Args;
use std::hint::black_box;
use std::time::Instant;

/// The dirty bitmap: marking, finding and clearing
///
/// `mark 4 KiB` and `mark 1 GiB` are what a guest write of that size costs at 4 KiB chunks. `next dirty of 1 PiB` finds the
/// only dirty chunk, the last, of a disk of 2^34 chunks of 64 KiB. `clear and scan` finds and clears runs of a fully dirty
/// 1 TiB disk; its rate is in bytes of disk.
#[derive(Args)]
pub(super) struct Arguments {
    /// How often; the median is told
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: u32,
}

const CHUNK: u64 = 4096;

pub(super) fn run(arguments: &Arguments) -> Result<Vec<Row>, Failure> {
    let rounds = arguments.rounds.max(1);
    let small = DirtyBitmap::new((1 << 40) / CHUNK)?;
    let huge = DirtyBitmap::new(1 << 34)?;
    huge.mark(ChunkRange::new((1 << 34) - 1, 1 << 34));
    let mut rows = vec![
        row(
            "mark 4 KiB, clean",
            median_ns(rounds, 1_000_000, |i| mark_one(&small, i * 7919 % small.chunks())),
        ),
        row("mark 4 KiB, dirty already", median_ns(rounds, 1_000_000, |i| mark_one(&small, i % 512))),
        row("mark 1 GiB, clean", {
            let chunks = (1 << 30) / CHUNK;
            let clean = DirtyBitmap::new(chunks * u64::from(rounds) * 8)?;
            let mut next = 0;
            median_ns(rounds, 8, |_| {
                clean.mark(ChunkRange::new(next, next + chunks));
                next += chunks;
            })
        }),
        row(
            "next dirty of 1 PiB",
            median_ns(rounds, 100_000, |_| {
                black_box(huge.next_dirty(black_box(0)));
            }),
        ),
    ];
    rows.push(clear_and_scan(rounds)?);
    Ok(rows)
}

fn mark_one(bitmap: &DirtyBitmap, chunk: u64) {
    black_box(bitmap.mark(ChunkRange::new(chunk, chunk + 1)));
}

fn row(what: &str, ns: f64) -> Row {
    Row::new().with("what", what).figure("ns", ns).with("gb_per_s", None::<f64>)
}

fn median_ns(rounds: u32, times: u64, mut act: impl FnMut(u64)) -> f64 {
    let mut at = 0;
    let mut round = || {
        let began = Instant::now();
        for _ in 0..times {
            act(at);
            at += 1;
        }
        began.elapsed().as_nanos() as f64 / times as f64
    };
    cpu::median((0..rounds).map(|_| round()).collect())
}

fn clear_and_scan(rounds: u32) -> Result<Row> {
    let bytes: u64 = 1 << 40;
    let bitmap = DirtyBitmap::new(bytes / CHUNK)?;
    let round = || {
        bitmap.mark(ChunkRange::new(0, bitmap.chunks()));
        let began = Instant::now();
        let (mut at, mut runs) = (0, 0u32);
        while let Some(run) = bitmap.next_run(at, 256) {
            bitmap.clear(run);
            at = run.end;
            runs += 1;
        }
        began.elapsed().as_nanos() as f64 / f64::from(runs.max(1))
    };
    let ns = cpu::median((0..rounds).map(|_| round()).collect());
    let row = Row::new().with("what", "clear and scan, runs of 1 MiB").figure("ns", ns);
    Ok(row.figure("gb_per_s", (256 * CHUNK) as f64 / ns))
}
