//! SPEC section 8: errors.

use super::script::*;
use blkmirror::device::{Answer, Backend, Request, Token};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

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
