//! The engine: decides what a mirror job does next, and does none of it.
//!
//! It is a state machine without I/O, clock or threads. Whoever drives it ([`crate::job`]) gives it inputs, one at a
//! time, and then drains what it put into its [`Outbox`]:
//!
//! - **inputs**: the verbs ([`Engine::pause`] and its like), [`Engine::submit_guest`] (a guest write that is to be carried
//!   to the target), [`Engine::complete`] (a request that it asked for is done), [`Engine::gate_drained`],
//!   [`Engine::prepared`], [`Engine::pivoted`] (an order was carried out), and [`Engine::advance`], which passes the time and
//!   lets it start what can be started;
//! - **outputs**: requests to the two devices, guest requests that are done, and orders about the filter;
//!   [`Engine::next_deadline`] says when time alone will give it something to do.
//!
//! The guest's own writes reach it in two ways. In background mode they don't: the filter marks the shared
//! [`Tracking`] from whichever thread the write finished on. In write-blocking mode each is submitted here.
//!
//! # Invariants
//! - A chunk that may differ between the sides is dirty, or in flight, or part of a running guest request (SPEC I-1).
//! - No two operations that touch a common chunk run together (SPEC X-1); `conflict` holds the map.
//! - A dirty bit is cleared before the source is read (SPEC C-2), so a write that lands later sets it again.
//! - `status` changes only in `Engine::become_status`, against the table of `state`.

#![forbid(unsafe_code)]

mod arena;
mod clusters;
mod conflict;
mod copy;
mod errors;
mod event;
mod finish;
mod guest;
#[cfg(feature = "testing")]
mod inspect;
mod leisure;
mod offload;
mod ops;
mod options;
mod outbox;
mod progress;
mod rate;
mod scan;
mod start;
mod state;
mod window;

pub use arena::Segment;
pub use event::{Action, Event, Failure};
pub use guest::{GuestId, GuestKind, GuestRequest};
#[cfg(feature = "testing")]
pub use inspect::ChunkView;
pub use options::{
    BackingMode, CopyMode, ErrorPolicy, JobKind, MAX_GRANULARITY, MAX_IN_FLIGHT, MIN_GRANULARITY, Options,
    Settings, Sync, check_id,
};
pub use outbox::{Data, OpId, Order, Outbox, Side, Submit};
pub use progress::{Counter, Info, IoStatus};
pub use state::{Status, Verb};

pub use crate::device::{Extent, ExtentFlags, Flags, Kind};

use crate::bitmap::Tracking;
use crate::clock::Nanos;
use crate::device::Limits;
use crate::error::{Errno, Error, IoResult, Result};
use crate::range::Geometry;
use conflict::Conflicts;
use errors::Errors;
use event::Events;
use finish::Finish;
use guest::Guests;
use leisure::Leisure;
use offload::Offload;
use ops::Ops;
use progress::Progress;
use rate::Rate;
use scan::Scan;
use start::Start;
use state::check_verb;
use std::sync::Arc;
use window::Window;

/// What the engine needs to know of a device.
#[derive(Clone, Copy, Debug)]
pub struct SideInfo {
    /// Length in bytes.
    pub length: u64,
    /// Its limits.
    pub limits: Limits,
    /// It takes zero requests.
    pub zero: bool,
    /// It takes discard requests.
    pub discard: bool,
    /// It tells extents.
    pub extents: bool,
    /// It can change its length.
    pub truncate: bool,
    /// It takes copies from the other side.
    pub copies: bool,
}

impl SideInfo {
    /// Whether what is discarded reads as zero, and goes on to do so: where a backing is attached later, what is
    /// unallocated shows that (SPEC I-5).
    fn zeroes_discards(&self) -> bool {
        self.discard && self.limits.discard_zeroes && !self.limits.unattached_backing
    }
}

/// Why a job is paused; the causes nest (SPEC L-3).
#[derive(Clone, Copy, Debug, Default)]
struct Pauses {
    user: bool,
    error: bool,
    drains: u32,
}

impl Pauses {
    fn any(self) -> bool {
        self.user || self.error || self.drains > 0
    }
}

/// A mirror job's state machine.
#[derive(Debug)]
pub struct Engine {
    id: String,
    settings: Settings,
    geometry: Geometry,
    source: SideInfo,
    target: SideInfo,
    tracking: Arc<Tracking>,
    now: Nanos,
    status: Status,
    pauses: Pauses,
    copy_mode: CopyMode,
    /// It has been ready.
    ready: bool,
    /// The flush before ready is under way.
    flushing_for_ready: bool,
    offload: Offload,
    /// No guest write that entered before writes were carried is still running.
    uncarried_writes_done: bool,
    start: Start,
    scan: Scan,
    ops: Ops,
    guests: Guests,
    conflicts: Conflicts,
    finish: Finish,
    errors: Errors,
    rate: Rate,
    window: Window,
    leisure: Leisure,
    progress: Progress,
    events: Events,
    outbox: Outbox,
}

impl Engine {
    /// A job in state created. `length` is the source's at this moment.
    ///
    /// `ENOMEM` if the bitmap or the map of buffers can't be had, with what it would take.
    pub fn new(id: String, settings: Settings, source: SideInfo, target: SideInfo) -> Result<Self> {
        let geometry = Geometry::new(source.length, settings.granularity);
        let tracking = Arc::new(Tracking::new(geometry)?);
        let mut engine = Self {
            ops: Ops::new(&settings, geometry)?,
            conflicts: Conflicts::new(geometry.chunks())?,
            start: Start::new(geometry.chunks())?,
            scan: Scan::new(),
            guests: Guests::new(),
            finish: Finish::Off,
            errors: Errors::default(),
            rate: Rate::new(settings.options.speed),
            window: Window::new(),
            leisure: Leisure::new(),
            progress: Progress::default(),
            events: Events::new(),
            outbox: Outbox::default(),
            copy_mode: settings.options.copy_mode,
            ready: false,
            flushing_for_ready: false,
            offload: Offload::new(target.copies && settings.options.copy_offload),
            uncarried_writes_done: false,
            pauses: Pauses::default(),
            status: Status::Created,
            now: Nanos(0),
            id,
            settings,
            geometry,
            source,
            target,
            tracking,
        };
        engine.events.push(Event::Status(Status::Created));
        Ok(engine)
    }

    /// What the threads that mark need.
    #[must_use]
    pub fn tracking(&self) -> &Arc<Tracking> {
        &self.tracking
    }

    /// The options as they were checked.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Bytes of copy buffers that the driver must provide, in units of [`Engine::buffer_unit`].
    #[must_use]
    pub fn buffer_bytes(&self) -> u64 {
        u64::from(self.ops.buffers()) * self.settings.buffer_unit
    }

    /// Most operations of the job's own at a time, the reservation among them.
    #[must_use]
    pub fn most_operations(&self) -> u16 {
        let settings = &self.settings;
        // What isn't copied through buffers is limited by itself, unless the target copies.
        let limit = self.ops.buffers().saturating_add(settings.max_others);
        let most =
            if self.target.copies { settings.max_in_flight } else { settings.max_in_flight.min(limit) };
        (most + 1).min(options::MAX_IN_FLIGHT) as u16
    }

    /// Bytes in one of the buffers that [`Segment`]s count.
    #[must_use]
    pub fn buffer_unit(&self) -> u64 {
        self.settings.buffer_unit
    }

    /// The size of a chunk.
    #[must_use]
    pub fn granularity(&self) -> u64 {
        self.geometry.granularity()
    }

    /// Where the job is in its life.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The job's name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The outputs since they were last drained.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// The next event, oldest first.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// How many events wait to be read.
    #[must_use]
    pub fn events_waiting(&self) -> usize {
        self.events.waiting()
    }

    // Verbs.

    /// Created → running. `EPERM` if it was started before.
    pub fn start(&mut self) -> Result<()> {
        if self.status != Status::Created {
            return Err(Error::new(
                Errno::EPERM,
                format!("Job '{}' in state '{}' was started before", self.id, self.status.name()),
            ));
        }
        self.become_status(Status::Running);
        self.begin_start();
        Ok(())
    }

    /// Stops starting background operations; paused once none is in flight. `EPERM` if it is paused.
    pub fn pause(&mut self) -> Result<()> {
        if self.pauses.user || self.pauses.error {
            return Err(self.refused("is already paused: resume it first"));
        }
        check_verb(&self.id, self.status, Verb::Pause)?;
        self.pauses.user = true;
        self.hold_back();
        Ok(())
    }

    /// Lifts a pause by the user or by an error. `EPERM` if there is none.
    pub fn resume(&mut self) -> Result<()> {
        if !self.pauses.user && !self.pauses.error {
            return Err(self.refused("is not paused"));
        }
        check_verb(&self.id, self.status, Verb::Resume)?;
        self.lift_pause();
        Ok(())
    }

    /// Pauses for the host's own reasons, on top of any other pause, until [`Engine::drain_end`]. Never refused.
    pub fn drain_begin(&mut self) {
        self.pauses.drains += 1;
        self.hold_back();
    }

    /// Ends one [`Engine::drain_begin`]. `EPERM` if there is none.
    pub fn drain_end(&mut self) -> Result<()> {
        if self.pauses.drains == 0 {
            return Err(self.refused("is not drained"));
        }
        self.pauses.drains -= 1;
        self.unpaused();
        Ok(())
    }

    /// Changes the rate limit, at once. 0 is none.
    pub fn set_speed(&mut self, bytes_per_second: u64) -> Result<()> {
        check_verb(&self.id, self.status, Verb::SetSpeed)?;
        self.settings.options.speed = bytes_per_second;
        self.rate.set_speed(bytes_per_second);
        Ok(())
    }

    /// Changes the copy mode (SPEC F-6). Writes that were accepted before keep the way they are on.
    pub fn change(&mut self, mode: CopyMode) -> Result<()> {
        check_verb(&self.id, self.status, Verb::Change)?;
        if self.settings.options.kind == JobKind::CommitActive {
            return Err(Error::new(
                Errno::EOPNOTSUPP,
                format!("Job '{}' commits an active layer: its copy mode can't be changed", self.id),
            ));
        }
        if !matches!(self.finish, Finish::Off) {
            return Err(self.refused("is finishing: its copy mode can't be changed"));
        }
        if mode != self.copy_mode {
            self.copy_mode = mode;
            self.tracking.set_synced(false);
            self.update_carrying();
        }
        Ok(())
    }

    // Inputs from the driver.

    /// The time is `now`, for whatever is told from here on. `exact`: it was asked for just now, so that what takes time can
    /// be measured by it; else it is the last that anybody knows.
    pub fn set_time(&mut self, now: Nanos, exact: bool) {
        self.come_to(now);
        self.window.set_time(self.now, exact);
    }

    /// Starts what can be started at `now`. Bounded work; [`Outbox::more`] says that there is more.
    pub fn advance(&mut self, now: Nanos) {
        self.come_to(now);
        self.progress.sample(self.now, self.chunks_dirtied());
        self.run();
    }

    fn come_to(&mut self, now: Nanos) {
        if self.now == Nanos(0) {
            // The job may have been started when the time was not known yet.
            self.progress.begin(now, self.chunks_dirtied());
        }
        self.now = self.now.max(now);
    }

    /// A request from the outbox is done; `extents` is what a [`Kind::Extents`] request told, `zeroes` that a
    /// read found nothing but zeroes.
    pub fn complete(&mut self, op: OpId, side: Side, result: IoResult, zeroes: bool, extents: &[Extent]) {
        self.scan.unblock();
        match op.guest_index() {
            Some(index) => self.complete_guest(index, side, result),
            None => self.complete_op(op, result, zeroes, extents),
        }
    }

    /// Whether every guest write that was not carried has finished since writes began to be carried. Only then can
    /// the sides be called equal.
    pub fn set_uncarried_writes_done(&mut self, done: bool) {
        self.uncarried_writes_done = done;
    }

    /// Whether the engine waits to be told [`Engine::set_uncarried_writes_done`].
    #[must_use]
    pub fn wants_uncarried_writes_done(&self) -> bool {
        !self.uncarried_writes_done && self.copy_mode == CopyMode::WriteBlocking && !self.status.is_over()
    }

    /// Whether nothing will happen until a guest write is marked or somebody calls; marks must wake the driver.
    #[must_use]
    pub fn waits_for_marks(&self) -> bool {
        matches!(self.status, Status::Ready | Status::Running) && !self.pauses.any() && self.is_clean()
    }

    /// When `advance` will have something to do for no other reason than the time.
    #[must_use]
    pub fn next_deadline(&self) -> Nanos {
        if self.pauses.any() || self.status.is_over() {
            return Nanos::NEVER;
        }
        self.scan.deadline.unwrap_or(Nanos::NEVER)
    }

    /// What can be known about the job.
    #[must_use]
    pub fn info(&self) -> Info {
        self.make_info()
    }

    /// How long a job that waits for marks has nothing to do unless it is told something: until what it keeps account of
    /// by the time is due. 0 if it looks for something itself.
    #[must_use]
    pub fn rests_until(&self) -> Nanos {
        if self.guests.any() || self.wants_uncarried_writes_done() {
            Nanos(0)
        } else {
            self.progress.next_sample()
        }
    }

    // What the parts share.

    /// The one place where the status changes (SPEC L-1), with its event (L-4).
    fn become_status(&mut self, next: Status) {
        if self.status == next {
            return;
        }
        assert!(self.status.may_become(next), "{:?} may not become {next:?}", self.status);
        self.status = next;
        self.events.push(Event::Status(next));
    }

    /// Does everything that can be done now.
    fn run(&mut self) {
        self.outbox.more = false;
        self.scan.deadline = None;
        self.settle_pause();
        if !self.pauses.any() {
            self.run_start();
            self.run_copy();
        }
        self.run_finish();
        self.settle_pause();
    }

    /// Whether guest writes are carried and background copies are made: after the start, before the end.
    fn is_copying(&self) -> bool {
        self.start.is_done()
            && matches!(self.status, Status::Running | Status::Ready | Status::Paused | Status::Standby)
    }

    fn is_carrying(&self) -> bool {
        self.copy_mode == CopyMode::WriteBlocking && self.is_copying()
    }

    /// Tells the filter whether writes are to be submitted here.
    fn update_carrying(&mut self) {
        let carry = self.is_carrying();
        if carry != self.outbox.carrying {
            self.outbox.carrying = carry;
            self.uncarried_writes_done = false;
            self.outbox.order(if carry { Order::CarryWrites } else { Order::MarkWrites });
        }
    }

    /// Nothing dirty, nothing planned and no background operation in flight.
    fn is_clean(&self) -> bool {
        self.start.is_done()
            && self.ops.in_flight() == 0
            && self.scan.plan_is_empty()
            && self.ops.reserved().is_none()
            && self.tracking.dirty.next_dirty(0).is_none()
    }

    /// A pause begins: what is planned and not started goes back to being dirty.
    fn hold_back(&mut self) {
        self.leisure.interrupt();
        self.unplan_all();
        self.reopen_gate();
    }

    fn lift_pause(&mut self) {
        (self.pauses.user, self.pauses.error) = (false, false);
        // Also where the error came while the user had paused already (SPEC E-1).
        self.errors.io_status = IoStatus::Ok;
        self.unpaused();
    }

    fn unpaused(&mut self) {
        if self.pauses.any() {
            return;
        }
        match self.status {
            Status::Paused => self.become_status(Status::Running),
            Status::Standby => self.become_status(Status::Ready),
            _ => {}
        }
    }

    /// Shows itself paused once nothing of the background is in flight (SPEC P-1).
    fn settle_pause(&mut self) {
        if !self.pauses.any() || self.ops.in_flight() > 0 {
            return;
        }
        match self.status {
            Status::Running => self.become_status(Status::Paused),
            Status::Ready if !self.finish.is_decided() => self.become_status(Status::Standby),
            _ => {}
        }
    }

    fn refused(&self, why: &str) -> Error {
        Error::new(Errno::EPERM, format!("Job '{}' {why}", self.id))
    }
}
