//! SPEC section 9: ready, complete, cancel and the switch.

use super::script::*;

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
