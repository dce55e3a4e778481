//! Chains of layers: what lies above a base is copied, merged down, and switched to, over simulated disks with clusters.
//!
//! The base holds 0xbb everywhere. A target whose backing is attached later fills what it takes from there with 0xee
//! until it is: whoever sees that has been given a piece of a disk that never was.

mod script;

use blkmirror::clock::Nanos;
use blkmirror::device::{
    Answer, Backend, Completions, Device, Extent, ExtentFlags, Kind, Limits, Request, Token,
};
use blkmirror::engine::{Options, Status, Sync as SyncMode};
use blkmirror::error::Errno;
use blkmirror::filter::Filter;
use blkmirror::job::{Job, JobOptions};
use blkmirror::range::ByteRange;
use blkmirror::testing::{Backing, Discard, Faults, Layer, LayerOptions};
use script::{
    BASE, CHUNK, CLUSTER, LENGTH, Script, base, carried, commit_options, disk, overlay, top, top_options,
    unattached, waiting,
};
use std::sync::atomic::{AtomicU32, Ordering};

fn cluster(index: u64) -> ByteRange {
    ByteRange::between(index * CLUSTER, (index + 1) * CLUSTER)
}

// What is copied.

#[test]
fn only_what_lies_above_the_base_is_copied_and_the_target_stays_as_thin() {
    // SPEC I-4, F-4
    for size in [512, CHUNK, CLUSTER] {
        let mut script = Script::new(unattached(&waiting(size)));
        script.source.fill(3 * CLUSTER + 512, &[1; 512]);
        script.source.layer().zero(ByteRange::between(5 * CLUSTER, 6 * CLUSTER), false);
        script.begin(top_options());
        script.switch();
        let held = script.target.allocated_blocks() as u64 * size;
        assert_eq!(held, CLUSTER + size.max(CHUNK), "in clusters of {size}");
    }
}

#[test]
fn a_source_that_tells_no_extents_is_copied_as_a_whole() {
    // SPEC D-1, I-4
    let source = disk(&top(LENGTH, &base(LENGTH)), |with| with.supports.clear());
    let mut script = Script::with(source, unattached(&waiting(CLUSTER)));
    script.begin(top_options());
    script.switch();
    assert_eq!(script.info().writes.bytes, LENGTH);
}

#[test]
fn a_full_copy_takes_what_the_source_leaves_to_its_backing() {
    // SPEC O-1: "everything"; the source's extents say nothing of what its backing holds.
    for reads_zero in [true, false] {
        let target = Layer::flat(LENGTH, Discard::Zeroes);
        if !reads_zero {
            target.write(0, &[0xdd; LENGTH as usize]);
        }
        let target = disk(&target, |with| with.limits.reads_zero = reads_zero);
        let mut script = Script::new(target);
        script.source.fill(CLUSTER, &[1; 512]);
        script.begin(Options { sync: SyncMode::Full, ..top_options() });
        script.switch();
        assert_eq!(script.target.bytes()[0], BASE, "reads as zero: {reads_zero}");
    }
}

#[test]
fn what_is_marked_and_not_the_source_s_own_is_not_discarded_where_that_would_lose_it() {
    // SPEC C-3: a write that fails marks a cluster that the source leaves to its base.
    let copy = Layer::flat(LENGTH, Discard::Zeroes);
    copy.write(0, &[BASE; LENGTH as usize]);
    let attached = overlay(LENGTH, CLUSTER, Backing::Layer(base(LENGTH)));
    for target in [copy, attached] {
        let mut script = Script::new(disk(&target, |_| {}));
        script.begin(top_options());
        script.until_ready();
        script.filter.mark_dirty(cluster(2)).expect("on the disk");
        script.switch();
    }
    let source = top(LENGTH, &base(LENGTH));
    let base = source.base().expect("a chain");
    let mut script = Script::with(disk(&source, |_| {}), disk(&base, |_| {}));
    script.begin(commit_options());
    script.until_ready();
    script.filter.mark_dirty(cluster(2)).expect("on the disk");
    script.switch();
    assert_eq!(base.bytes(), [BASE; LENGTH as usize]);
}

#[test]
fn what_a_guest_discards_is_let_go_of_where_the_backing_will_show() {
    // SPEC C-3: thin stays thin.
    let mut script = Script::new(unattached(&waiting(CLUSTER)));
    script.source.fill(0, &[1; 4 * CLUSTER as usize]);
    script.begin(top_options());
    script.until_ready();
    assert_eq!(script.target.allocated_blocks(), 4);
    let told = script.discard(CLUSTER, 2 * CLUSTER);
    script.finish(&told);
    script.until_clean();
    assert_eq!(script.target.allocated_blocks(), 2);
    script.switch();
    assert_eq!(script.target.bytes()[CLUSTER as usize], BASE);
}

/// Zeroes, of whose extents the first answer tells no more than some bytes.
struct Terse {
    completions: Completions,
    questions: AtomicU32,
}

impl Backend for Terse {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        if request.kind == Kind::Extents {
            let first = self.questions.fetch_add(1, Ordering::SeqCst) == 0;
            let length = if first { 100 } else { request.range.len() };
            self.completions.extent(token, Extent { length, flags: ExtentFlags::HOLE }).expect("it is out");
        }
        Answer::Done(Ok(()))
    }

    fn supports(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Read | Kind::Write | Kind::Extents)
    }
}

#[test]
fn a_first_answer_of_less_than_a_chunk_costs_one_chunk() {
    // SPEC C-3, D-6: what follows it is asked for.
    let source = Device::new(LENGTH, Limits::default(), |completions| {
        Ok(Terse { completions, questions: AtomicU32::new(0) })
    });
    let filter = Filter::new(&source.expect("a device")).expect("a seat");
    let target = disk(&Layer::flat(LENGTH, Discard::Zeroes), |with| {
        (with.inline_one_in, with.limits.reads_zero) = (1, true);
    });
    let options = Options { sync: SyncMode::Full, ..top_options() };
    let job = Job::new(&filter, target.device(), JobOptions { options, ..JobOptions::default() });
    let job = job.expect("legal options");
    job.start().expect("starts");
    while job.query().status != Status::Ready {
        job.poll(Nanos(1)).expect("nobody else polls");
    }
    assert_eq!(job.query().writes.bytes, CHUNK);
}

// Clusters and a backing that is attached later (SPEC C-5).

#[test]
fn a_copy_is_widened_to_clusters_that_the_target_does_not_own() {
    // SPEC C-5
    let mut script = Script::new(unattached(&waiting(CLUSTER)));
    script.begin(top_options());
    script.until_ready();
    let told = script.write(3 * CLUSTER + 5 * CHUNK, 7, 512);
    script.finish(&told);
    script.until_clean();
    assert_eq!(script.info().writes.bytes, CLUSTER);
    let told = script.write(3 * CLUSTER + 9 * CHUNK, 8, 512);
    script.finish(&told);
    script.until_clean();
    assert_eq!(script.info().writes.bytes, CLUSTER + CHUNK, "the target owns that cluster now");
    script.switch();
}

#[test]
fn a_cluster_larger_than_all_limits_is_copied_as_one() {
    // SPEC C-5: larger than max_io, than the buffer that was asked for, than what the devices take at a time.
    let limits = |limits: &mut Limits| (limits.max_transfer, limits.max_iov) = (8192, 1);
    let source = disk(&top(LENGTH, &base(LENGTH)), |with| limits(&mut with.limits));
    let target = disk(&waiting(CLUSTER), |with| {
        limits(&mut with.limits);
        with.limits.unattached_backing = true;
    });
    let mut script = Script::with(source, target);
    for index in 0..8 {
        script.source.fill((2 * index + 1) * CLUSTER - 512, &[index as u8 + 1; 1024]);
    }
    script.begin(Options { buf_size: CHUNK, guest_first_io: 512, ..top_options() });
    script.switch();
    assert_eq!(script.info().error, None);
}

#[test]
fn a_carried_write_smaller_than_a_cluster_is_not_carried_before_the_backing_is_there() {
    // SPEC C-5, G-4: whichever of chunk and cluster is larger.
    for size in [CHUNK, CLUSTER, 1024] {
        let mut script = Script::new(unattached(&waiting(size)));
        script.begin(carried(top_options()));
        script.until("synced", |info| info.actively_synced);
        for (offset, length) in [(512, 512), (CLUSTER + 512, 2 * CLUSTER), (7 * CLUSTER, 1536)] {
            let told = script.write(offset, 9, length);
            script.finish(&told);
            let told = script.zero(offset + 512 + 4 * CLUSTER, length);
            script.finish(&told);
        }
        script.switch();
    }
}

#[test]
fn a_carried_write_waits_for_a_copy_that_was_widened_by_its_chunk() {
    // SPEC X-1, C-5: otherwise the copy's older data could land last.
    let mut script = Script::new(unattached(&waiting(CLUSTER)));
    script.begin(carried(top_options()));
    script.until_ready();
    script.write_behind(0);
    script.now += 200_000_000;
    while script.target.pending() == 0 {
        script.settle();
        script.source.complete_one(script.now);
    }
    let told = script.write(8 * CHUNK, 5, CHUNK);
    script.settle();
    assert_eq!((script.source.pending(), script.target.pending()), (0, 1), "the write is not begun");
    script.finish(&told);
    assert_eq!(script.target.layer().read(ByteRange::between(8 * CHUNK, 8 * CHUNK + 1)), [5]);
    script.switch();
}

#[test]
fn a_copy_is_not_widened_by_a_chunk_that_a_guest_is_writing() {
    // SPEC X-1, C-5: the chunk that is dirty, and the one that the guest writes to; also the last of the cluster.
    for (dirty, busy) in [(0, 8), (14, 15)] {
        let mut script = Script::new(unattached(&waiting(CLUSTER)));
        script.begin(carried(top_options()));
        script.until_ready();
        let told = script.write(busy * CHUNK, 5, CHUNK);
        script.settle();
        script.write_behind(dirty * CHUNK);
        script.write_behind(5 * CLUSTER);
        script.now += 200_000_000;
        script.settle();
        script.target.complete_one(script.now);
        script.settle();
        assert_eq!(script.source.pending(), 2, "the write, and the other cluster's query; not this one's");
        script.finish(&told);
        script.switch();
    }
}

#[test]
fn a_copy_is_widened_to_the_end_of_its_cluster_whatever_lies_behind_it() {
    // SPEC C-5: the next cluster is the target's own already.
    let mut script = Script::new(unattached(&waiting(CLUSTER)));
    script.begin(top_options());
    script.until_ready();
    script.write_behind(CLUSTER);
    script.until_clean();
    script.write_behind(14 * CHUNK);
    script.switch();
}

#[test]
fn the_cluster_that_the_disk_ends_in_is_copied_with_the_others() {
    // SPEC C-5, C-4
    const SHORT: u64 = 2 * CLUSTER + 3 * CHUNK;
    let source = disk(&top(SHORT, &base(SHORT)), |_| {});
    source.fill(0, &[1; SHORT as usize]);
    let mut script = Script::with(source, unattached(&overlay(SHORT, CLUSTER, Backing::Unattached(0xee))));
    script.begin(Options { max_io: 4 * CLUSTER, ..top_options() });
    script.switch();
    assert_eq!(script.info().writes.ops, 1);
}

#[test]
fn a_guest_that_never_leaves_a_cluster_does_not_keep_its_other_chunks_from_being_copied() {
    // SPEC C-5, X-2: three guests take turns at one chunk so that it is never free.
    let mut script = Script::new(unattached(&waiting(CLUSTER)));
    script.begin(carried(top_options()));
    script.until_ready();
    script.write_behind(0);
    let mut told: Vec<_> = (0..3).map(|_| script.write(8 * CHUNK, 1, 512)).collect();
    for round in 0..2000 {
        script.settle();
        script.source.complete_one(script.now);
        script.settle();
        while script.target.complete_one(script.now) {}
        script.now += 1_000_000;
        for (index, each) in told.iter_mut().enumerate() {
            if each.get().is_some() {
                *each = script.write(8 * CHUNK, (round + index as u64) as u8, 512);
            }
        }
        if script.target.layer().owns(ByteRange::between(0, 1)) {
            return;
        }
    }
    panic!("never copied: {:?}", script.info());
}

// Zeroes and discards (SPEC I-5).

#[test]
fn a_zero_does_not_deallocate_on_a_target_that_waits_for_its_backing() {
    // SPEC I-5: it reads as zero now, and as the backing then.
    for options in [top_options(), carried(top_options())] {
        let mut script = Script::new(unattached(&waiting(CLUSTER)));
        script.source.layer().zero(cluster(1), false);
        script.begin(options);
        script.until_ready();
        let told = script.zero(4 * CLUSTER, CLUSTER);
        script.finish(&told);
        script.switch();
        assert_eq!(script.target.bytes()[4 * CLUSTER as usize], 0);
    }
}

#[test]
fn a_cluster_that_was_zeroed_and_written_is_zeroed_again() {
    // SPEC I-5: a known zero is forgotten when it is written to.
    let mut script = Script::new(unattached(&waiting(CLUSTER)));
    script.source.layer().zero(cluster(1), false);
    script.begin(top_options());
    script.until_ready();
    assert_eq!(script.info().zeroes.ops, 1);
    let told = script.write(CLUSTER + CHUNK, 3, 512);
    script.finish(&told);
    script.until_clean();
    let told = script.zero(CLUSTER, CLUSTER);
    script.finish(&told);
    script.until_clean();
    assert_eq!(script.info().zeroes.ops, 2);
    script.switch();
}

#[test]
fn a_cluster_that_was_discarded_is_copied_whole_again() {
    // SPEC C-5: the target owned it, and doesn't any more.
    let mut script = Script::new(unattached(&waiting(CLUSTER)));
    script.source.fill(CLUSTER, &[1; CLUSTER as usize]);
    script.begin(top_options());
    script.until_ready();
    let told = script.discard(CLUSTER, CLUSTER);
    script.finish(&told);
    script.until_clean();
    assert_eq!(script.target.allocated_blocks(), 0);
    let told = script.write(CLUSTER + CHUNK, 3, CHUNK);
    script.finish(&told);
    script.until_clean();
    script.switch();
}

#[test]
fn a_discard_is_no_zero_on_a_target_that_waits_for_its_backing() {
    // SPEC G-3, I-5: both promise that what is discarded reads as zero, and one of them for the time being.
    let promising = |backing, cluster| {
        Layer::new(LayerOptions {
            length: LENGTH,
            cluster,
            backing,
            discard: Discard::Zeroes,
            above_base: 1,
            tells_backing: false,
        })
    };
    for options in [top_options(), carried(top_options())] {
        let source = disk(&promising(Backing::Layer(base(LENGTH)), CHUNK), |with| {
            with.limits.discard_zeroes = true;
        });
        let target = disk(&promising(Backing::Unattached(0), CLUSTER), |with| {
            with.limits.discard_zeroes = true;
            with.limits.unattached_backing = true;
        });
        let mut script = Script::with(source, target);
        script.source.fill(0, &[1; CLUSTER as usize]);
        script.begin(options);
        script.until_ready();
        let told = script.discard(0, 2 * CLUSTER);
        script.finish(&told);
        script.switch();
        assert_eq!(script.target.bytes()[0], 0);
    }
}

#[test]
fn a_unit_larger_than_one_zero_is_not_cut_between_two() {
    // SPEC C-3: parts of a cluster that are zeroed by themselves make the target take the rest from its backing.
    let target = disk(&waiting(CLUSTER), |with| {
        with.limits.unattached_backing = true;
        (with.limits.max_zero, with.limits.max_discard) = (8192, 8192);
    });
    let mut script = Script::new(target);
    script.source.layer().zero(ByteRange::between(0, 3 * CLUSTER), false);
    script.begin(top_options());
    script.until_ready();
    assert_eq!((script.info().zeroes.ops, script.info().zeroes.bytes), (3, 3 * CLUSTER));
    let told = script.discard(0, CLUSTER);
    script.finish(&told);
    script.until_clean();
    assert_eq!(script.info().discards.ops, 0, "a device may ignore a part of a cluster");
    script.switch();
}

// Committing an active layer (SPEC I-2, F-7).

#[test]
fn a_commit_merges_down_and_leaves_the_filter_on_the_base() {
    // SPEC F-7, I-2
    for (length, grows) in [(LENGTH, false), (LENGTH + 5000, false), (LENGTH - 5000, true), (0, true)] {
        let base = base(length);
        let source = top(LENGTH, &base);
        let target = disk(&base, |with| with.supports.push(Kind::Truncate));
        let mut script = Script::with(disk(&source, |_| {}), target);
        script.source.fill(CLUSTER, &[1; 5000]);
        script.source.fill(LENGTH - 600, &[2; 600]);
        script.begin(commit_options());
        script.until_ready();
        let told = script.write(2 * CLUSTER, 3, 512);
        script.finish(&told);
        script.switch();
        assert_eq!(base.length(), length.max(LENGTH), "grown: {grows}");
        assert_eq!(script.filter.length(), LENGTH);
        let beyond = base.bytes().split_off(LENGTH as usize);
        assert!(beyond.iter().all(|byte| *byte == BASE), "what lies beyond the overlay's end is kept");
    }
}

#[test]
fn a_commit_of_a_middle_layer_s_worth_goes_to_the_base_of_both() {
    let base = base(LENGTH);
    let middle = top(LENGTH, &base);
    middle.write(CLUSTER, &[4; 4096]);
    let source = Layer::new(LayerOptions {
        length: LENGTH,
        cluster: CHUNK,
        backing: Backing::Layer(middle),
        discard: Discard::Deallocates,
        above_base: 2,
        tells_backing: false,
    });
    source.write(3 * CLUSTER, &[5; 4096]);
    let mut script = Script::with(disk(&source, |_| {}), disk(&base, |_| {}));
    script.begin(commit_options());
    script.switch();
    assert_eq!(script.info().writes.bytes, 2 * CHUNK);
    let bytes = base.bytes();
    assert_eq!((bytes[CLUSTER as usize], bytes[3 * CLUSTER as usize]), (4, 5));
}

#[test]
fn a_commit_copies_nothing_but_what_lies_above_the_base() {
    // SPEC F-7: the default sync stands for TOP; else it would zero, or read, what it writes to.
    let source = top(LENGTH, &base(LENGTH));
    let target = disk(&source.base().expect("a chain"), |with| with.limits.cheap_zero = true);
    let mut script = Script::with(disk(&source, |_| {}), target);
    script.source.fill(CLUSTER, &[1; 512]);
    script.begin(Options { sync: SyncMode::Full, ..commit_options() });
    script.switch();
    assert_eq!((script.info().writes.bytes, script.info().zeroes.ops), (CHUNK, 0));
}

#[test]
fn a_base_that_can_not_end_a_request_where_its_overlay_ends_is_refused() {
    // SPEC D-4, I-2
    let short = LENGTH - 100;
    let source = top(short, &base(LENGTH));
    let aligned = |layer: &Layer| disk(layer, |with| with.limits.request_alignment = 512);
    let mut script = Script::with(aligned(&source), aligned(&source.base().expect("a chain")));
    script.begin(commit_options());
    script.until("over", |info| info.status.is_over());
    let (errno, message) = script.info().error.expect("refused");
    assert_eq!(errno, Errno::EINVAL);
    assert!(message.contains("multiples of 512 bytes"), "{message}");
    assert_eq!(script.target.counts().0, 0, "nothing was sent");
}

#[test]
fn a_base_that_can_not_be_grown_is_tried_again_when_the_job_is_resumed() {
    // SPEC I-2, E-1
    let base = base(LENGTH / 2);
    let target = disk(&base, |with| with.supports.push(Kind::Truncate));
    let mut script = Script::with(disk(&top(LENGTH, &base), |_| {}), target);
    script.target.set_faults(Faults { error_one_in: 1, full: true, ..Faults::default() });
    let policy = blkmirror::engine::ErrorPolicy::Stop;
    script.begin(Options { on_target_error: policy, ..commit_options() });
    script.until("stopped", |info| info.status == Status::Paused);
    assert_eq!(base.length(), LENGTH / 2);
    script.target.set_faults(Faults::default());
    script.job().resume().expect("stopped");
    script.switch();
    assert_eq!(base.length(), LENGTH);
}

// What is written from now on.

#[test]
fn with_the_source_as_the_backing_to_come_only_what_is_written_is_copied() {
    // SPEC I-4, F-4: NONE, and the source itself.
    for options in [top_options(), carried(top_options())] {
        let mut script = Script::new(unattached(&waiting(CLUSTER)));
        script.source.fill(0, &[1; 3 * CLUSTER as usize]);
        let source = script.source.layer();
        script.begin_over(Options { sync: SyncMode::None, ..options }, source);
        script.until_ready();
        let told = script.write(CLUSTER + 512, 2, 512);
        script.finish(&told);
        script.switch();
        assert_eq!(script.target.allocated_blocks(), 1);
    }
}
