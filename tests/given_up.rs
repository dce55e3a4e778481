//! Jobs that end in the middle. One that is given up after an internal failure: guests get their requests back, and no
//! device reads memory that is theirs again. One that is freed: what it sent must not land in the next job's target.

use blkmirror::clock::Nanos;
use blkmirror::device::{Callback, IoVec, Kind, Limits};
use blkmirror::engine::{CopyMode, Options, Status, Sync as SyncMode};
use blkmirror::error::{Errno, IoResult};
use blkmirror::filter::{Filter, GuestFlags, GuestIo};
use blkmirror::job::{Job, JobOptions, PollState};
use blkmirror::range::ByteRange;
use blkmirror::testing::{Disk, DiskOptions, Faults};
use std::sync::{Arc, Mutex};

const LENGTH: u64 = 64 << 10;

struct World {
    source: Disk,
    target: Disk,
    filter: Filter,
    job: Job,
}

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Option<IoResult>>>);

impl Told {
    fn get(&self) -> Option<IoResult> {
        *self.0.lock().expect("no panic")
    }
}

fn disk(limits: Limits, depth: usize) -> Disk {
    let options = DiskOptions {
        length: LENGTH,
        limits,
        supports: vec![],
        inline_one_in: 0,
        early_one_in: 0,
        latency_ns: (0, 1),
        depth,
    };
    Disk::new(1, options).expect("sensible limits")
}

impl World {
    /// A job that carries writes. `depth`: requests that the source has room for.
    fn new(depth: usize) -> Self {
        Self::with_target(depth, disk(Limits::default(), 0))
    }

    fn with_target(depth: usize, target: Disk) -> Self {
        let mut limits = Limits::default();
        limits.memory_alignment = 512;
        let source = disk(limits, depth);
        let filter = Filter::new(source.device()).expect("a seat");
        let options =
            Options { sync: SyncMode::None, copy_mode: CopyMode::WriteBlocking, ..Options::default() };
        let job = Job::new(&filter, target.device(), JobOptions { options, ..JobOptions::default() });
        let world = Self { source, target, filter, job: job.expect("legal options") };
        world.job.start().expect("created");
        for now in 1..100 {
            world.settle(now);
            world.target.complete_one(now);
        }
        assert_eq!(world.job.query().status, Status::Ready);
        world
    }

    fn settle(&self, now: u64) {
        while self.job.poll(Nanos(now)).expect("nobody else polls").state == PollState::Busy {}
    }

    /// A guest's write from memory that is aligned or not, and that does not change or may.
    fn write(&self, offset: u64, byte: u8, skew: usize, stable: bool) -> Told {
        self.write_much(offset, byte, skew, stable, 512)
    }

    fn write_much(&self, offset: u64, byte: u8, skew: usize, stable: bool, length: usize) -> Told {
        let memory = vec![byte; 4096].leak();
        let skew = memory.as_ptr().align_offset(512) + skew;
        assert!(skew + length <= memory.len());
        // SAFETY: leaked, so it lives for ever; that many bytes from there on lie in it.
        let iov = [unsafe { IoVec::new(memory.as_mut_ptr().add(skew).cast(), length) }];
        let told = Told::default();
        let tell = told.clone();
        let done = Callback::from_closure(move |result| *tell.0.lock().expect("no panic") = Some(result));
        let range = ByteRange::new(offset, length as u64).expect("in range");
        let flags = GuestFlags { stable, ..GuestFlags::default() };
        self.filter.submit(&GuestIo { kind: Kind::Write, range, flags, iov: &iov }, done).expect("accepted");
        told
    }

    /// The target panics.
    fn fail(&self) {
        self.target.set_faults(Faults { panics: true, ..Faults::default() });
        self.write(LENGTH - 512, 1, 0, true);
        self.settle(1000);
        let (errno, _) = self.job.query().error.expect("given up");
        assert_eq!(errno, Errno::ENOTRECOVERABLE);
    }
}

#[test]
fn a_guest_is_not_told_while_the_target_reads_its_memory() {
    // SPEC E-3, G-3: once it is told, the guest may free it.
    let world = World::new(0);
    let told = world.write(0, 7, 0, true);
    world.settle(1000);
    world.fail();
    while world.source.complete_one(1000) {
        world.settle(1000);
    }
    assert_eq!((told.get(), world.target.pending()), (None, 1));
    world.target.complete_one(1000);
    world.settle(1000);
    assert_eq!(told.get(), Some(Ok(())));
}

#[test]
fn a_copy_that_the_target_reads_is_not_used_for_another_guest() {
    // SPEC E-3: and this guest is told at once.
    let world = World::new(0);
    let told = world.write(0, 7, 0, false);
    world.settle(1000);
    world.fail();
    while world.source.complete_one(1000) {
        world.settle(1000);
    }
    assert_eq!((told.get(), world.target.pending()), (Some(Ok(())), 1));
    world.write(512, 8, 8, false);
    world.target.complete_one(1000);
    assert_eq!(world.target.bytes()[..512], [7; 512]);
}

#[test]
fn what_has_come_back_when_the_failure_happens_is_not_forgotten() {
    // SPEC G-9: a request goes on with its next step, the target panics, and other completions wait to be seen.
    for other_first in [true, false] {
        let mut small = Limits::default();
        small.max_transfer = 512;
        let world = World::with_target(0, disk(small, 0));
        let stepped = world.write_much(0, 7, 0, false, 1024);
        world.settle(1000);
        let other = world.write(8192, 8, 0, false);
        world.settle(1000);
        let complete_source = || while world.source.complete_one(1000) {};
        if other_first {
            complete_source();
        }
        // Either of the two writes that are out there; the one with another step will panic.
        while world.target.complete_one(1000) {}
        if !other_first {
            complete_source();
        }
        world.target.set_faults(Faults { panics: true, ..Faults::default() });
        world.settle(1000);
        assert_eq!(world.job.query().error.expect("given up").0, Errno::ENOTRECOVERABLE);
        assert_eq!((stepped.get(), other.get()), (Some(Ok(())), Some(Ok(()))), "other first: {other_first}");
    }
}

#[test]
fn a_target_with_requests_of_a_job_that_is_over_is_refused() {
    // SPEC L-5, D-3: they could land over what the next job writes.
    let freed = |world: World| {
        let World { source, target, filter, job } = world;
        drop(job);
        (source, target, filter)
    };
    let given_up = |world: World| {
        world.fail();
        freed(world)
    };
    for end in [&freed as &dyn Fn(World) -> (Disk, Disk, Filter), &given_up] {
        let world = World::new(0);
        let told = world.write(0, 7, 0, false);
        world.settle(1000);
        let (source, target, filter) = end(world);
        while source.complete_one(1000) {}
        assert_eq!((told.get(), target.pending()), (Some(Ok(())), 1));
        let again = || Job::new(&filter, target.device(), JobOptions::default());
        let error = again().expect_err("a write is out");
        assert_eq!(error.errno(), Errno::EBUSY);
        assert!(error.message().starts_with("target: "), "{error}");
        target.complete_one(1000);
        drop(again().expect("nothing is out any more"));
        drop(again().expect("and that one sent nothing"));
    }
}

#[test]
fn a_request_that_the_source_had_no_room_for_is_sent_again_once_the_target_is_done() {
    // SPEC E-3, G-9
    let world = World::new(1);
    let first = world.write(8192, 6, 0, true);
    world.settle(1000);
    let second = world.write(0, 7, 0, false);
    world.settle(1000);
    world.fail();
    world.source.complete_one(1000);
    world.settle(1000);
    assert_eq!((first.get(), second.get(), world.target.pending()), (None, None, 2));
    while world.target.complete_one(1000) {
        world.settle(1000);
    }
    while world.source.complete_one(1000) {
        world.settle(1000);
    }
    assert_eq!((first.get(), second.get()), (Some(Ok(())), Some(Ok(()))));
    assert_eq!((world.source.bytes()[0], world.source.bytes()[8192]), (7, 6));
}
