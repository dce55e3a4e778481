//! SPEC section 4: from created to copying.

use super::script::*;
use blkmirror::device::{Answer, Backend, Completions, Null, NullOptions, Request, Token};
use std::sync::{Arc, Mutex};

#[test]
fn a_write_between_creation_and_start_is_not_lost() {
    // SPEC I-1
    let mut script = Script::new();
    let options = Options { sync: SyncMode::None, ..options() };
    script.job = Some(
        Job::new(&script.filter, script.target.device(), JobOptions { options, ..JobOptions::default() })
            .expect("legal"),
    );
    let told = script.write(0, 0x77, 100);
    script.source.complete_one(1);
    assert_eq!(told.get(), Some(Ok(())));
    script.job().start().expect("starts");
    script.until_ready();
    assert_eq!(script.target.bytes()[..4096], script.source.bytes()[..4096]);
    assert_eq!(script.info().writes.ops, 1, "and nothing else is copied");
}

#[test]
fn different_sizes_fail_the_job() {
    // SPEC I-2
    let mut script = Script::with(disk(|_| {}), disk(|with| with.length += 512));
    script.begin(options());
    script.until_over();
    let (errno, message) = script.info().error.expect("failed");
    assert_eq!(errno, Errno::EINVAL);
    assert!(message.starts_with("Source and target have different sizes"), "{message}");
}

#[test]
fn only_what_the_source_holds_is_copied_to_a_zero_target() {
    // SPEC I-4
    let source = disk(|with| with.supports.push(Kind::Extents));
    let mut script = Script::with(source, disk(|with| with.limits.reads_zero = true));
    let sparse = disk(|with| with.supports.push(Kind::Extents));
    sparse.fill(8 * CHUNK, &[9; 100]);
    sparse.fill(20 * CHUNK - 1, &[8; 2]);
    script.filter = Filter::new(sparse.device()).expect("a seat");
    script.source = sparse;
    script.begin(options());
    script.until_ready();
    assert!(script.equal());
    assert_eq!(script.info().writes.bytes, 3 * CHUNK);
}

#[test]
fn a_cancel_during_the_scan_ends_the_job() {
    // SPEC I-6
    let source = disk(|with| with.supports.push(Kind::Extents));
    let mut script = Script::with(source, disk(|with| with.limits.reads_zero = true));
    script.begin(options());
    script.settle();
    script.job().pause().expect("running");
    script.job().resume().expect("paused");
    script.job().cancel(false).expect("running");
    script.until_over();
    assert_eq!(script.events().iter().filter(|event| **event == Event::Cancelled).count(), 1);
    assert_eq!(script.info().reads.ops, 0);
}

/// What guests do while a job starts: a write, a zero and a discard, on chunks that the source says are holes.
fn disturb(script: &Script) -> [Told; 3] {
    [script.write(3 * CHUNK, 0x77, 100), script.zero(chunks(9, 1)), script.discard(chunks(12, 1))]
}

#[test]
fn a_write_between_the_scan_of_allocations_and_the_copy_is_not_lost() {
    // SPEC I-1: the scan says "hole", the guest writes there, and only then the job goes on.
    for mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        for before_the_scan_ends in [true, false] {
            let mut script = Script::with(sparse_disk(), zero_disk());
            script.source.set_extents(|range| vec![Extent { length: range.len(), flags: ExtentFlags::HOLE }]);
            script.target.fill(12 * CHUNK, &[0; 512]);
            script.begin(Options { copy_mode: mode, ..options() });
            script.settle();
            assert_eq!(script.source.out(), [(Kind::Extents, bytes(0, LENGTH))]);
            let told = disturb(&script);
            if before_the_scan_ends {
                while script.source.complete_where(|kind, _| kind != Kind::Extents) {}
                script.source.complete_where(|_, _| true);
            } else {
                script.source.complete_where(|kind, _| kind == Kind::Extents);
                script.settle();
                while script.source.complete_where(|kind, _| kind != Kind::Extents) {}
            }
            for each in told {
                assert_eq!(each.get(), Some(Ok(())), "{mode:?}");
            }
            // The source has data now where it had none.
            script.source.set_extents(|range| vec![Extent { length: range.len(), flags: ExtentFlags::DATA }]);
            script.until_ready();
            script.pass(SLICE);
            for chunk in [3, 9, 12] {
                let place = (chunk * CHUNK) as usize..((chunk + 1) * CHUNK) as usize;
                assert_eq!(script.target.bytes()[place.clone()], script.source.bytes()[place], "{mode:?}");
            }
            assert_eq!(script.info().writes.bytes, 3 * CHUNK, "and nothing else is copied");
        }
    }
}

#[test]
fn a_failed_write_is_marked_too() {
    // SPEC I-1, G-2: nobody knows what it has done.
    for kind in [Kind::Write, Kind::Zero, Kind::Discard] {
        let mut script = Script::ready_with(only_new());
        script.source.set_faults(faults(kind, Errno::EIO));
        let told = match kind {
            Kind::Write => script.write(5 * CHUNK + 1000, 1, 10),
            Kind::Zero => script.zero(bytes(5 * CHUNK + 1000, 10)),
            _ => script.discard(bytes(5 * CHUNK + 1000, 10)),
        };
        assert_eq!(script.info().dirty, 0, "{kind:?}: not before it is done");
        script.source.complete_one(script.now);
        assert_eq!(told.get(), Some(Err(Errno::EIO)), "{kind:?}");
        assert_eq!(script.info().dirty, CHUNK, "{kind:?}");
        script.until_equal();
    }
}

#[test]
fn a_commit_grows_a_shorter_base_and_leaves_a_longer_one() {
    // SPEC I-2, O-1
    for (length, grown) in [(LENGTH - 1000, true), (LENGTH, false), (LENGTH + CHUNK, false)] {
        let target = disk(|with| {
            with.length = length;
            with.supports.push(Kind::Truncate);
        });
        let mut script = Script::with(disk(|_| {}), target);
        script.begin(Options { kind: JobKind::CommitActive, sync: SyncMode::Top, ..options() });
        script.until_ready();
        let seen = deeds(&script.target.seen());
        assert_eq!(seen.contains(&(Kind::Truncate, bytes(0, LENGTH))), grown, "{length}");
        assert_eq!(seen.iter().filter(|(kind, _)| *kind == Kind::Truncate).count(), usize::from(grown));
        assert_eq!(script.target.device().length(), length.max(LENGTH));
        assert_eq!(script.target.bytes()[..LENGTH as usize], script.source.bytes());
        assert!(script.target.bytes()[LENGTH as usize..].iter().all(|byte| *byte == 0));
    }
    let mut script = Script::with(disk(|_| {}), disk(|with| with.length = 512));
    script.begin(Options { kind: JobKind::CommitActive, sync: SyncMode::Top, ..options() });
    script.until_over();
    assert_eq!(script.info().error.expect("it can't be grown").0, Errno::EINVAL);
}

#[test]
fn a_target_of_another_length_is_never_written() {
    // SPEC I-2
    for length in [0, 1, LENGTH - 1, LENGTH - CHUNK, LENGTH + 1, 2 * LENGTH] {
        let target = disk(|with| {
            with.length = length;
            with.supports.push(Kind::Truncate);
        });
        let mut script = Script::with(disk(|_| {}), target);
        script.begin(options());
        script.until_over();
        assert_eq!(
            script.info().error.expect("failed"),
            (
                Errno::EINVAL,
                format!("Source and target have different sizes: {LENGTH} and {length} bytes").into()
            )
        );
        assert_eq!(script.target.seen(), [], "{length}");
        assert!(script.events().contains(&Event::Completed(Err(Errno::EINVAL))));
    }
}

#[test]
fn an_empty_disk_is_ready_at_once_and_synced() {
    // SPEC I-3
    for mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        for complete in [true, false] {
            let mut script = Script::with(disk(|with| with.length = 0), disk(|with| with.length = 0));
            script.begin(Options { copy_mode: mode, ..options() });
            script.settle();
            let info = script.info();
            assert_eq!(
                (info.status, info.ready, info.actively_synced),
                (Status::Ready, true, true),
                "{mode:?}"
            );
            assert_eq!((info.done, info.total, info.dirty), (0, 0, 0));
            script.pass(10 * SLICE);
            assert_eq!(script.status(), Status::Ready, "it waits to be told what to do");
            if complete {
                script.job().complete().expect("ready");
            } else {
                script.job().cancel(false).expect("ready");
            }
            script.until_over();
            assert_eq!(script.is_switched(), complete);
            assert!(script.events().contains(&Event::Completed(Ok(()))));
            assert_eq!((script.source.seen(), script.target.seen()), (vec![], vec![]), "nothing to be done");
        }
    }
}

#[test]
fn an_empty_disk_is_completed_in_the_poll_that_finds_it_ready() {
    // SPEC I-3, C-10: idle means that nothing can be done; a host that sleeps then would sleep for ever.
    for mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        for paused in [false, true] {
            let mut script = Script::with(disk(|with| with.length = 0), disk(|with| with.length = 0));
            script.begin(Options { copy_mode: mode, auto_complete: true, ..options() });
            if paused {
                script.job().pause().expect("running");
                script.settle();
                assert_eq!(script.status(), Status::Paused);
                script.job().resume().expect("paused");
            }
            script.settle();
            assert!(script.status().is_over() && script.is_switched(), "{mode:?} {paused}");
        }
    }
}

#[test]
fn a_disk_of_any_length_is_copied_to_its_last_byte() {
    // SPEC C-4, I-3: lengths that are multiples of nothing, chunks and clusters larger than the disk.
    for length in [1, 511, 512, 513, 4095, 4096, 4097, 8191, 65_537, 100_003, 1 << 20] {
        for granularity in [512, CHUNK, 64 << 20] {
            // A chunk of 64 MiB is a buffer of that size: once is enough.
            let clusters: &[u64] = if granularity > CHUNK { &[0] } else { &[0, 512, 8192, 65_536] };
            for &cluster_size in clusters {
                for mode in [CopyMode::Background, CopyMode::WriteBlocking] {
                    let case = format!("{length} {granularity} {cluster_size} {mode:?}");
                    let mut script = Script::with(
                        disk(|with| {
                            with.length = length;
                            with.supports.push(Kind::Extents);
                        }),
                        disk(|with| {
                            with.length = length;
                            with.limits.cluster_size = cluster_size;
                        }),
                    );
                    let with = Options { granularity, max_io: 0, detect_zeroes: true, ..blocking(options()) };
                    script.begin(Options { copy_mode: mode, ..with });
                    script.settle();
                    let info = script.info();
                    assert_eq!((info.done, info.total), (0, length), "{case}");
                    script.until_ready();
                    assert!(script.equal(), "{case}");
                    let last = script.write(length - 1, 0x77, 1);
                    script.pass(SLICE);
                    assert_eq!(last.get(), Some(Ok(())), "{case}");
                    assert!(script.equal(), "{case}");
                    let tail = length.min(5000);
                    script.zero(bytes(length - tail, tail));
                    script.pass(SLICE);
                    assert!(script.equal(), "{case}");
                    let info = script.info();
                    assert_eq!((info.dirty, info.total), (0, info.done), "{case}");
                    script.job().complete().expect("ready");
                    script.until_over();
                    assert!(script.is_switched(), "{case}");
                }
            }
        }
    }
}

#[test]
fn a_target_that_zeroes_cheaply_is_zeroed_first_and_then_gets_what_there_is() {
    // SPEC I-4
    let target = disk(|with| (with.limits.cheap_zero, with.limits.max_zero) = (true, 5 * CHUNK + 100));
    target.fill(0, &[0xee; LENGTH as usize]);
    let source = sparse_disk();
    source.fill(8 * CHUNK, &[9; 100]);
    source.fill(20 * CHUNK - 1, &[8; 2]);
    let mut script = Script::over(source, target);
    script.source.set_extents(|range| {
        let data = |chunk| chunk == 8 || chunk == 19 || chunk == 20;
        let chunks = range.offset() / CHUNK..range.end() / CHUNK;
        let flags = |chunk| if data(chunk) { ExtentFlags::DATA } else { ExtentFlags::HOLE };
        chunks.map(|chunk| Extent { length: CHUNK, flags: flags(chunk) }).collect()
    });
    script.begin(options());
    let mut prepared = 0;
    while !script.info().ready {
        script.settle();
        assert!(script.target.pending() <= 4, "within max_in_flight");
        let zeroing = script.target.out().iter().any(|(kind, _)| *kind == Kind::Zero);
        assert!(!zeroing || script.source.pending() == 0, "one after the other");
        script.target.complete_one(script.now);
        script.source.complete_one(script.now);
        let now = script.info().prepared;
        assert!(!zeroing || (now >= prepared && script.info().done == 0), "with progress of its own");
        prepared = now;
    }
    let seen = script.target.seen();
    let zeroes: Vec<_> = seen.iter().filter(|seen| seen.kind == Kind::Zero).collect();
    assert_eq!(zeroes.len(), 13, "64 chunks in whole chunks of at most 5");
    assert!(zeroes.iter().all(|seen| seen.range.len() <= 5 * CHUNK && seen.flags.may_unmap));
    assert_eq!(zeroes.iter().map(|seen| seen.range.len()).sum::<u64>(), LENGTH);
    assert_eq!(script.info().writes.bytes, 3 * CHUNK);
    assert!(script.equal());
}

#[test]
fn what_could_not_be_zeroed_first_is_copied() {
    // SPEC I-4, E-1: the source holds nothing there, and the target something else.
    let target = disk(|with| (with.limits.cheap_zero, with.limits.max_zero) = (true, 16 * CHUNK));
    target.fill(0, &[0xee; LENGTH as usize]);
    let mut script = Script::over(sparse_disk(), target);
    script.begin(Options { on_target_error: ErrorPolicy::Ignore, max_in_flight: 1, ..options() });
    script.settle();
    script.target.complete_one(script.now);
    script.target.set_faults(faults(Kind::Zero, Errno::EIO));
    script.settle();
    script.target.set_faults(Faults::default());
    script.until_ready();
    assert_eq!(script.failures().len(), 1);
    assert!(script.equal());
}

#[test]
fn a_target_that_is_not_known_to_be_zero_gets_everything() {
    // SPEC I-4: each reason not to zero it first.
    let cheap = |with: &mut DiskOptions| with.limits.cheap_zero = true;
    let cases: [(&str, Disk, bool); 4] = [
        ("zeroes are not cheap", disk(|_| {}), true),
        ("not to be unmapped", disk(cheap), false),
        ("there is no zero", disk(|with| (with.limits.cheap_zero, with.supports) = (true, vec![])), true),
        (
            "a backing comes later",
            disk(|with| (with.limits.cheap_zero, with.limits.unattached_backing) = (true, true)),
            true,
        ),
    ];
    for (why, target, unmap) in cases {
        target.fill(0, &[0xee; LENGTH as usize]);
        let mut script = Script::with(sparse_disk(), target);
        script.begin(Options { unmap, ..options() });
        script.settle();
        assert_eq!(script.info().total, LENGTH, "{why}");
        assert_eq!(script.target.seen(), [], "{why}");
        script.until_ready();
        assert!(script.equal(), "{why}");
    }
}

#[test]
fn who_vouches_for_a_zero_target_gets_only_what_there_is_copied() {
    // SPEC I-4, O-5
    for (vouched, told, overlay, copied) in [
        (true, false, false, 2),
        (false, true, false, 2),
        (false, false, false, CHUNKS),
        // What is not allocated will read as the backing does.
        (true, false, true, CHUNKS),
        (false, true, true, CHUNKS),
    ] {
        let target = disk(|with| {
            (with.limits.reads_zero, with.limits.unattached_backing) = (told, overlay);
            with.supports = vec![];
        });
        let source = sparse_disk();
        source.fill(7 * CHUNK, &[7; 2 * CHUNK as usize]);
        let mut script = Script::over(source, target);
        script.begin(Options { target_is_zero: vouched, ..options() });
        script.until_ready();
        assert!(script.equal());
        assert_eq!(script.info().writes.bytes / CHUNK, copied, "{vouched} {told} {overlay}");
    }
}

#[test]
fn top_copies_what_is_allocated_and_zeroes_nothing_first() {
    // SPEC I-4, O-1: allocated zeroes and allocated data; not what shines through from the base.
    let target = disk(|with| (with.limits.cheap_zero, with.limits.reads_zero) = (true, true));
    target.fill(0, &content(0x40, LENGTH));
    let mut script = Script::with(sparse_disk(), target);
    script.source.fill(2 * CHUNK, &[0xaa; CHUNK as usize]);
    script.source.fill(4 * CHUNK, &[0; CHUNK as usize]);
    script.source.set_extents(|range| {
        let flags = |chunk| match chunk {
            2 => ExtentFlags::DATA,
            4 => ExtentFlags::ZERO,
            // Data, of the base.
            _ => ExtentFlags { data: true, zero: false, allocated: false },
        };
        let chunks = range.offset() / CHUNK..range.end() / CHUNK;
        chunks.map(|chunk| Extent { length: CHUNK, flags: flags(chunk) }).collect()
    });
    script.begin(Options { sync: SyncMode::Top, ..options() });
    script.until_ready();
    let mut seen = deeds(&script.target.seen());
    seen.sort_by_key(|(_, range)| range.offset());
    let wanted = [(Kind::Flush, bytes(0, 0)), (Kind::Write, chunks(2, 1)), (Kind::Zero, chunks(4, 1))];
    assert_eq!(seen, wanted);
    assert!(script.equal());
}

#[test]
fn nothing_is_copied_but_what_is_written_from_now_on() {
    // SPEC I-4, O-1: sync NONE
    let mut script = Script::new();
    script.begin(only_new());
    script.until_ready();
    assert_eq!(deeds(&script.target.seen()), [(Kind::Flush, bytes(0, 0))]);
    assert_eq!((script.info().done, script.info().total), (0, 0));
    script.write(9 * CHUNK, 9, 10);
    script.pass(SLICE);
    assert_eq!(deeds(&script.target.seen()), [(Kind::Write, chunks(9, 1))]);
}

#[test]
fn a_start_that_takes_long_can_be_paused_and_cancelled() {
    // SPEC I-6: in the middle of the pre-zero pass, and of the scan.
    let cheap = || {
        let target = disk(|with| (with.limits.cheap_zero, with.limits.max_zero) = (true, CHUNK));
        Script::with(sparse_disk(), target)
    };
    let scan = || Script::with(sparse_disk(), zero_disk());
    let makes: [(&str, &dyn Fn() -> Script, u32); 2] = [("pre-zero", &cheap, 4), ("scan", &scan, 1)];
    for (what, make, out) in makes {
        for verb in ["pause", "cancel", "free"] {
            let mut script = make();
            script.begin(options());
            script.settle();
            assert_eq!(script.info().in_flight_ops, out, "{what}");
            match verb {
                "pause" => {
                    script.job().pause().expect("running");
                    script.settle();
                    assert_eq!(script.status(), Status::Running, "{what}: something is in flight");
                    script.deliver();
                    assert_eq!(script.status(), Status::Paused, "{what}");
                    script.pass(3 * SLICE);
                    let info = script.info();
                    let begun = info.zeroes.ops + info.reads.ops + u64::from(info.in_flight_ops);
                    assert_eq!(begun, if out == 4 { 4 } else { 0 }, "{what}: nothing was begun meanwhile");
                    script.job().resume().expect("paused");
                    script.until_ready();
                    assert!(script.equal(), "{what}");
                }
                "cancel" => {
                    script.job().cancel(false).expect("running");
                    script.settle();
                    assert_eq!(script.status(), Status::Aborting, "{what}");
                    script.until_over();
                    assert_eq!(script.info().error.expect("cancelled").0, Errno::ECANCELED);
                    assert_eq!(script.info().reads.ops, 0, "{what}");
                    assert!(script.info().zeroes.ops <= 4, "{what}");
                }
                _ => {
                    drop(script.job.take());
                    let told = script.write(0, 1, 1);
                    while script.source.complete_one(script.now) | script.target.complete_one(script.now) {}
                    assert_eq!(told.get(), Some(Ok(())), "{what}");
                }
            }
        }
    }
}

type Zeroes = Arc<Mutex<Vec<(Token, ByteRange)>>>;

/// Any length, no content; finishes zeroes when it is told to, everything else at once.
struct Huge(Zeroes);

impl Huge {
    fn device(length: u64) -> (Device, Zeroes) {
        let zeroes = Zeroes::default();
        let out = Arc::clone(&zeroes);
        let mut limits = Limits::default();
        limits.cheap_zero = true;
        (Device::new(length, limits, |_: Completions| Ok(Self(out))).expect("a device"), zeroes)
    }
}

impl Backend for Huge {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        if request.kind == Kind::Zero {
            self.0.lock().expect("no panic").push((token, request.range));
            return Answer::Pending;
        }
        Answer::Done(Ok(()))
    }

    fn supports(&self, kind: Kind) -> bool {
        kind != Kind::Extents
    }
}

#[test]
fn a_large_target_is_zeroed_in_ops_of_at_most_two_gibibytes() {
    // SPEC I-4, C-7: with never more of them out than may be in flight.
    const STEP: u64 = 2 << 30;
    let length = 100 * STEP + 512;
    let (target, zeroes) = Huge::device(length);
    let null = NullOptions { unallocated: true, ..NullOptions::default() };
    let source = Null::device(length, Limits::default(), null).expect("a device");
    let filter = Filter::new(&source).expect("a seat");
    let options = Options { max_in_flight: 3, granularity: 1 << 20, ..Options::default() };
    let job = Job::new(&filter, &target, JobOptions { options, ..JobOptions::default() }).expect("legal");
    job.start().expect("starts");
    let mut zeroed = 0;
    while !job.query().ready {
        job.poll(Nanos(1)).expect("nobody else polls");
        let mut out = zeroes.lock().expect("no panic");
        assert!(out.len() <= 3 && out.iter().all(|(_, range)| range.len() <= STEP), "{out:?}");
        if out.is_empty() {
            continue;
        }
        assert!(out.len() == 3 || zeroed >= 98 * STEP, "all places are used: {out:?}");
        let (token, range) = out.remove(0);
        drop(out);
        assert_eq!(range, bytes(zeroed, STEP.min(length - zeroed)));
        zeroed = range.end();
        target.complete(token, Ok(())).expect("it is out");
        job.poll(Nanos(1)).expect("nobody else polls");
        assert_eq!(job.query().prepared.min(length), job.query().prepared);
    }
    assert_eq!((zeroed, job.query().zeroes.ops, job.query().writes.ops), (length, 101, 0));
}

/// Holes, told in stretches of this length.
fn holes<const STRETCH: u64>(range: ByteRange) -> Vec<Extent> {
    vec![Extent { length: range.len().min(STRETCH), flags: ExtentFlags::HOLE }]
}

/// A source of this length that tells this of itself, and a target that reads zero.
fn told(length: u64, extents: fn(ByteRange) -> Vec<Extent>) -> Script {
    let source = disk(|with| {
        with.length = length;
        with.supports.push(Kind::Extents);
    });
    source.set_extents(extents);
    let target = disk(|with| {
        with.length = length;
        with.limits.reads_zero = true;
    });
    Script::over(source, target)
}

#[test]
fn a_survey_goes_on_where_the_answer_ended_and_marks_no_hole() {
    // SPEC I-4, D-6: also where neither the answers nor the disk end with a whole chunk.
    type Case = (u64, u64, fn(ByteRange) -> Vec<Extent>);
    let cases: [Case; 3] = [
        (LENGTH, 8 * CHUNK, holes::<{ 8 * CHUNK }>),
        (LENGTH - 1000, LENGTH, holes::<LENGTH>),
        (LENGTH - 1000, 5 * CHUNK + 512, holes::<{ 5 * CHUNK + 512 }>),
    ];
    for (length, stretch, extents) in cases {
        let mut script = told(length, extents);
        script.begin(options());
        script.settle();
        assert_eq!(
            (script.source.out(), script.info().prepared),
            (vec![(Kind::Extents, bytes(0, length))], 0)
        );
        script.source.complete_one(script.now);
        script.settle();
        if stretch < length {
            assert_eq!(script.info().prepared, stretch / CHUNK * CHUNK, "what is known so far");
        }
        script.until_ready();
        assert_eq!((script.info().reads.ops, script.info().errors), (0, 0), "{length} in {stretch}");
    }
}

#[test]
fn a_chunk_of_which_only_a_part_is_told_is_copied() {
    // SPEC I-4, D-6: what the rest of it holds was not said.
    let mut script = told(LENGTH, holes::<512>);
    script.source.fill(0, &content(0x40, LENGTH));
    script.begin(options());
    script.until_ready();
    assert!(script.equal());
    assert_eq!(script.info().reads.ops, CHUNKS);
}

#[test]
fn a_base_as_long_as_its_overlay_may_end_where_requests_can_not() {
    // SPEC I-2, D-4: the end of a disk counts as aligned.
    let target = disk(|with| {
        with.length = LENGTH - 1000;
        with.limits.request_alignment = 512;
    });
    let mut script = Script::with(disk(|with| with.length = LENGTH - 1000), target);
    script.filter = Filter::with_alignment(script.source.device(), 512).expect("a seat");
    script.begin(Options { kind: JobKind::CommitActive, sync: SyncMode::Top, ..options() });
    script.until_ready();
    assert!(script.equal());
}
