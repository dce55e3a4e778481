//! SPEC section 9: ready, complete, cancel and the switch.

use super::script::*;
use blkmirror::engine::BackingMode;
use blkmirror::filter::Begin;
use blkmirror::job::PrepareInfo;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

#[test]
fn requests_wait_at_the_gate_and_go_to_the_new_disk_in_order() {
    // SPEC F-2
    let mut script = Script::new();
    script.begin(options());
    script.until_ready();
    let running = script.write(0, 0x11, 512);
    script.job().complete().expect("ready");
    script.job().complete().expect("a second time is harmless");
    script.settle();
    let first = script.write(512, 0x22, 512);
    let second = script.write(512, 0x33, 512);
    assert_eq!((running.get(), first.get()), (None, None));
    script.until_over();
    while script.target.complete_one(script.now) {}
    assert_eq!((running.get(), first.get(), second.get()), (Some(Ok(())), Some(Ok(())), Some(Ok(()))));
    assert!(script.filter.device().is_same_storage(script.target.device()));
    assert_eq!(script.target.bytes()[..512], [0x11; 512], "what ran when the gate closed was copied");
    assert_ne!(script.source.bytes()[512], 0x22, "what waited never reached the old disk");
    let last = script.target.bytes()[512];
    assert!(last == 0x22 || last == 0x33);
}

#[test]
fn a_prepare_hook_that_refuses_keeps_the_filter_where_it_is() {
    // SPEC F-2
    let mut script = Script::new();
    let refuse = Box::new(|_: &_| Err(Errno::EACCES));
    script.begin_with(JobOptions { options: options(), prepare: Some(refuse), ..JobOptions::default() });
    script.until_ready();
    script.job().complete().expect("ready");
    script.settle();
    let told = script.write(0, 5, 512);
    script.until_over();
    assert_eq!(script.info().error.expect("failed").0, Errno::EACCES);
    assert!(script.filter.device().is_same_storage(script.source.device()));
    while script.source.complete_one(script.now) {}
    assert_eq!(told.get(), Some(Ok(())), "the gate is open again");
}

#[test]
fn a_soft_cancel_after_ready_leaves_a_copy_of_that_instant() {
    // SPEC F-5
    let mut script = Script::new();
    script.begin(options());
    script.until_ready();
    script.write(CHUNK, 0x66, 512);
    while script.source.complete_one(script.now) {}
    let at_cancel = script.source.bytes();
    script.job().cancel(false).expect("ready");
    script.until_over();
    script.write(CHUNK, 0x67, 512);
    while script.source.complete_one(script.now) {}
    assert_eq!(script.target.bytes(), at_cancel);
    assert!(script.filter.device().is_same_storage(script.source.device()));
    assert!(script.events().contains(&Event::Completed(Ok(()))));
}

#[test]
fn a_soft_cancel_ends_though_guests_write_all_the_time() {
    // SPEC F-5: there is never an instant with nothing dirty; the rest is copied behind the gate.
    let mut script = Script::new();
    script.begin(options());
    script.until_ready();
    script.job().cancel(false).expect("ready");
    let mut at = 0;
    for _ in 0..5_000 {
        at = (at + 7 * CHUNK) % LENGTH;
        script.write(at, 9, 512);
        script.settle();
        if script.info().status.is_over() {
            return;
        }
        script.source.complete_one(script.now);
        script.target.complete_one(script.now);
        script.source.complete_one(script.now);
    }
    panic!("no end: {:?}", script.info());
}

/// Rounds in which a chunk is marked before each poll, so that none finds the disk clean. Whether this came to be so.
fn marked_all_the_time(script: &mut Script, so: impl Fn(&Info) -> bool) -> bool {
    for round in 0..1_000 {
        script.filter.mark_dirty(chunks(round * 7 % CHUNKS, 1)).expect("on the disk");
        script.settle();
        if so(&script.info()) {
            return true;
        }
        script.source.complete_one(script.now);
        script.target.complete_one(script.now);
    }
    false
}

#[test]
fn a_disk_that_is_never_clean_becomes_ready_and_is_switched_after_some_passes() {
    // SPEC F-1, F-2: what is left fits in the buffers, and would never get less.
    let mut script = Script::new();
    script.begin(Options { pass_interval_ns: 0, ..options() });
    assert!(marked_all_the_time(&mut script, |info| info.status == Status::Ready), "{:?}", script.info());
    assert!(script.info().passes >= 4, "it was given the time to become clean");
    assert!(marked_all_the_time(&mut script, |info| info.passes > 8));
    let before = script.info().passes;
    script.job().complete().expect("ready");
    // From then on the gate is closed; what is marked behind it by hand would keep it so for ever.
    let closing = |info: &Info| info.passes >= before + 4;
    assert!(marked_all_the_time(&mut script, closing), "{:?}", script.info());
    script.until_over();
    assert!(script.is_switched());
    assert!(
        script.info().passes <= before + 6,
        "{} passes before the gate was closed",
        script.info().passes - before
    );
}

#[test]
fn where_writes_are_carried_only_a_clean_disk_is_ready() {
    // SPEC F-1: there, ready says that the sides are equal.
    let mut script = Script::new();
    script.begin(blocking(Options { pass_interval_ns: 0, ..options() }));
    assert!(!marked_all_the_time(&mut script, |info| info.ready), "{:?}", script.info());
    script.until_ready();
    assert!(script.info().actively_synced);
}

#[test]
fn guests_wait_for_what_just_fits_in_the_buffers() {
    // SPEC F-2
    let mut script = Script::ready_with(Options { buf_size: 2 * CHUNK, ..only_new() });
    script.write(0, 9, 2 * CHUNK as usize);
    script.job().complete().expect("ready");
    script.settle();
    let late = script.write(20 * CHUNK, 8, 512);
    script.source.complete_one(script.now);
    script.settle();
    assert!(script.source.out().iter().all(|(kind, _)| *kind == Kind::Read), "the gate stays closed");
    script.until_over();
    while script.target.complete_one(script.now) {}
    assert_eq!(late.get(), Some(Ok(())));
    assert!(script.is_switched());
}

#[test]
fn what_is_marked_during_the_last_flush_is_copied_after_it() {
    // SPEC F-2: one flush at a time says what is on the disk.
    let mut script = Script::ready_with(options());
    script.job().complete().expect("ready");
    script.settle();
    assert_eq!(script.target.out(), [(Kind::Flush, bytes(0, 0))]);
    script.filter.mark_dirty(chunks(3, 1)).expect("on the disk");
    script.now += SLICE;
    script.settle();
    assert_eq!(script.source.out(), []);
    script.until_over();
    assert!(script.is_switched());
    assert_eq!(script.info().writes.ops, 1);
}

#[test]
fn guests_do_not_wait_for_more_than_the_buffers_hold() {
    // SPEC F-2: what became dirty while the gate was closing is too much to be copied behind it.
    let mut script = Script::ready_with(Options { buf_size: 2 * CHUNK, ..only_new() });
    let early = script.write(0, 9, 8 * CHUNK as usize);
    script.job().complete().expect("ready");
    script.settle();
    let late = script.write(20 * CHUNK, 8, 512);
    assert_eq!(script.source.out().len(), 1, "the gate is closed");
    script.source.complete_one(script.now);
    script.settle();
    assert_eq!(early.get(), Some(Ok(())));
    let passed = script.source.out().contains(&(Kind::Write, bytes(20 * CHUNK, 512)));
    assert!(passed, "the gate is open again");
    script.until_over();
    assert_eq!(late.get(), Some(Ok(())));
    assert!(script.is_switched() && script.equal());
}

#[test]
fn a_forced_cancel_waits_for_what_is_in_flight_and_no_longer() {
    // SPEC F-5
    let mut script = Script::new();
    script.begin(options());
    script.settle();
    script.job().cancel(true).expect("running");
    script.settle();
    assert_eq!(script.info().status, Status::Aborting);
    script.until_over();
    assert_eq!(script.info().reads.ops, 4);
    assert_eq!(script.info().writes.ops, 0, "a read that comes back is not written any more");
    assert_eq!(script.events().last(), Some(&Event::Status(Status::Null)));
}

#[test]
fn pending_waits_for_finalize_with_the_gate_closed() {
    // SPEC F-2
    let mut script = Script::new();
    script.begin(Options { auto_finalize: false, auto_dismiss: false, ..options() });
    script.until_ready();
    script.job().complete().expect("ready");
    script.until("pending", |info| info.status == Status::Pending);
    let told = script.write(0, 5, 512);
    while script.source.complete_one(script.now) || script.target.complete_one(script.now) {}
    assert_eq!(told.get(), None);
    script.job().finalize().expect("pending");
    script.until("concluded", |info| info.status == Status::Concluded);
    script.target.complete_one(script.now);
    assert_eq!(told.get(), Some(Ok(())));
    script.job().dismiss().expect("concluded");
    assert_eq!(script.info().status, Status::Null);
    assert!(script.events().contains(&Event::Pending));
}

#[test]
fn a_soft_cancel_of_a_paused_job_is_refused_and_a_forced_one_is_not() {
    // SPEC F-5
    let mut script = Script::new();
    script.begin(options());
    script.job().pause().expect("running");
    script.settle();
    assert_eq!(script.job().cancel(false).expect_err("paused").errno(), Errno::EPERM);
    script.job().cancel(true).expect("by force");
    script.until_over();
}

#[test]
fn a_cancel_lifts_the_pause_of_an_error() {
    // SPEC F-5
    let mut script = Script::new();
    script.target.set_faults(Faults { error_one_in: 1, full: true, ..Faults::default() });
    script.begin(Options { on_target_error: ErrorPolicy::Stop, ..options() });
    script.until("stopped", |info| info.status == Status::Paused);
    script.job().cancel(false).expect("not paused by the user");
    script.until_over();
    assert!(script.events().contains(&Event::Cancelled));
}

#[test]
fn ready_comes_once_after_a_flush_and_the_copy_goes_on() {
    // SPEC F-1
    let mut script = Script::new();
    script.begin(options());
    script.until("the flush", |info| info.dirty == 0 && info.in_flight_bytes == 0 && info.in_flight_ops == 1);
    script.settle();
    assert_eq!(script.target.out(), [(Kind::Flush, bytes(0, 0))]);
    script.pass(0);
    assert_eq!(script.status(), Status::Ready);
    assert_eq!(
        deeds(&script.target.seen()).last(),
        Some(&(Kind::Flush, bytes(0, 0))),
        "the last thing before it"
    );
    for byte in 1..5 {
        script.write(0, byte, 1);
        script.pass(SLICE);
        assert!(script.equal());
    }
    assert!(!script.info().actively_synced, "writes are not carried");
    let ready = script.events().iter().filter(|event| **event == Event::Ready).count();
    assert_eq!((ready, script.info().flushes.ops), (1, 1));
}

#[test]
fn in_write_blocking_mode_a_ready_job_is_actively_synced() {
    // SPEC F-1
    let mut script = Script::new();
    script.begin(blocking(options()));
    script.until_ready();
    assert!(script.info().actively_synced && script.equal());
}

#[test]
fn a_write_while_the_flush_is_out_does_not_spoil_the_switch() {
    // SPEC F-2: with the gate closed there is none but what is marked by hand.
    let mut script = Script::ready_with(only_new());
    script.job().complete().expect("ready");
    script.settle();
    assert_eq!(script.target.out(), [(Kind::Flush, bytes(0, 0))]);
    script.source.fill(7 * CHUNK, &[9; 9]);
    script.filter.mark_dirty(bytes(7 * CHUNK, 9)).expect("on the disk");
    script.until_over();
    assert!(script.is_switched() && script.equal());
    assert_eq!(script.info().flushes.ops, 3, "before ready, and twice at the end");
}

#[test]
fn what_waited_at_the_gate_comes_to_the_new_disk_in_order_reads_too() {
    // SPEC F-2
    let mut script = Script::ready_with(only_new());
    script.job().complete().expect("ready");
    script.settle();
    script.forget();
    let memory = GuestMemory::new(0, 512);
    let read = script.submit_with(Kind::Read, bytes(0, 512), GuestFlags::default(), &[memory.iov()]);
    let write = script.write(0, 9, 512);
    let zero = script.zero(bytes(512, 512));
    let flush = script.submit_with(Kind::Flush, bytes(0, 0), GuestFlags::default(), &[]);
    assert_eq!(script.source.seen(), [], "they wait");
    script.until_over();
    let order = [
        (Kind::Read, bytes(0, 512)),
        (Kind::Write, bytes(0, 512)),
        (Kind::Zero, bytes(512, 512)),
        (Kind::Flush, bytes(0, 0)),
    ];
    let seen = deeds(&script.target.seen());
    assert_eq!(seen[seen.len() - 4..], order);
    assert_eq!(script.source.seen(), []);
    while script.target.complete_where(|_, _| true) {}
    for told in [read, write, zero, flush] {
        assert_eq!(told.get(), Some(Ok(())));
    }
}

#[test]
fn a_disk_is_drained_and_flushed_before_the_hook_and_the_hook_comes_before_the_switch() {
    // SPEC F-2, F-4
    let mut script = Script::ready_with(only_new());
    drop(script.job.take());
    let (source, target) = (script.source.clone(), script.target.clone());
    let told: Arc<Mutex<Option<Told>>> = Arc::default();
    let asked = Arc::clone(&told);
    let hook: PrepareHook = Box::new(move |_| {
        assert_eq!((source.pending(), target.pending()), (0, 0), "nothing is under way");
        assert_eq!(source.bytes(), target.bytes());
        assert_eq!(target.seen().last().map(|seen| seen.kind), Some(Kind::Flush));
        assert_eq!(asked.lock().expect("no panic").as_ref().and_then(Told::get), None);
        Ok(())
    });
    script.begin_with(JobOptions { options: only_new(), prepare: Some(hook), ..JobOptions::default() });
    script.until_ready();
    script.write(0, 1, 512);
    script.job().complete().expect("ready");
    script.settle();
    *told.lock().expect("no panic") = Some(script.write(0, 2, 512));
    script.until_over();
    assert!(script.is_switched());
    assert_eq!(script.info().error, None);
}

#[test]
fn the_hook_is_told_what_was_copied_and_which_backing_is_wanted() {
    // SPEC F-4
    for sync in [SyncMode::Full, SyncMode::Top, SyncMode::None] {
        for backing_mode in [BackingMode::SourceChain, BackingMode::Open, BackingMode::Leave] {
            let mut script = Script::new();
            let told: Arc<Mutex<Vec<PrepareInfo>>> = Arc::default();
            let tell = Arc::clone(&told);
            let hook: PrepareHook = Box::new(move |info| {
                tell.lock().expect("no panic").push(*info);
                Ok(())
            });
            let options = Options { sync, backing_mode, auto_complete: true, ..options() };
            script.begin_with(JobOptions { options, prepare: Some(hook), ..JobOptions::default() });
            script.until_over();
            assert_eq!(*told.lock().expect("no panic"), [PrepareInfo { sync, backing_mode }]);
        }
    }
}

#[test]
fn complete_twice_switches_once() {
    // SPEC F-2: at each moment at which it can be asked for.
    let mut script = Script::ready_with(Options { auto_finalize: false, ..only_new() });
    script.write(0, 1, 512);
    while script.status() == Status::Ready {
        script.job().complete().expect("ready");
        script.poll();
        script.source.complete_one(script.now);
        script.target.complete_one(script.now);
    }
    script.job().finalize().expect("pending");
    script.until_over();
    assert!(script.is_switched() && script.equal());
    let completed = script.events().iter().filter(|event| matches!(event, Event::Completed(_))).count();
    assert_eq!(completed, 1);
}

#[test]
fn another_filter_can_be_replaced_instead() {
    // SPEC F-3: it is drained and switched; the job's own stays.
    let mut script = Script::ready_with(only_new());
    drop(script.job.take());
    let elsewhere = disk(|_| {});
    let other = Filter::new(elsewhere.device()).expect("a seat");
    let options = JobOptions { options: only_new(), replaces: Some(other.clone()), ..JobOptions::default() };
    script.begin_with(options);
    script.until_ready();
    let Ok(Begin::Go(running)) = other.begin(Kind::Read, bytes(0, 1)) else { panic!("the gate is open") };
    script.job().complete().expect("ready");
    script.pass(SLICE);
    assert_eq!(script.status(), Status::Ready, "a request runs there");
    assert_eq!(other.begin(Kind::Read, bytes(0, 1)).expect("legal"), Begin::Again);
    other.end(running, Ok(())).expect("running");
    script.until_over();
    assert!(other.device().is_same_storage(script.target.device()));
    assert!(script.filter.device().is_same_storage(script.source.device()));
    assert!(matches!(other.begin(Kind::Read, bytes(0, 1)), Ok(Begin::Go(_))), "its gate is open again");
    let told = script.write(0, 1, 1);
    assert!(script.source.complete_one(script.now) && told.get() == Some(Ok(())));
}

#[test]
fn a_commit_leaves_the_filter_on_the_base() {
    // SPEC F-7
    let mut script = Script::new();
    let commit = Options { kind: JobKind::CommitActive, sync: SyncMode::Top, ..options() };
    script.begin(commit);
    script.until_ready();
    script.write(3, 3, 3);
    script.job().complete().expect("ready");
    script.until_over();
    assert!(script.is_switched() && script.equal());
}

/// What becomes of a cancelled job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// `ECANCELED`, at once.
    Cancelled,
    /// With success, as a copy of an instant.
    Copy,
    /// It can't be cancelled so.
    Refused,
}

#[test]
fn each_cancel_in_each_state() {
    // SPEC F-5, L-2: (state, by an error) → soft, forced.
    use Ends::{Cancelled, Copy, Refused};
    let rows = [
        (Status::Created, false, Cancelled, Cancelled),
        (Status::Running, false, Cancelled, Cancelled),
        (Status::Paused, false, Refused, Cancelled),
        (Status::Paused, true, Cancelled, Cancelled),
        (Status::Ready, false, Copy, Cancelled),
        (Status::Standby, false, Refused, Cancelled),
        (Status::Standby, true, Copy, Cancelled),
        (Status::Pending, false, Copy, Cancelled),
        (Status::Aborting, false, Refused, Refused),
        (Status::Concluded, false, Refused, Refused),
        (Status::Null, false, Refused, Refused),
    ];
    for (index, (status, by_error, soft, forced)) in rows.into_iter().enumerate() {
        for (force, ends) in [(false, soft), (true, forced)] {
            let case = format!("{status:?} by error {by_error}, force {force}");
            let asked = Arc::new(AtomicU32::new(0));
            let ask = Arc::clone(&asked);
            let hook: PrepareHook = Box::new(move |_| {
                ask.fetch_add(1, Ordering::SeqCst);
                Ok(())
            });
            let mut script =
                Script::in_state(status, by_error, &format!("cancel-{index}-{force}"), Some(hook));
            let before = script.target.cancels();
            let result = script.job().cancel(force);
            match ends {
                Refused => {
                    assert_eq!(result.expect_err(&case).errno(), Errno::EPERM, "{case}");
                    assert_eq!((script.status(), script.target.cancels()), (status, before), "{case}");
                    continue;
                }
                Cancelled => {
                    script.until_over();
                    assert_eq!(script.info().error.expect(&case).0, Errno::ECANCELED, "{case}");
                    assert!(script.events().contains(&Event::Cancelled), "{case}");
                    assert_eq!(script.target.cancels() - before, 1, "{case}: the target is hurried");
                }
                Copy => {
                    script.until("pending", |info| info.status == Status::Pending);
                    script.job().finalize().expect(&case);
                    script.until_over();
                    assert_eq!(script.info().error, None, "{case}");
                    assert!(script.events().contains(&Event::Completed(Ok(()))), "{case}");
                    assert!(script.equal(), "{case}");
                    assert_eq!(script.target.cancels(), before, "{case}: nothing is hurried");
                }
            }
            assert_eq!((asked.load(Ordering::SeqCst), script.is_switched()), (0, false), "{case}");
            assert_eq!((script.source.pending(), script.target.pending()), (0, 0), "{case}: waited for");
            let told = script.write(0, 1, 1);
            assert!(script.source.complete_one(script.now) && told.get() == Some(Ok(())), "{case}");
        }
    }
}

#[test]
fn force_is_sticky_and_a_copy_can_not_be_completed_any_more() {
    // SPEC F-5
    let mut script = Script::ready_with(only_new());
    script.write(0, 1, 1);
    script.job().cancel(false).expect("ready");
    assert_eq!(script.job().complete().expect_err("being cancelled").errno(), Errno::EPERM);
    script.job().cancel(true).expect("ready");
    assert_eq!(script.job().cancel(false).expect_err("aborting").errno(), Errno::EPERM);
    script.until_over();
    assert_eq!(script.info().error.expect("cancelled").0, Errno::ECANCELED);
    assert!(script.events().contains(&Event::Cancelled));
}

#[test]
fn a_completing_job_can_be_cancelled_softly() {
    // SPEC F-5
    let mut script = Script::ready_with(only_new());
    script.job().complete().expect("ready");
    script.settle();
    let waits = script.write(0, 9, 1);
    script.job().cancel(false).expect("ready");
    script.until_over();
    assert!(!script.is_switched() && script.info().error.is_none());
    script.source.complete_where(|_, _| true);
    assert_eq!(waits.get(), Some(Ok(())), "the gate is open");
}

#[test]
fn a_commit_is_cancelled_without_hurrying_its_base() {
    // SPEC F-5: the base is no stranger to be cut off.
    let mut script = Script::new();
    script.begin(Options { kind: JobKind::CommitActive, sync: SyncMode::Top, ..options() });
    script.settle();
    script.job().cancel(true).expect("running");
    script.until_over();
    assert_eq!(script.target.cancels(), 0);
}

#[test]
fn the_copy_mode_changes_both_ways_with_writes_under_way() {
    // SPEC F-6: each keeps the way that it is on, and in the end the sides are equal.
    let mut script = Script::ready_with(only_new());
    let before = script.write(0, 1, 512);
    script.job().change(CopyMode::WriteBlocking).expect("ready");
    script.settle();
    let carried = script.write(CHUNK, 2, 512);
    script.settle();
    assert_eq!(script.target.out(), [(Kind::Write, bytes(CHUNK, 512))]);
    script.job().change(CopyMode::Background).expect("ready");
    script.settle();
    let after = script.write(2 * CHUNK, 3, 512);
    script.settle();
    assert_eq!(script.target.out(), [(Kind::Write, bytes(CHUNK, 512))], "only marked from now on");
    assert_eq!(script.source.pending(), 3);
    script.source.complete_where(|_, _| true);
    assert_eq!((before.get(), script.info().dirty), (Some(Ok(())), CHUNK));
    script.source.complete_where(|_, range| range.offset() == CHUNK);
    script.settle();
    assert_eq!(carried.get(), None, "its target is still out");
    script.target.complete_where(|kind, range| kind == Kind::Write && range.offset() == CHUNK);
    script.settle();
    assert_eq!(carried.get(), Some(Ok(())));
    script.until_equal();
    assert_eq!(after.get(), Some(Ok(())));
    assert_eq!(script.info().copy_mode, CopyMode::Background);
    assert_eq!(script.info().active.ops, 1);
    script.job().change(CopyMode::WriteBlocking).expect("ready");
    script.until("synced", |info| info.actively_synced);
}

#[test]
fn the_copy_mode_stays_once_the_job_finishes_and_where_a_layer_is_committed() {
    // SPEC F-6
    let script = Script::ready_with(only_new());
    script.job().complete().expect("ready");
    let error = script.job().change(CopyMode::WriteBlocking).expect_err("finishing");
    assert_eq!(error.errno(), Errno::EPERM);
    assert!(error.message().contains("is finishing"), "{error}");
    let mut commit = Script::new();
    commit.begin(Options { kind: JobKind::CommitActive, sync: SyncMode::Top, ..options() });
    let error = commit.job().change(CopyMode::WriteBlocking).expect_err("a commit");
    assert_eq!(error.errno(), Errno::EOPNOTSUPP);
}
