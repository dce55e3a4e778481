//! What a failure leads to (SPEC section 8).

use super::event::{Action, Event, Failure};
use super::options::{ErrorPolicy, JobKind};
use super::outbox::{Order, Side};
use super::progress::IoStatus;
use super::{Engine, Kind, Status};
use crate::error::Errno;
use crate::range::ByteRange;
use std::borrow::Cow;

#[derive(Debug, Default)]
pub(super) struct Errors {
    pub(super) io_status: IoStatus,
    /// Why the job ends without success.
    pub(super) result: Option<(Errno, Cow<'static, str>)>,
    /// It ends because somebody cancelled it.
    pub(super) cancelled: bool,
    pub(super) count: u64,
    /// The pass in which something failed last.
    pub(super) last_pass: u64,
}

impl ErrorPolicy {
    fn action(self, errno: Errno) -> Action {
        match self {
            Self::Report => Action::Report,
            Self::Ignore => Action::Ignore,
            Self::Stop => Action::Stop,
            Self::Enospc | Self::Auto if errno == Errno::ENOSPC => Action::Stop,
            Self::Enospc | Self::Auto => Action::Report,
        }
    }
}

impl Engine {
    /// A request failed, and what it was for is marked dirty already: tells, and acts by the policy (SPEC E-1).
    pub(super) fn failed(&mut self, operation: Kind, side: Side, range: ByteRange, errno: Errno) {
        let policy = match side {
            Side::Source => self.settings.options.on_source_error,
            Side::Target => self.settings.options.on_target_error,
        };
        self.act_on_failure(Failure { operation, side, range, errno, action: policy.action(errno) });
    }

    /// The extents of a range can't be had: it counts as data (SPEC C-3).
    pub(super) fn note_failed_extents(&mut self, range: ByteRange, errno: Errno) {
        let failure =
            Failure { operation: Kind::Extents, side: Side::Source, range, errno, action: Action::Ignore };
        self.tell_failure(&failure);
    }

    pub(super) fn act_on_failure(&mut self, failure: Failure) {
        self.tracking.set_synced(false);
        self.errors.last_pass = self.scan.passes();
        self.tell_failure(&failure);
        match failure.action {
            Action::Ignore => {
                self.scan.hold(self.now);
                // Guests don't wait for a target that fails.
                self.reopen_gate();
            }
            Action::Stop => self.stop_by_error(failure.errno),
            Action::Report => {
                let message = self.describe(&failure);
                self.abort(failure.errno, message);
            }
        }
    }

    fn tell_failure(&mut self, failure: &Failure) {
        self.errors.count += 1;
        self.events.push(Event::Error(*failure));
        // Whoever drains the outbox logs it: here a lock may be held, and a host's log sink may call the library.
        self.outbox.messages.push(self.describe(failure));
    }

    /// Names job, operation, place, length and errno (SPEC E-2).
    fn describe(&self, failure: &Failure) -> String {
        format!(
            "Job '{}': {} of the {} at offset {} length {} failed: {}",
            self.id,
            failure.operation.name(),
            failure.side.name(),
            failure.range.offset(),
            failure.range.len(),
            failure.errno
        )
    }

    fn stop_by_error(&mut self, errno: Errno) {
        if self.errors.io_status == IoStatus::Ok {
            self.errors.io_status = if errno == Errno::ENOSPC { IoStatus::NoSpace } else { IoStatus::Failed };
        }
        if !self.pauses.user && !self.pauses.error {
            self.pauses.error = true;
            self.hold_back();
        }
    }

    /// Ends the job without success: nothing more is started, guests pass through at once (SPEC G-7), and it
    /// concludes when nothing is in flight. The first reason is the one that counts.
    pub(super) fn abort(&mut self, errno: Errno, message: impl Into<Cow<'static, str>>) {
        if self.status.is_over() || self.status == Status::Aborting {
            return;
        }
        self.errors.result = Some((errno, message.into()));
        match self.status {
            Status::Paused => self.become_status(Status::Running),
            Status::Standby => self.become_status(Status::Ready),
            _ => {}
        }
        (self.pauses.user, self.pauses.error) = (false, false);
        self.become_status(Status::Aborting);
        self.finish.end();
        self.unplan_all();
        self.order_release();
        self.let_guests_go();
    }

    /// Ends the job because somebody wants it to.
    pub(super) fn abort_cancelled(&mut self) {
        self.errors.cancelled = true;
        let message = format!("Job '{}' was cancelled", self.id);
        self.abort(Errno::ECANCELED, message);
        if self.settings.options.kind == JobKind::Mirror {
            self.outbox.order(Order::CancelTarget);
        }
    }
}
