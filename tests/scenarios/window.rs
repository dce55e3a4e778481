//! How much is under way at a time where the host leaves that to the library (SPEC C-7, C-11).

use crate::script::*;
use blkmirror::device::Kind;
use blkmirror::engine::{ErrorPolicy, Options};
use blkmirror::error::Errno;
use blkmirror::testing::{Disk, Faults};

const MS: u64 = 1_000_000;
const KIB: u64 = 1 << 10;
/// The first copy, which is sent alone.
const FIRST: u64 = 32 * KIB;

fn fitted() -> Options {
    Options { max_in_flight: 0, max_io: 0, guest_first_io: 0, guest_first_in_flight: 0, ..options() }
}

fn large() -> Disk {
    disk(|with| with.length = 64 << 20)
}

/// Each request takes a millisecond, whatever else is under way.
fn round_trip(script: &mut Script) {
    slow_round_trip(script, usize::MAX);
}

/// The target does so many in a millisecond.
fn slow_round_trip(script: &mut Script, most: usize) {
    script.now += MS;
    for _ in 0..script.source.pending() {
        script.source.complete_one(script.now);
    }
    for _ in 0..script.target.pending().min(most) {
        script.target.complete_one(script.now);
    }
    script.settle();
}

fn under_way(script: &Script) -> (u32, u64) {
    let info = script.info();
    (info.in_flight_ops, info.in_flight_bytes)
}

#[test]
fn the_first_copy_goes_alone_and_what_follows_grows_with_what_comes_through() {
    // SPEC C-7
    let mut script = Script::with(large(), large());
    script.begin(fitted());
    script.settle();
    assert_eq!(under_way(&script), (1, FIRST), "nothing is known of the link");
    round_trip(&mut script);
    assert_eq!(under_way(&script), (1, FIRST), "its write");
    round_trip(&mut script);
    let mut last = under_way(&script).1;
    assert!((2 * FIRST..=16 * FIRST).contains(&last), "{last}");
    for _ in 0..40 {
        round_trip(&mut script);
        let now = under_way(&script).1;
        assert!(now <= 16 << 20 && now <= 3 * last, "{now} after {last}");
        last = now.max(last);
    }
    assert!(last >= 8 << 20, "a link without a limit is used: {last}");
}

#[test]
fn copies_end_where_copies_of_equal_length_would() {
    // SPEC C-7
    let mut script = Script::with(large(), large());
    script.begin(fitted());
    for _ in 0..30 {
        script.settle();
        round_trip(&mut script);
    }
    for seen in script.source.seen().into_iter().filter(|seen| seen.kind == Kind::Read) {
        let (offset, length) = (seen.range.offset(), seen.range.len());
        assert!(length.is_power_of_two() && offset.is_multiple_of(length), "{:?}", seen.range);
        assert!(length <= 1 << 20, "{:?}", seen.range);
    }
}

#[test]
fn a_ready_job_leaves_the_devices_to_guests_until_it_is_to_end() {
    // SPEC C-14
    let mut script = Script::with(large(), large());
    script.begin(Options { pass_interval_ns: 0, ..fitted() });
    script.settle();
    while script.status() != blkmirror::engine::Status::Ready {
        round_trip(&mut script);
    }
    for index in 0..400 {
        script.write(index * 64 * KIB, 1, CHUNK as usize);
    }
    round_trip(&mut script);
    // A copy takes two milliseconds: it is worth half of one, and there is a rest when a whole one is spent.
    assert_eq!(under_way(&script), (2, 2 * CHUNK));
    script.settle();
    assert_eq!(under_way(&script), (2, 2 * CHUNK), "no time has passed");
    script.source.seen();
    for _ in 0..50 {
        round_trip(&mut script);
        assert!(under_way(&script).0 <= 4);
    }
    let begun = script.source.seen().len();
    // The rest is a little longer than a millisecond, so it has ended at every second look.
    assert!((48..=52).contains(&begun), "{begun} in fifty milliseconds");
    script.job().complete().expect("ready");
    script.settle();
    assert!(under_way(&script).0 > 200, "now it hurries: {:?}", under_way(&script));
    script.until_over();
    assert!(script.equal());
}

#[test]
fn guests_writes_count_and_copies_take_what_they_leave() {
    // SPEC C-11
    for guests in [false, true] {
        let mut script = Script::with(large(), large());
        script.begin(blocking(Options { max_io: 64 * KIB, ..fitted() }));
        script.settle();
        for _ in 0..100 {
            slow_round_trip(&mut script, 4);
        }
        let before = under_way(&script);
        // Those of some milliseconds; a link without a limit would have all buffers.
        assert!((13..50).contains(&before.0), "{before:?}");
        if guests {
            script.write((64 << 20) - CHUNK, 1, CHUNK as usize);
            script.settle();
        }
        // One copy is done; without guests another takes its place.
        while under_way(&script).0 >= before.0 && script.target.complete_one(script.now) {
            script.settle();
        }
        let after = under_way(&script);
        assert_eq!(after.0 < before.0, guests, "{after:?} after {before:?}");
        // Beside guests, too, something is always under way.
        for _ in 0..if guests { 20 } else { 0 } {
            script.write((64 << 20) - CHUNK, 1, CHUNK as usize);
            slow_round_trip(&mut script, 4);
            assert!(under_way(&script).0 > 0);
        }
    }
}

#[test]
fn what_is_told_of_numbers_holds_where_they_are_given() {
    // SPEC C-7, C-11: each by itself.
    let mut script = Script::with(large(), large());
    script.begin(Options { max_in_flight: 3, ..fitted() });
    script.settle();
    let not_fitted = under_way(&script);
    assert!(not_fitted.0 == 3 && not_fitted.1 > 3 << 20, "{not_fitted:?}");
    let mut script = Script::with(large(), large());
    script.begin(blocking(Options { guest_first_in_flight: 2, guest_first_io: 8 * KIB, ..fitted() }));
    script.settle();
    script.write((64 << 20) - CHUNK, 1, CHUNK as usize);
    round_trip(&mut script);
    round_trip(&mut script);
    script.source.seen();
    for _ in 0..10 {
        assert_eq!(under_way(&script), (2, 16 * KIB));
        round_trip(&mut script);
        round_trip(&mut script);
    }
    let copies = script.source.seen().into_iter().filter(|seen| seen.kind == Kind::Read);
    assert!(copies.map(|seen| seen.range.len()).all(|length| length == 8 * KIB));
}

#[test]
fn no_more_than_sixteen_zeroes_are_under_way() {
    // SPEC C-7: they wait for no buffer and no link, and would be a queue that guests wait behind.
    let source = disk(|with| {
        with.length = 4 << 20;
        with.supports.push(Kind::Extents);
    });
    let target = disk(|with| {
        with.length = 4 << 20;
        with.limits.max_zero = 4 * CHUNK;
    });
    let mut script = Script::over(source, target);
    script.target.fill(0, &[1; 4 << 20]);
    script.begin(Options { target_is_zero: false, ..fitted() });
    script.settle();
    let mut most = 0;
    for _ in 0..2000 {
        most = most.max(under_way(&script).0);
        round_trip(&mut script);
    }
    assert!(script.info().ready && script.equal(), "{:?}", script.info());
    assert_eq!(most, 16);
}

#[test]
fn copies_that_turn_out_to_be_zero_leave_the_window() {
    // SPEC C-4, C-7
    let mut script = Script::over(large(), large());
    script.target.fill(0, &vec![1; 64 << 20]);
    script.begin(Options { detect_zeroes: true, ..fitted() });
    for _ in 0..2000 {
        script.settle();
        round_trip(&mut script);
        if script.info().ready {
            break;
        }
    }
    let info = script.info();
    assert!(info.ready && script.equal(), "{info:?}");
    assert_eq!((info.writes.ops, info.zeroes.bytes), (0, 64 << 20));
}

#[test]
fn a_first_copy_that_fails_keeps_no_other_waiting() {
    // SPEC C-7, E-1
    for (kind, of_source) in [(Kind::Read, true), (Kind::Write, false)] {
        let mut script = Script::with(large(), large());
        let faulty = if of_source { &script.source } else { &script.target };
        faulty.set_faults(Faults { most: Some(1), ..faults(kind, Errno::EIO) });
        let ignoring = (ErrorPolicy::Ignore, ErrorPolicy::Ignore);
        script.begin(Options { on_source_error: ignoring.0, on_target_error: ignoring.1, ..fitted() });
        script.settle();
        for _ in 0..6 {
            round_trip(&mut script);
        }
        assert!(under_way(&script).0 > 1, "{kind:?}: {:?}", script.info());
    }
}

#[test]
fn copies_that_the_target_makes_are_fitted_as_well() {
    // SPEC C-7, C-13
    let mut script = Script::with(
        large(),
        disk(|with| {
            with.length = 64 << 20;
            with.supports.push(Kind::Copy);
        }),
    );
    script.begin(fitted());
    script.settle();
    assert_eq!(under_way(&script), (1, FIRST));
    for _ in 0..2 {
        round_trip(&mut script);
    }
    assert!(under_way(&script).0 > 1, "{:?}", script.info());
    assert_eq!(script.info().reads.ops, 0);
}

#[test]
fn a_ready_job_that_is_far_behind_on_a_slow_link_hurries_through_a_long_run() {
    // SPEC C-14: what was taken from the dirty set to be copied is not copied yet.
    let mut script = Script::with(large(), large());
    script.begin(Options { max_io: 64 * KIB, ..fitted() });
    script.settle();
    // Ten megabytes a second.
    let seconds = |script: &mut Script, done: &dyn Fn(&Script) -> bool| {
        let began = script.now;
        while !done(script) {
            for _ in 0..5 {
                slow_round_trip(script, 0);
            }
            slow_round_trip(script, 1);
            assert!(script.now < began + 600_000 * MS, "{:?}", script.info());
        }
        (script.now - began) / (1000 * MS)
    };
    let first = seconds(&mut script, &|script| {
        script.info().ready && script.info().dirty == 0 && !script.info().busy
    });
    script.filter.mark_dirty(bytes(0, 64 << 20)).expect("on the disk");
    script.settle();
    let again = seconds(&mut script, &|script| script.info().dirty == 0 && !script.info().busy);
    // The last second's worth is copied at leisure.
    assert!(again < first + 16, "{again} seconds, and {first} at first");
}
