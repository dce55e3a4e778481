//! What the guest's write path and the scanner pay for the bitmaps.

use blkmirror::bitmap::{ChunkMap, DirtyBitmap};
use blkmirror::range::ChunkRange;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use std::hint::black_box;

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const PIB: u64 = 1 << 50;

fn one(chunk: u64) -> ChunkRange {
    ChunkRange::new(chunk, chunk + 1)
}

fn dirty(bytes: u64, granularity: u64) -> DirtyBitmap {
    DirtyBitmap::new(bytes / granularity).expect("memory")
}

/// Chunks that don't follow each other, of a 64 MiB hot region, so that the cache has their words.
fn scattered() -> impl Iterator<Item = u64> {
    (0_u64..).map(|nth| nth.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 50)
}

fn marks(c: &mut Criterion) {
    let mut group = c.benchmark_group("mark");
    let bitmap = dirty(TIB, 4096);
    let mut chunks = scattered();
    bitmap.mark(ChunkRange::new(0, 1 << 14));
    group.bench_function("dirty 4 KiB chunk", |b| {
        b.iter(|| bitmap.mark(one(chunks.next().unwrap_or(0))));
    });
    bitmap.clear(ChunkRange::new(0, 1 << 14));
    group.bench_function("clean 4 KiB chunk, and clear, others dirty nearby", |b| {
        bitmap.mark(one(64));
        b.iter(|| bitmap.mark(one(black_box(65))) + bitmap.clear(one(black_box(65))));
    });
    bitmap.clear(one(64));
    group.bench_function("clean 4 KiB chunk, and clear, all else clean", |b| {
        b.iter(|| bitmap.mark(one(black_box(65))) + bitmap.clear(one(black_box(65))));
    });
    group.throughput(Throughput::Bytes(GIB));
    for granularity in [4096, 65536] {
        let bitmap = dirty(TIB, granularity);
        let range = ChunkRange::new(77, 77 + GIB / granularity);
        group.bench_function(BenchmarkId::new("1 GiB in chunks of", granularity), |b| {
            b.iter(|| bitmap.mark(black_box(range)));
        });
    }
    group.finish();
}

fn scans(c: &mut Criterion) {
    let mut group = c.benchmark_group("scan");
    let huge = dirty(PIB, 65536);
    huge.mark(one(huge.chunks() - 1));
    group.bench_function("next_dirty, last chunk of 1 PiB", |b| {
        b.iter(|| huge.next_dirty(black_box(1)));
    });
    let full = dirty(TIB, 65536);
    group.throughput(Throughput::Bytes(TIB));
    group.bench_function("next_run and clear 1 MiB, all of 1 TiB in 64 KiB chunks", |b| {
        b.iter_batched(
            || full.mark(ChunkRange::new(0, full.chunks())),
            |_| {
                let mut from = 0;
                while let Some(run) = full.next_run(from, 16) {
                    full.clear(run);
                    from = run.end;
                }
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn chunk_map(c: &mut Criterion) {
    let mut group = c.benchmark_group("chunk_map");
    let mut map = ChunkMap::new(TIB / 65536).expect("memory");
    group.bench_function("set and clear a lone chunk", |b| {
        b.iter(|| {
            map.set(one(black_box(70_000)));
            map.clear(one(black_box(70_000)));
        });
    });
    map.set(one(70_001));
    group.bench_function("set and clear a chunk of a page in use", |b| {
        b.iter(|| {
            map.set(one(black_box(70_000)));
            map.clear(one(black_box(70_000)));
        });
    });
    group.bench_function("any of one chunk", |b| b.iter(|| map.any(one(black_box(70_000)))));
    group.bench_function("any of 16 chunks of a page in use", |b| {
        b.iter(|| map.any(black_box(ChunkRange::new(69_900, 69_916))));
    });
    group.bench_function("any of 16 chunks of a clear page", |b| {
        b.iter(|| map.any(black_box(ChunkRange::new(9_900, 9_916))));
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    marks(&mut criterion);
    scans(&mut criterion);
    chunk_map(&mut criterion);
    criterion.final_summary();
}
