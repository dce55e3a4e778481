//! SPEC section 7: guest I/O.

use super::script::*;
use blkmirror::device::Callback;
use blkmirror::filter::Begin;

#[test]
fn write_blocking_carries_each_write_before_the_guest_is_told() {
    // SPEC G-3
    let mut script = Script::new();
    script.begin(Options { copy_mode: CopyMode::WriteBlocking, ..options() });
    script.until("synced", |info| info.actively_synced && info.ready);
    let told = script.write(5 * CHUNK + 512, 0x99, 512);
    script.settle();
    assert_eq!((script.source.pending(), script.target.pending()), (1, 1), "both at the same time");
    script.source.complete_one(script.now);
    script.settle();
    assert_eq!(told.get(), None);
    script.target.complete_one(script.now);
    script.settle();
    assert_eq!(told.get(), Some(Ok(())));
    assert!(script.equal());
    assert!(script.info().actively_synced);
    assert_eq!((script.info().active.ops, script.info().dirty), (1, 0));
}

// SPEC G-1: reads.

#[test]
fn reads_pass_through_to_the_device_of_the_moment() {
    // SPEC G-1, X-1: at once and whatever a job is doing to those chunks.
    let mut script = Script::synced_with(options());
    let told = script.write(0, 0x11, CHUNK as usize);
    script.settle();
    let memory = GuestMemory::new(0, 512);
    let read = script.submit_with(Kind::Read, bytes(0, 512), GuestFlags::default(), &[memory.iov()]);
    assert_eq!(script.source.out().last(), Some(&(Kind::Read, bytes(0, 512))), "without waiting, or a poll");
    assert!(script.source.complete_where(|kind, _| kind == Kind::Read));
    assert_eq!((read.get(), told.get()), (Some(Ok(())), None));
    script.deliver();
    script.job().complete().expect("ready");
    script.until_over();
    script.forget();
    script.submit_with(Kind::Read, bytes(0, 512), GuestFlags::default(), &[memory.iov()]);
    assert_eq!((script.source.out(), script.target.out()), (vec![], vec![(Kind::Read, bytes(0, 512))]));
    script.target.complete_where(|_, _| true);
    assert_eq!(memory.bytes(), [0x11; 512]);
}

#[test]
fn a_host_that_waits_for_its_requests_asks_the_device_for_the_same() {
    // SPEC G-1
    let script = Script::over(disk(|with| with.inline_one_in = 1), disk(|_| {}));
    script.filter.write_at(512, &[3; 512]).expect("writes");
    script.filter.zero_at(0, 512, GuestFlags::default()).expect("zeroes");
    script.filter.discard_at(1024, 2048).expect("discards");
    script.filter.flush().expect("flushes");
    let mut held = [0; 1024];
    script.filter.read_at(0, &mut held).expect("reads");
    assert_eq!((held[..512].to_vec(), held[512..].to_vec()), (vec![0; 512], vec![3; 512]));
    let wanted = [
        (Kind::Write, bytes(512, 512)),
        (Kind::Zero, bytes(0, 512)),
        (Kind::Discard, bytes(1024, 2048)),
        (Kind::Flush, bytes(0, 0)),
        (Kind::Read, bytes(0, 1024)),
    ];
    assert_eq!(deeds(&script.source.seen()), wanted);
}

#[test]
fn without_a_job_everything_passes_through() {
    // SPEC G-1
    let script = Script::new();
    let (told, _) = script.write_with(512, 1, 100, GuestFlags { fua: true, ..GuestFlags::default() });
    script.zero(bytes(3, 5));
    script.discard(bytes(7, 9));
    script.submit_with(Kind::Flush, bytes(0, 0), GuestFlags::default(), &[]);
    let seen = script.source.seen();
    let wanted = [
        (Kind::Write, bytes(512, 100)),
        (Kind::Zero, bytes(3, 5)),
        (Kind::Discard, bytes(7, 9)),
        (Kind::Flush, bytes(0, 0)),
    ];
    assert_eq!(deeds(&seen), wanted);
    assert!(seen[0].flags.fua && seen[1].flags.may_unmap);
    script.source.set_faults(Faults::default());
    while script.source.complete_where(|_, _| true) {}
    assert_eq!(told.get(), Some(Ok(())));
}

// SPEC G-2: background mode.

#[test]
fn a_write_in_background_mode_is_marked_when_it_is_done_and_before_the_guest_is_told() {
    // SPEC G-2: no poll in between.
    for kind in [Kind::Write, Kind::Zero, Kind::Discard] {
        for result in [Ok(()), Err(Errno::EIO)] {
            let mut script = Script::ready_with(only_new());
            if result.is_err() {
                script.source.set_faults(faults(kind, Errno::EIO));
            }
            let job = script.job.take().expect("begun");
            let job = std::sync::Arc::new(job);
            let (seen, asked) = (std::sync::Arc::new(std::sync::Mutex::new(None)), job.clone());
            let tell = seen.clone();
            let done = Callback::from_closure(move |result| {
                *tell.lock().expect("no panic") = Some((result, asked.query().dirty));
            });
            let memory = GuestMemory::new(1, 1000);
            let iov = if kind == Kind::Write { vec![memory.iov()] } else { vec![] };
            // Rounded out: it touches two chunks.
            let range = bytes(4 * CHUNK - 500, 1000);
            let io = GuestIo { kind, range, flags: GuestFlags::default(), iov: &iov };
            script.filter.submit(&io, done).expect("accepted");
            assert_eq!((job.query().dirty, *seen.lock().expect("no panic")), (0, None));
            script.source.complete_where(|_, _| true);
            assert_eq!(*seen.lock().expect("no panic"), Some((result, 2 * CHUNK)), "{kind:?} {result:?}");
            assert_eq!(script.target.seen(), []);
        }
    }
}

#[test]
fn active_sync_is_not_claimed_while_a_write_that_is_not_carried_runs() {
    // SPEC G-2, F-6: it came before the mode was changed, and marks when it is done.
    let mut script = Script::ready_with(only_new());
    let told = script.write(0, 1, 1);
    script.job().change(CopyMode::WriteBlocking).expect("ready");
    for _ in 0..10 {
        script.settle();
        script.now += SLICE;
        assert!(!script.info().actively_synced);
    }
    script.source.complete_one(script.now);
    assert_eq!((told.get(), script.info().dirty), (Some(Ok(())), CHUNK));
    assert!(!script.info().actively_synced);
    script.until("synced", |info| info.actively_synced);
    assert!(script.equal());
}

#[test]
fn active_sync_is_not_claimed_because_it_was_true_once() {
    // SPEC F-6: to and fro, with a write under way that came while writes were not carried.
    let mut script = Script::synced_with(options());
    script.job().change(CopyMode::Background).expect("ready");
    script.settle();
    let told = script.write(0, 1, 1);
    script.job().change(CopyMode::WriteBlocking).expect("ready");
    script.pass(SLICE / 2);
    assert_eq!(told.get(), Some(Ok(())));
    script.job().change(CopyMode::Background).expect("ready");
    script.settle();
    let told = script.write(0, 2, 1);
    script.job().change(CopyMode::WriteBlocking).expect("ready");
    script.settle();
    assert_eq!((told.get(), script.info().actively_synced), (None, false));
    script.until("synced", |info| info.actively_synced);
    assert_eq!(told.get(), Some(Ok(())));
    assert!(script.equal());
}

// SPEC G-3: carried writes.

#[test]
fn the_guest_may_change_its_memory_at_once() {
    // SPEC G-3: the library writes its own copy, unless the guest vouches that the data is stable.
    for stable in [false, true] {
        let mut script = Script::synced_with(options());
        let (told, memory) = script.write_with(0, 0xaa, 512, GuestFlags { stable, ..GuestFlags::default() });
        memory.fill(0xbb);
        script.deliver();
        assert_eq!(told.get(), Some(Ok(())));
        let written = if stable { [0xbb; 512] } else { [0xaa; 512] };
        assert_eq!(script.source.bytes()[..512], written, "stable: {stable}");
        assert_eq!(script.target.bytes()[..512], written, "stable: {stable}");
    }
}

#[test]
fn a_guest_whose_memory_changes_between_the_two_writes_still_gets_equal_disks() {
    // SPEC G-3
    let mut script = Script::synced_with(options());
    let (_, memory) = script.write_with(0, 0xaa, 512, GuestFlags::default());
    script.settle();
    script.source.complete_one(script.now);
    memory.fill(0xcc);
    script.deliver();
    assert!(script.equal() && script.info().actively_synced);
}

#[test]
fn the_guest_is_told_when_both_are_done_in_either_order() {
    // SPEC G-3
    for source_first in [true, false] {
        let mut script = Script::synced_with(options());
        let told = script.write(CHUNK, 5, 512);
        script.settle();
        assert_eq!(script.source.out(), script.target.out(), "at the same time");
        let (first, second) = if source_first {
            (script.source.clone(), script.target.clone())
        } else {
            (script.target.clone(), script.source.clone())
        };
        first.complete_one(script.now);
        script.settle();
        assert_eq!(told.get(), None);
        second.complete_one(script.now);
        script.settle();
        assert_eq!(told.get(), Some(Ok(())));
        assert!(script.info().actively_synced && script.equal());
    }
}

#[test]
fn the_guest_s_result_is_the_source_s_alone() {
    // SPEC G-3, G-5: and what failed on either side is marked, rounded out.
    for kind in [Kind::Write, Kind::Zero, Kind::Discard] {
        for (source, target) in [(false, true), (true, false), (true, true)] {
            for source_first in [true, false] {
                let case = format!("{kind:?} {source} {target} {source_first}");
                let promises = |with: &mut DiskOptions| with.limits.discard_zeroes = true;
                let mut script = Script::with(disk(promises), disk(promises));
                script.target.fill(0, &script.source.bytes());
                let with = Options { on_target_error: ErrorPolicy::Ignore, ..blocking(only_new()) };
                script.begin(with);
                script.until("synced", |info| info.actively_synced);
                script.forget();
                for (fails, disk) in [(source, &script.source), (target, &script.target)] {
                    if fails {
                        disk.set_faults(faults(kind, Errno::EIO));
                    }
                }
                let range = bytes(4 * CHUNK - 512, CHUNK);
                let told = match kind {
                    Kind::Write => script.write(range.offset(), 7, range.len() as usize),
                    Kind::Zero => script.zero(range),
                    _ => script.discard(range),
                };
                script.settle();
                for disk in if source_first {
                    [script.source.clone(), script.target.clone()]
                } else {
                    [script.target.clone(), script.source.clone()]
                } {
                    assert!(disk.complete_one(script.now), "{case}");
                    script.settle();
                }
                let wanted = if source { Err(Errno::EIO) } else { Ok(()) };
                assert_eq!(told.get(), Some(wanted), "{case}");
                // Its chunks are marked, or already on their way once more.
                let info = script.info();
                assert_eq!(info.dirty + info.in_flight_bytes, 2 * CHUNK, "{case}");
                assert!(!info.actively_synced, "{case}");
                assert_eq!(info.active.errors, u64::from(target), "{case}");
                assert_eq!(
                    script.failures().len(),
                    usize::from(target),
                    "{case}: the source's is the guest's affair"
                );
                script.source.set_faults(Faults::default());
                script.target.set_faults(Faults::default());
                script.until_equal();
                script.until("synced", |info| info.actively_synced);
            }
        }
    }
}

#[test]
fn a_discard_is_carried_only_where_both_promise_zeroes() {
    // SPEC G-3: else the source alone is discarded, and the sides become equal by a copy.
    for (source, target) in [(true, true), (true, false), (false, true), (false, false)] {
        let promise = |promises| disk(|with| with.limits.discard_zeroes = promises);
        let mut script = Script::with(promise(source), promise(target));
        script.target.fill(0, &script.source.bytes());
        script.begin(blocking(only_new()));
        script.until("synced", |info| info.actively_synced);
        script.forget();
        let told = script.discard(chunks(3, 2));
        script.settle();
        let carried = source && target;
        assert_eq!(script.target.out().len(), usize::from(carried));
        script.source.complete_where(|_, _| true);
        script.target.complete_where(|_, _| true);
        script.poll();
        assert_eq!(told.get(), Some(Ok(())));
        assert_eq!(script.info().actively_synced, carried);
        script.until_equal();
        script.until("synced", |info| info.actively_synced);
        let first = script.target.seen()[0];
        assert_eq!(first.kind, if carried { Kind::Discard } else { Kind::Write });
    }
}

#[test]
fn a_device_that_skips_discards_promises_nothing() {
    // SPEC G-3, D-1: whatever its limits say.
    let promises = |with: &mut DiskOptions| with.limits.discard_zeroes = true;
    let target = disk(|with| {
        promises(with);
        with.supports = vec![Kind::Zero];
    });
    let mut script = Script::with(disk(promises), target);
    script.begin(blocking(options()));
    script.until("synced", |info| info.actively_synced);
    script.discard(chunks(3, 2));
    script.pass(SLICE);
    assert!(script.equal());
}

#[test]
fn zeroes_are_carried_as_zeroes() {
    // SPEC G-3
    let mut script = Script::synced_with(options());
    script.zero(chunks(3, 2));
    script.settle();
    assert_eq!(script.source.out(), [(Kind::Zero, chunks(3, 2))]);
    assert_eq!(script.target.out(), [(Kind::Zero, chunks(3, 2))]);
    assert!(script.target.seen()[0].flags.may_unmap);
    script.deliver();
    assert!(script.equal() && script.info().actively_synced);
}

#[test]
fn durable_writes_are_durable_on_both_sides_and_flushes_go_to_the_device_of_the_moment() {
    // SPEC G-6
    let mut script = Script::synced_with(options());
    for fua in [true, false] {
        script.write_with(0, 1, 512, GuestFlags { fua, ..GuestFlags::default() });
        script.deliver();
        assert_eq!(script.source.seen()[0].flags.fua, fua);
        assert_eq!(script.target.seen()[0].flags.fua, fua);
    }
    let flush = script.submit_with(Kind::Flush, bytes(0, 0), GuestFlags::default(), &[]);
    assert_eq!(deeds(&script.source.seen()), [(Kind::Flush, bytes(0, 0))]);
    script.deliver();
    assert_eq!((flush.get(), script.target.seen()), (Some(Ok(())), vec![]));
    script.job().complete().expect("ready");
    script.until_over();
    script.forget();
    script.submit_with(Kind::Flush, bytes(0, 0), GuestFlags::default(), &[]);
    assert_eq!(deeds(&script.target.seen()), [(Kind::Flush, bytes(0, 0))]);
    assert_eq!(script.source.seen(), []);
}

// SPEC G-4: edges.

#[test]
fn an_edge_in_a_dirty_chunk_is_not_carried() {
    // SPEC G-4: dirty chunks, what is written, what of it is carried, and what is dirty afterwards.
    let within = |first: u64, end: u64| bytes(first * 512, (end - first) * 512);
    // In blocks of 512 bytes, of which a chunk has eight.
    type Case<'a> = (&'a [u64], ByteRange, Option<ByteRange>, &'a [u64]);
    let cases: [Case<'_>; 12] = [
        (&[], within(4, 20), Some(within(4, 20)), &[]),
        (&[0], within(4, 20), Some(within(8, 20)), &[0]),
        (&[2], within(4, 20), Some(within(4, 16)), &[2]),
        (&[0, 2], within(4, 20), Some(within(8, 16)), &[0, 2]),
        (&[1], within(4, 20), Some(within(4, 20)), &[]),
        (&[0, 1, 2], within(4, 20), Some(within(8, 16)), &[0, 2]),
        (&[0, 1, 2], within(0, 24), Some(within(0, 24)), &[]),
        (&[1], within(10, 12), None, &[1]),
        (&[1], within(8, 12), None, &[1]),
        (&[1], within(12, 16), None, &[1]),
        (&[0, 1], within(4, 12), None, &[0, 1]),
        (&[0], within(4, 12), Some(within(8, 12)), &[0]),
    ];
    for (dirty, range, carried, left) in cases {
        let case = format!("{dirty:?} {range:?}");
        let mut script = Script::synced_with(options());
        script.job().set_speed(1).expect("ready");
        // The background has borrowed from the slices to come, so that what is dirty stays so.
        script.filter.mark_dirty(chunks(60, 1)).expect("on the disk");
        script.pass(0);
        for chunk in dirty {
            script.filter.mark_dirty(chunks(*chunk, 1)).expect("on the disk");
        }
        script.settle();
        script.forget();
        let told = script.write(range.offset(), 9, range.len() as usize);
        script.settle();
        assert_eq!(script.source.out(), [(Kind::Write, range)], "{case}");
        assert_eq!(
            script.target.out(),
            carried.map(|part| (Kind::Write, part)).into_iter().collect::<Vec<_>>(),
            "{case}"
        );
        // Whole chunks are clean before the write.
        let clean = script.info().dirty / CHUNK;
        assert_eq!(clean, left.len() as u64, "{case}");
        script.deliver();
        assert_eq!(told.get(), Some(Ok(())), "{case}");
        assert_eq!(script.info().dirty / CHUNK, left.len() as u64, "{case}: a clean edge stays clean");
        script.job().set_speed(0).expect("ready");
        script.until_equal();
    }
}

#[test]
fn the_end_of_the_disk_is_no_edge() {
    // SPEC G-4: the last chunk is short, dirty, and overwritten to its end.
    let odd = |with: &mut DiskOptions| with.length = LENGTH - 1000;
    let mut script = Script::with(disk(odd), disk(odd));
    script.begin(blocking(options()));
    script.until("synced", |info| info.actively_synced);
    script.job().pause().expect("ready");
    script.settle();
    let last = bytes(63 * CHUNK, CHUNK - 1000);
    script.filter.mark_dirty(last).expect("on the disk");
    script.forget();
    script.write(last.offset(), 1, last.len() as usize);
    script.deliver();
    assert_eq!(deeds(&script.target.seen()), [(Kind::Write, last)]);
    assert_eq!(script.info().dirty, 0);
    script.job().resume().expect("paused");
    script.until_equal();
}

// SPEC G-7, G-9: the end of a job.

#[test]
fn a_job_that_has_failed_or_is_cancelled_carries_nothing_more() {
    // SPEC G-7: at once, though its target hangs.
    for failed in [true, false] {
        let mut script = Script::synced_with(options());
        script.target.set_faults(if failed { faults(Kind::Write, Errno::EIO) } else { Faults::default() });
        let hangs = script.write(0, 1, 512);
        let fails = script.write(CHUNK, 1, 512);
        let waits = script.write(100, 2, 512);
        script.settle();
        script.target.seen();
        if failed {
            script.target.complete_where(|_, range| range.offset() == CHUNK);
        } else {
            script.job().cancel(true).expect("ready");
        }
        script.settle();
        assert_eq!(script.status(), Status::Aborting);
        let late = script.write(2 * CHUNK, 3, 512);
        while script.source.complete_where(|_, _| true) {
            script.settle();
        }
        for (which, told) in [("hangs", &hangs), ("fails", &fails), ("waits", &waits), ("late", &late)] {
            assert_eq!(told.get(), Some(Ok(())), "{which}, failed: {failed}");
        }
        assert_eq!(script.target.seen(), [], "nothing more is carried");
        script.until_over();
        assert!(!script.is_switched());
    }
}

#[test]
fn hosts_that_do_their_own_io_mark_and_drain_as_any_other() {
    // SPEC G-8
    let mut script = Script::ready_with(only_new());
    let Begin::Go(write) = script.filter.begin(Kind::Write, bytes(4 * CHUNK - 1, 2)).expect("legal") else {
        panic!("the gate is open");
    };
    let Begin::Go(read) = script.filter.begin(Kind::Read, bytes(0, 1)).expect("legal") else {
        panic!("the gate is open");
    };
    script.job().complete().expect("ready");
    script.pass(0);
    assert_eq!(script.status(), Status::Ready, "the gate is closed, and the two are waited for");
    assert_eq!(script.filter.begin(Kind::Write, bytes(0, 1)).expect("legal"), Begin::Again);
    script.source.fill(4 * CHUNK - 1, &[7; 2]);
    script.filter.end(write, Err(Errno::EIO)).expect("running");
    assert_eq!(script.info().dirty, 2 * CHUNK, "marked, whatever the result");
    script.pass(SLICE);
    assert!(!script.is_switched(), "the read still runs");
    assert_eq!(script.filter.end(write, Ok(())).expect_err("done before").errno(), Errno::ENOENT);
    script.filter.end(read, Ok(())).expect("running");
    script.until_over();
    assert!(script.is_switched() && script.equal());
    assert!(matches!(script.filter.begin(Kind::Write, bytes(0, 1)), Ok(Begin::Go(_))));
}

#[test]
fn what_is_marked_by_hand_is_copied() {
    // SPEC G-8, G-2
    let mut script = Script::synced_with(options());
    script.source.fill(9 * CHUNK + 5, &[1; 10]);
    script.filter.mark_dirty(bytes(9 * CHUNK + 5, 10)).expect("on the disk");
    assert_eq!((script.info().dirty, script.info().actively_synced), (CHUNK, false));
    script.until_equal();
    assert_eq!(script.filter.mark_dirty(bytes(LENGTH, 1)).expect_err("beyond").errno(), Errno::ERANGE);
}

#[test]
fn begin_and_end_are_refused_where_the_data_is_needed() {
    // SPEC G-8, G-3
    let script = Script::synced_with(options());
    assert_eq!(
        script.filter.begin(Kind::Write, bytes(0, 1)).expect_err("carried").errno(),
        Errno::EOPNOTSUPP
    );
    assert!(matches!(script.filter.begin(Kind::Read, bytes(0, 1)), Ok(Begin::Go(_))), "a read is no matter");
}

#[test]
fn every_accepted_request_is_answered_once_however_the_job_ends() {
    // SPEC G-9: five ends, each with writes at every stage; `Told` refuses a second answer.
    for mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        for end in ["complete", "cancel", "force", "fail", "free", "pause"] {
            let mut script = Script::synced_with(options());
            script.job().change(mode).expect("ready");
            script.settle();
            let mut told: Vec<_> = (0..8).map(|at| script.write(at / 2 * CHUNK, 1, 512)).collect();
            script.settle();
            script.source.complete_one(script.now);
            match end {
                "complete" => script.job().complete().expect("ready"),
                "cancel" => script.job().cancel(false).expect("ready"),
                "force" => script.job().cancel(true).expect("ready"),
                "pause" => script.job().pause().expect("ready"),
                "fail" => script.target.set_faults(faults(Kind::Write, Errno::EIO)),
                _ => drop(script.job.take()),
            }
            told.extend((0..8).map(|at| script.write(at / 2 * CHUNK + 100, 2, 512)));
            for _ in 0..1000 {
                if script.job.is_some() {
                    script.settle();
                }
                script.target.complete_one(script.now);
                script.source.complete_one(script.now);
                script.now += 1_000_000;
            }
            for (which, told) in told.iter().enumerate() {
                assert_eq!(told.get(), Some(Ok(())), "{mode:?} {end} {which}");
            }
            assert_eq!((script.source.pending(), script.target.pending()), (0, 0), "{mode:?} {end}");
        }
    }
}
