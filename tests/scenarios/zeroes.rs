//! SPEC I-5: what the target is known to read as zero needs no zeroes.

use super::script::*;

/// A target that reads zero, under a source of holes, with a job that has nothing to do. What the source tells is a
/// hole, whatever is written to it.
fn known_zero(limits: impl FnOnce(&mut DiskOptions)) -> Script {
    let target = disk(|with| {
        with.limits.reads_zero = true;
        limits(with);
    });
    let mut script = Script::over(sparse_disk(), target);
    script.source.set_extents(|range| vec![Extent { length: range.len(), flags: ExtentFlags::HOLE }]);
    script.begin(options());
    script.until("ready", |info| info.status == Status::Ready && info.dirty == 0 && !info.busy);
    script.pass(SLICE);
    script.forget();
    script
}

/// Lets the guest zero a range, in background mode, and says what the target heard of it.
fn zero_again(script: &mut Script, range: ByteRange) -> Vec<(Kind, ByteRange)> {
    script.job().change(CopyMode::Background).expect("ready");
    script.deliver();
    script.target.seen();
    script.zero(range);
    script.pass(SLICE);
    assert_eq!(script.info().dirty, 0);
    deeds(&script.target.seen())
}

fn make_data(script: &mut Script) {
    script.source.set_extents(|range| vec![Extent { length: range.len(), flags: ExtentFlags::DATA }]);
}

fn make_hole(script: &mut Script) {
    script.source.set_extents(|range| vec![Extent { length: range.len(), flags: ExtentFlags::HOLE }]);
}

#[test]
fn zeroes_that_the_target_has_are_skipped_and_progress_moves() {
    // SPEC I-5
    let mut script = known_zero(|_| {});
    let before = script.info();
    assert_eq!(zero_again(&mut script, chunks(5, 3)), []);
    let after = script.info();
    assert_eq!(after.done - before.done, 3 * CHUNK);
    assert_eq!(after.skipped_zeroes - before.skipped_zeroes, 3 * CHUNK);
    assert_eq!(after.zeroes.ops, before.zeroes.ops);
    assert_eq!(after.total, after.done);
}

#[test]
fn a_zero_after_a_copy_is_sent_and_the_next_one_is_skipped() {
    // SPEC I-5: a write clears the bit, a zero sets it again.
    let mut script = known_zero(|_| {});
    make_data(&mut script);
    script.write(5 * CHUNK + 7, 5, 1);
    script.pass(SLICE);
    assert!(script.equal());
    make_hole(&mut script);
    assert_eq!(
        zero_again(&mut script, chunks(4, 3)),
        [(Kind::Zero, chunks(4, 3))],
        "one of them is not known"
    );
    assert!(script.equal());
    assert_eq!(zero_again(&mut script, chunks(4, 3)), []);
}

#[test]
fn a_zero_that_failed_is_not_taken_for_one_that_worked() {
    // SPEC I-5
    let mut script = Script::with(sparse_disk(), disk(|_| {}));
    script.target.fill(0, &script.source.bytes());
    make_hole(&mut script);
    script.begin(Options { on_target_error: ErrorPolicy::Ignore, ..only_new() });
    script.until_ready();
    script.target.set_faults(faults(Kind::Zero, Errno::EIO));
    script.zero(chunks(5, 20));
    script.pass(SLICE / 2);
    assert!(script.info().zeroes.errors > 0 && !script.equal());
    script.target.set_faults(Faults::default());
    script.until_equal();
    assert_eq!(script.info().skipped_zeroes, 0);
}

#[test]
fn a_carried_write_makes_a_chunk_unknown() {
    // SPEC I-5
    let mut script = known_zero(|_| {});
    script.job().change(CopyMode::WriteBlocking).expect("ready");
    script.pass(SLICE);
    script.write(5 * CHUNK + 100, 5, 1);
    script.pass(SLICE);
    assert!(script.equal());
    assert_eq!(zero_again(&mut script, chunks(5, 1)), [(Kind::Zero, chunks(5, 1))]);
    assert!(script.equal());
}

#[test]
fn a_zero_smaller_than_a_chunk_makes_none_known() {
    // SPEC I-5: the number of whole chunks in it is none, and not less than that.
    for range in [
        bytes(5 * CHUNK + 512, 512),
        bytes(5 * CHUNK, 512),
        bytes(6 * CHUNK - 512, 512),
        bytes(6 * CHUNK - 1, 2),
        bytes(5 * CHUNK + 1, 2 * CHUNK - 2),
    ] {
        let mut script = Script::with(sparse_disk(), disk(|_| {}));
        script.target.fill(0, &script.source.bytes());
        script.begin(blocking(only_new()));
        script.until("synced", |info| info.actively_synced);
        script.forget();
        script.zero(range);
        script.pass(SLICE);
        assert_eq!(deeds(&script.target.seen()), [(Kind::Zero, range)], "carried as it is");
        assert!(script.equal());
        make_hole(&mut script);
        assert_eq!(zero_again(&mut script, chunks(5, 2)), [(Kind::Zero, chunks(5, 2))], "{range:?}");
        assert!(script.equal());
    }
}

#[test]
fn a_carried_zero_makes_its_whole_chunks_known_and_no_others() {
    // SPEC I-5
    let mut script = Script::over(sparse_disk(), disk(|_| {}));
    make_hole(&mut script);
    script.begin(blocking(only_new()));
    script.until("synced", |info| info.actively_synced);
    script.target.seen();
    script.zero(bytes(5 * CHUNK - 512, 2 * CHUNK + 1024));
    script.pass(SLICE);
    assert_eq!(zero_again(&mut script, chunks(5, 2)), []);
    assert_eq!(zero_again(&mut script, chunks(4, 1)), [(Kind::Zero, chunks(4, 1))]);
    assert_eq!(zero_again(&mut script, chunks(7, 1)), [(Kind::Zero, chunks(7, 1))]);
}

#[test]
fn a_discard_makes_a_chunk_unknown_unless_it_promises_zeroes() {
    // SPEC I-5: the background discards only where a backing will show, so that promises nothing; a carried discard is one
    // that both sides promise to read as zero.
    let mut script = Script::over(sparse_disk(), disk(|with| with.limits.unattached_backing = true));
    make_hole(&mut script);
    script.begin(only_new());
    script.until_ready();
    assert_eq!(zero_again(&mut script, chunks(5, 1)), [(Kind::Zero, chunks(5, 1))]);
    assert_eq!(zero_again(&mut script, chunks(5, 1)), []);
    script.source.set_extents(|range| vec![Extent { length: range.len(), flags: ExtentFlags::UNALLOCATED }]);
    script.write(5 * CHUNK, 0, 1);
    script.pass(SLICE);
    assert_eq!(deeds(&script.target.seen()), [(Kind::Discard, chunks(5, 1))]);
    make_hole(&mut script);
    assert_eq!(zero_again(&mut script, chunks(5, 1)), [(Kind::Zero, chunks(5, 1))]);

    let promising = || {
        disk(|with| {
            with.supports.push(Kind::Extents);
            with.limits.discard_zeroes = true;
        })
    };
    let mut script = Script::over(promising(), promising());
    make_hole(&mut script);
    script.begin(blocking(only_new()));
    script.until("synced", |info| info.actively_synced);
    script.target.seen();
    script.discard(chunks(5, 1));
    script.pass(SLICE);
    assert_eq!(deeds(&script.target.seen()), [(Kind::Discard, chunks(5, 1))]);
    assert_eq!(zero_again(&mut script, chunks(5, 1)), []);
}

#[test]
fn nothing_is_known_of_a_target_whose_backing_comes_later() {
    // SPEC I-5: unallocated does not read as zero there.
    let mut script = known_zero(|with| with.limits.unattached_backing = true);
    assert_eq!(zero_again(&mut script, chunks(5, 1)), [], "known, because the job zeroed it all");
    let zeroed = script.info().zeroes;
    assert_eq!(zeroed.bytes, LENGTH, "{zeroed:?}");
}
