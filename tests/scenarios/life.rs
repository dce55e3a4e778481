//! SPEC section 3: the life of a job; and pauses, of section 10.

use super::script::*;

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
