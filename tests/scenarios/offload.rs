//! Copies that the target makes by itself (SPEC C-13).

use crate::script::*;
use blkmirror::device::{Callback, Kind};
use blkmirror::engine::Options;
use blkmirror::error::Errno;
use blkmirror::filter::{GuestFlags, GuestIo};
use blkmirror::testing::{Disk, Faults};

fn copying_disk() -> Disk {
    disk(|with| with.supports.push(Kind::Copy))
}

fn kinds(disk: &Disk) -> Vec<Kind> {
    disk.seen().into_iter().map(|seen| seen.kind).collect()
}

#[test]
fn what_the_target_can_take_by_itself_comes_through_no_buffer() {
    // SPEC C-13
    for offload in [true, false] {
        let mut script = Script::with(disk(|_| {}), copying_disk());
        script.begin(Options { copy_offload: offload, ..options() });
        script.until_equal();
        let info = script.info();
        let chunks = LENGTH / CHUNK;
        let by = if offload { info.copies } else { info.writes };
        assert_eq!((by.ops, by.bytes, by.errors), (chunks, LENGTH, 0), "{offload}");
        assert_eq!(info.reads.ops, if offload { 0 } else { chunks });
        assert_eq!((info.done, info.dirty), (LENGTH, 0));
        assert_eq!(kinds(&script.source).contains(&Kind::Read), !offload);
        assert_eq!(kinds(&script.target).contains(&Kind::Copy), offload);
    }
}

#[test]
fn a_copy_that_fails_is_made_through_buffers_and_is_no_error() {
    // SPEC C-13, E-1: only where the target can't do it at all it is not asked again.
    for (errno, again) in
        [(Errno::EIO, true), (Errno::EINVAL, true), (Errno::EXDEV, false), (Errno::EOPNOTSUPP, false)]
    {
        let mut script = Script::with(disk(|_| {}), copying_disk());
        script.target.set_faults(Faults { most: Some(1), ..faults(Kind::Copy, errno) });
        script.begin(Options { max_in_flight: 1, ..options() });
        script.until_equal();
        let info = script.info();
        let chunks = LENGTH / CHUNK;
        assert_eq!(info.copies.errors, 1, "{errno}");
        assert_eq!(info.copies.ops, if again { chunks } else { 1 }, "{errno}");
        assert_eq!(info.writes.ops, if again { 1 } else { chunks }, "{errno}");
        assert_eq!((info.errors, script.failures().len()), (0, 0), "{errno}");
        assert_eq!(info.done, LENGTH, "{errno}");
    }
}

#[test]
fn a_target_that_fails_every_copy_is_not_asked_for_ever() {
    // SPEC C-13
    let mut script = Script::with(disk(|_| {}), copying_disk());
    script.target.set_faults(Faults { most: Some(15), ..faults(Kind::Copy, Errno::EINVAL) });
    script.begin(Options { max_in_flight: 1, ..options() });
    script.until_equal();
    let chunks = LENGTH / CHUNK;
    assert_eq!((script.info().copies.errors, script.info().writes.ops), (15, 15), "then one works");
    script.target.set_faults(faults(Kind::Copy, Errno::EINVAL));
    for chunk in 0..chunks {
        let _ = script.write(chunk * CHUNK, 7, CHUNK as usize);
    }
    script.deliver();
    script.until_equal();
    let info = script.info();
    assert_eq!(info.copies.errors, 15 + 16, "as many in a row are enough");
    assert_eq!((info.copies.ops - info.copies.errors, info.writes.ops), (chunks - 15, 15 + chunks));
    assert_eq!((info.errors, script.failures().len()), (0, 0));
}

#[test]
fn the_side_that_fails_is_seen_when_it_is_copied_through_buffers() {
    // SPEC E-1
    let mut script = Script::with(disk(|_| {}), copying_disk());
    script.target.set_faults(faults(Kind::Copy, Errno::EIO));
    script.source.set_faults(Faults { most: Some(1), ..faults(Kind::Read, Errno::EIO) });
    script.begin(options());
    script.until_over();
    let failures = script.failures();
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert_eq!((failures[0].side, failures[0].operation), (blkmirror::engine::Side::Source, Kind::Read));
}

#[test]
fn what_a_guest_writes_while_it_is_copied_is_copied_again() {
    // SPEC C-2, G-2
    let mut script = Script::with(disk(|_| {}), copying_disk());
    script.begin(options());
    script.settle();
    assert!(script.target.pending() > 0, "copies are out");
    let told = script.write(0, 9, CHUNK as usize);
    script.source.complete_one(script.now);
    assert_eq!(told.get(), Some(Ok(())), "before the copy is made");
    script.until_equal();
    assert!(script.info().copies.ops > LENGTH / CHUNK);
}

#[test]
fn a_guest_that_waits_for_a_copy_that_fails_goes_next() {
    // SPEC: and not behind what is planned in its place.
    let mut script = Script::with(disk(|_| {}), copying_disk());
    script.target.set_exclusive(CHUNK);
    script.target.set_faults(faults(Kind::Copy, Errno::EIO));
    script.begin(Options { max_in_flight: 1, ..blocking(options()) });
    script.settle();
    assert_eq!(script.target.out(), [(Kind::Copy, chunks(0, 1))]);
    let told = script.write(0, 9, CHUNK as usize);
    script.settle();
    assert_eq!(script.source.pending(), 0, "it waits");
    script.target.complete_one(script.now);
    script.settle();
    assert_eq!(
        script.source.out()[0],
        (Kind::Write, chunks(0, 1)),
        "the guest's comes before the copy's second try"
    );
    script.deliver_some(1);
    assert_eq!(told.get(), Some(Ok(())));
    script.until_equal();
}

#[test]
fn a_pause_and_a_cancel_find_nothing_of_a_copy_that_failed() {
    // SPEC P-1, F-5
    let mut script = Script::with(disk(|_| {}), copying_disk());
    script.target.set_faults(faults(Kind::Copy, Errno::EIO));
    script.begin(options());
    script.settle();
    script.job().pause().expect("running");
    script.deliver();
    assert_eq!(script.status(), blkmirror::engine::Status::Paused);
    assert_eq!(script.info().in_flight_ops, 0);
    assert_eq!(script.info().dirty, LENGTH, "all of it is still to be done, and nothing planned");
    script.job().resume().expect("paused");
    script.settle();
    script.job().cancel(true).expect("running");
    script.until_over();
    assert_eq!(script.target.pending(), 0);
}

#[test]
fn what_is_no_request_of_a_guest_is_refused() {
    // SPEC G-1
    let script = Script::with(disk(|_| {}), copying_disk());
    for kind in [Kind::Copy, Kind::Truncate, Kind::Extents] {
        let io = GuestIo { kind, range: chunks(0, 1), flags: GuestFlags::default(), iov: &[] };
        let refused = script.filter.submit(&io, Callback::from_closure(|_| panic!("it was refused")));
        assert_eq!(refused.expect_err("no guest's").errno(), Errno::EOPNOTSUPP, "{kind:?}");
    }
    assert_eq!(script.source.pending(), 0);
}
