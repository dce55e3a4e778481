//! SPEC section 2: options, and what is refused.

use super::script::*;
use blkmirror::device::{Null, NullOptions};

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
fn zeroes_may_deallocate_unless_that_is_unwanted() {
    // SPEC O-5
    for unmap in [true, false] {
        let source = sparse_disk();
        source.set_extents(|range| vec![Extent { length: range.len(), flags: ExtentFlags::HOLE }]);
        let mut script = Script::over(source, disk(|_| {}));
        script.begin(Options { unmap, ..options() });
        script.until_ready();
        let zeroes: Vec<_> =
            script.target.seen().into_iter().filter(|seen| seen.kind == Kind::Zero).collect();
        assert!(!zeroes.is_empty() && zeroes.iter().all(|seen| seen.flags.may_unmap == unmap));
    }
}

#[test]
fn zeroes_that_were_read_are_sent_as_zeroes_where_that_makes_sense() {
    // SPEC O-5, C-3: chunk 5 reads zero, but for its last byte in chunk 6.
    let no_zero = |with: &mut DiskOptions| with.supports = vec![Kind::Flush];
    let clusters = |with: &mut DiskOptions| with.limits.cluster_size = 2 * CHUNK;
    let cases: [(&str, bool, Disk, Kind); 4] = [
        ("detected", true, disk(|_| {}), Kind::Zero),
        ("not wanted", false, disk(|_| {}), Kind::Write),
        ("no such request", true, disk(no_zero), Kind::Write),
        ("half a cluster", true, disk(clusters), Kind::Write),
    ];
    for (what, detect_zeroes, target, kind) in cases {
        let mut script = Script::with(disk(|_| {}), target);
        script.source.fill(5 * CHUNK, &[0; 2 * CHUNK as usize - 1]);
        script.begin(Options { detect_zeroes, ..only_new() });
        script.until_ready();
        script.forget();
        script.filter.mark_dirty(chunks(5, 1)).expect("on the disk");
        script.pass(SLICE);
        assert_eq!(deeds(&script.target.seen()), [(kind, chunks(5, 1))], "{what}");
        script.filter.mark_dirty(chunks(6, 1)).expect("on the disk");
        script.pass(SLICE);
        assert_eq!(deeds(&script.target.seen()), [(Kind::Write, chunks(6, 1))], "{what}: one byte is enough");
    }
}

#[test]
fn zeroes_that_were_read_keep_to_whole_clusters_and_to_the_end_of_the_disk() {
    // SPEC O-5, C-3: clusters of two chunks, of which the last has only one.
    let short = |with: &mut DiskOptions| with.length = LENGTH - CHUNK;
    let target = disk(|with| {
        short(with);
        with.limits.cluster_size = 2 * CHUNK;
    });
    let mut script = Script::over(disk(short), target);
    script.begin(Options { max_io: 2 * CHUNK, detect_zeroes: true, ..only_new() });
    script.until_ready();
    for (first, count, kind) in
        [(4, 1, Kind::Write), (5, 1, Kind::Write), (4, 2, Kind::Zero), (62, 1, Kind::Zero)]
    {
        script.forget();
        script.filter.mark_dirty(chunks(first, count)).expect("on the disk");
        script.pass(SLICE);
        assert_eq!(deeds(&script.target.seen()), [(kind, chunks(first, count))]);
    }
}

#[test]
fn what_is_to_go_by_itself_does() {
    // SPEC O-5: which verbs a host has to call before the job is over.
    for auto_complete in [true, false] {
        for auto_finalize in [true, false] {
            for auto_dismiss in [true, false] {
                let mut script = Script::new();
                script.begin(Options { auto_complete, auto_finalize, auto_dismiss, ..options() });
                script.until("ready", |info| info.ready);
                script.pass(SLICE);
                if !auto_complete {
                    assert_eq!(script.status(), Status::Ready);
                    script.job().complete().expect("ready");
                    script.pass(SLICE);
                }
                if !auto_finalize {
                    assert_eq!(script.status(), Status::Pending);
                    script.job().finalize().expect("pending");
                    script.pass(SLICE);
                }
                if !auto_dismiss {
                    assert_eq!(script.status(), Status::Concluded);
                    script.job().dismiss().expect("concluded");
                }
                assert_eq!(script.status(), Status::Null);
                assert!(script.is_switched());
            }
        }
    }
}

#[test]
fn the_copy_mode_and_the_speed_are_those_that_were_asked_for() {
    // SPEC O-3
    for copy_mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        let mut script = Script::new();
        script.begin(Options { copy_mode, speed: 20 * CHUNK, ..options() });
        assert_eq!((script.info().copy_mode, script.info().speed), (copy_mode, 20 * CHUNK));
        script.pass(1_000_000_000);
        let chunks = script.info().done / CHUNK;
        assert!((20..=24).contains(&chunks), "{chunks} chunks in the first second");
        script.write(0, 1, CHUNK as usize);
        script.settle();
        assert_eq!(script.target.pending() > 0, copy_mode == CopyMode::WriteBlocking);
    }
}

#[test]
fn each_id_that_is_none_is_refused() {
    // SPEC O-5: a letter, then letters, digits, `-._`, at most 127 of them; one that lives is taken.
    let script = Script::new();
    let named = |id: &str| {
        let options = Options { id: Some(id.to_owned()), ..options() };
        Job::new(&script.filter, script.target.device(), JobOptions { options, ..JobOptions::default() })
    };
    let long = "x".repeat(128);
    for id in ["", " ", "1", "-a", ".a", "_a", "a b", "a/b", "a:b", "ä", "aä", "a\n", "a\0", "job#1", &long]
    {
        let error = named(id).expect_err(id);
        let errno = if id.len() == 128 { Errno::ENAMETOOLONG } else { Errno::EINVAL };
        assert_eq!(error.errno(), errno, "{id:?}");
        assert!(error.message().starts_with("id "), "{id:?}: {error}");
    }
    for id in ["a", "Z9", "a-b.c_d", &"x".repeat(127)] {
        let job = named(id).expect(id);
        assert_eq!(job.query().id, id);
        let other = Filter::new(disk(|_| {}).device()).expect("a seat");
        let again = Job::new(
            &other,
            script.target.device(),
            JobOptions { options: Options { id: Some(id.to_owned()), ..options() }, ..JobOptions::default() },
        );
        assert_eq!(again.expect_err("it lives").errno(), Errno::EEXIST);
    }
    let made_up = Job::new(&script.filter, script.target.device(), JobOptions::default()).expect("legal");
    blkmirror::engine::check_id(&made_up.query().id).expect("a made-up id is one");
}

#[test]
fn a_device_of_nearly_two_to_the_63_is_mirrored_or_refused_with_advice() {
    // SPEC D-5, I-6, C-10: with the largest chunks its bitmap takes 16 GiB of address space, of which a job touches next
    // to nothing; where that can't be had, it says what would help.
    const HUGE: u64 = (1 << 63) - 512;
    let device = || {
        let null = NullOptions { unallocated: true, ..NullOptions::default() };
        Null::device(HUGE, Limits::default(), null).expect("a device")
    };
    let (source, target) = (device(), device());
    let filter = Filter::new(&source).expect("a seat");
    let job = |sync| {
        let options = Options { sync, target_is_zero: true, granularity: 64 << 20, ..Options::default() };
        Job::new(&filter, &target, JobOptions { options, ..JobOptions::default() })
    };
    let new = match job(SyncMode::None) {
        Ok(job) => job,
        Err(error) => {
            assert_eq!(error.errno(), Errno::ENOMEM);
            assert!(error.message().contains("no memory for"), "{error}");
            return;
        }
    };
    let before = resident();
    new.start().expect("starts");
    let ready = |job: &Job| (0..100).any(|_| job.poll(Nanos(1)).is_ok() && job.query().ready);
    assert!(ready(&new));
    filter.write_at(HUGE - 1, &[1]).expect("the last byte");
    filter.write_at(0, &[1]).expect("the first");
    assert_eq!(new.query().dirty, (64 << 20) + (64 << 20) - 512);
    for now in 2..100 {
        new.poll(Nanos(now * 1_000_000)).expect("nobody else polls");
    }
    assert_eq!((new.query().dirty, new.query().total), (0, new.query().done));
    // Other tests give memory back meanwhile.
    let touched = resident().saturating_sub(before);
    assert!(touched < 256 << 20, "{} MiB were touched", touched >> 20);
    drop(new);
    let scan = job(SyncMode::Full).expect("as before");
    scan.start().expect("starts");
    for _ in 0..3 {
        assert_eq!(scan.poll(Nanos(1)).expect("nobody else polls").state, PollState::Busy, "bounded work");
    }
    assert!((1..HUGE / 1000).contains(&scan.query().prepared));
    scan.cancel(false).expect("running");
    scan.poll(Nanos(1)).expect("nobody else polls");
    assert!(scan.query().status.is_over(), "SPEC I-6");
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
