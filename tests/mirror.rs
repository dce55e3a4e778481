//! Whole jobs through the Rust API, over the built-in devices.

use blkmirror::clock::Nanos;
use blkmirror::device::Device;
use blkmirror::engine::{CopyMode, Event, Options, Status};
use blkmirror::filter::{Filter, GuestFlags};
use blkmirror::job::{Job, JobOptions, PollState};

fn drive(job: &Job, now: &mut u64, until: impl Fn(&Job) -> bool) {
    for _ in 0..100_000 {
        if until(job) {
            return;
        }
        let poll = job.poll(Nanos(*now)).expect("nobody else polls");
        match poll.state {
            PollState::Concluded => {
                assert!(until(job), "over too soon: {:?}", job.query());
                return;
            }
            PollState::Busy => {}
            PollState::Idle if until(job) => return,
            PollState::Idle => {
                assert_ne!(poll.wake_at, Nanos::NEVER, "idle for ever: {:?}", job.query());
                *now = poll.wake_at.0;
            }
        }
    }
    panic!("no end: {:?}", job.query());
}

fn pattern(filter: &Filter, seed: u8) {
    let bytes: Vec<u8> = (0..filter.length() as usize).map(|at| (at / 512 % 251) as u8 ^ seed).collect();
    filter.write_at(0, &bytes).expect("writes");
}

fn content(device: &Device) -> Vec<u8> {
    let mut bytes = vec![0; device.length() as usize];
    Filter::new(device).expect("seat").read_at(0, &mut bytes).expect("reads");
    bytes
}

#[test]
fn a_disk_is_copied_and_the_filter_switched() {
    for length in [0, 1, 511, 512, 4096, 100_000, 5 << 20] {
        let (source, target) =
            (Device::memory(length).expect("memory"), Device::memory(length).expect("memory"));
        let filter = Filter::new(&source).expect("filter");
        pattern(&filter, 7);
        let job = Job::new(&filter, &target, JobOptions::default()).expect("job");
        job.start().expect("starts");
        let mut now = 1;
        drive(&job, &mut now, |job| job.query().ready);
        assert_eq!(content(&source), content(&target));
        if length > 100 {
            filter.write_at(100, b"later").expect("writes");
        }
        job.complete().expect("ready");
        drive(&job, &mut now, |job| job.query().status == Status::Null);
        assert_eq!(content(&source), content(&target));
        if length > 100 {
            filter.write_at(50, b"after").expect("writes");
            assert_ne!(content(&source), content(&target));
            assert_eq!(&content(&target)[50..55], b"after");
        }
        let events: Vec<_> = std::iter::from_fn(|| job.next_event()).collect();
        assert_eq!(
            events,
            [
                Event::Status(Status::Created),
                Event::Status(Status::Running),
                Event::Status(Status::Ready),
                Event::Ready,
                Event::Status(Status::Waiting),
                Event::Status(Status::Pending),
                Event::Completed(Ok(())),
                Event::Status(Status::Concluded),
                Event::Status(Status::Null),
            ]
        );
        drop(job);
    }
}

/// Runs a whole job that switches the filter.
fn mirror(filter: &Filter, target: &Device, now: &mut u64) {
    let options = Options { auto_complete: true, ..Options::default() };
    let job = Job::new(filter, target, JobOptions { options, ..JobOptions::default() }).expect("job");
    job.start().expect("starts");
    drive(&job, now, |job| job.query().status == Status::Null);
    assert!(job.query().error.is_none(), "{:?}", job.query());
}

#[test]
fn a_target_that_was_written_to_is_not_taken_for_empty() {
    // SPEC I-4: a memory device promises that it reads zero, which is so until something is written.
    const LENGTH: u64 = 1 << 20;
    let (source, target) = (Device::memory(LENGTH).expect("memory"), Device::memory(LENGTH).expect("memory"));
    let filter = Filter::new(&source).expect("filter");
    assert!(target.reads_zero());
    pattern(&filter, 7);
    let mut now = 1;
    let first = Job::new(&filter, &target, JobOptions::default()).expect("job");
    first.start().expect("starts");
    drive(&first, &mut now, |job| job.query().ready);
    drop(first);
    assert!(!target.reads_zero());

    // The guest empties its disk before the second attempt, which must not leave the first one's data.
    filter.zero_at(0, LENGTH, GuestFlags { may_unmap: true, ..GuestFlags::default() }).expect("zeroes");
    mirror(&filter, &target, &mut now);
    assert!(content(&target) == [0; LENGTH as usize]);

    // And back, to a disk that has been in use.
    pattern(&filter, 9);
    mirror(&filter, &source, &mut now);
    filter.zero_at(0, LENGTH, GuestFlags { may_unmap: true, ..GuestFlags::default() }).expect("zeroes");
    pattern(&Filter::new(&target).expect("filter"), 11);
    mirror(&filter, &target, &mut now);
    assert!(content(&target) == [0; LENGTH as usize]);
}

#[test]
fn a_job_polled_at_the_end_of_time_sleeps_when_there_is_nothing_to_do() {
    // SPEC C-10. The end of time stands for "never": that a deadline of never has come is no reason to poll again.
    let (source, target) =
        (Device::memory(1 << 20).expect("a device"), Device::memory(1 << 20).expect("a device"));
    let filter = Filter::new(&source).expect("a seat");
    let job = Job::new(&filter, &target, JobOptions::default()).expect("legal");
    job.start().expect("created");
    for _ in 0..100 {
        let poll = job.poll(Nanos::NEVER).expect("nobody else polls");
        if poll.state == PollState::Idle {
            assert!(job.query().ready, "{:?}", job.query());
            return;
        }
    }
    panic!("busy for ever: {:?}", job.query());
}

#[test]
fn what_is_written_from_borrowed_memory_is_carried_without_a_copy_of_it() {
    // SPEC G-3: the slice can't change while its owner waits.
    let (source, target) =
        (Device::memory(1 << 20).expect("a device"), Device::memory(1 << 20).expect("a device"));
    let filter = Filter::new(&source).expect("a seat");
    let options = Options { copy_mode: CopyMode::WriteBlocking, ..Options::default() };
    let job = Job::new(&filter, &target, JobOptions { options, inline: true, ..JobOptions::default() })
        .expect("legal");
    job.start().expect("created");
    drive(&job, &mut 1, |job| job.query().actively_synced);
    filter.write_at(4096, &[7; 8192]).expect("writes");
    let info = job.query();
    assert_eq!((info.active.ops, info.bounce_copies), (1, 0));
    assert_eq!(content(&target)[4096..12288], [7; 8192]);
}
