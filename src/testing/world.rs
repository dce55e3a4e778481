//! A job's whole life among guests, faults and an operator, drawn from a seed.

use super::disk::{Disk, DiskOptions, Faults};
use super::oracle::{Oracle, SECTOR, Stamp};
use super::random::Random;
use crate::clock::Nanos;
use crate::device::{Callback, IoVec, Kind, Limits};
use crate::engine::{CopyMode, ErrorPolicy, Event, Info, Options, Status, Sync, Verb};
use crate::error::{Errno, IoResult};
use crate::filter::{Filter, GuestFlags, GuestIo};
use crate::job::{Job, JobOptions, PollState};
use crate::range::ByteRange;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a run has seen, to tell whether it was worth anything.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Guest requests submitted.
    pub guest_requests: u64,
    /// Jobs run, pivots made, jobs that ended in another way.
    pub jobs: u64,
    /// Filters switched.
    pub pivots: u64,
    /// Jobs that ended as a copy of an instant.
    pub soft_cancels: u64,
    /// Jobs that ended without success, or were freed early.
    pub failures: u64,
    /// Requests that failed on purpose.
    pub faults: u64,
    /// States in which a verb was tried: (status, verb, accepted) and how often.
    pub verbs: BTreeMap<(&'static str, &'static str, bool), u64>,
    /// Times that source and target were held against each other while the job said that they were equal.
    pub synced_checks: u64,
}

/// A guest's request that is under way.
struct Request {
    kind: Kind,
    range: ByteRange,
    /// A read's buffer, or the data of a write.
    memory: Box<[u8]>,
    /// What could be seen when a read was submitted.
    before: Vec<Vec<(Stamp, bool)>>,
    /// The number of a change.
    change: u64,
}

type Done = Arc<Mutex<Vec<(u64, IoResult)>>>;

struct Running {
    job: Job,
    target: usize,
    woken: Arc<AtomicBool>,
    wake_at: Nanos,
    state: PollState,
    synced_mode: bool,
    /// The oracle when a soft cancel was accepted.
    cancelled_at: Option<Vec<Vec<(Stamp, bool)>>>,
    last: Option<Info>,
    status: Status,
    milestones: Vec<Event>,
    /// What the operator saw when it last pushed the job on.
    pushed: Option<(Status, bool)>,
}

/// The world of one seed.
pub struct World {
    seed: u64,
    random: Random,
    now: u64,
    length: u64,
    unit: u64,
    disks: Vec<Disk>,
    source: usize,
    filter: Filter,
    oracle: Oracle,
    stamps: Stamp,
    requests: BTreeMap<u64, Request>,
    next_request: u64,
    done: Done,
    running: Option<Running>,
    faulty: bool,
    outcome: Outcome,
    history: Vec<String>,
}

const MAX_GUEST_REQUESTS: usize = 12;
/// Steps that winding down may take; a job with nothing in its way needs far fewer.
const PATIENCE: u32 = 200_000;

impl World {
    /// Runs `steps` steps of a seed and winds down. The error names the seed, the rule that was broken and the last
    /// things that happened.
    pub fn run(seed: u64, steps: u32) -> Result<Outcome, String> {
        let mut world = Self::new(seed);
        let result = world.live(steps);
        let outcome = std::mem::take(&mut world.outcome);
        result.map(|()| outcome).map_err(|broken| {
            let mut text = format!("seed {seed}, {steps} steps, at {} ns: {broken}", world.now);
            let lines = std::env::var("HISTORY").ok().and_then(|lines| lines.parse().ok()).unwrap_or(40);
            for line in world.history.iter().rev().take(lines).rev() {
                let _ = write!(text, "\n  {line}");
            }
            text
        })
    }

    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let sectors = random.pick(&[1, 2, 7, 8, 32, 63, 128, 300]);
        let odd = if random.one_in(4) { 8 * random.within(1, 64) } else { 0 };
        let length = sectors * SECTOR + odd;
        let unit = if odd == 0 && random.one_in(3) { random.pick(&[512u64, 1024, 4096]) } else { 1 };
        let source = make_disk(&mut random, length, unit, false);
        let filter = Filter::with_alignment(source.device(), unit as u32).expect("a new disk has a seat");
        let mut initial = Vec::new();
        for sector in 0..length.div_ceil(SECTOR) {
            let stamp = if random.one_in(3) { 0 } else { 0xaaaa_0000_0000_0000 | sector };
            initial.push(stamp);
            if stamp != 0 {
                let range = ByteRange::between(sector * SECTOR, ((sector + 1) * SECTOR).min(length));
                source.fill(range.offset(), &stamped(range, stamp));
            }
        }
        Self {
            seed,
            now: 1,
            length,
            unit: unit.max(SECTOR),
            disks: vec![source],
            source: 0,
            filter,
            oracle: Oracle::new(&initial),
            stamps: 1,
            requests: BTreeMap::new(),
            next_request: 0,
            done: Done::default(),
            running: None,
            faulty: random.one_in(2),
            outcome: Outcome::default(),
            history: Vec::new(),
            random,
        }
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.history.len() > 4000 {
            self.history.drain(..2000);
        }
        let line = format!("{:>12} {}", self.now, text());
        self.history.push(line);
    }

    fn live(&mut self, steps: u32) -> Result<(), String> {
        for _ in 0..steps {
            self.step()?;
        }
        self.faulty = false;
        self.wind_down()?;
        self.read_everything()
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.within(0, 100) {
            0..30 => self.guest(),
            30..65 => self.complete_one(),
            65..80 => self.pass_time(),
            80..95 => self.poll(false)?,
            95..97 => self.change_faults(),
            97..99 => self.operate(),
            _ => self.begin_or_free(),
        }
        self.check()
    }

    // Guests.

    fn range(&mut self) -> ByteRange {
        let units = self.length.div_ceil(self.unit);
        let start = self.random.within(0, units);
        let most = self.random.pick(&[1, 2, 9, 64]);
        let count = self.random.within(1, most + 1);
        ByteRange::between(start * self.unit, ((start + count) * self.unit).min(self.length))
    }

    fn guest(&mut self) {
        if self.requests.len() >= MAX_GUEST_REQUESTS {
            return;
        }
        let kind = match self.random.within(0, 20) {
            0..10 => Kind::Write,
            10..13 => Kind::Zero,
            13..14 => Kind::Discard,
            14..19 => Kind::Read,
            _ => Kind::Flush,
        };
        let range = if kind == Kind::Flush { ByteRange::default() } else { self.range() };
        let flags = GuestFlags {
            fua: self.random.one_in(8),
            may_unmap: self.random.one_in(2),
            stable: self.random.one_in(3),
        };
        self.submit(kind, range, flags);
    }

    fn submit(&mut self, kind: Kind, range: ByteRange, flags: GuestFlags) {
        let id = self.next_request;
        self.next_request += 1;
        let (mut change, mut before, mut memory) = (0, Vec::new(), Box::default());
        match kind {
            Kind::Write => {
                self.stamps += 1;
                memory = stamped(range, self.stamps).into_boxed_slice();
                change = self.oracle.submit(range, self.stamps, false);
            }
            Kind::Zero => change = self.oracle.submit(range, 0, false),
            // What a discarded range reads as is nobody's promise.
            Kind::Discard => change = self.oracle.submit(range, 0, true),
            Kind::Read => {
                memory = vec![0x55; range.len() as usize].into_boxed_slice();
                before = self.oracle.snapshot(range);
            }
            _ => {}
        }
        if kind.changes_data() {
            let stamp = if kind == Kind::Write { self.stamps } else { 0 };
            self.may_be_seen(range, stamp, kind == Kind::Discard);
        }
        self.note(|| format!("guest {id}: {} {range:?} {flags:?}", kind.name()));
        self.outcome.guest_requests += 1;
        // SAFETY: the box stays in `requests`, unmoved on the heap, until the request is done; nothing else touches it.
        let iov = [unsafe { IoVec::new(memory.as_mut_ptr().cast(), memory.len()) }];
        let iov: &[IoVec] = if memory.is_empty() { &[] } else { &iov };
        self.requests.insert(id, Request { kind, range, memory, before, change });
        let done = Arc::clone(&self.done);
        let callback = Callback::from_closure(move |result| {
            done.lock().unwrap_or_else(PoisonError::into_inner).push((id, result));
        });
        if let Err(error) = self.filter.submit(&GuestIo { kind, range, flags, iov }, callback) {
            unreachable!("a legal guest request is refused: {error}");
        }
    }

    /// A change that is submitted while a read runs, or a copy is made, may be part of what it finds, even if another
    /// replaces it before that ends.
    fn may_be_seen(&mut self, range: ByteRange, stamp: Stamp, wild: bool) {
        let reads = self.requests.values_mut().filter(|request| request.kind == Kind::Read);
        let mut observers: Vec<_> = reads.map(|request| (request.range, &mut request.before)).collect();
        if let Some(before) = self.running.as_mut().and_then(|running| running.cancelled_at.as_mut()) {
            observers.push((ByteRange::between(0, self.length), before));
        }
        for (observed, before) in observers {
            let both = observed.intersection(range);
            for sector in both.offset() / SECTOR..both.end().div_ceil(SECTOR) {
                if !both.is_empty() {
                    before[(sector - observed.offset() / SECTOR) as usize].push((stamp, wild));
                }
            }
        }
    }

    fn take_done(&mut self) -> Result<(), String> {
        let done = std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner));
        for (id, result) in done {
            self.note(|| format!("guest {id} done: {result:?}"));
            let request = self.requests.remove(&id).ok_or(format!("request {id} is done twice (G-9)"))?;
            if request.kind.changes_data() {
                self.oracle.done(request.range, request.change, result.is_ok());
            } else if request.kind == Kind::Read && result.is_ok() {
                let found = stamps(&request.memory)?;
                self.oracle
                    .check(request.range, &request.before, &found)
                    .map_err(|e| format!("request {id}: {e}"))?;
            }
        }
        Ok(())
    }

    // Time and disks.

    fn complete_one(&mut self) {
        let disk = self.random.within(0, self.disks.len() as u64) as usize;
        if self.disks[disk].complete_one(self.now) {
            self.note(|| format!("disk {disk} completes one"));
        }
    }

    /// To the next moment at which something can happen, or a little way.
    fn pass_time(&mut self) {
        let due = self.disks.iter().filter_map(Disk::next_due).min().unwrap_or(u64::MAX);
        let wake = self.running.as_ref().map_or(u64::MAX, |running| running.wake_at.0);
        let next = due.min(wake);
        if next != u64::MAX && next > self.now {
            self.now = next;
        } else {
            self.now += self.random.within(1, 100_000);
        }
    }

    fn change_faults(&mut self) {
        if !self.faulty {
            return;
        }
        for disk in &self.disks {
            disk.set_faults(Faults {
                error_one_in: self.random.pick(&[0, 0, 0, 40, 200]),
                full: self.random.one_in(3),
                hold: self.random.one_in(6),
                ..Faults::default()
            });
        }
        if let Some(running) = &self.running
            && self.random.one_in(20)
            && !running.job.query().status.is_over()
        {
            self.disks[running.target].set_faults(Faults { panics: true, ..Faults::default() });
        }
    }

    // The job.

    fn begin_or_free(&mut self) {
        if self.running.is_some() {
            if self.random.one_in(4) {
                self.free();
            }
            return;
        }
        let unit = self.unit_for_disks();
        let target = make_disk(&mut self.random, self.length, unit, true);
        let full = !self.random.one_in(5);
        if !full {
            // What is not copied is there already.
            for (sector, bytes) in self.disks[self.source].bytes().chunks(SECTOR as usize).enumerate() {
                target.fill(sector as u64 * SECTOR, bytes);
            }
        }
        let granularity = self.random.pick(&[512u64, 1024, 4096, 16384, 65536]).max(self.unit_for_disks());
        let policies = [ErrorPolicy::Report, ErrorPolicy::Ignore, ErrorPolicy::Stop, ErrorPolicy::Enospc];
        let write_blocking = self.random.one_in(2);
        let options = Options {
            sync: if full { Sync::Full } else { Sync::None },
            copy_mode: if write_blocking { CopyMode::WriteBlocking } else { CopyMode::Background },
            granularity,
            buf_size: granularity * self.random.within(1, 20),
            max_in_flight: self.random.within(1, 17) as u32,
            max_io: granularity.max(512) * self.random.within(1, 5),
            speed: if self.random.one_in(6) { self.random.within(1000, 10_000_000) } else { 0 },
            on_source_error: self.random.pick(&policies),
            on_target_error: self.random.pick(&policies),
            unmap: self.random.one_in(2),
            detect_zeroes: self.random.one_in(2),
            auto_finalize: !self.random.one_in(4),
            auto_dismiss: self.random.one_in(2),
            auto_complete: self.random.one_in(8),
            pass_interval_ns: self.random.pick(&[0, 50_000_000]),
            ..Options::default()
        };
        let woken = Arc::new(AtomicBool::new(true));
        let told = Arc::clone(&woken);
        let inline = self.random.one_in(2);
        let pivots_to = target.clone();
        let refuses = self.random.one_in(10);
        let job_options = JobOptions {
            options: options.clone(),
            inline,
            wake: Some(Box::new(move || told.store(true, Ordering::SeqCst))),
            prepare: Some(Box::new(move |_| {
                // After the pivot the target is the guests', who may overlap as they like.
                pivots_to.set_exclusive(0);
                pivots_to.set_faults(Faults::default());
                if refuses { Err(Errno::EACCES) } else { Ok(()) }
            })),
            ..JobOptions::default()
        };
        let job = match Job::new(&self.filter, target.device(), job_options) {
            Ok(job) => job,
            Err(error) => unreachable!("legal options are refused: {error}"),
        };
        target.set_exclusive(granularity);
        self.disks.push(target);
        self.outcome.jobs += 1;
        let target = self.disks.len() - 1;
        self.note(|| format!("job to disk {target}, inline {inline}: {options:?}"));
        if self.random.one_in(10) {
            let _ = job.pause();
        }
        let _ = job.start();
        self.running = Some(Running {
            job,
            target,
            woken,
            wake_at: Nanos(0),
            state: PollState::Busy,
            synced_mode: write_blocking,
            cancelled_at: None,
            last: None,
            status: Status::Created,
            milestones: Vec::new(),
            pushed: None,
        });
    }

    fn unit_for_disks(&self) -> u64 {
        if self.unit == SECTOR { 1 } else { self.unit }
    }

    fn free(&mut self) {
        let Some(running) = self.running.take() else { return };
        self.note(|| "free the job".to_owned());
        self.disks[running.target].set_exclusive(0);
        drop(running.job);
        self.after_job(running.target, None);
    }

    /// Polls the job if there is reason to: it said busy, it woke its host, or its time has come. A host that slept on
    /// an idle job would never know otherwise.
    fn poll(&mut self, must: bool) -> Result<(), String> {
        let spurious = self.random.one_in(16);
        let Some(running) = &mut self.running else { return Ok(()) };
        let due = running.wake_at.0 <= self.now;
        let woken = running.woken.swap(false, Ordering::SeqCst);
        if !(must || spurious || woken || due || running.state == PollState::Busy) {
            return Ok(());
        }
        let poll = running.job.poll(Nanos(self.now)).map_err(|error| format!("poll: {error}"))?;
        running.state = poll.state;
        running.wake_at = poll.wake_at;
        self.note(|| format!("poll: {poll:?}"));
        if poll.state == PollState::Concluded {
            self.conclude()?;
        }
        Ok(())
    }

    fn operate(&mut self) {
        let verb = self.random.pick(&Verb::ALL);
        let force = self.random.one_in(3);
        let (speed, mode) = (
            self.random.pick(&[0, 100_000]),
            self.random.pick(&[CopyMode::Background, CopyMode::WriteBlocking]),
        );
        if verb == Verb::Cancel && !self.random.one_in(3) {
            return;
        }
        let Some(running) = &mut self.running else { return };
        let job = &running.job;
        let status = job.query().status;
        let result = match verb {
            Verb::Cancel => job.cancel(force),
            Verb::Pause => job.pause(),
            Verb::Resume => job.resume(),
            Verb::SetSpeed => job.set_speed(speed),
            Verb::Change => job.change(mode),
            Verb::Complete => job.complete(),
            Verb::Finalize => job.finalize(),
            Verb::Dismiss => job.dismiss(),
        };
        if result.is_ok() {
            match verb {
                Verb::Change => running.synced_mode = mode == CopyMode::WriteBlocking,
                Verb::Cancel if running.cancelled_at.is_none() => {
                    running.cancelled_at = Some(self.oracle.snapshot(ByteRange::between(0, self.length)));
                }
                _ => {}
            }
        }
        *self.outcome.verbs.entry((status.name(), verb.name(), result.is_ok())).or_default() += 1;
        self.note(|| format!("{} (force {force}) in {}: {result:?}", verb.name(), status.name()));
    }

    /// The job is over: what became of the filter and the target?
    fn conclude(&mut self) -> Result<(), String> {
        self.take_events()?;
        let Some(running) = self.running.take() else { return Ok(()) };
        self.disks[running.target].set_exclusive(0);
        let over = running.milestones.last().copied();
        let pivoted = self.filter.device().is_same_storage(self.disks[running.target].device());
        match over {
            Some(Event::Completed(Ok(()))) => {
                if let Some(before) = running.cancelled_at.filter(|_| !pivoted) {
                    self.outcome.soft_cancels += 1;
                    let found = stamps(&self.disks[running.target].bytes())?;
                    self.oracle
                        .check(ByteRange::between(0, self.length), &before, &found)
                        .map_err(|error| format!("the copy of an instant (oracle c): {error}"))?;
                } else if !pivoted {
                    return Err("completed, and not switched".to_owned());
                }
            }
            Some(Event::Completed(Err(_)) | Event::Cancelled) if pivoted => {
                return Err(format!("switched, and ended with {over:?}"));
            }
            Some(Event::Completed(Err(_)) | Event::Cancelled) => {}
            other => return Err(format!("over without saying so: {other:?}")),
        }
        let target = running.target;
        drop(running.job);
        self.after_job(target, over);
        Ok(())
    }

    fn after_job(&mut self, target: usize, over: Option<Event>) {
        if self.filter.device().is_same_storage(self.disks[target].device()) {
            self.source = target;
            self.outcome.pivots += 1;
        } else if over != Some(Event::Completed(Ok(()))) {
            self.outcome.failures += 1;
        }
    }

    fn take_events(&mut self) -> Result<(), String> {
        let Some(running) = &mut self.running else { return Ok(()) };
        while let Some(event) = running.job.next_event() {
            match event {
                Event::Status(next) => {
                    if next != Status::Created && !running.status.may_become(next) {
                        return Err(format!("{:?} became {next:?} (L-1)", running.status));
                    }
                    running.status = next;
                }
                Event::Error(_) => {}
                milestone => running.milestones.push(milestone),
            }
        }
        Ok(())
    }

    // Oracles.

    fn check(&mut self) -> Result<(), String> {
        self.take_done()?;
        for (index, disk) in self.disks.iter().enumerate() {
            if let Some(violation) = disk.violation() {
                return Err(format!("disk {index}: {violation}"));
            }
        }
        if self.running.as_ref().is_some_and(|running| running.job.query().status.is_over()) {
            return Ok(());
        }
        self.take_events()?;
        let Some(running) = &mut self.running else { return Ok(()) };
        let info = running.job.query();
        if let Some(last) = &running.last
            && info.done < last.done
        {
            return Err(format!("progress fell from {} to {} (P-2)", last.done, info.done));
        }
        let synced = info.actively_synced && running.synced_mode;
        running.last = Some(info);
        if synced {
            self.check_synced()?;
        }
        Ok(())
    }

    /// Source and target are equal wherever no guest is writing (oracle d).
    fn check_synced(&mut self) -> Result<(), String> {
        let Some(running) = &self.running else { return Ok(()) };
        let (source, target) = (&self.disks[self.source], &self.disks[running.target]);
        let (ours, theirs) = (source.bytes(), target.bytes());
        let busy = |sector: u64| {
            let bytes = ByteRange::between(sector * SECTOR, (sector + 1) * SECTOR);
            self.requests.values().any(|request| request.kind.changes_data() && request.range.overlaps(bytes))
        };
        // The flag may fall between the moment when it was read and this; then nothing is claimed.
        let differs = (0..self.length.div_ceil(SECTOR)).find(|sector| {
            let range = (*sector * SECTOR) as usize..((*sector + 1) * SECTOR).min(self.length) as usize;
            ours[range.clone()] != theirs[range] && !busy(*sector)
        });
        match differs {
            Some(sector) if running.job.query().actively_synced => {
                Err(format!("actively synced, and sector {sector} differs (oracle d)"))
            }
            _ => {
                self.outcome.synced_checks += 1;
                Ok(())
            }
        }
    }

    // The end.

    /// Without faults and new guests everything comes to its end (oracle i).
    fn wind_down(&mut self) -> Result<(), String> {
        self.note(|| "wind down".to_owned());
        for disk in &self.disks {
            disk.set_faults(Faults::default());
        }
        let soft = self.random.one_in(2);
        for patience in 0..PATIENCE {
            self.check()?;
            if self.running.is_none()
                && self.requests.is_empty()
                && self.disks.iter().all(|d| d.pending() == 0)
            {
                return Ok(());
            }
            for disk in 0..self.disks.len() {
                while self.disks[disk].complete_one(self.now) {}
            }
            self.poll(false)?;
            if patience % 1000 == 0
                && let Some(running) = &mut self.running
            {
                running.pushed = None;
            }
            self.push_on(soft);
            let due = self.disks.iter().filter_map(Disk::next_due).min().unwrap_or(u64::MAX);
            let ready =
                |running: &Running| running.woken.load(Ordering::SeqCst) || running.state == PollState::Busy;
            let wake =
                self.running.as_ref().map_or(u64::MAX, |r| if ready(r) { self.now } else { r.wake_at.0 });
            if due.min(wake) == u64::MAX && self.running.is_some() {
                let info = self.running.as_ref().map(|running| running.job.query());
                let guests: Vec<_> = self.requests.keys().collect();
                return Err(format!(
                    "everybody sleeps, guests {guests:?} wait, the job is not over (oracle i): {info:?}"
                ));
            }
            if due.min(wake) != u64::MAX {
                self.now = self.now.max(due.min(wake));
            }
        }
        let info = self.running.as_ref().map(|running| running.job.query());
        Err(format!(
            "no end (oracle i): {} guest requests, pending {:?}, job {info:?}",
            self.requests.len(),
            self.disks.iter().map(Disk::pending).collect::<Vec<_>>()
        ))
    }

    /// What an operator does who wants the job to end well.
    fn push_on(&mut self, soft: bool) {
        let Some(running) = &mut self.running else { return };
        let info = running.job.query();
        if running.pushed == Some((info.status, info.paused)) {
            // Asking again and again would keep it from sleeping.
            return;
        }
        running.pushed = Some((info.status, info.paused));
        if info.paused {
            let _ = running.job.resume();
        }
        let result = match info.status {
            Status::Ready if soft => {
                let result = running.job.cancel(false);
                if result.is_ok() && running.cancelled_at.is_none() {
                    running.cancelled_at = Some(self.oracle.snapshot(ByteRange::between(0, self.length)));
                }
                result
            }
            Status::Ready => running.job.complete(),
            Status::Pending => running.job.finalize(),
            _ => return,
        };
        self.note(|| format!("push on from {}: {result:?}", info.status.name()));
    }

    fn read_everything(&mut self) -> Result<(), String> {
        self.submit(Kind::Read, ByteRange::between(0, self.length), GuestFlags::default());
        for _ in 0..PATIENCE {
            self.take_done()?;
            if self.requests.is_empty() {
                return Ok(());
            }
            for disk in &self.disks {
                while disk.complete_one(self.now) {}
            }
            self.now += 1_000_000;
        }
        Err(format!("seed {}: the last read does not end", self.seed))
    }
}

fn make_disk(random: &mut Random, length: u64, unit: u64, target: bool) -> Disk {
    let mut supports = Vec::new();
    for kind in [Kind::Zero, Kind::Discard, Kind::Flush, Kind::Extents] {
        if !random.one_in(3) {
            supports.push(kind);
        }
    }
    let small = random.one_in(3);
    let dirty = target && random.one_in(2);
    let limits = Limits {
        request_alignment: unit as u32,
        memory_alignment: random.pick(&[1, 1, 512, 4096]),
        max_iov: random.pick(&[1024, 1, 2, 16]),
        max_transfer: if small { random.pick(&[4096, 8192, 65536]) } else { 0 },
        max_zero: if small { random.pick(&[4096, 8192, 0]) } else { 0 },
        max_discard: if small { 4096 } else { 0 },
        cheap_zero: random.one_in(2),
        reads_zero: target && !dirty,
        discard_zeroes: random.one_in(2),
        cluster_size: random.pick(&[0, 0, 4096, 65536]),
        ..Limits::default()
    };
    // The library sees zeroes as "no limit"; the disk enforces what that comes to.
    let limits = limits.checked().expect("sensible limits");
    let options = DiskOptions {
        length,
        limits,
        supports,
        inline_one_in: random.pick(&[0, 1, 2, 4]),
        early_one_in: random.pick(&[0, 0, 3]),
        latency_ns: random.pick(&[(0, 1), (1000, 50_000), (0, 3_000_000)]),
        depth: random.pick(&[0, 0, 1, 3, 8]) as usize,
    };
    let disk = Disk::new(random.draw(), options).expect("sensible limits");
    if dirty {
        for sector in 0..length.div_ceil(SECTOR) {
            let range = ByteRange::between(sector * SECTOR, ((sector + 1) * SECTOR).min(length));
            disk.fill(range.offset(), &stamped(range, 0xdead_0000_0000_0000 | sector));
        }
    }
    disk
}

/// Sectors of this stamp.
fn stamped(range: ByteRange, stamp: Stamp) -> Vec<u8> {
    stamp.to_le_bytes().repeat((range.len() / 8) as usize)
}

/// The stamps of these sectors. A sector that holds two is torn.
fn stamps(bytes: &[u8]) -> Result<Vec<Stamp>, String> {
    bytes
        .chunks(SECTOR as usize)
        .map(|sector| {
            let (words, _) = sector.as_chunks::<8>();
            let first = words[0];
            if words.iter().all(|word| *word == first) {
                Ok(u64::from_le_bytes(first))
            } else {
                Err(format!("a torn sector: {words:x?}"))
            }
        })
        .collect()
}
