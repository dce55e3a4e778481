//! SPEC section 3: the life of a job; and pauses, of section 10.

use super::script::*;
use blkmirror::engine::Verb;

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

#[test]
fn a_pause_by_an_error_nests_with_one_by_the_host() {
    // SPEC L-3: the copies that are in flight fail after a drain has begun.
    let mut script = Script::new();
    script.begin(Options { on_target_error: ErrorPolicy::Stop, ..options() });
    script.settle();
    script.job().drain_begin();
    script.job().drain_begin();
    script.target.set_faults(faults(Kind::Write, Errno::EIO));
    script.pass(0);
    assert_eq!((script.status(), script.info().io_status), (Status::Paused, IoStatus::Failed));
    script.target.set_faults(Faults::default());
    script.events();
    script.job().drain_end().expect("drained twice");
    script.job().resume().expect("stopped by an error, too");
    script.pass(SLICE);
    assert_eq!((script.events(), script.status()), (vec![], Status::Paused), "still drained once");
    script.job().drain_end().expect("drained");
    assert_eq!(script.events(), [Event::Status(Status::Running)]);
    script.until_ready();
    assert!(script.equal());
}

/// Who refuses a verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Accepted,
    /// The table of SPEC L-2, in its words.
    ByTheTable,
    /// There is a pause, or none; checked before the table (SPEC L-3).
    ByThePause,
}

fn call(job: &Job, verb: Verb) -> blkmirror::error::Result<()> {
    match verb {
        Verb::Cancel => job.cancel(true),
        Verb::Pause => job.pause(),
        Verb::Resume => job.resume(),
        Verb::SetSpeed => job.set_speed(12_345_678),
        Verb::Change => job.change(CopyMode::WriteBlocking),
        Verb::Complete => job.complete(),
        Verb::Finalize => job.finalize(),
        Verb::Dismiss => job.dismiss(),
    }
}

#[test]
fn each_verb_in_each_state_does_what_the_table_says() {
    // SPEC L-2, L-3: cancel pause resume set-speed change complete finalize dismiss; y: accepted, n: refused in the
    // words of the table, p: refused for the sake of a pause. A job that waits is not seen by any host; `finish.rs` of
    // the engine has that row.
    let rows = [
        (Status::Created, "yypyynnn"),
        (Status::Running, "yypyynnn"),
        (Status::Paused, "ypyyynnn"),
        (Status::Ready, "yypyyynn"),
        (Status::Standby, "ypyyyynn"),
        (Status::Pending, "ynpnnnyn"),
        (Status::Aborting, "nnpnnnnn"),
        (Status::Concluded, "nnpnnnny"),
        (Status::Null, "nnpnnnnn"),
    ];
    for (status, answers) in rows {
        for (verb, answer) in Verb::ALL.into_iter().zip(answers.chars()) {
            let answer = match answer {
                'y' => Answer::Accepted,
                'n' => Answer::ByTheTable,
                _ => Answer::ByThePause,
            };
            let id = format!("verb-{}-{}", status.name(), verb.name());
            let script = Script::in_state(status, false, &id, None);
            assert_eq!(script.status(), status);
            let message = match (answer, verb) {
                (Answer::Accepted, _) => None,
                (Answer::ByTheTable, _) => Some(format!(
                    "Job '{id}' in state '{}' cannot accept command verb '{}'",
                    status.name(),
                    verb.name()
                )),
                (Answer::ByThePause, Verb::Pause) => {
                    Some(format!("Job '{id}' is already paused: resume it first"))
                }
                (Answer::ByThePause, _) => Some(format!("Job '{id}' is not paused")),
            };
            match (call(script.job(), verb), message) {
                (Ok(()), None) => {}
                (Err(error), Some(message)) => {
                    assert_eq!((error.errno(), error.message()), (Errno::EPERM, &*message));
                    assert_eq!(script.status(), status, "a refused verb changes nothing");
                }
                (result, message) => panic!("{verb:?} in {status:?}: {result:?}, expected {message:?}"),
            }
            let started = script.job().start();
            assert_eq!(started.is_ok(), script.status() == Status::Running && status == Status::Created);
        }
    }
}

#[test]
fn a_job_goes_through_its_states_in_order_and_tells_of_each() {
    // SPEC L-1, L-4
    let mut script = Script::new();
    let options = Options { auto_finalize: false, auto_dismiss: false, ..options() };
    script.begin(options);
    script.settle();
    script.job().pause().expect("running");
    script.pass(0);
    script.job().resume().expect("paused");
    script.until_ready();
    script.job().pause().expect("ready");
    script.pass(0);
    script.job().resume().expect("paused");
    script.job().complete().expect("ready");
    script.until("pending", |info| info.status == Status::Pending);
    script.job().finalize().expect("pending");
    script.until("concluded", |info| info.status == Status::Concluded);
    script.settle();
    script.job().dismiss().expect("concluded");
    use Status::{Concluded, Created, Null, Paused, Pending, Ready, Running, Standby, Waiting};
    let status = Event::Status;
    assert_eq!(
        script.events(),
        [
            status(Created),
            status(Running),
            status(Paused),
            status(Running),
            status(Ready),
            Event::Ready,
            status(Standby),
            status(Ready),
            status(Waiting),
            status(Pending),
            Event::Pending,
            Event::Completed(Ok(())),
            status(Concluded),
            status(Null),
        ]
    );
}

#[test]
fn a_host_that_reads_no_events_loses_news_and_no_milestone() {
    // SPEC L-4: in order, bounded, and what is dropped is counted.
    let mut script = Script::new();
    script.begin(Options { auto_finalize: false, auto_dismiss: false, ..options() });
    script.until_ready();
    for _ in 0..1000 {
        script.job().pause().expect("ready");
        script.pass(0);
        script.job().resume().expect("paused");
        script.settle();
    }
    script.job().complete().expect("ready");
    script.until("pending", |info| info.status == Status::Pending);
    script.job().finalize().expect("pending");
    script.until_over();
    let dropped = script.info().events_dropped;
    let events = script.events();
    // Created, running and ready; two thousand pauses; waiting, pending and concluded; and the milestones.
    assert_eq!(events.len() as u64 + dropped, 3 + 2000 + 3 + 3);
    assert!(events.len() <= 256, "{} events are kept", events.len());
    let milestones: Vec<_> = events.into_iter().filter(|event| !matches!(event, Event::Status(_))).collect();
    assert_eq!(milestones, [Event::Ready, Event::Pending, Event::Completed(Ok(()))]);
}

#[test]
fn a_cancelled_job_says_so_though_nobody_listens() {
    // SPEC L-4
    let mut script = Script::new();
    script.target.set_faults(faults(Kind::Write, Errno::EIO));
    script.begin(Options { on_target_error: ErrorPolicy::Ignore, ..options() });
    script.pass(10 * SLICE);
    script.job().cancel(true).expect("running");
    script.until_over();
    let info = script.info();
    let events = script.events();
    assert!(info.events_dropped > 100 && events.len() <= 256);
    assert_eq!(events.iter().filter(|event| **event == Event::Cancelled).count(), 1);
}

#[test]
fn a_job_can_be_freed_in_any_state() {
    // SPEC L-5: without help from the disks, which hang; guests go on at once, and another job can come.
    for status in Status::ALL.into_iter().filter(|status| *status != Status::Waiting) {
        let id = format!("free-{}", status.name());
        let mut script = Script::in_state(status, false, &id, None);
        for disk in [&script.source, &script.target] {
            disk.set_faults(Faults { hold: true, ..Faults::default() });
        }
        let waits = script.write(CHUNK, 2, 512);
        drop(script.job.take());
        let told = script.write(0, 1, 512);
        script.source.set_faults(Faults::default());
        while script.source.complete_where(|kind, _| kind == Kind::Write) {}
        assert_eq!((waits.get(), told.get()), (Some(Ok(())), Some(Ok(()))), "{status:?}");
        assert!(!script.is_switched(), "{status:?}");
        script.target.set_faults(Faults::default());
        let before = script.target.device().refused_completions();
        script.begin(Options { id: Some(id), ..options() });
        script.until_ready();
        // What the first job had out comes late, and does no harm.
        while script.source.complete_one(script.now) | script.target.complete_one(script.now) {}
        script.pass(SLICE);
        assert!(script.equal(), "{status:?}");
        assert_eq!(script.target.device().refused_completions(), before, "{status:?}");
    }
}

#[test]
fn what_is_asked_about_when_a_pause_begins_is_given_back() {
    // SPEC P-1, L-3: the answer is of no use any more, and nothing is kept from the guests.
    let mut script = Script::with(sparse_disk(), disk(|_| {}));
    script.begin(options());
    script.settle();
    assert!(script.source.out().iter().all(|(kind, _)| *kind == Kind::Extents));
    script.job().pause().expect("running");
    script.deliver();
    let info = script.info();
    assert_eq!((info.status, info.busy, info.dirty), (Status::Paused, false, LENGTH));
}

#[test]
fn what_is_planned_when_a_pause_begins_is_given_back() {
    // SPEC P-1, L-3
    let mut script = Script::new();
    script.begin(options());
    script.settle();
    assert_eq!(script.source.out().len(), 4);
    script.job().pause().expect("running");
    script.deliver();
    let info = script.info();
    assert_eq!((info.status, info.busy, info.dirty), (Status::Paused, false, LENGTH - 4 * CHUNK));
}
