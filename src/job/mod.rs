//! The job: an engine, the two devices, the filter, and the driver that moves them.
//!
//! # Threads
//! One thread at a time drives (`driver`); whoever has news (a completion, a carried write, a verb) leaves it in a queue
//! or behind the engine's short lock and tells the host that the job is worth polling ([`Job::fd`], the wake hook). With
//! [`JobOptions::inline`] it drives the job itself instead, if nobody does.
//!
//! No lock is held while a callback of the host runs; the driver's own mutex is only ever tried, never waited for.
//!
//! # The end
//! A concluded job has left its devices and its filter. A job that is freed earlier is cancelled and becomes an
//! *orphan*: its filter is plain again at once, nobody hears of it any more, and whoever completes its last requests
//! drives it to its end. Until then it keeps the memory that those requests use.

mod buffers;
mod completed;
mod driver;
mod latch;
mod parts;
mod preconditions;
mod registry;
mod requests;
mod shared;
mod signal;
mod turns;

use crate::clock::Nanos;
use crate::device::{Device, Lane};
use crate::engine::{BackingMode, CopyMode, Engine, Event, Info, Options, Sync};
use crate::error::{Errno, Error, IoResult, Result};
use crate::filter::Filter;
use arc_swap::ArcSwapOption;
use crossbeam::queue::SegQueue;
use driver::Driver;
use latch::Latch;
use once_cell::sync::OnceCell;
use preconditions::{Claims, check_devices, side_info};
use registry::Name;
use requests::Requests;
use shared::{Shared, take};
use signal::Signal;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use turns::Turns;

/// How long the thread that frees a job waits for the one that drives it to leave the filter: far longer than any
/// round of the driver, and short of for ever, because the driver may be in a callback of the host's that waits for the
/// thread that frees.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the prepare hook is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrepareInfo {
    /// What the job copied.
    pub sync: Sync,
    /// Which backing the target is to get.
    pub backing_mode: BackingMode,
}

/// The host's hook that is called before the filter is switched; an error keeps it from being switched.
pub type PrepareHook = Box<dyn Fn(&PrepareInfo) -> IoResult + Send + std::marker::Sync>;

/// The host's clock.
pub type ClockHook = Box<dyn Fn() -> Nanos + Send + std::marker::Sync>;

/// A job's options and the host's hooks.
#[derive(Default)]
pub struct JobOptions {
    /// What the engine is asked to do.
    pub options: Options,
    /// Whoever brings news drives the job, if nobody does; device callbacks run there too then.
    pub inline: bool,
    /// Switch this filter instead of the job's own.
    pub replaces: Option<Filter>,
    /// Called when the job is worth polling, once between two polls, from whichever thread has the news.
    pub wake: Option<Box<dyn Fn() + Send + std::marker::Sync>>,
    /// Called before the filter is switched.
    pub prepare: Option<PrepareHook>,
    /// What time it is, by the clock of [`Job::poll`]: asked by whoever drives an inline job outside of a poll. Without it
    /// the time of the last poll counts there, and copies are less well fitted to the link.
    pub clock: Option<ClockHook>,
}

impl fmt::Debug for JobOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobOptions").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Whether a job wants to be polled again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollState {
    /// Not before there is news or [`Poll::wake_at`] has come.
    Idle,
    /// At once.
    Busy,
    /// Never: it is over.
    Concluded,
}

/// The answer to [`Job::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poll {
    /// Whether the job wants to be polled again.
    pub state: PollState,
    /// When to poll an idle job though nothing has happened; [`Nanos::NEVER`] for never.
    pub wake_at: Nanos,
}

/// A mirror job. Dropping it frees it, in any state (SPEC L-5).
///
/// Threads: every method from any thread; `poll` from one at a time.
pub struct Job {
    shared: Arc<Shared>,
}

impl Job {
    /// A job in state created, from the filter's device to `target`. From this moment every guest write is marked
    /// (SPEC I-1). Nothing is copied before [`Job::start`] and [`Job::poll`].
    ///
    /// `EINVAL`: an option that makes no sense, named in the message; the target is the source; the target is stricter
    /// about alignment than a filter that is to be switched to it; the filter to be replaced is no other one, has
    /// another length, or sits on the target. `EROFS`: the target is read-only. `EBUSY`: the filter, or the one to be
    /// replaced, has a job, or one that is over still has requests at the target. `EEXIST`: the id is taken. `ENOMEM`: no memory for the buffers or the bitmap. `EOPNOTSUPP`:
    /// write-blocking mode on a filter with begin/end users.
    pub fn new(filter: &Filter, target: &Device, job_options: JobOptions) -> Result<Self> {
        let JobOptions { options, inline, replaces, wake, prepare, clock } = job_options;
        // First of all: only under the claim is it certain which device the filter is on.
        let claims = Claims::take(filter, replaces.as_ref())?;
        if options.copy_mode == CopyMode::WriteBlocking {
            filter.core().check_may_carry()?;
        }
        let source = filter.device();
        check_devices(filter, &source, target, replaces.as_ref())?;
        let settings = options.check(source.length(), source.limits(), target.limits())?;
        let name = Name::take(options.id.as_deref())?;
        let target_claim = target.core().claim_as_target()?;
        let mut engine = Engine::new(
            name.as_str().to_owned(),
            settings,
            side_info(&source, target),
            side_info(target, &source),
        )?;
        let mut driver = Driver::new(&engine, &source, target)?;
        let requests = Requests::new();
        driver.provide(&requests, &mut engine)?;
        let core = Arc::clone(filter.core());
        let [source, target] = [&source, target].map(|device| device.with_lane(driver.memory()));
        driver.set_devices(&source, &target);
        let attendable = !inline && wake.is_none();
        let shared = Shared::seat(&source, &target, |links| Shared {
            tracking: Arc::clone(engine.tracking()),
            engine: Mutex::new(engine),
            turns: Turns::new(driver),
            now: AtomicU64::new(0),
            clock: ArcSwapOption::from_pointee(clock),
            requests,
            inbox: SegQueue::new(),
            links,
            filter: Arc::clone(&core),
            traffic_before: core.traffic(),
            traffic_after: OnceCell::new(),
            handle: Mutex::new(Some(filter.clone())),
            replaces: Mutex::new(replaces),
            signal: Signal::new(wake.map(Arc::from)),
            prepare: Mutex::new(prepare.map(Arc::new)),
            inline: AtomicBool::new(inline),
            attendable,
            hooked: AtomicBool::new(true),
            released: Latch::default(),
            target_claim: Mutex::new(Some(target_claim)),
            claims: Mutex::new(Some(claims)),
            orphan: AtomicBool::new(false),
            concluded: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            failed: Mutex::new(None),
            name: Mutex::new(Some(name)),
        })?;
        shared.hook();
        Ok(Self { shared })
    }

    /// Begins; the work is done by `poll`.
    pub fn start(&self) -> Result<()> {
        self.verb(Engine::start)
    }

    /// Does what can be done at `now`, in bounded time. `now` never goes back.
    ///
    /// Idle also if a thread that has news drives the job at this moment ([`JobOptions::inline`]): it takes the time from
    /// here, and tells the host if only a poll can go on.
    ///
    /// `EBUSY`: another thread polls it, or this is a callback of whoever drives it.
    pub fn poll(&self, now: Nanos) -> Result<Poll> {
        let shared = &self.shared;
        let _polling = shared.turns.begin_poll().ok_or_else(|| {
            Error::new(Errno::EBUSY, "the job is being polled already: poll it from one thread at a time")
        })?;
        shared.signal.lower();
        for link in shared.links.iter().filter(|link| link.has_poll) {
            if let Some(device) = link.device() {
                device.poll();
            }
        }
        shared.now.fetch_max(now.0, Ordering::SeqCst);
        if shared.turns.is_resting(now) {
            return Ok(Poll { state: PollState::Idle, wake_at: Nanos::NEVER });
        }
        let Some(outlook) = shared.try_drive(true) else {
            return Ok(shared.leave_to_driver(now));
        };
        let news = shared.turns.has_news();
        if news && shared.inline.load(Ordering::SeqCst) {
            shared.drive_while_there_is_news();
        }
        let state = if outlook.over {
            PollState::Concluded
        } else if outlook.busy || news || (outlook.deadline <= now && outlook.deadline != Nanos::NEVER) {
            PollState::Busy
        } else {
            PollState::Idle
        };
        Ok(Poll { state, wake_at: outlook.deadline })
    }

    /// A descriptor that is readable when the job is worth polling. It is the job's; don't read, write or close it.
    ///
    /// Whoever has asked for it, and gave no wake hook, is taken to wait for it: what files have finished is then left
    /// to the next poll, without a thread that looks for it meanwhile.
    ///
    /// `EOPNOTSUPP` where there is no eventfd: use the wake hook.
    pub fn fd(&self) -> Result<i32> {
        let shared = &self.shared;
        let mut lanes = [None; 2];
        for (lane, link) in lanes.iter_mut().zip(&shared.links) {
            *lane = link.device().and_then(|device| device.lane().and_then(Lane::descriptor));
        }
        let fd = shared.signal.fd(lanes)?;
        if shared.attendable {
            shared.each_lane(|lane| lane.set_attended(true));
        }
        Ok(fd)
    }

    /// Stops starting background operations; the state is paused or standby once none is in flight (SPEC P-1).
    pub fn pause(&self) -> Result<()> {
        self.verb(Engine::pause)
    }

    /// Lifts a pause by the user or by an error.
    pub fn resume(&self) -> Result<()> {
        self.verb(Engine::resume)
    }

    /// Pauses on top of any other pause, for the host's own reasons; never refused.
    pub fn drain_begin(&self) {
        // It can't fail.
        let _ = self.verb(|engine| {
            engine.drain_begin();
            Ok(())
        });
    }

    /// Ends one [`Job::drain_begin`].
    pub fn drain_end(&self) -> Result<()> {
        self.verb(Engine::drain_end)
    }

    /// Finishes and switches the filter to the target, once everything is copied. Only when ready.
    pub fn complete(&self) -> Result<()> {
        self.verb(Engine::complete_job)
    }

    /// Goes on from pending.
    pub fn finalize(&self) -> Result<()> {
        self.verb(Engine::finalize)
    }

    /// Forgets a concluded job.
    pub fn dismiss(&self) -> Result<()> {
        self.verb(Engine::dismiss)
    }

    /// Ends without switching: after ready and without `force` the target is a copy of the instant when the disk
    /// was drained; else the job stops at once.
    pub fn cancel(&self, force: bool) -> Result<()> {
        self.verb(|engine| engine.cancel(force))
    }

    /// Changes the rate limit, in bytes per second; 0 is none.
    pub fn set_speed(&self, bytes_per_second: u64) -> Result<()> {
        self.verb(|engine| engine.set_speed(bytes_per_second))
    }

    /// Changes how guest writes reach the target. `EOPNOTSUPP` for write-blocking on a filter with begin/end users.
    pub fn change(&self, mode: CopyMode) -> Result<()> {
        if mode == CopyMode::WriteBlocking {
            self.shared.filter.check_may_carry()?;
        }
        self.verb(|engine| engine.change(mode))
    }

    /// What can be known about the job.
    #[must_use]
    pub fn query(&self) -> Info {
        let mut info = self.shared.engine().info();
        let seen = self.shared.traffic();
        (info.guest_writes, info.bounce_copies) = (seen.writes, seen.bounce_copies);
        info
    }

    /// The oldest event that was not read.
    #[must_use]
    pub fn next_event(&self) -> Option<Event> {
        self.shared.engine().next_event()
    }

    /// What the engine believes of a chunk; see [`Engine::chunk_view`].
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn chunk_view(&self, chunk: u64) -> Option<crate::engine::ChunkView> {
        self.shared.engine().chunk_view(chunk)
    }

    /// Whether a poll of the job is running, or this is a callback of whoever drives it.
    #[must_use]
    pub fn is_polling(&self) -> bool {
        self.shared.turns.is_polled_or_driven_here()
    }

    fn verb(&self, verb: impl FnOnce(&mut Engine) -> Result<()>) -> Result<()> {
        self.shared.decide(verb)?;
        self.shared.tell();
        Ok(())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.orphan.store(true, Ordering::SeqCst);
        shared.inline.store(true, Ordering::SeqCst);
        shared.each_lane(|lane| lane.set_attended(false));
        shared.signal.forget_host();
        drop(take(&shared.prepare));
        shared.clock.store(None);
        // Refused where it is over, or being switched: then it ends by itself.
        let _ = shared.decide(|engine| engine.cancel(true));
        // The name is free at once, whatever is still out.
        drop(take(&shared.name));
        shared.tell();
        // Another thread may be driving at this moment; it leaves the filter as soon as it comes round. That is waited
        // for, so that another job can be made at once. Where there are no threads, or this one drives, it is in vain.
        let in_vain = cfg!(target_family = "wasm") || shared.turns.is_driven_here();
        if shared.released.wait(if in_vain { Duration::ZERO } else { PATIENCE }) {
            // The driver may not have known yet that nobody wants to hear of the rest.
            shared.unclaim();
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = self.shared.engine();
        f.debug_struct("Job")
            .field("id", &engine.id())
            .field("status", &engine.status())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn started(filter: &Filter, copy_mode: CopyMode) -> Job {
        let options = Options { copy_mode, ..Options::default() };
        let target = Device::memory(65536).expect("memory");
        let job = Job::new(filter, &target, JobOptions { options, ..JobOptions::default() }).expect("legal");
        job.start().expect("starts");
        job
    }

    fn poll_until_idle(job: &Job, now: Nanos) {
        let mut polls = 0..100;
        while job.poll(now).expect("nobody else polls").state != PollState::Idle {
            assert!(polls.next().is_some(), "it has work without end: {:?}", job.query());
        }
    }

    #[test]
    fn a_ready_job_rests_until_it_is_told_something() {
        let filter = Filter::new(&Device::memory(65536).expect("memory")).expect("a seat");
        let job = started(&filter, CopyMode::Background);
        let rests = |now| job.shared.turns.is_resting(now);
        let (begun, later) = (Nanos(1), Nanos(1_000_000_001));
        poll_until_idle(&job, begun);
        assert!(job.query().ready && rests(begun));
        filter.write_at(4096, &[7; 512]).expect("written");
        assert!(!rests(begun), "it has been told of a write");
        poll_until_idle(&job, later);
        assert_eq!(job.query().dirty, 0, "the write is on the target");
        assert!(rests(later));
        assert!(!rests(later + 1_000_000_000), "rates are to be sampled");
        job.pause().expect("legal");
        assert!(!rests(later), "it has been told to pause");
        poll_until_idle(&job, later);
        assert!(!rests(later), "what is marked meanwhile wakes nobody");
    }

    #[test]
    fn a_job_that_carries_writes_rests_between_them() {
        let filter = Filter::new(&Device::memory(65536).expect("memory")).expect("a seat");
        let job = started(&filter, CopyMode::WriteBlocking);
        poll_until_idle(&job, Nanos(1));
        assert!(job.query().ready && job.shared.turns.is_resting(Nanos(1)));
        std::thread::scope(|scope| {
            let guest = scope.spawn(|| filter.write_at(4096, &[7; 512]));
            while !guest.is_finished() {
                job.poll(Nanos(2)).expect("nobody else polls");
            }
            guest.join().expect("no panic").expect("written");
        });
        assert_eq!(job.query().dirty, 0, "the write is on the target");
    }

    #[test]
    fn a_panic_under_a_verb_ends_the_job_too() {
        // SPEC E-3
        let filter = Filter::new(&Device::memory(65536).expect("memory")).expect("a seat");
        let job = Job::new(&filter, &Device::memory(65536).expect("memory"), JobOptions::default());
        let job = job.expect("legal");
        job.start().expect("starts");
        let error = job.verb(|_| panic!("a defect in a verb")).expect_err("it panicked");
        assert_eq!(error.errno(), Errno::ENOTRECOVERABLE);
        assert_eq!(job.poll(Nanos(1)).expect("nobody polls").state, PollState::Concluded);
        let (errno, message) = job.query().error.expect("poisoned");
        assert_eq!((errno, &*message), (Errno::ENOTRECOVERABLE, "internal failure: a defect in a verb"));
        filter.write_at(0, &[1; 512]).expect("the guest goes on");
        Job::new(&filter, &Device::memory(65536).expect("memory"), JobOptions::default())
            .expect("it is free");
    }
}
