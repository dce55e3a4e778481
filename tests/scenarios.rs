//! One behaviour each, over simulated disks that do what the script says and when.

use blkmirror::clock::Nanos;
use blkmirror::device::{Answer, Backend, Callback, Device, IoVec, Kind, Limits, Request, Token};
use blkmirror::engine::{
    Action, CopyMode, ErrorPolicy, Event, Info, IoStatus, Options, Side, Status, Sync as SyncMode,
};
use blkmirror::error::{Errno, IoResult};
use blkmirror::filter::{Filter, GuestFlags, GuestIo};
use blkmirror::job::{Job, JobOptions, PollState};
use blkmirror::range::ByteRange;
use blkmirror::testing::{Disk, DiskOptions, Faults};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

const CHUNK: u64 = 4096;
const CHUNKS: u64 = 64;
const LENGTH: u64 = CHUNK * CHUNKS;

/// Two disks, a filter, a job, and virtual time.
struct Script {
    source: Disk,
    target: Disk,
    filter: Filter,
    job: Option<Job>,
    now: u64,
}

fn disk(options: impl FnOnce(&mut DiskOptions)) -> Disk {
    let mut with = DiskOptions {
        length: LENGTH,
        limits: Limits::default(),
        supports: vec![Kind::Zero, Kind::Discard, Kind::Flush],
        inline_one_in: 0,
        early_one_in: 0,
        latency_ns: (0, 1),
        depth: 0,
    };
    options(&mut with);
    Disk::new(1, with).expect("sensible limits")
}

fn options() -> Options {
    Options {
        granularity: CHUNK,
        max_io: CHUNK,
        max_in_flight: 4,
        detect_zeroes: false,
        ..Options::default()
    }
}

fn content(seed: u8) -> Vec<u8> {
    (0..LENGTH).map(|at| (at / CHUNK) as u8 ^ seed | 1).collect()
}

impl Script {
    fn new() -> Self {
        Self::with(disk(|_| {}), disk(|_| {}))
    }

    fn with(source: Disk, target: Disk) -> Self {
        source.fill(0, &content(0x40));
        let filter = Filter::new(source.device()).expect("a seat");
        Self { source, target, filter, job: None, now: 1 }
    }

    fn job(&self) -> &Job {
        self.job.as_ref().expect("begun")
    }

    fn begin(&mut self, options: Options) {
        self.begin_with(JobOptions { options, ..JobOptions::default() });
    }

    fn begin_with(&mut self, options: JobOptions) {
        self.job = Some(Job::new(&self.filter, self.target.device(), options).expect("legal options"));
        self.job().start().expect("starts");
    }

    fn info(&self) -> Info {
        self.job().query()
    }

    fn poll(&mut self) -> PollState {
        let poll = self.job.as_ref().expect("begun").poll(Nanos(self.now)).expect("nobody else polls");
        poll.state
    }

    /// Polls without letting a disk finish anything.
    fn settle(&mut self) {
        while self.poll() == PollState::Busy {}
    }

    /// Lets disks and time go on until this is so.
    fn until(&mut self, what: &str, so: impl Fn(&Info) -> bool) {
        for _ in 0..10_000 {
            if so(&self.info()) {
                return;
            }
            let poll = self.job().poll(Nanos(self.now)).expect("nobody else polls");
            if so(&self.info()) {
                return;
            }
            let moved = self.source.complete_one(self.now) | self.target.complete_one(self.now);
            if !moved && poll.state == PollState::Idle && poll.wake_at != Nanos::NEVER {
                self.now = self.now.max(poll.wake_at.0);
            }
        }
        panic!("never {what}: {:?}", self.info());
    }

    fn until_ready(&mut self) {
        self.until("ready", |info| info.status == Status::Ready);
    }

    fn until_over(&mut self) {
        self.until("over", |info| info.status.is_over());
    }

    fn events(&self) -> Vec<Event> {
        std::iter::from_fn(|| self.job().next_event()).collect()
    }

    /// A guest's write; what comes of it is put where the answer says.
    fn write(&self, offset: u64, byte: u8, length: usize) -> Told {
        let memory = vec![byte; length].leak();
        // SAFETY: leaked, so it lives for ever.
        let iov = [unsafe { IoVec::new(memory.as_mut_ptr().cast(), length) }];
        self.submit(Kind::Write, ByteRange::new(offset, length as u64).expect("in range"), &iov)
    }

    fn submit(&self, kind: Kind, range: ByteRange, iov: &[IoVec]) -> Told {
        let told = Told::default();
        let tell = told.clone();
        let done = Callback::from_closure(move |result| {
            let before = tell.0.lock().expect("no panic").replace(result);
            assert_eq!(before, None, "told twice (SPEC G-9)");
        });
        self.filter
            .submit(&GuestIo { kind, range, flags: GuestFlags::default(), iov }, done)
            .expect("accepted");
        told
    }

    fn equal(&self) -> bool {
        self.source.bytes() == self.target.bytes()
    }
}

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Option<IoResult>>>);

impl Told {
    fn get(&self) -> Option<IoResult> {
        *self.0.lock().expect("no panic")
    }
}

// SPEC I: the start.

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

// SPEC C: the copy loop.

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

// SPEC F: ready, complete, cancel.

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

// SPEC L, P: verbs and pauses.

#[test]
fn a_pause_shows_only_when_nothing_is_in_flight() {
    // SPEC P-1, L-3
    let mut script = Script::new();
    script.begin(options());
    script.settle();
    script.job().pause().expect("running");
    script.settle();
    assert_eq!(script.info().status, Status::Running);
    script.until("paused", |info| info.status == Status::Paused);
    assert_eq!(script.info().writes.ops, 4, "what was in flight was finished, nothing was begun");
    assert_eq!(script.job().pause().expect_err("paused").errno(), Errno::EPERM);
    script.job().resume().expect("paused");
    assert_eq!(script.job().resume().expect_err("not paused").errno(), Errno::EPERM);
    script.until_ready();
}

#[test]
fn pauses_nest_and_the_job_never_shows_itself_running_in_between() {
    // SPEC L-3
    let mut script = Script::new();
    script.begin(options());
    script.job().pause().expect("running");
    script.job().drain_begin();
    script.settle();
    script.events();
    script.job().resume().expect("paused");
    script.settle();
    assert_eq!((script.events(), script.info().status), (vec![], Status::Paused));
    script.job().drain_end().expect("drained");
    assert_eq!(script.events(), [Event::Status(Status::Running)]);
    assert_eq!(script.job().drain_end().expect_err("not drained").errno(), Errno::EPERM);
    script.until_ready();
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
fn freeing_a_job_leaves_the_filter_plain_and_refuses_late_completions() {
    // SPEC L-5, D-3
    let mut script = Script::new();
    script.begin(options());
    script.settle();
    assert_eq!(script.source.pending(), 4);
    script.job = None;
    let told = script.write(0, 8, 512);
    while script.source.complete_one(script.now) {}
    assert_eq!(told.get(), Some(Ok(())));
    assert_eq!(script.target.pending(), 0, "nothing is written after the job is gone");
    script.begin(options());
    script.until_ready();
    assert!(script.equal(), "another job can come");
}

// SPEC E: errors.

#[test]
fn each_policy_does_what_it_says() {
    // SPEC E-1, O-4: side × policy × full or not → what is done, and how the job stands.
    use ErrorPolicy::{Auto, Enospc, Ignore, Report, Stop};
    for side in [Side::Source, Side::Target] {
        for full in [false, true] {
            for policy in [Report, Ignore, Stop, Enospc, Auto] {
                // Reads don't fail for want of room.
                let errno = if full && side == Side::Target { Errno::ENOSPC } else { Errno::EIO };
                let action = match policy {
                    Report => Action::Report,
                    Ignore => Action::Ignore,
                    Stop => Action::Stop,
                    Enospc | Auto if errno == Errno::ENOSPC => Action::Stop,
                    Enospc | Auto => Action::Report,
                };
                let case = format!("{side:?} {policy:?} {errno:?}");
                let mut script = Script::new();
                let mut with = Options { max_in_flight: 1, ..options() };
                *(if side == Side::Source { &mut with.on_source_error } else { &mut with.on_target_error }) =
                    policy;
                let failing =
                    if side == Side::Source { script.source.clone() } else { script.target.clone() };
                failing.set_faults(Faults { error_one_in: 1, full, ..Faults::default() });
                script.begin(with);
                script.until(&case, |info| info.errors > 0);
                let failure = script.events().into_iter().find_map(|event| match event {
                    Event::Error(failure) => Some(failure),
                    _ => None,
                });
                let failure = failure.expect(&case);
                assert_eq!((failure.side, failure.errno, failure.action), (side, errno, action), "{case}");
                assert!(failure.range.len() == CHUNK, "{case}");
                let status = match errno {
                    Errno::ENOSPC => IoStatus::NoSpace,
                    _ => IoStatus::Failed,
                };
                match action {
                    Action::Report => {
                        script.until_over();
                        assert_eq!(script.info().error.expect(&case).0, errno, "{case}");
                    }
                    Action::Stop => {
                        script.until(&case, |info| info.status == Status::Paused);
                        assert_eq!(script.info().io_status, status, "{case}");
                        assert_eq!(script.job().pause().expect_err(&case).errno(), Errno::EPERM, "{case}");
                        failing.set_faults(Faults::default());
                        script.job().resume().expect(&case);
                        assert_eq!(script.info().io_status, IoStatus::Ok, "{case}");
                        script.until_ready();
                        assert!(script.equal(), "{case}");
                    }
                    Action::Ignore => {
                        failing.set_faults(Faults::default());
                        script.until_ready();
                        assert!(script.equal(), "{case}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_ignored_error_is_not_retried_in_a_hot_loop() {
    // SPEC E-1
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
fn each_senseless_target_is_refused_with_its_own_message() {
    // SPEC O-6
    let script = Script::new();
    let filter = &script.filter;
    let read_only = disk(|with| with.limits.read_only = true);
    let coarse = disk(|with| with.limits.request_alignment = 4096);
    let other = Filter::new(disk(|with| with.length = 512).device()).expect("a seat");
    let cases: [(&Device, Option<Filter>, Errno, &str); 4] = [
        (script.source.device(), None, Errno::EINVAL, "target: is the source itself"),
        (read_only.device(), None, Errno::EROFS, "target: is read-only"),
        (coarse.device(), None, Errno::EINVAL, "target: takes requests in multiples of 4096"),
        (script.target.device(), Some(other), Errno::EINVAL, "replaces: that filter has 512 bytes"),
    ];
    for (target, replaces, errno, message) in cases {
        let error =
            Job::new(filter, target, JobOptions { replaces, ..JobOptions::default() }).expect_err(message);
        assert_eq!(error.errno(), errno, "{message}");
        assert!(error.message().starts_with(message), "{error}");
    }
    let named =
        || JobOptions { options: Options { id: Some("one".into()), ..options() }, ..JobOptions::default() };
    let first = Job::new(filter, script.target.device(), named()).expect("nothing wrong with it");
    let again = Job::new(filter, script.target.device(), JobOptions::default()).expect_err("a job");
    assert_eq!(again.errno(), Errno::EBUSY);
    let elsewhere = Filter::new(disk(|_| {}).device()).expect("a seat");
    let twin = Job::new(&elsewhere, script.target.device(), named()).expect_err("taken");
    assert_eq!(twin.errno(), Errno::EEXIST);
    drop(first);
    Job::new(filter, script.target.device(), named()).expect("filter and name are free again");
}

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
