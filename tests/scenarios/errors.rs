//! SPEC section 8: errors.

use super::script::*;
use blkmirror::device::{Answer, Backend, Request, Token};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// When a failure comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// While the job starts.
    Start,
    /// Before it is ready.
    Running,
    /// After it was ready.
    Ready,
    /// With the gate closed.
    Finishing,
    /// A carried request of a guest.
    Active,
    /// A guest's request in background mode.
    Guest,
}

/// An operation that fails.
#[derive(Clone, Copy, Debug)]
struct Row {
    side: Side,
    kind: Kind,
    when: When,
    /// Whether it is told of, and handled by the policy of that side.
    handled: bool,
    /// Chunks of the range that the event names, from chunk 5 on; 0: it has none.
    named: u64,
    /// Chunks that are dirty, or on their way once more, afterwards.
    dirty: u64,
}

const fn row(side: Side, kind: Kind, when: When, handled: bool, named: u64, dirty: u64) -> Row {
    Row { side, kind, when, handled, named, dirty }
}

const ROWS: &[Row] = {
    use Kind::{Discard, Extents, Flush, Read, Truncate, Write, Zero};
    use Side::{Source, Target};
    use When::{Active, Finishing, Guest, Ready, Running, Start};
    &[
        row(Source, Read, Running, true, 1, 1),
        row(Source, Read, Ready, true, 1, 1),
        row(Target, Write, Running, true, 1, 1),
        row(Target, Write, Ready, true, 1, 1),
        row(Target, Zero, Running, true, 1, 1),
        row(Target, Zero, Ready, true, 1, 1),
        row(Target, Discard, Running, true, 1, 1),
        row(Target, Discard, Ready, true, 1, 1),
        row(Target, Flush, Running, true, 0, 0),
        row(Target, Flush, Finishing, true, 0, 0),
        row(Target, Truncate, Start, true, CHUNKS, 1),
        row(Target, Write, Active, true, 1, 1),
        row(Target, Zero, Active, true, 1, 1),
        row(Target, Discard, Active, true, 1, 1),
        // It counts as data, whatever the policy.
        row(Source, Extents, Running, false, 1, 0),
        row(Source, Extents, Ready, false, 1, 0),
        // The guest's own affair; what it may have done is marked.
        row(Source, Write, Active, false, 0, 1),
        row(Source, Zero, Active, false, 0, 1),
        row(Source, Discard, Active, false, 0, 1),
        row(Source, Write, Guest, false, 0, 1),
        row(Source, Zero, Guest, false, 0, 1),
        row(Source, Discard, Guest, false, 0, 1),
    ]
};

impl Row {
    fn policy_action(self, policy: ErrorPolicy, errno: Errno) -> Action {
        use ErrorPolicy::{Auto, Enospc, Ignore, Report, Stop};
        match policy {
            Report => Action::Report,
            Ignore => Action::Ignore,
            Stop => Action::Stop,
            Enospc | Auto if errno == Errno::ENOSPC => Action::Stop,
            Enospc | Auto => Action::Report,
        }
    }

    /// The range of the event.
    fn range(self) -> ByteRange {
        match self.named {
            0 => ByteRange::default(),
            CHUNKS => bytes(0, LENGTH),
            named => chunks(5, named),
        }
    }

    /// Disks on which the background uses this kind for whatever is dirty, and a job with this policy on this side.
    fn begin(self, policy: ErrorPolicy, errno: Errno) -> Script {
        let limits = |with: &mut DiskOptions| with.limits.discard_zeroes = true;
        let source = disk(|with| {
            limits(with);
            if !matches!(self.kind, Kind::Read | Kind::Flush | Kind::Write) || self.kind == Kind::Extents {
                with.supports.push(Kind::Extents);
            }
        });
        source.set_extents(match self.kind {
            Kind::Zero => |range| vec![Extent { length: range.len(), flags: ExtentFlags::HOLE }],
            Kind::Discard => |range| vec![Extent { length: range.len(), flags: ExtentFlags::UNALLOCATED }],
            _ => |range| vec![Extent { length: range.len(), flags: ExtentFlags::DATA }],
        });
        let target = disk(|with| {
            limits(with);
            if self.kind == Kind::Discard && self.when != When::Active {
                // Only what will show the same backing is discarded by the background.
                (with.limits.discard_zeroes, with.limits.unattached_backing) = (false, true);
            }
            with.supports.push(Kind::Truncate);
            if self.kind == Kind::Truncate {
                with.length = LENGTH - CHUNK;
            }
        });
        let mut script = Script::with(source, target);
        // Equal, but for chunk 5, which reads zero on the source and is to be brought over.
        script.source.fill(5 * CHUNK, &[0; CHUNK as usize]);
        let same = script.source.bytes();
        script.target.fill(0, &same[..script.target.device().length() as usize]);
        script.target.fill(5 * CHUNK, &[0xee; CHUNK as usize]);
        let mut with = Options { max_in_flight: 1, pass_interval_ns: 0, ..only_new() };
        *(if self.side == Side::Source { &mut with.on_source_error } else { &mut with.on_target_error }) =
            policy;
        if self.kind == Kind::Truncate {
            (with.kind, with.sync) = (JobKind::CommitActive, SyncMode::Top);
        }
        if self.when == When::Active {
            with.copy_mode = CopyMode::WriteBlocking;
        }
        script.create(JobOptions { options: with, ..JobOptions::default() });
        self.provoke(&mut script, errno);
        script
    }

    fn failing(self, script: &Script) -> Disk {
        if self.side == Side::Source { script.source.clone() } else { script.target.clone() }
    }

    /// Brings the job to where it fails.
    fn provoke(self, script: &mut Script, errno: Errno) {
        let fail = |script: &Script| self.failing(script).set_faults(faults(self.kind, errno));
        let mark = |script: &Script| script.filter.mark_dirty(chunks(5, 1)).expect("on the disk");
        if matches!(self.when, When::Start | When::Running) {
            if self.kind != Kind::Flush {
                mark(script);
            }
            fail(script);
        }
        script.job().start().expect("created");
        if matches!(self.when, When::Start | When::Running) {
            return;
        }
        let blocking = self.when == When::Active;
        script.until("ready", |info| info.ready && info.actively_synced == blocking);
        script.events();
        // Whole sides for those that the guest changes.
        fail(script);
        match self.when {
            When::Ready => mark(script),
            When::Finishing => script.job().complete().expect("ready"),
            _ => drop(match self.kind {
                Kind::Write => script.write(5 * CHUNK, 0x77, CHUNK as usize),
                Kind::Zero => script.zero(chunks(5, 1)),
                _ => script.discard(chunks(5, 1)),
            }),
        }
    }
}

/// What is dirty, or has been taken from the bitmap to be brought over once more.
fn open_chunks(info: &Info) -> u64 {
    (info.total - info.done) / CHUNK
}

#[test]
fn each_failure_does_what_the_policy_of_its_side_says() {
    // SPEC E-1, O-4, G-5, C-3: side × operation × when × policy × errno.
    use ErrorPolicy::{Auto, Enospc, Ignore, Report, Stop};
    for row in ROWS {
        for policy in [Report, Ignore, Stop, Enospc, Auto] {
            for errno in [Errno::EIO, Errno::ENOSPC] {
                let case = format!("{row:?} {policy:?} {errno:?}");
                let script = row.begin(policy, errno);
                if row.handled {
                    handled(*row, row.policy_action(policy, errno), errno, script, &case);
                } else {
                    unhandled(*row, errno, script, &case);
                }
            }
        }
    }
}

fn handled(row: Row, action: Action, errno: Errno, mut script: Script, case: &str) {
    script.until(case, |info| info.errors > 0);
    let events = script.events();
    let wanted = Failure { operation: row.kind, side: row.side, range: row.range(), errno, action };
    assert!(events.contains(&Event::Error(wanted)), "{case}: {events:?}");
    let info = script.info();
    assert!(!info.actively_synced, "{case}");
    match action {
        Action::Report => {
            script.until_over();
            let (result, message) = script.info().error.expect(case);
            assert_eq!(result, errno, "{case}");
            assert!(
                message.contains(&format!("{} of the {}", row.kind.name(), row.side.name())),
                "{case}: {message}"
            );
            let events = [events, script.events()].concat();
            assert!(events.contains(&Event::Status(Status::Aborting)), "{case}");
            assert!(events.contains(&Event::Completed(Err(errno))), "{case}");
            assert_eq!(script.info().io_status, IoStatus::Ok, "{case}");
            assert!(!script.is_switched(), "{case}");
        }
        Action::Stop => {
            assert_eq!(open_chunks(&info), row.dirty, "{case}");
            let paused = if info.ready { Status::Standby } else { Status::Paused };
            script.until(case, |info| info.status == paused);
            let stopped = if errno == Errno::ENOSPC { IoStatus::NoSpace } else { IoStatus::Failed };
            assert_eq!(script.info().io_status, stopped, "{case}");
            script.pass(3 * SLICE);
            assert_eq!(
                (script.info().errors, script.status()),
                (info.errors, paused),
                "{case}: nothing is tried"
            );
            assert_eq!(script.info().dirty / CHUNK, row.dirty, "{case}");
            assert_eq!(script.job().pause().expect_err(case).errno(), Errno::EPERM, "{case}");
            row.failing(&script).set_faults(Faults::default());
            script.job().resume().expect(case);
            assert_eq!(script.info().io_status, IoStatus::Ok, "{case}");
            recovers(row, script, case);
        }
        Action::Ignore => {
            assert_eq!(open_chunks(&info), row.dirty, "{case}");
            script.pass(10 * SLICE);
            let info = script.info();
            assert!((1..=12).contains(&info.errors), "{case}: {} tries in ten slices", info.errors);
            let status = if info.ready { Status::Ready } else { Status::Running };
            assert_eq!((info.status, info.io_status, info.paused), (status, IoStatus::Ok, false), "{case}");
            // What a guest's carried request left is brought over by a copy.
            assert!(
                row.when == When::Active || info.errors > 5,
                "{case}: {} tries in ten slices",
                info.errors
            );
            row.failing(&script).set_faults(Faults::default());
            recovers(row, script, case);
        }
    }
}

/// The fault is lifted, and the sides become equal.
fn recovers(row: Row, mut script: Script, case: &str) {
    if row.when == When::Finishing {
        script.until_over();
        assert!(script.is_switched(), "{case}");
        assert_eq!(script.info().error, None, "{case}");
        assert_eq!(script.target.bytes()[..5 * CHUNK as usize], script.source.bytes()[..5 * CHUNK as usize]);
        return;
    }
    let blocking = row.when == When::Active;
    script
        .until(case, |info| info.ready && info.dirty == 0 && !info.busy && info.actively_synced == blocking);
    let (ours, theirs) = (script.source.bytes(), script.target.bytes());
    let same = |range: ByteRange| {
        let range = range.offset() as usize..range.end() as usize;
        ours[range.clone()] == theirs[range]
    };
    assert!(same(chunks(0, 5)) && same(chunks(6, CHUNKS - 6)), "{case}");
    // A flush or a truncate says nothing about chunk 5.
    assert!(matches!(row.kind, Kind::Flush) || same(chunks(5, 1)), "{case}");
}

fn unhandled(row: Row, errno: Errno, mut script: Script, case: &str) {
    let guest = matches!(row.when, When::Active | When::Guest);
    if guest {
        script.until(case, |info| info.guest_writes > 0 || (info.dirty > 0 && row.when == When::Guest));
        assert!(!script.info().actively_synced, "{case}");
        assert_eq!(open_chunks(&script.info()), row.dirty, "{case}");
    } else {
        script.until(case, |info| info.errors > 0);
    }
    script.until_ready();
    let wanted =
        Failure { operation: row.kind, side: row.side, range: row.range(), errno, action: Action::Ignore };
    let told = script.failures();
    assert!(guest == told.is_empty() && told.iter().all(|failure| *failure == wanted), "{case}: {told:?}");
    assert_eq!((script.info().io_status, script.info().paused), (IoStatus::Ok, false), "{case}");
    if guest {
        script.source.set_faults(Faults::default());
    }
    recovers(row, script, case);
}

#[test]
fn an_ignored_error_is_not_retried_in_a_hot_loop() {
    // SPEC E-1: all chunks of a disk.
    let mut script = Script::new();
    script.target.set_faults(Faults { error_one_in: 1, full: false, ..Faults::default() });
    script.begin(Options { on_target_error: ErrorPolicy::Ignore, ..options() });
    let end = script.now + 1_000_000_000;
    while script.now < end {
        script.settle();
        while script.source.complete_one(script.now) | script.target.complete_one(script.now) {
            script.settle();
        }
        script.now += 10_000_000;
    }
    let tries = script.info().errors;
    assert!((8 * CHUNKS..=11 * CHUNKS).contains(&tries), "{tries} tries of {CHUNKS} chunks in ten slices");
}

#[test]
fn a_flush_that_fails_stops_the_job_before_ready_and_before_the_switch() {
    // SPEC E-2
    let mut script = Script::new();
    script.begin(Options { on_target_error: ErrorPolicy::Stop, ..options() });
    script.until("the flush", |info| info.dirty == 0 && info.in_flight_bytes == 0 && info.in_flight_ops == 1);
    assert_eq!(script.info().flushes.ops, 0);
    script.target.set_faults(Faults::default());
    script.until_ready();
    script.target.set_faults(Faults { error_one_in: 1, full: false, ..Faults::default() });
    script.job().complete().expect("ready");
    let told = script.write(0, 1, 512);
    script.until("stopped", |info| info.status == Status::Standby);
    while script.source.complete_one(script.now) {}
    assert_eq!(told.get(), Some(Ok(())), "guests don't wait for a target that fails");
    script.target.set_faults(Faults::default());
    script.job().resume().expect("stopped");
    script.until_over();
    assert!(script.filter.device().is_same_storage(script.target.device()));
}

/// Passes on to another device until it is told to panic.
struct Panics {
    armed: Arc<AtomicBool>,
    count: Arc<AtomicU32>,
}

impl Backend for Panics {
    fn submit(&self, _: Token, _: &Request<'_>) -> Answer {
        self.count.fetch_add(1, Ordering::SeqCst);
        assert!(!self.armed.load(Ordering::SeqCst), "a defect in the target");
        Answer::Done(Ok(()))
    }
}

#[test]
fn a_panic_poisons_the_job_and_guests_go_on() {
    // SPEC E-3
    for mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        let (armed, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let backend = Panics { armed: Arc::clone(&armed), count: Arc::clone(&count) };
        let target = Device::new(LENGTH, Limits::default(), |_| Ok(backend)).expect("a device");
        let mut script = Script::new();
        let job = Job::new(
            &script.filter,
            &target,
            JobOptions { options: Options { copy_mode: mode, ..options() }, ..JobOptions::default() },
        );
        script.job = Some(job.expect("legal"));
        script.job().start().expect("starts");
        script.until_ready();
        armed.store(true, Ordering::SeqCst);
        let early = script.write(0, 7, 512);
        script.source.complete_one(script.now);
        script.now += 100_000_000;
        script.until_over();
        let (errno, message) = script.info().error.expect("poisoned");
        assert_eq!(errno, Errno::ENOTRECOVERABLE);
        assert!(message.contains("a defect in the target"), "{message}");
        let late = script.write(512, 8, 512);
        while script.source.complete_one(script.now) {}
        script.poll();
        assert_eq!((early.get(), late.get()), (Some(Ok(())), Some(Ok(()))), "{mode:?}");
        assert_eq!(script.source.bytes()[..1024], [[7; 512], [8; 512]].concat()[..]);
        assert_eq!(script.job().pause().expect_err("over").errno(), Errno::EPERM);
    }
}

// SPEC O-6, D: what is refused.

#[test]
fn an_error_while_the_user_has_paused_is_no_second_pause_and_a_resume_forgets_it() {
    // SPEC E-1: the copies in flight fail after the user's pause.
    let mut script = Script::new();
    script.begin(Options { on_target_error: ErrorPolicy::Stop, ..options() });
    script.settle();
    script.job().pause().expect("running");
    script.target.set_faults(faults(Kind::Write, Errno::EIO));
    script.until("paused", |info| info.status == Status::Paused);
    assert_eq!((script.info().errors, script.info().io_status), (4, IoStatus::Failed));
    script.target.set_faults(Faults::default());
    script.job().resume().expect("paused once");
    assert_eq!((script.status(), script.info().io_status), (Status::Running, IoStatus::Ok));
    script.until_ready();
    assert!(script.equal());
    // And a later one is told anew.
    script.target.set_faults(faults(Kind::Write, Errno::ENOSPC));
    script.write(0, 1, 1);
    script.until("stopped", |info| info.status == Status::Standby);
    assert_eq!(script.info().io_status, IoStatus::NoSpace);
}

#[test]
fn the_first_error_says_how_the_job_stands() {
    // SPEC E-1: only from OK; a copy that was under way fails in another way after it.
    let mut script = Script::new();
    script.begin(Options { on_target_error: ErrorPolicy::Stop, max_in_flight: 2, ..options() });
    script.settle();
    for errno in [Errno::ENOSPC, Errno::EIO] {
        script.target.set_faults(faults(Kind::Write, errno));
        script.source.complete_where(|_, _| true);
        script.settle();
    }
    for errno in [Errno::ENOSPC, Errno::EIO] {
        script.target.complete_where(|_, _| true);
        script.settle();
        let told: Vec<_> = script.failures().into_iter().map(|failure| failure.errno).collect();
        assert_eq!((told, script.info().io_status), (vec![errno], IoStatus::NoSpace));
    }
    assert_eq!(script.status(), Status::Paused);
}

#[test]
fn the_first_error_is_the_result() {
    // SPEC E-1, REPORT: one copy fails for want of room, then another in another way.
    let mut script = Script::new();
    script.source.set_faults(faults(Kind::Read, Errno::ENOSPC));
    script.begin(Options { max_in_flight: 1, ..options() });
    script.settle();
    script.source.set_faults(faults(Kind::Read, Errno::EIO));
    script.until_over();
    assert_eq!(script.info().error.expect("failed").0, Errno::ENOSPC);
    assert_eq!(script.failures().len(), 1, "what comes after the end is nobody's business");
}

#[test]
fn an_error_names_job_operation_place_and_reason() {
    // SPEC E-2
    let mut script = Script::new();
    script.target.set_faults(faults(Kind::Write, Errno::ENOSPC));
    script.begin(Options { id: Some("named".into()), max_in_flight: 1, ..options() });
    script.until_over();
    let (errno, message) = script.info().error.expect("failed");
    assert_eq!(errno, Errno::ENOSPC);
    assert_eq!(
        message,
        format!("Job 'named': write of the target at offset 0 length 4096 failed: {}", Errno::ENOSPC)
    );
}

#[test]
fn a_pause_of_a_job_that_an_error_paused_is_refused() {
    // SPEC L-3, E-1
    let mut script = Script::new();
    script.target.set_faults(faults(Kind::Write, Errno::EIO));
    script.begin(Options { on_target_error: ErrorPolicy::Stop, ..options() });
    script.until("stopped", |info| info.status == Status::Paused);
    let error = script.job().pause().expect_err("paused");
    assert_eq!(error.errno(), Errno::EPERM);
    assert!(error.message().contains("is already paused"), "{error}");
    script.target.set_faults(Faults::default());
    script.job().resume().expect("paused once");
    script.until_ready();
}
