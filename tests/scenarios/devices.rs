//! SPEC section 1: devices.

use super::script::*;
use blkmirror::device::{Answer, Backend, Callback, Completions, Null, NullOptions, Request, Token};
use std::sync::{Arc, Mutex};

#[test]
fn a_guest_request_that_makes_no_sense_is_refused_and_the_rest_goes_on() {
    // SPEC D-5
    let source = disk(|with| with.limits.request_alignment = 512);
    let script = Script::with(source, disk(|_| {}));
    let mut memory = [0u8; 1024];
    // SAFETY: the memory outlives the requests, none of which is accepted.
    let iov = [unsafe { IoVec::new(memory.as_mut_ptr().cast(), 1024) }];
    let cases = [
        (Kind::Read, 0, 512, Errno::EINVAL),
        (Kind::Write, 100, 1024, Errno::EINVAL),
        (Kind::Write, LENGTH - 512, 1024, Errno::ERANGE),
        (Kind::Read, LENGTH, 1024, Errno::ERANGE),
        (Kind::Truncate, 0, 1024, Errno::EOPNOTSUPP),
        (Kind::Extents, 0, 1024, Errno::EOPNOTSUPP),
    ];
    for (kind, offset, length, errno) in cases {
        let range = ByteRange::new(offset, length).expect("no overflow");
        let io = GuestIo { kind, range, flags: GuestFlags::default(), iov: &iov };
        let done = Callback::from_closure(|_| panic!("told of a refused request"));
        assert_eq!(script.filter.submit(&io, done).expect_err("refused").errno(), errno, "{kind:?} {offset}");
    }
    let told = script.write(0, 1, 512);
    script.source.complete_one(1);
    assert_eq!(told.get(), Some(Ok(())));
}

#[test]
fn a_device_without_room_is_asked_again_in_order_and_nothing_is_lost() {
    // SPEC D-2
    let mut script = Script::with(disk(|with| with.depth = 1), disk(|with| with.depth = 1));
    let told: Vec<_> = (0..20).map(|index| script.write(0, index, 512)).collect();
    for each in &told {
        assert_eq!(each.get(), None, "in order");
        assert!(script.source.complete_one(1));
        assert_eq!(each.get(), Some(Ok(())));
    }
    assert_eq!(script.source.bytes()[0], 19);
    script.begin(options());
    script.until_ready();
    assert!(script.equal());
}

#[test]
fn a_job_s_own_requests_are_offered_again_in_order() {
    // SPEC D-2
    let mut script = Script::with(disk(|_| {}), disk(|with| with.depth = 1));
    script.begin(options());
    script.settle();
    for chunk in 0..4 {
        assert!(script.source.complete_where(|_, range| range == chunks(chunk, 1)));
        script.settle();
    }
    for _ in 0..4 {
        script.target.complete_one(script.now);
        script.settle();
    }
    let seen = deeds(&script.target.seen());
    assert_eq!(seen[..4], [0, 1, 2, 3].map(|chunk| (Kind::Write, chunks(chunk, 1))));
    script.until_equal();
}

#[test]
fn what_is_told_of_extents_before_there_is_room_is_no_part_of_the_answer() {
    // SPEC D-2, D-6: these disks tell that all is a hole, then that they have no room.
    let one_at_a_time = |with: &mut DiskOptions| {
        with.depth = 1;
        with.supports.push(Kind::Extents);
    };
    for sync in [SyncMode::Full, SyncMode::Top] {
        let mut script = Script::with(disk(one_at_a_time), disk(|_| {}));
        let memory = GuestMemory::new(0, 512);
        let told = script.submit_with(Kind::Read, bytes(0, 512), GuestFlags::default(), &[memory.iov()]);
        script.begin(Options { sync, ..options() });
        script.settle();
        assert_eq!(script.source.out(), [(Kind::Read, bytes(0, 512))], "no room for the question");
        assert!(script.source.complete_one(script.now) && told.get() == Some(Ok(())));
        script.until_ready();
        assert!(script.equal(), "{sync:?}");
    }
}

#[test]
fn a_device_that_only_reads_and_writes_is_enough() {
    // SPEC D-1: zeroes are written, discards skipped, flushes succeed, everything is data.
    for mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        let bare = |with: &mut DiskOptions| with.supports = vec![];
        let mut script = Script::with(disk(bare), disk(bare));
        script.source.fill(0, &[0; 8 * CHUNK as usize]);
        script.begin(Options { copy_mode: mode, detect_zeroes: true, ..options() });
        script.until_ready();
        assert_eq!(script.info().writes.bytes, LENGTH, "what is zero is data, too");
        script.forget();
        let zero = script.zero(bytes(20 * CHUNK + 100, 1000));
        let discard = script.discard(chunks(30, 1));
        let flush = script.submit_with(Kind::Flush, bytes(0, 0), GuestFlags::default(), &[]);
        script.pass(SLICE);
        assert_eq!((zero.get(), discard.get(), flush.get()), (Some(Ok(())), Some(Ok(())), Some(Ok(()))));
        assert!(script.source.seen().iter().all(|seen| matches!(seen.kind, Kind::Read | Kind::Write)));
        assert!(script.target.seen().iter().all(|seen| seen.kind == Kind::Write));
        assert_eq!(script.source.bytes()[20 * CHUNK as usize + 100..][..1000], [0; 1000]);
        assert_ne!(script.source.bytes()[30 * CHUNK as usize], 0, "a hint that was not taken");
        script.until_equal();
    }
}

#[test]
fn a_device_may_finish_at_once_or_before_it_says_pending_or_later() {
    // SPEC D-2
    for (inline_one_in, early_one_in, depth) in
        [(1, 0, 0), (0, 1, 0), (2, 2, 0), (3, 2, 1), (0, 1, 1), (0, 0, 2)]
    {
        for mode in [CopyMode::Background, CopyMode::WriteBlocking] {
            let make = || {
                disk(|with| {
                    (with.inline_one_in, with.early_one_in, with.depth) =
                        (inline_one_in, early_one_in, depth);
                })
            };
            let mut script = Script::with(make(), make());
            script.begin(Options { copy_mode: mode, ..options() });
            let told: Vec<_> =
                (0..20).map(|at| script.write(at * 3 * CHUNK + 7, 3, CHUNK as usize)).collect();
            script.until_equal();
            script.job().complete().expect("ready");
            script.until_over();
            assert!(script.is_switched() && told.iter().all(|told| told.get() == Some(Ok(()))));
        }
    }
}

#[test]
fn a_million_copies_that_finish_at_once_use_little_stack() {
    // SPEC D-2
    let copy = || {
        let null = || Null::device(CHUNK << 20, Limits::default(), NullOptions::default()).expect("a device");
        let filter = Filter::new(&null()).expect("a seat");
        let options = JobOptions { options: options(), inline: true, ..JobOptions::default() };
        let job = Job::new(&filter, &null(), options).expect("legal");
        job.start().expect("starts");
        while !job.query().ready {
            job.poll(Nanos(1)).expect("nobody else polls");
        }
        job.query().writes.ops
    };
    let small = std::thread::Builder::new().stack_size(128 << 10);
    assert_eq!(small.spawn(copy).expect("a thread").join().expect("no overflow"), 1 << 20);
}

#[test]
fn each_limit_of_either_side_is_kept_to() {
    // SPEC D-4: the stricter side rules a copy; the disks refuse to be asked for more (see `Script::drop`). With each
    // limit the longest copy that comes of it, at either side, and the longest zero if the target has it, in chunks.
    type Set = fn(&mut Limits);
    let rows: [(&str, Set, u64, u64); 10] = [
        ("none", |_| {}, 16, 24),
        ("request_alignment", |limits| limits.request_alignment = 512, 16, 24),
        ("memory_alignment", |limits| limits.memory_alignment = 65_536, 16, 24),
        ("max_transfer", |limits| limits.max_transfer = 3 * CHUNK, 3, 24),
        ("less than a chunk", |limits| limits.max_transfer = 512, 0, 24),
        ("max_iov", |limits| limits.max_iov = 1, 16, 24),
        ("max_zero", |limits| limits.max_zero = 5 * CHUNK, 16, 5),
        ("max_discard", |limits| limits.max_discard = CHUNK, 16, 24),
        ("zero_alignment", |limits| limits.zero_alignment = 8 * CHUNK, 16, 24),
        ("cluster_size", |limits| limits.cluster_size = 8 * CHUNK, 16, 24),
    ];
    for (what, set, copy, zero) in rows {
        for at_source in [true, false] {
            for mode in [CopyMode::Background, CopyMode::WriteBlocking] {
                let case = format!("{what} {at_source} {mode:?}");
                let with = |limited: bool, extents: bool| {
                    disk(|with| {
                        with.limits.discard_zeroes = true;
                        if limited {
                            set(&mut with.limits);
                        }
                        if extents {
                            with.supports.push(Kind::Extents);
                        }
                    })
                };
                let mut script = Script::over(with(at_source, true), with(!at_source, false));
                script.filter = Filter::with_alignment(script.source.device(), 512).expect("a seat");
                // Data, a long zero, data.
                script.source.fill(0, &content(0x40, 16 * CHUNK));
                script.source.fill(40 * CHUNK, &content(0x40, 24 * CHUNK));
                script.source.set_extents(|range| {
                    let flags =
                        |chunk| if (16..40).contains(&chunk) { ExtentFlags::HOLE } else { ExtentFlags::DATA };
                    let chunks = range.offset() / CHUNK..range.end() / CHUNK;
                    chunks.map(|chunk| Extent { length: CHUNK, flags: flags(chunk) }).collect()
                });
                script.begin(Options { max_io: 16 * CHUNK, copy_mode: mode, ..options() });
                script.until_ready();
                let longest = |seen: &[Seen], kind| {
                    let lengths = seen.iter().filter(|seen| seen.kind == kind).map(|seen| seen.range.len());
                    lengths.max().unwrap_or(0) / CHUNK
                };
                let (ours, theirs) = (script.source.seen(), script.target.seen());
                // A chunk that one side doesn't take at once goes in parts there, and whole at the other.
                assert_eq!(longest(&ours, Kind::Read), if at_source { copy } else { copy.max(1) }, "{case}");
                assert_eq!(
                    longest(&theirs, Kind::Write),
                    if at_source { copy.max(1) } else { copy },
                    "{case}"
                );
                assert_eq!(longest(&theirs, Kind::Zero), if at_source { 24 } else { zero }, "{case}");
                // The guest's data comes where holes were.
                script
                    .source
                    .set_extents(|range| vec![Extent { length: range.len(), flags: ExtentFlags::DATA }]);
                for (offset, length) in [(0, 512), (512, 40 * CHUNK - 512), (LENGTH - 512, 512)] {
                    script.write(offset, 7, length as usize);
                    script.zero(bytes(offset, length));
                    script.discard(bytes(offset, length));
                    let memory = GuestMemory::new(0, length as usize);
                    script.submit_with(
                        Kind::Read,
                        bytes(offset, length),
                        GuestFlags::default(),
                        &[memory.iov()],
                    );
                    script.pass(SLICE);
                }
                script.until_equal();
            }
        }
    }
}

#[test]
fn guests_keep_to_the_stricter_of_two_alignments_up_to_64_kib() {
    // SPEC D-4, D-5
    let source = disk(|with| with.limits.request_alignment = 512);
    let alignment = |wanted| Filter::with_alignment(source.device(), wanted).map(|filter| filter.alignment());
    assert_eq!(alignment(1).ok(), Some(512), "the device's own");
    assert_eq!(alignment(1 << 16).ok(), Some(1 << 16));
    for wanted in [0, 3, 1 << 17] {
        let error = alignment(wanted).expect_err("no such alignment");
        let message = format!("alignment {wanted}: must be a power of two from 1 to 65536");
        assert_eq!((error.errno(), error.message()), (Errno::EINVAL, message.as_str()));
    }
}

#[test]
fn a_request_is_refused_that_is_misaligned_at_either_end() {
    // SPEC D-5: but at the end of the disk.
    let source = disk(|with| with.length = LENGTH - 100);
    let filter = Filter::with_alignment(source.device(), 512).expect("a seat");
    let memory = GuestMemory::new(0, LENGTH as usize);
    for (start, end, fits) in [
        (512, 1024, true),
        (100, 1024, false),
        (512, 1000, false),
        (100, 1000, false),
        (1024, LENGTH - 100, true),
        (100, LENGTH - 100, false),
    ] {
        let range = ByteRange::between(start, end);
        let iov = [memory.iov().slice(0, range.len() as usize)];
        let io = GuestIo { kind: Kind::Write, range, flags: GuestFlags::default(), iov: &iov };
        let taken = filter.submit(&io, Callback::from_closure(|_| {}));
        assert_eq!(taken.map_err(|error| error.errno()).err(), (!fits).then_some(Errno::EINVAL), "{range:?}");
    }
}

#[test]
fn a_filter_that_is_dropped_leaves_its_seat_to_another() {
    // SPEC D-3: a device has few seats; each use of it for its own would fill them.
    let source = disk(|_| {});
    for nth in 0..1000 {
        assert!(Filter::new(source.device()).is_ok(), "the device is full after {nth}");
    }
}

#[test]
fn memory_that_a_copy_stands_in_for_is_changed_by_nothing_but_a_read_that_worked() {
    // SPEC D-4, G-1
    for (kind, fails, after) in
        [(Kind::Read, false, 0x41), (Kind::Read, true, 7), (Kind::Write, false, 8), (Kind::Write, true, 8)]
    {
        let source = disk(|with| with.limits.memory_alignment = 4096);
        let script = Script::over(source, disk(|_| {}));
        script.source.fill(0, &[0x41; 512]);
        if fails {
            script.source.set_faults(faults(kind, Errno::EIO));
        }
        let memory = GuestMemory::new(7, 513);
        let told =
            script.submit_with(kind, bytes(0, 512), GuestFlags::default(), &[memory.iov().slice(1, 512)]);
        if kind == Kind::Write {
            memory.fill(8);
        }
        script.source.complete_one(script.now);
        assert_eq!(told.get().map(|result| result.is_err()), Some(fails));
        assert_eq!(memory.bytes()[1..], [after; 512], "{kind:?}, fails: {fails}");
    }
}

#[test]
fn as_many_buffers_as_the_device_takes_need_no_copy() {
    // SPEC D-4: of a request that goes in steps, too.
    let source = disk(|with| {
        with.limits.max_iov = 2;
        with.limits.max_transfer = CHUNK;
    });
    let mut script = Script::with(source, disk(|_| {}));
    script.begin(options());
    let memory = GuestMemory::new(5, CHUNK as usize);
    for (parts, copies) in [(2, 0), (3, 1)] {
        let iov: Vec<_> = (0..parts).map(|_| memory.iov()).collect();
        script.submit_with(Kind::Write, bytes(0, parts * CHUNK), GuestFlags::default(), &iov);
        script.deliver();
        assert_eq!(script.info().bounce_copies, copies, "{parts} buffers");
    }
}

/// Completes what it is given inside `submit`, and then answers something else.
struct Contradicting(Completions, Answer);

impl Backend for Contradicting {
    fn submit(&self, token: Token, _: &Request<'_>) -> Answer {
        self.0.complete(token, Ok(())).expect("it is open");
        self.1
    }

    fn supports(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Read | Kind::Write)
    }
}

#[test]
fn of_a_completion_and_another_answer_the_completion_counts() {
    // SPEC D-2, G-9: also of a request that goes in steps; the guest is told once.
    for answer in [Answer::Pending, Answer::Again, Answer::Done(Ok(())), Answer::Done(Err(Errno::EIO))] {
        for max_transfer in [CHUNK, 0] {
            let mut limits = Limits::default();
            limits.max_transfer = max_transfer;
            let make = move |completions| Ok(Contradicting(completions, answer));
            let source = Device::new(LENGTH, limits, make).expect("a device");
            let filter = Filter::new(&source).expect("a seat");
            let told = Arc::new(Mutex::new(Vec::new()));
            let tell = Arc::clone(&told);
            let done = Callback::from_closure(move |result| tell.lock().expect("no panic").push(result));
            let memory = GuestMemory::new(5, 3 * CHUNK as usize);
            let range = chunks(0, 3);
            let io = GuestIo { kind: Kind::Write, range, flags: GuestFlags::default(), iov: &[memory.iov()] };
            filter.submit(&io, done).expect("accepted");
            assert_eq!(*told.lock().expect("no panic"), [Ok(())], "{answer:?} {max_transfer}");
        }
    }
}
