//! A chain of layers with a filter on its top, a target, a job and virtual time.

use blkmirror::clock::Nanos;
use blkmirror::device::{Callback, IoVec, Kind, Limits};
use blkmirror::engine::{CopyMode, Info, JobKind, Options, Status, Sync as SyncMode};
use blkmirror::error::IoResult;
use blkmirror::filter::{Filter, GuestFlags, GuestIo};
use blkmirror::job::{Job, JobOptions, PollState};
use blkmirror::range::ByteRange;
use blkmirror::testing::{Backing, Discard, Disk, DiskOptions, Layer, LayerOptions, MIN_CLUSTER};
use std::sync::{Arc, Mutex};

pub(crate) const CHUNK: u64 = 4096;
/// Larger than a chunk, so that copies are widened.
pub(crate) const CLUSTER: u64 = 65536;
pub(crate) const LENGTH: u64 = 16 * CLUSTER;
/// What the base holds everywhere.
pub(crate) const BASE: u8 = 0xbb;

pub(crate) struct Script {
    pub(crate) base: Layer,
    pub(crate) source: Disk,
    pub(crate) target: Disk,
    pub(crate) filter: Filter,
    job: Option<Job>,
    pub(crate) now: u64,
}

#[derive(Clone, Default)]
pub(crate) struct Told(Arc<Mutex<Option<IoResult>>>);

impl Told {
    pub(crate) fn get(&self) -> Option<IoResult> {
        *self.0.lock().expect("no panic")
    }
}

pub(crate) fn base(length: u64) -> Layer {
    let base = Layer::flat(length, Discard::Zeroes);
    base.write(0, &vec![BASE; length as usize]);
    base
}

/// A layer of small clusters over a base, which leaves what it doesn't own to it.
pub(crate) fn top(length: u64, base: &Layer) -> Layer {
    overlay(length, CHUNK, Backing::Layer(base.clone()))
}

pub(crate) fn overlay(length: u64, cluster: u64, backing: Backing) -> Layer {
    Layer::new(LayerOptions {
        length,
        cluster,
        backing,
        discard: Discard::Deallocates,
        above_base: 1,
        tells_backing: false,
    })
}

/// A layer whose backing is attached before the switch.
pub(crate) fn waiting(cluster: u64) -> Layer {
    overlay(LENGTH, cluster, Backing::Unattached(0xee))
}

pub(crate) fn disk(layer: &Layer, change: impl FnOnce(&mut DiskOptions)) -> Disk {
    let mut options = DiskOptions {
        length: layer.length(),
        limits: Limits::default(),
        supports: vec![Kind::Zero, Kind::Discard, Kind::Flush, Kind::Extents],
        inline_one_in: 0,
        early_one_in: 0,
        latency_ns: (0, 1),
        depth: 0,
    };
    if layer.cluster() > MIN_CLUSTER {
        options.limits.cluster_size = layer.cluster();
    }
    change(&mut options);
    Disk::with_layer(1, options, layer).expect("sensible limits")
}

pub(crate) fn unattached(layer: &Layer) -> Disk {
    disk(layer, |with| with.limits.unattached_backing = true)
}

pub(crate) fn top_options() -> Options {
    Options {
        sync: SyncMode::Top,
        granularity: CHUNK,
        max_io: CHUNK,
        max_in_flight: 4,
        guest_first_io: 256 << 10,
        guest_first_in_flight: 2,
        detect_zeroes: false,
        ..Options::default()
    }
}

pub(crate) fn commit_options() -> Options {
    Options { kind: JobKind::CommitActive, ..top_options() }
}

pub(crate) fn carried(options: Options) -> Options {
    Options { copy_mode: CopyMode::WriteBlocking, ..options }
}

impl Script {
    /// A source that owns nothing yet, over a base.
    pub(crate) fn new(target: Disk) -> Self {
        let base = base(LENGTH);
        let source = top(LENGTH, &base);
        Self::with(disk(&source, |_| {}), target)
    }

    pub(crate) fn with(source: Disk, target: Disk) -> Self {
        let filter = Filter::new(source.device()).expect("a seat");
        let base = source.layer().base().expect("a chain");
        Self { base, source, target, filter, job: None, now: 1 }
    }

    /// Begins a job whose target gets the base as its backing, if it waits for one.
    pub(crate) fn begin(&mut self, options: Options) {
        let backing = self.base.clone();
        self.begin_over(options, backing);
    }

    pub(crate) fn begin_over(&mut self, options: Options, backing: Layer) {
        let target = self.target.clone();
        let options = JobOptions {
            options,
            prepare: Some(Box::new(move |_| {
                if target.device().limits().unattached_backing {
                    target.layer().attach_backing(&backing);
                }
                Ok(())
            })),
            ..JobOptions::default()
        };
        self.job = Some(Job::new(&self.filter, self.target.device(), options).expect("legal options"));
        self.job().start().expect("starts");
    }

    pub(crate) fn job(&self) -> &Job {
        self.job.as_ref().expect("begun")
    }

    pub(crate) fn info(&self) -> Info {
        self.job().query()
    }

    /// Polls without letting a disk finish anything.
    pub(crate) fn settle(&self) {
        while self.job().poll(Nanos(self.now)).expect("nobody else polls").state == PollState::Busy {}
    }

    /// Lets disks and time go on until this is so.
    pub(crate) fn until(&mut self, what: &str, so: impl Fn(&Info) -> bool) {
        for _ in 0..20_000 {
            if so(&self.info()) {
                return;
            }
            self.go_on();
        }
        panic!("never {what}: {:?}", self.info());
    }

    pub(crate) fn go_on(&mut self) {
        let poll = self.job().poll(Nanos(self.now)).expect("nobody else polls");
        let moved = self.source.complete_one(self.now) | self.target.complete_one(self.now);
        if !moved && poll.state == PollState::Idle && poll.wake_at != Nanos::NEVER {
            self.now = self.now.max(poll.wake_at.0);
        }
    }

    pub(crate) fn until_ready(&mut self) {
        self.until("ready", |info| info.status == Status::Ready);
    }

    /// Until nothing is dirty or in flight.
    pub(crate) fn until_clean(&mut self) {
        self.until("clean", |info| info.ready && info.dirty == 0 && info.in_flight_bytes == 0 && !info.busy);
    }

    /// Completes the job and holds the new disk against the old one.
    pub(crate) fn switch(&mut self) {
        self.until_ready();
        self.job().complete().expect("ready");
        self.until("over", |info| info.status.is_over());
        assert_eq!(self.info().error, None);
        assert!(self.filter.device().is_same_storage(self.target.device()));
        let length = self.source.layer().length() as usize;
        let (old, new) = (self.source.bytes(), self.target.bytes());
        let differs = old.iter().zip(&new[..length]).position(|(old, new)| old != new);
        assert_eq!(differs.map(|at| (at, old[at], new[at])), None, "where, and what it was and is");
    }

    /// The host writes to the source behind the filter's back, and says so.
    pub(crate) fn write_behind(&self, offset: u64) {
        self.source.fill(offset, &[0x77; 512]);
        self.filter.mark_dirty(ByteRange::between(offset, offset + 512)).expect("on the disk");
    }

    /// A guest's write of 512 bytes or more; what comes of it is put where the answer says.
    pub(crate) fn write(&self, offset: u64, byte: u8, length: u64) -> Told {
        let memory = vec![byte; length as usize].leak();
        // SAFETY: leaked, so it lives for ever.
        let iov = [unsafe { IoVec::new(memory.as_mut_ptr().cast(), length as usize) }];
        self.submit(Kind::Write, offset, length, &iov)
    }

    pub(crate) fn zero(&self, offset: u64, length: u64) -> Told {
        self.submit(Kind::Zero, offset, length, &[])
    }

    pub(crate) fn discard(&self, offset: u64, length: u64) -> Told {
        self.submit(Kind::Discard, offset, length, &[])
    }

    fn submit(&self, kind: Kind, offset: u64, length: u64, iov: &[IoVec]) -> Told {
        let told = Told::default();
        let tell = told.clone();
        let done = Callback::from_closure(move |result| {
            let before = tell.0.lock().expect("no panic").replace(result);
            assert_eq!(before, None, "told twice (SPEC G-9)");
        });
        let range = ByteRange::new(offset, length).expect("no overflow");
        let flags = GuestFlags { may_unmap: true, ..GuestFlags::default() };
        self.filter.submit(&GuestIo { kind, range, flags, iov }, done).expect("accepted");
        told
    }

    /// A request that is finished before anything else goes on.
    pub(crate) fn finish(&mut self, told: &Told) {
        for _ in 0..1000 {
            if told.get().is_some() {
                return;
            }
            self.go_on();
        }
        panic!("a guest waits for ever");
    }
}
