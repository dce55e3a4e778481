//! SPEC section 5: the copy loop.

use super::script::*;
use blkmirror::device::{Null, NullOptions};

#[test]
fn a_write_during_the_copy_of_its_chunk_is_copied_again() {
    // SPEC C-2: the read is out, the guest writes, the old data lands, the new must follow.
    let mut script = Script::new();
    script.begin(options());
    script.settle();
    assert_eq!(script.info().in_flight_ops, 4);
    script.target.set_faults(Faults { hold: true, ..Faults::default() });
    while script.source.complete_one(script.now) {}
    script.settle();
    let told = script.write(0, 0xee, 512);
    while script.source.complete_one(script.now) {}
    assert_eq!(told.get(), Some(Ok(())), "a guest doesn't wait for a target that hangs");
    script.target.set_faults(Faults::default());
    script.until_ready();
    assert!(script.equal());
    assert_eq!(script.info().writes.ops, CHUNKS + 1);
}

#[test]
fn a_chunk_in_flight_does_not_stall_the_loop() {
    // SPEC C-1: one read never ends, everything else is copied.
    let mut script = Script::new();
    script.begin(Options { max_in_flight: 2, ..options() });
    script.settle();
    script.write(0, 1, 512);
    for _ in 0..200 {
        script.target.complete_one(script.now);
        script.settle();
        // The first read stays out.
        if script.source.pending() > 1 {
            script.source.complete_one(script.now);
        }
    }
    assert!(script.info().writes.ops >= CHUNKS - 2, "{:?}", script.info());
}

#[test]
fn what_is_dirty_behind_the_cursor_waits_for_no_operation_in_flight() {
    // SPEC C-1, C-12: a pass ends with an operation out and a place free; the next one begins at once.
    let mut script = Script::ready_with(Options { max_in_flight: 2, pass_interval_ns: 0, ..only_new() });
    for chunk in [10, 20] {
        script.filter.mark_dirty(chunks(chunk, 1)).expect("on the disk");
    }
    script.settle();
    assert_eq!(script.source.out(), [(Kind::Read, chunks(10, 1)), (Kind::Read, chunks(20, 1))]);
    script.filter.mark_dirty(chunks(5, 1)).expect("on the disk");
    assert!(script.source.complete_where(|_, range| range == chunks(10, 1)));
    script.settle();
    assert!(script.target.complete_where(|_, range| range == chunks(10, 1)));
    script.settle();
    assert_eq!(script.source.out(), [(Kind::Read, chunks(20, 1)), (Kind::Read, chunks(5, 1))]);
    script.until_equal();
}

#[test]
fn never_more_in_flight_than_was_asked_for() {
    // SPEC C-7
    let mut script = Script::new();
    script.begin(Options { max_in_flight: 3, buf_size: 2 * CHUNK, ..options() });
    for _ in 0..300 {
        script.settle();
        assert!(script.source.pending() + script.target.pending() <= 2, "two buffers, two operations");
        script.source.complete_one(script.now);
        script.target.complete_one(script.now);
    }
    script.until_ready();
    assert!(script.equal());
}

#[test]
fn the_rate_limit_spreads_the_copy_over_time() {
    // SPEC C-9
    let mut script = Script::new();
    script.begin(Options { speed: LENGTH / 2, ..options() });
    script.until_ready();
    let seconds = script.now as f64 / 1e9;
    assert!((1.7..2.2).contains(&seconds), "{seconds} s for two seconds' worth");
}

#[test]
fn a_chunk_that_is_written_all_the_time_is_copied_once_per_interval() {
    // SPEC C-12
    let mut script = Script::new();
    script.begin(options());
    script.until_ready();
    let before = script.info().writes.ops;
    let end = script.now + 500_000_000;
    while script.now < end {
        script.write(0, 3, 512);
        script.source.complete_one(script.now);
        script.settle();
        while script.source.complete_one(script.now) || script.target.complete_one(script.now) {
            script.settle();
        }
        script.now += 1_000_000;
    }
    let copies = script.info().writes.ops - before;
    assert!((8..=12).contains(&copies), "{copies} copies in ten intervals of 500 writes");
}

/// A job that is ready and paused, so that the marks that follow are seen together.
fn paused_with(options: Options) -> Script {
    let mut script = Script::ready_with(options);
    script.job().pause().expect("ready");
    script.settle();
    script.forget();
    script
}

/// Goes on and says what was read.
fn reads(script: &mut Script) -> Vec<ByteRange> {
    script.job().resume().expect("paused");
    script.until_equal();
    let reads = script.source.seen().into_iter().filter(|seen| seen.kind == Kind::Read);
    reads.map(|seen| seen.range).collect()
}

fn mark(script: &Script, first: u64, count: u64) {
    script.filter.mark_dirty(chunks(first, count)).expect("on the disk");
}

#[test]
fn a_run_of_dirty_chunks_goes_in_one_request() {
    // SPEC C-2
    let mut script = paused_with(Options { max_io: 0, ..only_new() });
    for (first, count) in [(20, 3), (3, 5), (40, 1)] {
        mark(&script, first, count);
    }
    assert_eq!(reads(&mut script), [chunks(3, 5), chunks(20, 3), chunks(40, 1)]);
}

#[test]
fn no_request_is_longer_than_the_buffers() {
    // SPEC C-2
    let mut script = paused_with(Options { max_io: 0, buf_size: 4 * CHUNK, max_in_flight: 1, ..only_new() });
    mark(&script, 0, 10);
    assert_eq!(reads(&mut script), [chunks(0, 4), chunks(4, 4), chunks(8, 2)]);
}

#[test]
fn lengths_are_whole_chunks_and_at_least_one() {
    // SPEC C-4: 3 and a bit, a bit; and the end of the device.
    let cut = |with: &mut DiskOptions| with.length = LENGTH - 1000;
    for (max_io, wanted) in [
        (3 * CHUNK + 100, vec![chunks(57, 3), chunks(60, 3), bytes(63 * CHUNK, CHUNK - 1000)]),
        (512, (57..63).map(|c| chunks(c, 1)).chain([bytes(63 * CHUNK, CHUNK - 1000)]).collect()),
        (1 << 20, vec![bytes(57 * CHUNK, 7 * CHUNK - 1000)]),
    ] {
        let mut script = Script::with(disk(cut), disk(cut));
        script.target.fill(0, &script.source.bytes());
        script.begin(Options { max_io, max_in_flight: 1, ..only_new() });
        script.until_ready();
        script.job().pause().expect("ready");
        script.settle();
        script.forget();
        script.filter.mark_dirty(bytes(57 * CHUNK, 7 * CHUNK - 1000)).expect("on the disk");
        assert_eq!(reads(&mut script), wanted, "{max_io}");
    }
}

#[test]
fn the_search_wraps() {
    // SPEC C-1: what lies behind the cursor comes in the next pass.
    let mut script = Script::ready_with(only_new());
    for chunk in [60, 2, 63, 0] {
        script.write(chunk * CHUNK, 1, 1);
        script.pass(SLICE);
        assert!(script.equal(), "{chunk}");
    }
}

#[test]
fn a_write_while_the_extents_are_asked_for_is_copied_again() {
    // SPEC C-2: the bits are cleared before that.
    let mut script = Script::with(sparse_disk(), disk(|_| {}));
    script.target.fill(0, &script.source.bytes());
    script.begin(only_new());
    script.until_ready();
    mark(&script, 5, 3);
    script.settle();
    assert_eq!(script.source.out(), [(Kind::Extents, chunks(5, 3))]);
    assert_eq!(script.info().dirty, 0);
    script.write(6 * CHUNK, 0x99, 1);
    script.source.complete_where(|kind, _| kind == Kind::Write);
    assert_eq!(script.info().dirty, CHUNK);
    script.until_equal();
    assert_eq!(script.info().reads.bytes, 4 * CHUNK);
}

#[test]
fn extents_are_asked_for_once_a_run() {
    // SPEC C-3
    let mut script = Script::with(sparse_disk(), disk(|_| {}));
    script.source.set_extents(|range| vec![Extent { length: range.len(), flags: ExtentFlags::DATA }]);
    script.begin(options());
    script.until_ready();
    let asked = script.source.seen().iter().filter(|seen| seen.kind == Kind::Extents).count();
    assert_eq!((asked, script.info().reads.ops), (1, CHUNKS));
}

const DATA: ExtentFlags = ExtentFlags::DATA;
const ZERO: ExtentFlags = ExtentFlags::ZERO;
const HOLE: ExtentFlags = ExtentFlags::HOLE;
const GONE: ExtentFlags = ExtentFlags::UNALLOCATED;

#[test]
fn what_the_source_holds_says_how_it_is_copied() {
    // SPEC C-3, D-6: chunks 8 to 15 are dirty. Rows: what the source tells of them in multiples of 512 bytes, the
    // target's cluster in chunks, and what the target gets.
    use Kind::{Discard, Write, Zero};
    type Told = fn(ByteRange) -> Vec<Extent>;
    type Case<'a> = (&'a str, Told, u64, &'a [(Kind, u64, u64)]);
    macro_rules! told {
        ($(($length:expr, $flags:expr)),*) => {
            |_| vec![$(Extent { length: 512 * $length, flags: $flags }),*]
        };
    }
    let unused = ExtentFlags { data: false, zero: false, allocated: true };
    assert!(unused.holds_data());
    let cases: &[Case<'_>] = &[
        ("data", told!((64, DATA)), 0, &[(Write, 8, 8)]),
        ("zero", told!((64, ZERO)), 0, &[(Zero, 8, 8)]),
        ("hole", told!((64, HOLE)), 0, &[(Zero, 8, 8)]),
        ("neither", told!((64, GONE)), 0, &[(Discard, 8, 8)]),
        (
            "a part",
            told!((16, DATA), (32, ZERO), (16, DATA)),
            0,
            &[(Write, 8, 2), (Zero, 10, 4), (Write, 14, 2)],
        ),
        (
            "inside chunks",
            told!((17, DATA), (30, ZERO), (17, DATA)),
            0,
            &[(Write, 8, 3), (Zero, 11, 2), (Write, 13, 3)],
        ),
        ("less than a chunk", told!((1, DATA), (8, ZERO), (55, DATA)), 0, &[(Write, 8, 8)]),
        (
            "all three",
            told!((24, ZERO), (24, GONE), (16, DATA)),
            0,
            &[(Zero, 8, 3), (Discard, 11, 3), (Write, 14, 2)],
        ),
        ("cluster", told!((64, ZERO)), 4, &[(Zero, 8, 8)]),
        ("cluster cut", told!((8, DATA), (56, ZERO)), 4, &[(Write, 8, 4), (Zero, 12, 4)]),
        ("cluster cut", told!((56, GONE), (8, DATA)), 4, &[(Discard, 8, 4), (Write, 12, 4)]),
        ("no whole cluster", told!((8, DATA), (48, ZERO), (8, DATA)), 8, &[(Write, 8, 8)]),
        (
            "cluster in pieces",
            told!((24, ZERO), (3, HOLE), (5, ZERO), (32, DATA)),
            4,
            &[(Zero, 8, 4), (Write, 12, 4)],
        ),
        ("nothing", told!(), 0, &[(Write, 8, 8)]),
        ("too little", told!((16, ZERO)), 0, &[(Zero, 8, 2), (Write, 10, 6)]),
        ("too much", told!((1 << 40, ZERO)), 0, &[(Zero, 8, 8)]),
        ("nothing at all", told!((0, DATA), (0, GONE), (64, ZERO)), 0, &[(Zero, 8, 8)]),
        ("absurd", told!((u64::MAX / 512, ZERO), (u64::MAX / 512, DATA)), 0, &[(Zero, 8, 8)]),
    ];
    for (what, told, cluster, wanted) in cases {
        // Only what will show the same backing may be discarded.
        let target = disk(|with| {
            (with.limits.cluster_size, with.limits.unattached_backing) = (cluster * CHUNK, true);
        });
        let mut script = Script::with(sparse_disk(), target);
        script.target.fill(0, &script.source.bytes());
        script.begin(Options { max_io: 0, ..only_new() });
        script.until_ready();
        script.forget();
        script.source.set_extents(*told);
        mark(&script, 8, 8);
        script.pass(SLICE);
        let mut seen = deeds(&script.target.seen());
        seen.sort_by_key(|(_, range)| range.offset());
        let wanted: Vec<_> =
            wanted.iter().map(|(kind, first, count)| (*kind, chunks(*first, *count))).collect();
        assert_eq!(seen, wanted, "{what}");
        let info = script.info();
        assert_eq!((info.dirty, info.done, info.total), (0, 8 * CHUNK, 8 * CHUNK), "{what}");
    }
}

#[test]
fn where_the_target_has_no_zero_or_discard_it_gets_a_copy() {
    // SPEC C-3, D-1
    for flags in [GONE, HOLE] {
        let mut script = Script::with(sparse_disk(), disk(|with| with.supports = vec![]));
        script.target.fill(0, &script.source.bytes());
        script.source.set_extents(if flags == GONE {
            |range| vec![Extent { length: range.len(), flags: GONE }]
        } else {
            |range| vec![Extent { length: range.len(), flags: HOLE }]
        });
        script.begin(only_new());
        script.until_ready();
        script.forget();
        mark(&script, 8, 1);
        script.until_equal();
        assert_eq!(deeds(&script.target.seen()), [(Kind::Write, chunks(8, 1))]);
    }
}

#[test]
fn extents_that_can_not_be_had_count_as_data() {
    // SPEC C-3
    let mut script = Script::with(sparse_disk(), disk(|_| {}));
    script.source.set_faults(faults(Kind::Extents, Errno::EIO));
    script.begin(options());
    script.until_equal();
    assert_eq!(script.info().writes.bytes, LENGTH);
}

#[test]
fn a_copy_is_widened_to_the_cluster_of_a_target_with_a_backing_to_come() {
    // SPEC C-5, O-2: the buffers grow to a cluster; the second time the cluster is complete.
    let target = disk(|with| {
        with.limits.cluster_size = 8 * CHUNK;
        with.limits.unattached_backing = true;
    });
    let mut script = Script::with(disk(|_| {}), target);
    script.begin(Options { buf_size: CHUNK, ..only_new() });
    script.until_ready();
    script.forget();
    mark(&script, 19, 1);
    script.pass(SLICE);
    assert_eq!(deeds(&script.target.seen()), [(Kind::Write, chunks(16, 8))]);
    mark(&script, 19, 1);
    script.pass(SLICE);
    assert_eq!(deeds(&script.target.seen()), [(Kind::Write, chunks(19, 1))]);
}

#[test]
fn one_buffer_copies_a_whole_disk() {
    // SPEC C-6, C-8: it is given back after each write, and the data is the chunk's own.
    let mut script = Script::new();
    script.begin(Options { buf_size: 1, max_in_flight: 16, ..options() });
    while !script.info().ready {
        script.settle();
        assert!(script.source.pending() + script.target.pending() <= 1);
        script.source.complete_one(script.now);
        script.target.complete_one(script.now);
    }
    assert!(script.equal());
    assert_eq!((script.info().reads.ops, script.info().writes.ops), (CHUNKS, CHUNKS));
}

#[test]
fn buffers_in_pieces_are_used_and_never_in_more_than_the_devices_take() {
    // SPEC C-6: while the buffers between them are out, there is no run of them.
    let target = disk(|with| with.limits.max_iov = 2);
    let mut script = Script::with(disk(|_| {}), target);
    script.target.fill(0, &script.source.bytes());
    script.begin(Options {
        max_io: 0,
        buf_size: 8 * CHUNK,
        max_in_flight: 16,
        pass_interval_ns: 0,
        ..only_new()
    });
    script.until_ready();
    script.forget();
    for chunk in [0, 10, 20, 30, 40, 50, 60, 63] {
        mark(&script, chunk, 1);
    }
    script.settle();
    assert_eq!(script.source.pending(), 8, "a buffer each");
    for chunk in [0, 20, 40] {
        script.source.complete_where(|_, range| range == chunks(chunk, 1));
        script.settle();
        script.target.complete_where(|_, _| true);
    }
    mark(&script, 2, 3);
    script.settle();
    let seen: Vec<_> = script.source.seen().iter().map(|seen| (seen.range, seen.buffers)).collect();
    assert_eq!(seen[8..], [(chunks(2, 2), 2), (chunks(4, 1), 1)]);
    script.until_equal();
}

#[test]
fn carried_writes_use_no_place_of_the_background() {
    // SPEC C-7: the only place is taken by a read that doesn't end.
    let mut script = Script::synced_with(Options { max_in_flight: 1, ..options() });
    mark(&script, 0, 1);
    script.settle();
    assert_eq!(script.source.pending(), 1);
    let told: Vec<_> = (1..50).map(|chunk| script.write(chunk * CHUNK, 7, 512)).collect();
    script.settle();
    assert_eq!(script.target.pending(), 49);
    while script.target.complete_where(|_, _| true) {}
    while script.source.complete_where(|kind, _| kind == Kind::Write) {}
    script.settle();
    assert!(told.iter().all(|told| told.get() == Some(Ok(()))));
}

/// Bytes per second that get through in a virtual second, at 16 chunks per second.
fn done_in_a_second(mut script: Script, options: Options) -> u64 {
    script.begin(Options { speed: 16 * CHUNK, ..options });
    mark(&script, 0, CHUNKS);
    script.pass(1_000_000_000);
    script.info().done
}

#[test]
fn copies_are_charged_and_cheap_zeroes_are_not() {
    // SPEC C-9: what is done in a second at a limit of 16 chunks a second, of 64.
    let holes = || {
        let source = sparse_disk();
        source.set_extents(|range| vec![Extent { length: range.len(), flags: HOLE }]);
        source
    };
    let gone = || {
        let source = sparse_disk();
        source.set_extents(|range| vec![Extent { length: range.len(), flags: GONE }]);
        source
    };
    let small_with = |cheap: bool, unattached_backing: bool| {
        disk(|with| {
            (with.limits.max_zero, with.limits.max_discard) = (CHUNK, CHUNK);
            (with.limits.cheap_zero, with.limits.unattached_backing) = (cheap, unattached_backing);
        })
    };
    let small = |cheap| small_with(cheap, false);
    // Not zeroed first, so that each zero is an op of the loop.
    let loop_only = || Options { unmap: false, ..options() };
    let limited = 16 * CHUNK..20 * CHUNK;
    let cases: [(&str, Disk, Disk, Options, bool); 6] = [
        ("copies", disk(|_| {}), disk(|_| {}), options(), true),
        ("zeroes", holes(), small(false), loop_only(), true),
        ("cheap zeroes", holes(), small(true), loop_only(), false),
        ("discards", gone(), small_with(false, true), only_new(), true),
        ("cheap discards", gone(), small_with(true, true), only_new(), false),
        ("detected zeroes", disk(|_| {}), small(true), Options { detect_zeroes: true, ..options() }, true),
    ];
    for (what, source, target, with, charged) in cases {
        let done = done_in_a_second(Script::over(source, target), with);
        assert_eq!(limited.contains(&done), charged, "{what}: {} chunks", done / CHUNK);
        assert!(charged || done == LENGTH, "{what}: {} chunks", done / CHUNK);
    }
    // The pre-zero pass.
    let mut script = Script::over(holes(), small(true));
    script.begin(Options { speed: 1, ..options() });
    script.deliver();
    assert_eq!((script.info().prepared, script.status()), (LENGTH, Status::Ready));
}

#[test]
fn carried_writes_are_not_charged() {
    // SPEC C-9
    let mut script = Script::synced_with(options());
    script.job().set_speed(1).expect("ready");
    for chunk in 0..CHUNKS {
        let told = script.write(chunk * CHUNK, 3, CHUNK as usize);
        script.deliver();
        assert_eq!(told.get(), Some(Ok(())));
    }
    assert_eq!(script.info().active.bytes, LENGTH);
    mark(&script, 0, 2);
    script.pass(2 * SLICE);
    assert_eq!(
        script.info().writes.ops,
        1,
        "the background has its quota of one byte a slice left, and borrows"
    );
}

#[test]
fn a_changed_speed_takes_effect_at_once() {
    // SPEC C-9
    let mut script = Script::new();
    script.begin(Options { speed: 10, ..options() });
    script.pass(10 * SLICE);
    assert_eq!(script.info().reads.ops, 1, "a chunk is hundreds of seconds' worth");
    script.job().set_speed(20).expect("running");
    script.deliver();
    assert_eq!(script.info().reads.ops, 2, "what was borrowed at the old speed is forgiven");
    script.job().set_speed(0).expect("running");
    script.deliver();
    assert!(script.info().ready);
}

#[test]
fn a_poll_does_bounded_work_and_says_when_to_come_back() {
    // SPEC C-10: devices that finish at once could keep it for ever.
    let null = |_| Null::device(1 << 40, Limits::default(), NullOptions::default()).expect("a device");
    let (source, target) = (null(0), null(1));
    let filter = Filter::new(&source).expect("a seat");
    let job = Job::new(&filter, &target, JobOptions { options: options(), ..JobOptions::default() });
    let job = job.expect("legal");
    job.start().expect("starts");
    let mut before = 0;
    for _ in 0..50 {
        let poll = job.poll(Nanos(1)).expect("nobody else polls");
        assert_eq!(poll.state, PollState::Busy);
        let now = job.query().writes.ops;
        assert!((1..=64 * 16).contains(&(now - before)), "{} copies in a poll", now - before);
        before = now;
    }
    job.set_speed(10).expect("running");
    let mut poll = job.poll(Nanos(5)).expect("nobody else polls");
    while poll.state == PollState::Busy {
        poll = job.poll(Nanos(5)).expect("nobody else polls");
    }
    assert!(poll.wake_at > Nanos(5) && poll.wake_at < Nanos::NEVER, "{poll:?}");
    let before = job.query().writes.ops;
    assert_eq!(job.poll(Nanos(poll.wake_at.0 - 1)).expect("polls").state, PollState::Idle);
    assert_eq!(job.query().writes.ops, before, "not before");
    job.poll(poll.wake_at).expect("polls");
    assert!(job.query().writes.ops > before, "at that time");
}

#[test]
fn a_poll_moves_no_more_than_some_tens_of_megabytes() {
    // SPEC C-10: devices that copy inline would keep the host from everything else.
    const LENGTH: u64 = 1 << 30;
    let device = || Null::device(LENGTH, Limits::default(), NullOptions::default()).expect("a null device");
    let filter = Filter::new(&device()).expect("a seat");
    let options = Options { max_in_flight: 16, detect_zeroes: false, ..Options::default() };
    let job = Job::new(&filter, &device(), JobOptions { options, ..JobOptions::default() }).expect("legal");
    job.start().expect("created");
    let (mut before, mut polls) = (0, 0);
    while !job.query().ready {
        let state = job.poll(Nanos(1)).expect("nobody else polls").state;
        assert!(state == PollState::Busy || job.query().ready);
        let now = job.query().writes.bytes;
        assert!(now - before <= 32 << 20, "{} bytes in a poll", now - before);
        (before, polls) = (now, polls + 1);
    }
    assert!(polls >= 32, "{polls} polls");
}

/// A job that copies 16 MiB with a guest whose writes are carried.
fn guest_first(with: impl FnOnce(&mut Options)) -> Script {
    let large = |with: &mut DiskOptions| with.length = 16 << 20;
    let mut script = Script::with(disk(large), disk(large));
    let mut options =
        Options { max_io: 1 << 20, max_in_flight: 8, pass_interval_ns: 0, ..blocking(options()) };
    with(&mut options);
    script.begin(options);
    script.settle();
    script
}

#[test]
fn while_guests_write_the_background_is_small() {
    // SPEC C-11
    for (io, in_flight) in [(256 << 10, 2), (64 << 10, 1), (128 << 10, 4)] {
        let mut script =
            guest_first(|options| (options.guest_first_io, options.guest_first_in_flight) = (io, in_flight));
        assert_eq!(script.info().in_flight_bytes, 8 << 20, "no guest has written yet");
        let last = (16 << 20) - CHUNK;
        let told = script.write(last, 1, CHUNK as usize);
        script.deliver_some(20);
        assert_eq!(told.get(), Some(Ok(())));
        script.source.seen();
        let mut most = 0;
        for _ in 0..40 {
            script.write(last, 1, CHUNK as usize);
            script.deliver_some(2);
            let info = script.info();
            most = most.max(info.in_flight_ops);
            assert!(info.ready || info.in_flight_ops >= 1, "at least one makes progress");
            script.now += 1_000_000;
        }
        assert_eq!(most, in_flight);
        let reads = script.source.seen().into_iter().filter(|seen| seen.kind == Kind::Read);
        assert_eq!(reads.map(|seen| seen.range.len()).max(), Some(io));
    }
}

#[test]
fn what_the_guest_leaves_is_used_again_after_a_slice() {
    // SPEC C-11
    let mut script = guest_first(|_| {});
    script.write((16 << 20) - CHUNK, 1, CHUNK as usize);
    script.deliver_some(12);
    script.now += SLICE - 1;
    script.source.seen();
    script.deliver_some(4);
    let longest = |script: &Script| {
        let reads = script.source.seen().into_iter().filter(|seen| seen.kind == Kind::Read);
        reads.map(|seen| seen.range.len()).max().unwrap_or(0)
    };
    assert_eq!(longest(&script), 256 << 10);
    script.now += 1;
    script.deliver_some(4);
    assert_eq!(longest(&script), 1 << 20);
    script.until_equal();
}

#[test]
fn passes_follow_each_other_at_once_while_completing() {
    // SPEC C-12, F-2
    let mut script = Script::ready_with(Options { pass_interval_ns: 1 << 40, ..only_new() });
    script.write(0, 1, 1);
    script.pass(SLICE);
    script.write(0, 2, 1);
    script.pass(10 * SLICE);
    assert_eq!((script.info().writes.ops, script.info().dirty), (1, CHUNK), "not before the next pass");
    script.job().complete().expect("ready");
    script.deliver();
    assert_eq!(script.info().writes.ops, 2);
    assert!(script.is_switched() && script.equal());
}

#[test]
fn a_thin_source_stays_thin_on_the_target() {
    // SPEC C-3, O-5, I-5: holes stay holes, zeroes that were written become holes, data is allocated.
    for (known, detect_zeroes) in [(true, true), (true, false), (false, true), (false, false)] {
        let target = disk(|with| {
            with.supports.push(Kind::Extents);
            with.limits.reads_zero = known;
        });
        let source = sparse_disk();
        source.fill(3 * CHUNK, &[3; 5 * CHUNK as usize]);
        source.fill(20 * CHUNK, &[0; 4 * CHUNK as usize]);
        let mut script = Script::over(source, target);
        script.begin(Options { detect_zeroes, ..options() });
        script.until_ready();
        // Chunk 30 becomes data, and a hole again; 3 becomes a hole.
        script.write(30 * CHUNK, 1, CHUNK as usize);
        script.pass(SLICE);
        script.zero(chunks(30, 1));
        script.zero(chunks(3, 1));
        script.pass(SLICE);
        script.until_equal();
        let blocks = (CHUNK / 512) as usize;
        let expected = if detect_zeroes { 4 * blocks } else { 8 * blocks };
        let allocated = script.target.allocated_blocks();
        // An answer about extents that was cut short makes a copy of a hole, which only detection can undo.
        assert!(
            allocated == expected || (!detect_zeroes && allocated > expected),
            "{allocated} of {expected}"
        );
    }
}

#[test]
fn only_a_few_runs_are_asked_about_ahead_of_their_turn() {
    // SPEC C-3: each question holds chunks that guests may want.
    let mut script = Script::with(sparse_disk(), disk(|_| {}));
    script.begin(Options { max_in_flight: 16, ..only_new() });
    script.until_ready();
    for chunk in (0..32).step_by(2) {
        script.filter.mark_dirty(chunks(chunk, 1)).expect("on the disk");
    }
    script.now += SLICE;
    script.settle();
    let asked = script.source.out();
    assert!(asked.iter().all(|(kind, _)| *kind == Kind::Extents), "{asked:?}");
    assert_eq!(asked.len(), 4);
    script.until("clean", |info| info.dirty == 0 && !info.busy);
    assert_eq!(script.info().writes.ops, 16);
}
