//! Two disks, a filter, a job and virtual time: what the scripts are written with.

pub(crate) use blkmirror::clock::Nanos;
pub(crate) use blkmirror::device::{Device, Extent, ExtentFlags, IoVec, Kind, Limits};
pub(crate) use blkmirror::engine::{
    Action, CopyMode, ErrorPolicy, Event, Failure, Info, IoStatus, JobKind, Options, Side, Status,
    Sync as SyncMode,
};
pub(crate) use blkmirror::error::{Errno, IoResult};
pub(crate) use blkmirror::filter::{Filter, GuestFlags, GuestIo};
pub(crate) use blkmirror::job::{Job, JobOptions, PollState, PrepareHook};
pub(crate) use blkmirror::range::ByteRange;
pub(crate) use blkmirror::testing::{Disk, DiskOptions, Faults, Seen};

use blkmirror::device::Callback;
use std::sync::{Arc, Mutex};

pub(crate) const CHUNK: u64 = 4096;
pub(crate) const CHUNKS: u64 = 64;
pub(crate) const LENGTH: u64 = CHUNK * CHUNKS;
/// The slice of the rate limit, of patience after a failure and of guest-first.
pub(crate) const SLICE: u64 = 100_000_000;

/// Two disks, a filter, a job, and virtual time. Nothing happens but what a script lets happen.
pub(crate) struct Script {
    pub(crate) source: Disk,
    pub(crate) target: Disk,
    pub(crate) filter: Filter,
    pub(crate) job: Option<Job>,
    pub(crate) now: u64,
}

pub(crate) fn disk(options: impl FnOnce(&mut DiskOptions)) -> Disk {
    let mut with = DiskOptions {
        length: LENGTH,
        limits: Limits::default(),
        supports: vec![Kind::Zero, Kind::Discard, Kind::Flush],
        inline_one_in: 0,
        early_one_in: 0,
        latency_ns: (0, 1),
        depth: 0,
    };
    options(&mut with);
    // The library sees zeroes as "no limit"; the disk enforces what that comes to.
    with.limits = with.limits.checked().expect("sensible limits");
    Disk::new(1, with).expect("sensible limits")
}

/// A disk that can say what it holds.
pub(crate) fn sparse_disk() -> Disk {
    disk(|with| with.supports.push(Kind::Extents))
}

/// A target that is all zero, and says so.
pub(crate) fn zero_disk() -> Disk {
    disk(|with| with.limits.reads_zero = true)
}

pub(crate) fn options() -> Options {
    Options {
        granularity: CHUNK,
        max_io: CHUNK,
        max_in_flight: 4,
        guest_first_io: 256 << 10,
        guest_first_in_flight: 2,
        detect_zeroes: false,
        ..Options::default()
    }
}

/// Nothing is copied but what is written from now on.
pub(crate) fn only_new() -> Options {
    Options { sync: SyncMode::None, ..options() }
}

pub(crate) fn blocking(options: Options) -> Options {
    Options { copy_mode: CopyMode::WriteBlocking, ..options }
}

pub(crate) fn faults(kind: Kind, errno: Errno) -> Faults {
    Faults { error_one_in: 1, only: Some(kind), errno: Some(errno), ..Faults::default() }
}

pub(crate) fn bytes(offset: u64, length: u64) -> ByteRange {
    ByteRange::new(offset, length).expect("in range")
}

/// These chunks.
pub(crate) fn chunks(first: u64, count: u64) -> ByteRange {
    bytes(first * CHUNK, count * CHUNK)
}

/// Something that is nowhere zero and in each chunk something else.
pub(crate) fn content(seed: u8, length: u64) -> Vec<u8> {
    (0..length).map(|at| (at / CHUNK) as u8 ^ seed | 1).collect()
}

/// What was done to a disk, in short: the kinds and ranges in the order in which it accepted them.
pub(crate) fn deeds(seen: &[Seen]) -> Vec<(Kind, ByteRange)> {
    seen.iter().map(|seen| (seen.kind, seen.range)).collect()
}

impl Script {
    /// A source full of data, a target of zeroes that doesn't say so.
    pub(crate) fn new() -> Self {
        Self::with(disk(|_| {}), disk(|_| {}))
    }

    /// As [`Script::new`], with these disks.
    pub(crate) fn with(source: Disk, target: Disk) -> Self {
        let script = Self::over(source, target);
        script.source.fill(0, &content(0x40, script.source.device().length()));
        script
    }

    /// With these disks as they are.
    pub(crate) fn over(source: Disk, target: Disk) -> Self {
        let filter = Filter::new(source.device()).expect("a seat");
        // From here on they remember what they are asked for.
        source.seen();
        target.seen();
        Self { source, target, filter, job: None, now: 1 }
    }

    /// A job that is ready, with nothing copied.
    pub(crate) fn ready_with(options: Options) -> Self {
        let mut script = Self::new();
        script.target.fill(0, &script.source.bytes());
        script.begin(Options { sync: SyncMode::None, ..options });
        script.until_ready();
        script.forget();
        script
    }

    /// A job in write-blocking mode whose sides are equal and stay so.
    pub(crate) fn synced_with(options: Options) -> Self {
        let mut script = Self::ready_with(blocking(options));
        script.until("synced", |info| info.actively_synced);
        script.forget();
        script
    }

    /// A job that a host finds in this state; stopped by an error, not by the user, where that is wanted. There is
    /// none that it finds waiting: that passes at once.
    pub(crate) fn in_state(status: Status, by_error: bool, id: &str, prepare: Option<PrepareHook>) -> Self {
        let mut script = Self::new();
        let options = Options {
            id: Some(id.to_owned()),
            auto_finalize: false,
            auto_dismiss: status == Status::Null,
            on_target_error: ErrorPolicy::Stop,
            ..options()
        };
        script.create(JobOptions { options, prepare, ..JobOptions::default() });
        if status == Status::Created {
            return script;
        }
        script.job().start().expect("created");
        script.settle();
        match status {
            Status::Running => return script,
            Status::Aborting | Status::Concluded | Status::Null => {
                script.job().cancel(true).expect("running");
            }
            Status::Paused => script.stop(by_error),
            _ => script.until_ready(),
        }
        match status {
            Status::Standby => script.stop(by_error),
            Status::Pending => script.job().complete().expect("ready"),
            _ => {}
        }
        if status == Status::Aborting {
            script.settle();
        }
        script.until(status.name(), |info| info.status == status);
        script
    }

    fn stop(&mut self, by_error: bool) {
        if by_error {
            self.target.set_faults(faults(Kind::Write, Errno::EIO));
            self.filter.mark_dirty(chunks(5, 1)).expect("on the disk");
            self.until("stopped", |info| info.paused);
            self.target.set_faults(Faults::default());
        } else {
            self.job().pause().expect("not paused");
        }
    }

    /// What happened so far doesn't count.
    pub(crate) fn forget(&self) {
        self.source.seen();
        self.target.seen();
        self.events();
    }

    pub(crate) fn job(&self) -> &Job {
        self.job.as_ref().expect("begun")
    }

    pub(crate) fn create(&mut self, options: JobOptions) {
        self.job = Some(Job::new(&self.filter, self.target.device(), options).expect("legal options"));
    }

    pub(crate) fn begin(&mut self, options: Options) {
        self.begin_with(JobOptions { options, ..JobOptions::default() });
    }

    pub(crate) fn begin_with(&mut self, options: JobOptions) {
        self.create(options);
        self.job().start().expect("starts");
    }

    pub(crate) fn info(&self) -> Info {
        self.job().query()
    }

    pub(crate) fn status(&self) -> Status {
        self.info().status
    }

    pub(crate) fn poll(&mut self) -> PollState {
        self.job().poll(Nanos(self.now)).expect("nobody else polls").state
    }

    /// Polls without letting a disk finish anything.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.poll() != PollState::Busy {
                return;
            }
        }
        panic!("busy for ever: {:?}", self.info());
    }

    /// Lets the disks finish everything that doesn't need time to pass.
    pub(crate) fn deliver(&mut self) {
        for _ in 0..10_000 {
            self.settle();
            if !(self.source.complete_one(self.now) | self.target.complete_one(self.now)) {
                return;
            }
        }
        panic!("never quiet: {:?}", self.info());
    }

    /// Lets each disk finish a request, so many times.
    pub(crate) fn deliver_some(&mut self, times: u32) {
        for _ in 0..times {
            self.settle();
            self.source.complete_one(self.now);
            self.target.complete_one(self.now);
        }
        self.settle();
    }

    /// As [`Script::deliver`], again and again while this time passes.
    pub(crate) fn pass(&mut self, nanoseconds: u64) {
        let end = self.now + nanoseconds;
        while self.now < end {
            self.deliver();
            self.now += 1_000_000;
        }
        self.deliver();
    }

    /// Lets disks and time go on until this is so.
    pub(crate) fn until(&mut self, what: &str, so: impl Fn(&Info) -> bool) {
        for _ in 0..10_000 {
            if so(&self.info()) {
                return;
            }
            let poll = self.job().poll(Nanos(self.now)).expect("nobody else polls");
            if so(&self.info()) {
                return;
            }
            let moved = self.source.complete_one(self.now) | self.target.complete_one(self.now);
            if !moved && poll.state == PollState::Idle && poll.wake_at != Nanos::NEVER {
                self.now = self.now.max(poll.wake_at.0);
            }
        }
        panic!("never {what}: {:?}", self.info());
    }

    pub(crate) fn until_ready(&mut self) {
        self.until("ready", |info| info.status == Status::Ready);
    }

    pub(crate) fn until_over(&mut self) {
        self.until("over", |info| info.status.is_over());
        // A verb may have ended it; what that leads to is done by a poll.
        self.settle();
    }

    /// Ready, and nothing left to do.
    pub(crate) fn until_equal(&mut self) {
        self.until("clean", |info| info.status == Status::Ready && info.dirty == 0 && !info.busy);
        assert!(self.equal());
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.job.iter().flat_map(|job| std::iter::from_fn(|| job.next_event())).collect()
    }

    /// The failures that were told since events were last read.
    pub(crate) fn failures(&self) -> Vec<Failure> {
        let failure = |event| if let Event::Error(failure) = event { Some(failure) } else { None };
        self.events().into_iter().filter_map(failure).collect()
    }

    /// A guest's write; what comes of it is put where the answer says.
    pub(crate) fn write(&self, offset: u64, byte: u8, length: usize) -> Told {
        self.write_with(offset, byte, length, GuestFlags::default()).0
    }

    /// As [`Script::write`], and gives the guest's memory.
    pub(crate) fn write_with(
        &self,
        offset: u64,
        byte: u8,
        length: usize,
        flags: GuestFlags,
    ) -> (Told, GuestMemory) {
        let memory = GuestMemory::new(byte, length);
        let told = self.submit_with(Kind::Write, bytes(offset, length as u64), flags, &[memory.iov()]);
        (told, memory)
    }

    pub(crate) fn zero(&self, range: ByteRange) -> Told {
        let flags = GuestFlags { may_unmap: true, ..GuestFlags::default() };
        self.submit_with(Kind::Zero, range, flags, &[])
    }

    pub(crate) fn discard(&self, range: ByteRange) -> Told {
        self.submit_with(Kind::Discard, range, GuestFlags::default(), &[])
    }

    pub(crate) fn submit_with(&self, kind: Kind, range: ByteRange, flags: GuestFlags, iov: &[IoVec]) -> Told {
        let told = Told::default();
        let tell = told.clone();
        let done = Callback::from_closure(move |result| {
            let before = tell.0.lock().expect("no panic").replace(result);
            assert_eq!(before, None, "told twice (SPEC G-9)");
        });
        self.filter.submit(&GuestIo { kind, range, flags, iov }, done).expect("accepted");
        told
    }

    pub(crate) fn equal(&self) -> bool {
        self.source.bytes() == self.target.bytes()
    }

    /// Whether the filter's guests go to the target.
    pub(crate) fn is_switched(&self) -> bool {
        self.filter.device().is_same_storage(self.target.device())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!((self.source.violation(), self.target.violation()), (None, None), "SPEC D-4, X-1");
        }
    }
}

/// What a guest was told of its request.
#[derive(Clone, Default)]
pub(crate) struct Told(Arc<Mutex<Option<IoResult>>>);

impl Told {
    pub(crate) fn get(&self) -> Option<IoResult> {
        *self.0.lock().expect("no panic")
    }
}

/// A guest's memory. It lives for ever, because requests that use it may.
pub(crate) struct GuestMemory(&'static [std::cell::Cell<u8>]);

impl GuestMemory {
    pub(crate) fn new(byte: u8, length: usize) -> Self {
        Self(std::cell::Cell::from_mut(vec![byte; length].leak()).as_slice_of_cells())
    }

    pub(crate) fn iov(&self) -> IoVec {
        // SAFETY: leaked; and a guest may change what it is writing.
        unsafe { IoVec::new(self.0.as_ptr().cast_mut().cast(), self.0.len()) }
    }

    pub(crate) fn fill(&self, byte: u8) {
        self.0.iter().for_each(|cell| cell.set(byte));
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.iter().map(std::cell::Cell::get).collect()
    }
}
