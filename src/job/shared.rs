//! What a job's threads share: whoever has news comes here, and whoever drives finds it here.
//!
//! The engine is behind a lock that is held for as long as it thinks and no longer; the driver is taken in turns; the rest are
//! what both are told of the host, the filters and the devices, and how the job leaves them.

use super::driver::{self, Driver, Outlook};
use super::latch::Latch;
use super::preconditions::Claims;
use super::registry::Name;
use super::requests::{Requests, Seat};
use super::signal::Signal;
use super::turns::{Told, Turns};
use super::{ClockHook, Poll, PollState, PrepareHook, PrepareInfo};
use crate::bitmap::Tracking;
use crate::clock::Nanos;
use crate::device::clients::TargetClaim;
use crate::device::{Device, Kind, Lane, Limits, Wake};
use crate::engine::{Engine, Side};
use crate::error::{Errno, Error, IoResult, Result, contain};
use crate::filter::{Carrier, Core as FilterCore, Filter, Hooks, Traffic};
use arc_swap::ArcSwapOption;
use crossbeam::queue::SegQueue;
use once_cell::sync::OnceCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One of the two devices, until the job concludes.
pub(super) struct Link {
    pub(super) device: Mutex<Option<Device>>,
    pub(super) limits: Limits,
    pub(super) zero: bool,
    pub(super) has_lane: bool,
    /// The device wants to be polled.
    pub(super) has_poll: bool,
    pub(super) client: u8,
    pub(super) base: u64,
}

impl Link {
    pub(super) fn device(&self) -> Option<Device> {
        lock(&self.device).clone()
    }
}

pub(super) struct Shared {
    pub(super) engine: Mutex<Engine>,
    /// Who polls, and who drives and will see the news that comes meanwhile.
    pub(super) turns: Turns<Driver>,
    /// The latest time that a poll has brought, or the host's clock has told.
    pub(super) now: AtomicU64,
    pub(super) clock: ArcSwapOption<ClockHook>,
    pub(super) requests: Requests,
    /// Carried writes, by their number at the filter.
    pub(super) inbox: SegQueue<u16>,
    pub(super) tracking: Arc<Tracking>,
    pub(super) links: [Link; 2],
    pub(super) filter: Arc<FilterCore>,
    /// What the filter had seen when this job was made.
    pub(super) traffic_before: Traffic,
    /// What it had seen when this job left it.
    pub(super) traffic_after: OnceCell<Traffic>,
    /// Keeps the filter alive until the job concludes.
    pub(super) handle: Mutex<Option<Filter>>,
    pub(super) replaces: Mutex<Option<Filter>>,
    pub(super) signal: Signal,
    pub(super) prepare: Mutex<Option<Arc<PrepareHook>>>,
    pub(super) inline: AtomicBool,
    /// A host that watches the descriptor needs nobody else to look for completions.
    pub(super) attendable: bool,
    /// The filter marks or carries writes for this job.
    pub(super) hooked: AtomicBool,
    /// The filter is plain again.
    pub(super) released: Latch,
    /// No other job may write to the target while this one has requests there.
    pub(super) target_claim: Mutex<Option<TargetClaim>>,
    /// The filters have no room for another job because of this one.
    pub(super) claims: Mutex<Option<Claims>>,
    /// The host has let go.
    pub(super) orphan: AtomicBool,
    /// The filter is not to send writes here any more.
    pub(super) concluded: AtomicBool,
    pub(super) poisoned: AtomicBool,
    /// What the engine panicked with under a verb; the driver gives the job up for it.
    pub(super) failed: Mutex<Option<String>>,
    pub(super) name: Mutex<Option<Name>>,
}

pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes what is there, to be dropped without the lock: its destructor may call the host.
pub(super) fn take<T>(mutex: &Mutex<Option<T>>) -> Option<T> {
    lock(mutex).take()
}

impl Shared {
    /// Seats the job at both devices.
    pub(super) fn seat(
        source: &Device,
        target: &Device,
        make: impl FnOnce([Link; 2]) -> Self,
    ) -> Result<Arc<Self>> {
        let places = [source.core().reserve()?, target.core().reserve()?];
        let link = |device: &Device, place: &crate::device::clients::Place| Link {
            device: Mutex::new(Some(device.clone())),
            limits: *device.limits(),
            zero: device.supports(Kind::Zero),
            has_lane: device.lane().is_some(),
            has_poll: device.has_poll(),
            client: place.client(),
            base: place.base(),
        };
        let links = [link(source, &places[0]), link(target, &places[1])];
        let shared = Arc::new(make(links));
        for (place, side) in places.into_iter().zip([Side::Source, Side::Target]) {
            let base = place.base();
            place.take(Arc::new(Seat::new(Arc::clone(&shared), side, base)));
        }
        Ok(shared)
    }

    pub(super) fn engine(&self) -> MutexGuard<'_, Engine> {
        lock(&self.engine)
    }

    /// The lanes that the job has at its devices.
    pub(super) fn each_lane(&self, act: impl Fn(&(dyn Lane + 'static))) {
        for link in self.links.iter().filter(|link| link.has_lane) {
            if let Some(device) = link.device() {
                device.lane().into_iter().for_each(&act);
            }
        }
    }

    /// There is news. Who drives the job sees it; if nobody does, it is driven here if that is wanted, else the
    /// host is told.
    pub(super) fn tell(&self) {
        let told = self.turns.tell();
        if self.inline.load(Ordering::SeqCst) || self.concluded.load(Ordering::SeqCst) {
            self.drive_while_there_is_news();
        } else if told == Told::Nobody {
            self.signal.raise();
        }
    }

    /// Drives for as long as there is news and nobody else drives. The host is told if only its poll can go on: for the
    /// time's sake, or to read events.
    pub(super) fn drive_while_there_is_news(&self) {
        let drive = || self.try_drive(self.look_at_clock());
        self.turns.while_there_is_news(drive, |outlook| {
            let for_poll = outlook.busy || outlook.over || outlook.deadline != Nanos::NEVER;
            if outlook.busy && self.orphan.load(Ordering::SeqCst) {
                // Nobody polls it any more: it goes on here.
                let _ = self.turns.tell();
            } else if for_poll || self.engine().events_waiting() > 0 {
                self.signal.raise();
            }
        });
    }

    /// Whether the time is known that it is now.
    pub(super) fn look_at_clock(&self) -> bool {
        let clock = self.clock.load();
        let told = clock.as_ref().and_then(|clock| contain("a clock", || clock()));
        if let Some(now) = told {
            self.now.fetch_max(now.0, Ordering::SeqCst);
        }
        told.is_some()
    }

    /// A poll finds another thread driving: that the time has passed is news for it. The answer's time is for a host
    /// that goes by nothing else.
    pub(super) fn leave_to_driver(&self, now: Nanos) -> Poll {
        let _ = self.turns.tell();
        self.drive_while_there_is_news();
        let over = self.concluded.load(Ordering::SeqCst);
        Poll {
            state: if over { PollState::Concluded } else { PollState::Idle },
            wake_at: now + driver::RETRY_NS,
        }
    }

    /// Drives the job, if nobody does. A panic of ours, or of a device written in Rust, poisons it (SPEC E-3).
    pub(super) fn try_drive(&self, exact: bool) -> Option<Outlook> {
        self.turns.try_drive(|driver| self.drive(driver, exact))
    }

    /// Has the engine decide something. If it panics it can't be trusted any more: the job is given up (SPEC E-3).
    pub(super) fn decide(&self, decide: impl FnOnce(&mut Engine) -> Result<()>) -> Result<()> {
        catch_unwind(AssertUnwindSafe(|| decide(&mut self.engine()))).unwrap_or_else(|panic| {
            let text = failure(&*panic);
            *lock(&self.failed) = Some(text.clone());
            self.tell();
            Err(Error::new(Errno::ENOTRECOVERABLE, text))
        })
    }

    pub(super) fn drive(&self, driver: &mut Driver, exact: bool) -> Outlook {
        if !self.poisoned.load(Ordering::SeqCst) {
            let failed = take(&self.failed).map_or(Ok(()), Err);
            let driven = failed.and_then(|()| {
                catch_unwind(AssertUnwindSafe(|| driver.drive(self, exact))).map_err(|panic| failure(&*panic))
            });
            match driven {
                Ok(outlook) => {
                    if driver.is_ending() {
                        self.leave_target(driver);
                    }
                    self.turns.rest(outlook.rests_until);
                    return outlook;
                }
                Err(text) => self.poison(driver, &text),
            }
        }
        self.turns.begin_round();
        driver.drive_given_up(self);
        self.leave_target(driver);
        if !driver.has_requests_out() {
            driver.leave_devices();
            self.leave_devices();
        }
        Outlook { deadline: Nanos::NEVER, rests_until: Nanos(0), busy: false, over: true }
    }

    pub(super) fn poison(&self, driver: &mut Driver, text: &str) {
        log::error!("blkmirror: the job is given up: {text}");
        self.poisoned.store(true, Ordering::SeqCst);
        self.engine().poison(text);
        driver.disown_guests(self);
        self.release_filter();
        self.concluded.store(true, Ordering::SeqCst);
        driver.give_up(self);
        // What was on its way comes back, though nobody may poll any more.
        self.each_lane(|lane| {
            lane.send();
            lane.set_attended(false);
        });
        self.turn_away_inbox();
        self.unclaim();
        self.leave_filters();
        self.signal.raise();
    }

    pub(super) fn replaced(&self) -> Option<Filter> {
        lock(&self.replaces).clone()
    }

    pub(super) fn close_gates(&self) {
        self.filter.close_gate();
        if let Some(other) = self.replaced() {
            other.core().close_gate();
        }
    }

    pub(super) fn open_gates(&self) {
        self.filter.open_gate();
        if let Some(other) = self.replaced() {
            other.core().open_gate();
        }
    }

    pub(super) fn is_drained(&self) -> bool {
        self.filter.is_drained() && self.replaced().is_none_or(|other| other.core().is_drained())
    }

    pub(super) fn prepare(&self) -> IoResult {
        let hook = lock(&self.prepare).clone();
        let Some(hook) = hook else { return Ok(()) };
        let info = {
            let engine = self.engine();
            let options = &engine.settings().options;
            PrepareInfo { sync: options.sync, backing_mode: options.backing_mode }
        };
        hook(&info)
    }

    /// From now on the filters tell this job of what they do: its own what is written, the one that is to be replaced
    /// only that it has drained.
    pub(super) fn hook(self: &Arc<Self>) {
        let hooks = |tracking| Hooks { tracking, carrier: Arc::clone(self) as Arc<dyn Carrier> };
        self.filter.hook(hooks(Some(Arc::clone(&self.tracking))));
        if let Some(other) = self.replaced() {
            other.core().hook(hooks(None));
        }
    }

    /// Switches the filter, or the one that is replaced, to the target and lets its guests go on there.
    pub(super) fn pivot(&self) -> Result<()> {
        let target = self.links[Side::Target as usize].device().ok_or(Errno::ENODEV)?.without_lane();
        match self.replaced() {
            Some(other) => other.core().pivot(&target)?,
            None => self.filter.pivot(&target)?,
        }
        self.release_filter();
        Ok(())
    }

    /// Leaves the filters plain; the first time, after which they may be another job's.
    pub(super) fn release_filter(&self) {
        if self.hooked.swap(false, Ordering::SeqCst) {
            // Requests that wait at the gate are those of whoever has the filter next.
            let _ = self.traffic_after.set(self.filter.traffic());
            self.filter.unhook();
            if let Some(other) = self.replaced() {
                other.core().unhook();
            }
            self.released.set();
        }
        if self.released.is_set() && self.orphan.load(Ordering::SeqCst) {
            self.unclaim();
        }
    }

    /// What the filter has seen while this job had it.
    pub(super) fn traffic(&self) -> Traffic {
        let (before, now) = (self.traffic_before, self.traffic_after.get().copied());
        let now = now.unwrap_or_else(|| self.filter.traffic());
        Traffic {
            writes: now.writes - before.writes,
            bounce_copies: now.bounce_copies - before.bounce_copies,
        }
    }

    /// Another job may come.
    pub(super) fn unclaim(&self) {
        // Released under the lock: who finds nothing here relies on it that the filters are free.
        let cores = lock(&self.claims).take().map(Claims::release);
        drop(cores);
    }

    /// The engine is done: leaves filters and devices.
    pub(super) fn conclude(&self) {
        self.release_filter();
        self.concluded.store(true, Ordering::SeqCst);
        self.turn_away_inbox();
        self.unclaim();
        self.leave_filters();
        self.leave_devices();
        self.signal.raise();
    }

    pub(super) fn leave_filters(&self) {
        drop(take(&self.handle));
        drop(take(&self.replaces));
    }

    /// Another job may write to the target, once nothing that this one sent there is out. It sends nothing more.
    pub(super) fn leave_target(&self, driver: &Driver) {
        if !driver.has_target_requests_out() {
            drop(take(&self.target_claim));
        }
    }

    pub(super) fn leave_devices(&self) {
        for link in &self.links {
            if let Some(device) = take(&link.device) {
                device.core().unseat(link.client);
            }
        }
        drop(take(&self.target_claim));
    }

    /// Writes that were sent here and came too late go to the device like any other.
    pub(super) fn turn_away_inbox(&self) {
        while let Some(index) = self.inbox.pop() {
            self.filter.forward_carried(index);
        }
    }
}

/// What a panic says.
pub(super) fn failure(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panic");
    format!("internal failure: {text}")
}

impl Carrier for Shared {
    fn carry(&self, slot: u16) {
        self.inbox.push(slot);
        if self.concluded.load(Ordering::SeqCst) {
            self.turn_away_inbox();
        } else {
            self.tell();
        }
    }

    fn news(&self) {
        self.tell();
    }
}

impl Wake for Shared {
    fn wake(&self) {
        self.tell();
    }
}
