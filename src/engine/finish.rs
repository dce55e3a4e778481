//! Ready, complete, cancel and the switch to the target (SPEC section 9).
//!
//! A job that is to finish *converges*: passes follow each other at once. When nothing is dirty the gate of the filter
//! is closed: new guest requests wait there, running ones finish. What became dirty meanwhile is copied while they
//! wait, the target is flushed, and the job is *decided*. A guest that writes all the time would never leave an instant with
//! nothing dirty; so after some passes the gate is closed on a small rest too, which is copied behind it. For the
//! same reason a job in background mode is ready when only a small rest has been left for some passes.
//!
//! # The worst that can happen
//! - A write that entered before the gate was closed marks its chunks when it is done. Its count falls after that, so a
//!   drained gate means that its marks are seen; they are copied before anything is decided.
//! - The target fails behind the closed gate: it is opened again at once, and the job converges anew when it goes on.
//! - The host marks by hand while the last flush runs: nothing is decided, the rest is copied and flushed again.
//! - A pause, a cancel or the end of the job comes while the gate is closed: each opens it.

use super::event::Event;
use super::ops::OpState;
use super::options::CopyMode;
use super::outbox::{OpId, Order, Side};
use super::state::{Verb, check_verb};
use super::{Engine, Flags, Kind, Status};
use crate::error::{Errno, IoResult, Result};
use crate::range::{ByteRange, ChunkRange};

/// Passes after which a rest that fits in the copy buffers is small enough.
const PASSES_TO_CONVERGE: u64 = 3;

/// What the job finishes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// The filter switches to the target.
    Pivot,
    /// The filter stays; the target is a copy of this instant (SPEC F-5).
    Detach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    /// Nobody asked for it.
    Off,
    /// Copies until little or nothing is dirty. `since` is the pass that was the last when it began.
    Converging { goal: Goal, since: u64 },
    /// The gate is closed; running guest requests finish.
    Closing { goal: Goal },
    /// No guest request runs. What is left is copied.
    Closed { goal: Goal },
    /// The last flush is under way.
    Flushing { goal: Goal },
    /// Waits for `finalize`.
    Pending { goal: Goal },
    /// The host's prepare hook runs.
    Preparing,
    /// The filter is being switched.
    Pivoting,
    /// Over, or ending without success.
    Ended,
}

impl Finish {
    pub(super) fn is_converging(self) -> bool {
        matches!(self, Self::Converging { .. } | Self::Closing { .. } | Self::Closed { .. })
    }

    /// Nothing more is copied.
    pub(super) fn is_decided(self) -> bool {
        matches!(
            self,
            Self::Flushing { .. } | Self::Pending { .. } | Self::Preparing | Self::Pivoting | Self::Ended
        )
    }

    /// The filter was told that the job no longer cares.
    pub(super) fn is_released(self) -> bool {
        matches!(self, Self::Pending { goal: Goal::Detach } | Self::Ended)
    }

    pub(super) fn end(&mut self) {
        *self = Self::Ended;
    }

    fn with_goal(self, goal: Goal, since: u64) -> Self {
        match self {
            Self::Off => Self::Converging { goal, since },
            Self::Converging { since, .. } => Self::Converging { goal, since },
            Self::Closing { .. } => Self::Closing { goal },
            Self::Closed { .. } => Self::Closed { goal },
            Self::Flushing { .. } => Self::Flushing { goal },
            Self::Pending { .. } => Self::Pending { goal },
            other => other,
        }
    }

    fn goal(self) -> Option<Goal> {
        match self {
            Self::Converging { goal, .. }
            | Self::Closing { goal }
            | Self::Closed { goal }
            | Self::Flushing { goal }
            | Self::Pending { goal } => Some(goal),
            Self::Preparing | Self::Pivoting => Some(Goal::Pivot),
            Self::Off | Self::Ended => None,
        }
    }
}

impl Engine {
    /// Finish and switch the filter to the target. A second time is harmless (SPEC F-2).
    pub fn complete_job(&mut self) -> Result<()> {
        check_verb(&self.id, self.status, Verb::Complete)?;
        match self.finish.goal() {
            Some(Goal::Detach) => Err(self.refused("is being cancelled: it can't be completed any more")),
            Some(Goal::Pivot) => Ok(()),
            None => {
                self.finish = self.finish.with_goal(Goal::Pivot, self.scan.passes());
                Ok(())
            }
        }
    }

    /// End without switching: after ready and without `force` as a copy of the instant when it was drained, else
    /// at once (SPEC F-5).
    pub fn cancel(&mut self, force: bool) -> Result<()> {
        check_verb(&self.id, self.status, Verb::Cancel)?;
        if !force && self.pauses.user {
            return Err(self.refused("is paused: resume it, or cancel it by force"));
        }
        if self.finish == Finish::Pivoting || (self.finish == Finish::Preparing && !force) {
            return Err(self.refused("is being switched to its target: it is too late to cancel it"));
        }
        let ready =
            matches!(self.status, Status::Ready | Status::Standby | Status::Waiting | Status::Pending);
        if force || !ready {
            self.abort_cancelled();
            return Ok(());
        }
        self.lift_pause();
        let pending = matches!(self.finish, Finish::Pending { goal: Goal::Pivot });
        self.finish = self.finish.with_goal(Goal::Detach, self.scan.passes());
        if pending {
            self.order_release();
        }
        Ok(())
    }

    /// Leave the pending state: prepare and switch, or conclude.
    pub fn finalize(&mut self) -> Result<()> {
        check_verb(&self.id, self.status, Verb::Finalize)?;
        self.do_finalize();
        Ok(())
    }

    /// Concluded → null.
    pub fn dismiss(&mut self) -> Result<()> {
        check_verb(&self.id, self.status, Verb::Dismiss)?;
        self.become_status(Status::Null);
        Ok(())
    }

    /// The order to close the gate was carried out, and no guest request runs any more: what they wrote is marked.
    pub fn gate_drained(&mut self) {
        let Finish::Closing { goal } = self.finish else {
            return;
        };
        self.finish = Finish::Closed { goal };
        if self.remaining_chunks() > u64::from(self.ops.arena_chunks()) {
            self.reopen_gate();
        }
    }

    /// The prepare hook has answered.
    pub fn prepared(&mut self, result: IoResult) {
        if self.finish != Finish::Preparing {
            return;
        }
        match result {
            Ok(()) => {
                self.finish = Finish::Pivoting;
                self.outbox.order(Order::Pivot);
            }
            Err(errno) => {
                let message = format!("Job '{}': the prepare hook refused: {errno}", self.id);
                self.abort(errno, message);
            }
        }
    }

    /// The filter sits on the target now, or could not be switched.
    pub fn pivoted(&mut self, result: Result<()>) {
        if self.finish != Finish::Pivoting {
            return;
        }
        match result {
            Ok(()) => self.conclude(),
            Err(error) => {
                self.finish = Finish::Preparing;
                self.abort(error.errno(), error.message().to_owned());
            }
        }
    }

    /// Lets guest requests pass again if they wait; the job goes on converging.
    pub(super) fn reopen_gate(&mut self) {
        if let Finish::Closing { goal } | Finish::Closed { goal } | Finish::Flushing { goal } = self.finish {
            self.finish = Finish::Converging { goal, since: self.scan.passes() };
            self.outbox.order(Order::OpenGate);
        }
    }

    /// Moves towards ready and towards the end, as far as it goes now.
    pub(super) fn run_finish(&mut self) {
        if self.status == Status::Aborting {
            if self.ops.in_flight() == 0 && !self.guests.any() {
                self.conclude();
            }
            return;
        }
        if self.pauses.any() || !self.is_copying() {
            return;
        }
        let clean = self.is_clean();
        if clean {
            self.settle_synced();
        }
        if self.status == Status::Running {
            let nearly = self.copy_mode == CopyMode::Background && self.is_nearly_clean(1);
            if (clean || nearly) && !self.flushing_for_ready && self.may_flush() {
                self.flushing_for_ready = true;
                self.flush_or_go_on();
            }
            // Ready already, where there was nothing to flush: it may have been asked to complete.
            if self.status == Status::Running {
                return;
            }
        }
        let may_flush = self.finish.is_converging() && self.may_flush();
        match self.finish {
            Finish::Converging { goal, since } if may_flush && (clean || self.is_nearly_clean(since)) => {
                self.finish = Finish::Closing { goal };
                self.outbox.order(Order::CloseGate);
            }
            Finish::Closed { goal } if clean && !self.guests.any() => {
                self.finish = Finish::Flushing { goal };
                self.flush_or_go_on();
            }
            _ => {}
        }
    }

    /// Whether what is left fits in the copy buffers, and nothing has failed for some passes after this one.
    fn is_nearly_clean(&self, since: u64) -> bool {
        let calm = self.scan.passes() >= since.max(self.errors.last_pass) + PASSES_TO_CONVERGE;
        calm && self.remaining_chunks() <= u64::from(self.ops.arena_chunks())
    }

    /// Whether no failure asks for patience.
    fn may_flush(&mut self) -> bool {
        if let Some(until) = self.scan.held_until(self.now) {
            self.scan.wake_at(until);
            return false;
        }
        true
    }

    fn flush_or_go_on(&mut self) {
        let nothing = ByteRange::default();
        let room = self.ops.in_flight() < self.settings.max_in_flight;
        if self.geometry.length() == 0 {
            self.flushing_for_ready = false;
            self.flushed();
        } else if room && let Some(id) = self.ops.take(OpState::Flush, ChunkRange::default(), nothing) {
            self.outbox.submit(id, Side::Target, Kind::Flush, nothing, Flags::default());
        } else {
            // All places are taken; one of those that have them will come by here.
            self.flushing_for_ready = false;
        }
    }

    pub(super) fn flush_done(&mut self, id: OpId, result: IoResult) {
        self.end_op(id);
        self.flushing_for_ready = false;
        self.progress.count(Kind::Flush, 0, result);
        if self.is_ending() {
            return;
        }
        match result {
            Ok(()) => self.flushed(),
            Err(errno) => {
                // Guests don't wait for a target that fails.
                self.reopen_gate();
                self.failed(Kind::Flush, Side::Target, ByteRange::default(), errno);
            }
        }
    }

    fn flushed(&mut self) {
        if self.status == Status::Running && !self.pauses.any() {
            self.become_ready();
        }
        if let Finish::Flushing { goal } = self.finish {
            if self.is_clean() {
                self.decide(goal);
            } else {
                // Marked by hand, with the gate closed.
                self.finish = Finish::Closed { goal };
            }
        }
    }

    fn become_ready(&mut self) {
        self.settle_synced();
        self.become_status(Status::Ready);
        self.ready = true;
        self.events.push(Event::Ready);
        if self.settings.options.auto_complete && self.finish == Finish::Off {
            self.finish = self.finish.with_goal(Goal::Pivot, self.scan.passes());
        }
    }

    /// Source and target are equal, and stay so, if every write is carried. The flag is raised first and then
    /// checked again, because whoever marks lowers it after marking.
    fn settle_synced(&mut self) {
        let always = self.geometry.length() == 0;
        let carried = self.copy_mode == CopyMode::WriteBlocking && self.uncarried_writes_done;
        if (always || carried) && !self.tracking.is_synced() && self.is_clean() {
            self.tracking.set_synced(true);
            if self.tracking.dirty.next_dirty(0).is_some() {
                self.tracking.set_synced(false);
            }
        }
    }

    /// Dirty, planned, reserved and in flight.
    fn remaining_chunks(&self) -> u64 {
        self.tracking.dirty.dirty_chunks()
            + self.scan.planned().map(ChunkRange::len).sum::<u64>()
            + u64::from(self.ops.reservation_is_held())
            + self.ops.in_flight_bytes() / self.granularity()
    }

    fn decide(&mut self, goal: Goal) {
        self.finish = Finish::Pending { goal };
        if goal == Goal::Detach {
            // The copy is complete; what is written from now on is not part of it.
            self.order_release();
        }
        self.become_status(Status::Waiting);
        self.become_status(Status::Pending);
        if self.settings.options.auto_finalize {
            self.do_finalize();
        } else {
            self.events.push(Event::Pending);
        }
    }

    fn do_finalize(&mut self) {
        match self.finish {
            Finish::Pending { goal: Goal::Pivot } => {
                self.finish = Finish::Preparing;
                self.outbox.order(Order::Prepare);
            }
            Finish::Pending { goal: Goal::Detach } => self.conclude(),
            // Finalized twice while the hook runs.
            _ => {}
        }
    }

    fn conclude(&mut self) {
        self.finish.end();
        self.events.push(match &self.errors.result {
            Some(_) if self.errors.cancelled => Event::Cancelled,
            Some((errno, _)) => Event::Completed(Err(*errno)),
            None => Event::Completed(Ok(())),
        });
        self.become_status(Status::Concluded);
        self.outbox.order(Order::Conclude);
        if self.settings.options.auto_dismiss {
            self.become_status(Status::Null);
        }
    }

    /// Gives the job up after an internal failure: it is over, whatever it was doing (SPEC E-3). The driver answers
    /// its guests.
    pub fn poison(&mut self, message: &str) {
        if !self.status.is_over() {
            self.errors.result = Some((Errno::ENOTRECOVERABLE, message.to_owned().into()));
            self.errors.cancelled = false;
            self.finish.end();
            match self.status {
                Status::Paused => self.become_status(Status::Running),
                Status::Standby => self.become_status(Status::Ready),
                _ => {}
            }
            self.become_status(Status::Aborting);
            self.events.push(Event::Completed(Err(Errno::ENOTRECOVERABLE)));
            self.become_status(Status::Concluded);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::conflict::tests::carrying;
    use super::*;

    #[test]
    fn a_waiting_job_accepts_nothing_but_a_cancel() {
        // SPEC L-2, F-5: hosts don't see this state, so it is made here.
        let waiting = || {
            let mut engine = carrying();
            engine.become_status(Status::Ready);
            engine.become_status(Status::Waiting);
            engine
        };
        type Call = fn(&mut Engine) -> Result<()>;
        let refused: [(Verb, Call); 6] = [
            (Verb::Pause, Engine::pause),
            (Verb::SetSpeed, |engine| engine.set_speed(1)),
            (Verb::Change, |engine| engine.change(CopyMode::Background)),
            (Verb::Complete, Engine::complete_job),
            (Verb::Finalize, Engine::finalize),
            (Verb::Dismiss, Engine::dismiss),
        ];
        for (verb, call) in refused {
            let error = call(&mut waiting()).expect_err("it waits");
            let message = format!("Job 'j0' in state 'waiting' cannot accept command verb '{}'", verb.name());
            assert_eq!((error.errno(), error.message()), (Errno::EPERM, &*message));
        }
        assert_eq!(waiting().resume().expect_err("not paused").message(), "Job 'j0' is not paused");
        for (force, status) in [(true, Status::Aborting), (false, Status::Waiting)] {
            let mut engine = waiting();
            engine.cancel(force).expect("legal");
            assert_eq!(engine.status(), status);
        }
    }

    /// A job whose prepare hook is being asked.
    fn preparing() -> Engine {
        let mut engine = carrying();
        engine.become_status(Status::Ready);
        engine.complete_job().expect("ready");
        engine.decide(Goal::Pivot);
        assert_eq!(engine.outbox().orders, [Order::CarryWrites, Order::Prepare]);
        engine.outbox().orders.clear();
        engine
    }

    #[test]
    fn a_job_that_is_being_switched_can_only_be_cancelled_by_force_and_only_before_the_hook_has_answered() {
        // SPEC F-2, F-5
        let mut engine = preparing();
        let error = engine.cancel(false).expect_err("too late");
        assert_eq!(error.message(), "Job 'j0' is being switched to its target: it is too late to cancel it");
        engine.prepared(Ok(()));
        assert_eq!(engine.outbox().orders, [Order::Pivot]);
        for force in [false, true] {
            assert_eq!(engine.cancel(force).expect_err("too late").errno(), Errno::EPERM);
        }
        engine.pivoted(Ok(()));
        assert_eq!(engine.status(), Status::Null);
    }

    #[test]
    fn the_answer_of_a_hook_that_comes_after_a_forced_cancel_switches_nothing() {
        // SPEC F-2, F-5: also where the hook itself has cancelled the job.
        let mut engine = preparing();
        engine.cancel(true).expect("not switched yet");
        engine.outbox().orders.clear();
        engine.prepared(Ok(()));
        assert_eq!(engine.outbox().orders, []);
        assert_eq!(engine.status(), Status::Aborting);
        assert_eq!(engine.info().error.expect("cancelled").0, Errno::ECANCELED);
    }

    #[test]
    fn the_first_reason_to_end_is_the_one_that_counts() {
        // SPEC E-1
        let mut engine = carrying();
        engine.abort(Errno::EIO, "the first");
        engine.abort(Errno::ENOSPC, "another");
        assert_eq!(engine.info().error, Some((Errno::EIO, "the first".into())));
    }

    #[test]
    fn what_remains_is_dirty_or_planned_or_reserved_or_in_flight() {
        // SPEC F-2: it has to fit in the copy buffers.
        let mut engine = carrying();
        let chunks = |first, count| ChunkRange::new(first, first + count);
        engine.tracking.dirty.mark(chunks(0, 5));
        assert_eq!(engine.remaining_chunks(), 5);
        engine.plan_run(chunks(10, 3), &[]);
        assert_eq!(engine.remaining_chunks(), 8);
        let range = engine.geometry.bytes(chunks(20, 2));
        engine.ops.take(OpState::Read, chunks(20, 2), range).expect("room");
        assert_eq!(engine.remaining_chunks(), 10);
        engine.ops.take_reserved(chunks(30, 1)).expect("room");
        assert_eq!(engine.remaining_chunks(), 10, "it is still dirty");
        engine.ops.hold_reservation();
        assert_eq!(engine.remaining_chunks(), 11);
    }
}
