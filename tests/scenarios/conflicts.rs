//! SPEC section 6: conflicts.

use super::script::*;
use blkmirror::testing::Random;

/// The writes that the target has been sent, in chunks, in order.
fn writes(script: &Script) -> Vec<ByteRange> {
    script.target.out().into_iter().map(|(_, range)| range).collect()
}

/// Lets everything that is out at both disks finish.
fn finish(script: &mut Script, range: ByteRange) {
    for disk in [script.source.clone(), script.target.clone()] {
        assert!(disk.complete_where(|_, out| out == range), "{range:?} is out");
    }
    script.settle();
}

#[test]
fn overlapping_writes_run_one_after_the_other_first_come_first_served() {
    // SPEC: the third overlaps only the second, which waits; it doesn't overtake it.
    let mut script = Script::synced_with(options());
    script.target.set_exclusive(CHUNK);
    let ranges = [chunks(0, 2), chunks(1, 2), chunks(2, 2), chunks(8, 1), chunks(3, 1)];
    let told: Vec<_> = (0..5u8)
        .map(|at| script.write(ranges[usize::from(at)].offset(), at, ranges[usize::from(at)].len() as usize))
        .collect();
    script.settle();
    assert_eq!(writes(&script), [ranges[0], ranges[3]], "what overlaps nobody doesn't wait");
    assert_eq!(script.source.out(), script.target.out(), "who waits has touched neither side");
    finish(&mut script, ranges[0]);
    assert_eq!(writes(&script), [ranges[3], ranges[1]]);
    finish(&mut script, ranges[1]);
    assert_eq!(writes(&script), [ranges[3], ranges[2]]);
    finish(&mut script, ranges[2]);
    assert_eq!(writes(&script), [ranges[3], ranges[4]]);
    script.deliver();
    assert!(told.iter().all(|told| told.get() == Some(Ok(()))) && script.equal());
}

#[test]
fn requests_of_any_kind_that_share_a_chunk_wait_for_each_other() {
    // SPEC X-1: though not a byte is common.
    for first in [Kind::Write, Kind::Zero, Kind::Discard] {
        for second in [Kind::Write, Kind::Zero, Kind::Discard] {
            let promises = |with: &mut DiskOptions| with.limits.discard_zeroes = true;
            let mut script = Script::with(disk(promises), disk(promises));
            script.target.fill(0, &script.source.bytes());
            script.begin(blocking(only_new()));
            script.until("synced", |info| info.actively_synced);
            script.target.set_exclusive(CHUNK);
            for (kind, range) in [(first, bytes(0, 512)), (second, bytes(CHUNK - 512, 512))] {
                match kind {
                    Kind::Write => script.write(range.offset(), 1, 512),
                    Kind::Zero => script.zero(range),
                    _ => script.discard(range),
                };
            }
            script.settle();
            assert_eq!(script.target.out(), [(first, bytes(0, 512))]);
            assert_eq!(script.source.out(), [(first, bytes(0, 512))], "a carried write holds both sides");
            script.deliver();
            assert!(script.equal(), "{first:?} {second:?}");
        }
    }
}

#[test]
fn a_carried_write_waits_for_the_copy_of_its_chunk_and_only_for_that() {
    // SPEC
    let mut script = Script::synced_with(Options { pass_interval_ns: 0, ..options() });
    script.target.set_exclusive(CHUNK);
    script.filter.mark_dirty(chunks(4, 1)).expect("on the disk");
    script.filter.mark_dirty(chunks(6, 1)).expect("on the disk");
    script.settle();
    assert_eq!(script.source.out(), [(Kind::Read, chunks(4, 1)), (Kind::Read, chunks(6, 1))]);
    let told = script.write(4 * CHUNK + 512, 0x77, 512);
    script.settle();
    assert_eq!((script.source.pending(), script.target.pending()), (2, 0));
    script.source.complete_where(|_, range| range == chunks(4, 1));
    script.settle();
    assert_eq!(script.target.out(), [(Kind::Write, chunks(4, 1))], "its write is waited for, too");
    script.target.complete_one(script.now);
    script.settle();
    assert_eq!(script.target.out(), [(Kind::Write, bytes(4 * CHUNK + 512, 512))], "and no longer");
    script.target.complete_one(script.now);
    script.source.complete_where(|kind, _| kind == Kind::Write);
    script.settle();
    assert_eq!((told.get(), script.source.pending()), (Some(Ok(())), 1));
    script.until_equal();
}

#[test]
fn a_copy_steps_over_what_guests_write_and_is_cut_short_before_it() {
    // SPEC X-2, C-1: a background op never waits.
    let mut script = Script::synced_with(Options { max_io: 0, pass_interval_ns: 0, ..options() });
    script.target.set_exclusive(CHUNK);
    script.write(4 * CHUNK, 1, CHUNK as usize);
    script.settle();
    script.forget();
    script.filter.mark_dirty(chunks(0, 10)).expect("on the disk");
    script.settle();
    let reads = script.source.out().into_iter().filter(|(kind, _)| *kind == Kind::Read);
    let reads: Vec<_> = reads.map(|(_, range)| range).collect();
    assert_eq!(reads, [chunks(0, 4), chunks(5, 5)]);
    script.until_equal();
}

#[test]
fn a_copy_gives_way_to_a_guest_before_it_is_begun() {
    // SPEC X-2, C-11: what is only planned is not waited for.
    let mut script = Script::new();
    script.target.set_exclusive(CHUNK);
    script.begin(Options { max_in_flight: 1, ..blocking(options()) });
    script.settle();
    assert_eq!(script.source.out(), [(Kind::Read, chunks(0, 1))]);
    let told = script.write(30 * CHUNK, 1, CHUNK as usize);
    script.settle();
    assert_eq!(script.target.out(), [(Kind::Write, chunks(30, 1))]);
    script.target.complete_one(script.now);
    script.source.complete_where(|kind, _| kind == Kind::Write);
    script.settle();
    assert_eq!(told.get(), Some(Ok(())));
    script.until_equal();
    assert_eq!(script.info().reads.ops, CHUNKS - 1, "the guest's chunk needs no copy");
}

#[test]
fn a_chunk_that_guests_never_leave_is_copied_all_the_same() {
    // SPEC X-2, C-1: the copy gets its turn among them.
    let mut script = Script::synced_with(Options { pass_interval_ns: 0, ..options() });
    script.target.set_exclusive(CHUNK);
    let mut told = vec![script.write(0, 1, 512), script.write(0, 2, 512)];
    script.settle();
    script.filter.mark_dirty(chunks(0, 1)).expect("on the disk");
    let reads = script.info().reads.ops;
    for byte in 3..60 {
        // There are always two of them.
        script.deliver_some(1);
        if told.iter().filter(|told| told.get().is_none()).count() < 2 {
            told.push(script.write(0, byte, 512));
        }
    }
    assert!(script.info().reads.ops > reads, "{:?}", script.info());
    script.until_equal();
    assert!(told.iter().all(|told| told.get() == Some(Ok(()))));
}

#[test]
fn a_pause_gives_back_a_chunk_that_had_its_turn() {
    // SPEC P-1, I-1: it has come up after a guest, and waits for the only buffer.
    let mut script = Script::synced_with(Options { buf_size: CHUNK, pass_interval_ns: 0, ..options() });
    script.write(0, 1, 512);
    script.settle();
    script.source.fill(512, &[0x77; 512]);
    script.filter.mark_dirty(chunks(0, 1)).expect("on the disk");
    script.filter.mark_dirty(chunks(9, 1)).expect("on the disk");
    script.settle();
    script.source.complete_where(|kind, _| kind == Kind::Write);
    script.target.complete_where(|kind, _| kind == Kind::Write);
    script.settle();
    assert_eq!(script.source.out(), [(Kind::Read, chunks(9, 1))]);
    script.job().pause().expect("ready");
    script.until("standby", |info| info.status == Status::Standby);
    script.job().resume().expect("paused");
    script.until_equal();
    assert!(script.equal());
}

/// What a model's guest has under way.
type Running = Vec<Told>;

/// Some thousand steps drawn from a seed: overlapping carried writes, zeroes and discards, marks, mode changes, pauses
/// and copies; then everything must come to its end.
fn model(seed: u64) {
    let mut random = Random::new(seed);
    let promises = |with: &mut DiskOptions| with.limits.discard_zeroes = true;
    let mut script = Script::with(disk(promises), disk(promises));
    script.target.set_exclusive(CHUNK);
    script.begin(Options { max_io: 4 * CHUNK, pass_interval_ns: 1_000_000, ..blocking(options()) });
    let mut running = Running::new();
    let mut answered = 0;
    for _ in 0..5_000 {
        match random.within(0, 12) {
            0..=4 if running.len() < 100 => {
                // On few chunks, so that they overlap.
                let offset = random.within(0, 6 * CHUNK) / 512 * 512;
                let range = bytes(offset, 512 * random.within(1, 24));
                running.push(match random.within(0, 8) {
                    0 => script.zero(range),
                    1 => script.discard(range),
                    _ => script.write(offset, random.draw() as u8, range.len() as usize),
                });
            }
            5 => script.filter.mark_dirty(chunks(random.within(0, 10), 2)).expect("on the disk"),
            6 if random.one_in(4) => {
                let mode = random.pick(&[CopyMode::Background, CopyMode::WriteBlocking]);
                script.job().change(mode).expect("running or ready");
            }
            7 if random.one_in(4) => drop(script.job().pause().or_else(|_| script.job().resume())),
            8 => drop(script.source.complete_one(script.now)),
            9 => drop(script.target.complete_one(script.now)),
            10 => script.now += random.within(0, 2_000_000),
            _ => drop(script.poll()),
        }
        let before = running.len();
        running.retain(|told| told.get().is_none());
        answered += before - running.len();
    }
    if script.info().paused {
        script.job().resume().expect("paused");
    }
    script.job().change(CopyMode::WriteBlocking).expect("ready");
    script.pass(10_000_000);
    script.until("synced", |info| info.actively_synced && info.ready);
    running.retain(|told| told.get().is_none());
    assert_eq!(running.len(), 0, "seed {seed}: some wait for ever, {:?}", script.info());
    assert!(script.equal(), "seed {seed}");
    assert!(answered > 200, "seed {seed}: only {answered} requests were answered on the way");
}

#[test]
fn many_overlapping_writes_copies_and_changes_of_mode_come_to_their_end() {
    // SPEC, F-6
    let from = std::env::var("FROM").ok().and_then(|n| n.parse().ok()).unwrap_or(0u64);
    let seeds = std::env::var("SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20u64);
    for seed in from..from + seeds {
        model(seed);
    }
}
