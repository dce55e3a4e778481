//! SPEC section 10: progress and query. Pauses are with the life of a job.

use super::script::*;
use blkmirror::engine::Counter;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

fn odd_disk() -> Disk {
    disk(|with| with.length = LENGTH - 1000)
}

#[test]
fn carried_writes_go_on_while_the_job_is_paused() {
    // SPEC P-1
    let mut script = Script::new();
    script.begin(blocking(options()));
    script.settle();
    script.job().pause().expect("running");
    let early = script.write(60 * CHUNK, 1, CHUNK as usize);
    script.pass(0);
    assert_eq!((script.status(), early.get()), (Status::Paused, Some(Ok(()))));
    let late = script.write(61 * CHUNK, 2, CHUNK as usize);
    script.pass(0);
    assert_eq!((script.status(), late.get()), (Status::Paused, Some(Ok(()))));
    assert_eq!(script.info().active.ops, 2);
    let place = 60 * CHUNK as usize..62 * CHUNK as usize;
    assert_eq!(script.target.bytes()[place.clone()], script.source.bytes()[place]);
    script.job().resume().expect("paused");
    script.until_equal();
}

#[test]
fn total_is_what_is_done_and_what_is_left() {
    // SPEC P-2: at each step of a copy that nobody disturbs it is the disk; also with a short chunk at the end, and
    // whatever is dirty, planned or under way.
    for max_in_flight in [1, 4] {
        for with_extents in [false, true] {
            let source = disk(|with| {
                with.length = LENGTH - 1000;
                if with_extents {
                    with.supports.push(Kind::Extents);
                }
            });
            let mut script = Script::with(source, odd_disk());
            script.begin(Options { max_in_flight, ..options() });
            let mut done = 0;
            while !script.info().ready {
                script.poll();
                let info = script.info();
                assert_eq!(info.total, LENGTH - 1000, "{info:?}");
                assert!(info.done >= done, "{info:?}");
                done = info.done;
                if !script.target.complete_one(script.now) {
                    script.source.complete_one(script.now);
                }
            }
            assert_eq!((script.info().done, script.info().dirty), (LENGTH - 1000, 0));
        }
    }
}

#[test]
fn total_counts_what_guests_have_under_way() {
    // SPEC P-2
    let mut script = Script::synced_with(options());
    let before = script.info();
    script.write(0, 1, 1000);
    script.settle();
    assert_eq!(script.info().total, before.done + 1000);
    assert_eq!((script.info().in_flight_bytes, script.info().guests), (1000, 1));
    script.deliver();
    assert_eq!((script.info().done, script.info().total), (before.done + 1000, before.done + 1000));
}

#[test]
fn total_counts_a_chunk_that_is_reserved() {
    // SPEC P-2: it has its turn after a guest, and waits for the only buffer.
    let mut script = Script::synced_with(Options { buf_size: CHUNK, pass_interval_ns: 0, ..options() });
    script.write(0, 1, 512);
    script.settle();
    script.filter.mark_dirty(chunks(0, 1)).expect("on the disk");
    script.filter.mark_dirty(chunks(9, 1)).expect("on the disk");
    script.settle();
    script.source.complete_where(|kind, _| kind == Kind::Write);
    script.target.complete_where(|kind, _| kind == Kind::Write);
    script.settle();
    assert_eq!(script.source.out(), [(Kind::Read, chunks(9, 1))]);
    let info = script.info();
    assert_eq!(info.total - info.done, 2 * CHUNK, "{info:?}");
    script.until_equal();
}

#[test]
fn every_field_says_what_it_is_named_for() {
    // SPEC P-3
    let counter = |ops, chunks| Counter { ops, bytes: chunks * CHUNK, errors: 0 };
    let source = sparse_disk();
    source.set_extents(|range| {
        let flags = |chunk| match chunk {
            0..4 => ExtentFlags::HOLE,
            4..6 => ExtentFlags::UNALLOCATED,
            _ => ExtentFlags::DATA,
        };
        let chunks = range.offset() / CHUNK..range.end() / CHUNK;
        chunks.map(|chunk| Extent { length: CHUNK, flags: flags(chunk) }).collect()
    });
    // Only what will show the same backing is discarded.
    let mut script = Script::with(source, disk(|with| with.limits.unattached_backing = true));
    script.source.fill(0, &[0; 6 * CHUNK as usize]);
    let options = Options { id: Some("all-fields".into()), speed: 1 << 30, ..only_new() };
    script.create(JobOptions { options, ..JobOptions::default() });
    script.filter.mark_dirty(chunks(0, CHUNKS)).expect("on the disk");
    script.job().start().expect("created");

    script.job().pause().expect("running");
    let info = script.info();
    assert_eq!((info.paused, info.busy, info.status), (true, false, Status::Running));
    script.job().resume().expect("paused");
    script.settle();
    script.source.complete_one(script.now);
    script.settle();
    let info = script.info();
    assert_eq!((info.paused, info.busy, info.ready, info.passes), (false, true, false, 1));
    assert_eq!((info.id.as_str(), info.kind), ("all-fields", JobKind::Mirror));
    assert_eq!(
        (info.in_flight_ops, info.in_flight_bytes),
        (4, (4 + 2 + 2) * CHUNK),
        "zero, discard, two reads"
    );
    assert_eq!((info.dirty, info.total, info.granularity), (0, LENGTH, CHUNK));
    assert_eq!((info.speed, info.copy_mode), (1 << 30, CopyMode::Background));

    script.until_equal();
    let info = script.info();
    assert_eq!((info.reads, info.writes), (counter(58, 58), counter(58, 58)));
    assert_eq!((info.zeroes, info.discards), (counter(1, 4), counter(1, 2)));
    assert_eq!(info.flushes, Counter { ops: 1, bytes: 0, errors: 0 });
    assert_eq!((info.active, info.guest_writes, info.skipped_zeroes), (Counter::default(), 0, 0));
    assert_eq!((info.busy, info.ready, info.in_flight_ops, info.in_flight_bytes), (false, true, 0, 0));
    assert_eq!((info.done, info.total, info.dirty), (LENGTH, LENGTH, 0));
    assert_eq!((info.errors, info.io_status, info.error.clone()), (0, IoStatus::Ok, None));

    script.filter.mark_dirty(chunks(1, 2)).expect("on the disk");
    assert_eq!((script.info().dirty, script.info().total), (2 * CHUNK, LENGTH + 2 * CHUNK));
    script.pass(SLICE);
    assert_eq!(script.info().skipped_zeroes, 2 * CHUNK);

    script.job().change(CopyMode::WriteBlocking).expect("ready");
    script.job().set_speed(77).expect("ready");
    script.until("synced", |info| info.actively_synced);
    script.write(8 * CHUNK, 1, 2 * CHUNK as usize);
    script.pass(SLICE);
    let info = script.info();
    assert_eq!((info.copy_mode, info.speed), (CopyMode::WriteBlocking, 77));
    assert_eq!((info.active, info.guest_writes), (counter(1, 2), 1));

    script.target.set_faults(faults(Kind::Write, Errno::ENOSPC));
    script.write(8 * CHUNK, 1, CHUNK as usize);
    script.until_over();
    let info = script.info();
    assert_eq!(info.active, Counter { ops: 2, bytes: 2 * CHUNK, errors: 1 });
    assert_eq!((info.errors, info.actively_synced), (1, false));
    assert_eq!(info.error.expect("failed").0, Errno::ENOSPC);
}

#[test]
fn rates_and_the_time_to_ready_are_those_of_the_last_seconds() {
    // SPEC P-3: 10 chunks a second are copied, the guest makes more dirty, or fewer, or none.
    for (dirtied, never) in [(0, false), (4, false), (12, true)] {
        let large = |with: &mut DiskOptions| with.length = 400 * CHUNK;
        let mut script = Script::with(disk(large), disk(large));
        script.begin(Options { speed: 100 * CHUNK, ..options() });
        script.pass(1_000_000_000);
        script.job().set_speed(10 * CHUNK).expect("running");
        for chunk in 0..6 * dirtied {
            // Behind the cursor, each chunk once.
            script.filter.mark_dirty(chunks(chunk, 1)).expect("on the disk");
            script.pass(1_000_000_000 / dirtied);
        }
        if dirtied == 0 {
            script.pass(6_000_000_000);
        }
        let info = script.info();
        let copied = info.copy_rate / CHUNK;
        assert!((9..=11).contains(&copied), "{copied} chunks a second are copied");
        assert!((info.dirty_rate / CHUNK).abs_diff(dirtied) <= 1, "{dirtied}: {info:?}");
        if never {
            assert_eq!(info.eta_ns, None, "{dirtied}: {info:?}");
        } else {
            let net = info.copy_rate - info.dirty_rate;
            let seconds = info.eta_ns.expect("it gets there") / 1_000_000_000;
            assert_eq!(seconds, (info.total - info.done) / net, "{dirtied}");
        }
    }
}

#[test]
fn the_last_chunk_counts_for_what_it_holds() {
    // SPEC P-2
    let short = |with: &mut DiskOptions| with.length = LENGTH - 1000;
    let mut script = Script::with(disk(short), disk(short));
    script.begin(options());
    let info = script.info();
    assert_eq!((info.done, info.dirty, info.total), (0, LENGTH - 1000, LENGTH - 1000));
    script.until_equal();
    script.filter.mark_dirty(chunks(2, 1)).expect("on the disk");
    assert_eq!(script.info().dirty, CHUNK);
    script.filter.mark_dirty(bytes(LENGTH - 1001, 1)).expect("on the disk");
    assert_eq!(script.info().dirty, 2 * CHUNK - 1000);
}

#[test]
fn what_a_job_begins_with_is_not_the_guests_doing() {
    // SPEC P-3
    let mut script = Script::new();
    script.now = 1_000_000_000;
    script.begin(Options { speed: 10 * CHUNK, ..options() });
    script.pass(1_500_000_000);
    // What was planned is given back, and nobody has written it.
    script.job().pause().expect("running");
    script.deliver();
    script.job().resume().expect("paused");
    script.pass(1_000_000_000);
    let info = script.info();
    assert_eq!(info.dirty_rate, 0, "{info:?}");
    assert!((9..=12).contains(&(info.copy_rate / CHUNK)), "ten a second from the beginning: {info:?}");
}

#[test]
fn carried_writes_hide_no_chunks_that_guests_make_dirty() {
    // SPEC P-3: a carried write takes its chunks out of the dirty set; that they were dirtied remains true.
    let large = |with: &mut DiskOptions| with.length = 400 * CHUNK;
    let mut script = Script::with(disk(large), disk(large));
    script.begin(blocking(Options { speed: 10 * CHUNK, ..options() }));
    script.pass(1_000_000_000);
    for _ in 0..6 {
        for chunk in 0..4 {
            script.filter.mark_dirty(chunks(chunk, 1)).expect("on the disk");
            script.write(chunk * CHUNK, 1, CHUNK as usize);
            script.pass(250_000_000);
        }
    }
    let info = script.info();
    assert!((info.dirty_rate / CHUNK).abs_diff(4) <= 1, "four chunks a second: {info:?}");
}

#[test]
fn what_guests_write_to_clean_chunks_brings_the_end_no_nearer() {
    // SPEC P-3: it is copied and counts as such, and what is dirty stays so.
    let large = |with: &mut DiskOptions| with.length = 400 * CHUNK;
    let mut script = Script::with(disk(large), disk(large));
    script.begin(blocking(Options { speed: 10 * CHUNK, ..options() }));
    script.pass(1_000_000_000);
    for _ in 0..60 {
        script.write(0, 1, 4 * CHUNK as usize);
        script.pass(100_000_000);
    }
    let info = script.info();
    assert!(
        (45..=55).contains(&(info.copy_rate / CHUNK)),
        "ten in the background, forty of guests: {info:?}"
    );
    let seconds = info.eta_ns.expect("it gets there") / 1_000_000_000;
    assert!(seconds.abs_diff((info.total - info.done) / CHUNK / 10) <= 4, "{seconds}: {info:?}");
}

#[test]
fn what_guests_write_to_dirty_chunks_brings_the_end_nearer() {
    // SPEC P-3: nobody has to copy it any more.
    let large = |with: &mut DiskOptions| with.length = 400 * CHUNK;
    let mut script = Script::with(disk(large), disk(large));
    script.begin(blocking(Options { speed: 10 * CHUNK, ..options() }));
    script.pass(1_000_000_000);
    for chunk in (340..400).rev() {
        script.write(chunk * CHUNK, 1, CHUNK as usize);
        script.pass(100_000_000);
    }
    let info = script.info();
    let seconds = info.eta_ns.expect("it gets there") / 1_000_000_000;
    assert!(seconds.abs_diff((info.total - info.done) / CHUNK / 20) <= 2, "{seconds}: {info:?}");
}

#[test]
fn anybody_may_query_while_the_job_is_driven() {
    // SPEC P-3
    let mut script = Script::new();
    script.begin(options());
    let job = script.job.take().expect("begun");
    let (queries, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 0;
            while !stop.load(Ordering::SeqCst) {
                let info = job.query();
                assert!(info.done >= last && info.total == LENGTH, "{info:?}");
                last = info.done;
                queries.fetch_add(1, Ordering::SeqCst);
            }
        });
        for _ in 0..200 {
            let before = queries.load(Ordering::SeqCst);
            job.poll(Nanos(1)).expect("nobody else polls");
            script.source.complete_one(1);
            script.target.complete_one(1);
            for _ in 0..1_000_000 {
                if queries.load(Ordering::SeqCst) > before {
                    break;
                }
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert!(queries.into_inner() >= 200 && job.query().ready);
    script.job = Some(job);
}
