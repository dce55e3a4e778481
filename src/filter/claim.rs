//! What a job does with a filter that it has claimed. One job at a time, from its driver.

use super::carried::Carrier;
use super::core::Core;
use super::waiting::host_io_while_carrying;
use crate::bitmap::Tracking;
use crate::device::Device;
use crate::error::{Errno, Error, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A job's hold on a filter: until it is dropped no other job marks, closes or switches it.
///
/// Everything that a job is to know of a filter is read under its claim. What was read before may be out of date:
/// another job may have switched the filter meanwhile.
pub(crate) struct Claim {
    core: Arc<Core>,
}

impl Claim {
    /// `None` if another job has the filter.
    pub(crate) fn take(core: &Arc<Core>) -> Option<Self> {
        let free = !core.has_job.swap(true, Ordering::SeqCst);
        free.then(|| Self { core: Arc::clone(core) })
    }

    /// Another job may have the filter. The host may be called when what is returned is dropped: it may be the last that
    /// keeps the filter's device open.
    pub(crate) fn release(self) -> Arc<Core> {
        Arc::clone(&self.core)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.core.has_job.store(false, Ordering::SeqCst);
    }
}

/// What a job hangs into a filter.
pub(crate) struct Hooks {
    /// Where guest writes are marked; `None` where the job only waits for the filter to drain.
    pub(crate) tracking: Option<Arc<Tracking>>,
    pub(crate) carrier: Arc<dyn Carrier>,
}

/// What a filter has seen since it was made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    /// Guest writes, zeroes and discards that have ended, well or not.
    pub(crate) writes: u64,
    /// Copies of guest data that were made on the way.
    pub(crate) bounce_copies: u64,
}

impl Core {
    /// `EOPNOTSUPP` if the host does requests by itself: their data could not be carried.
    pub(crate) fn check_may_carry(&self) -> Result<()> {
        if self.has_host_io.load(Ordering::SeqCst) { Err(host_io_while_carrying()) } else { Ok(()) }
    }

    /// From now on the job is told of what happens here.
    pub(crate) fn hook(&self, hooks: Hooks) {
        self.hang_with(Some(Arc::new(hooks)));
    }

    /// Nothing is marked or carried any more; waiting requests go on.
    pub(crate) fn unhook(&self) {
        self.hang_with(None);
        self.gate.set_carry(false);
        self.open_gate();
    }

    /// What was seen so far.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic { writes: self.slots.changes(), bounce_copies: self.bounce.copies() }
    }

    /// More than the number of any request of a guest's so far.
    pub(crate) fn slots_made(&self) -> usize {
        self.slots.made()
    }

    pub(crate) fn set_carry(&self, carry: bool) {
        self.gate.set_carry(carry);
    }

    pub(crate) fn close_gate(&self) {
        self.gate.close();
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.gate.is_closed() && self.gate.is_drained()
    }

    pub(crate) fn uncarried_writes_done(&self) -> bool {
        self.gate.uncarried_writes_done()
    }

    /// Switches to another device. On an error nothing has changed: `EBUSY` unless the gate is closed and no request
    /// runs, or if the device has too many users.
    ///
    /// Somebody may be inside though the filter has drained: a host that marks by hand. It sends nothing to the device.
    pub(crate) fn pivot(&self, target: &Device) -> Result<()> {
        if !(self.gate.is_closed() && self.gate.has_no_requests()) {
            return Err(Error::new(Errno::EBUSY, "the filter can't be switched while requests are running"));
        }
        let Some(me) = self.me.upgrade() else { return Err(Errno::ENODEV.into()) };
        let attached = me.attach_to(target)?;
        self.switch_to(Some(attached));
        Ok(())
    }

    /// Offers again what the device had no room for.
    pub(crate) fn kick(&self) {
        self.retry_held_back();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::filter::Filter;

    #[test]
    fn a_filter_is_not_switched_while_requests_may_run() {
        let (old, new) = (Device::memory(4096).expect("a device"), Device::memory(4096).expect("a device"));
        let filter = Filter::new(&old).expect("a seat");
        let core = filter.core();
        assert_eq!(core.pivot(&new).expect_err("the gate is open").errno(), Errno::EBUSY);
        let ticket = match filter.begin(crate::device::Kind::Write, crate::range::ByteRange::between(0, 512))
        {
            Ok(crate::filter::Begin::Go(ticket)) => ticket,
            other => panic!("the gate is open, and begin says {other:?}"),
        };
        core.close_gate();
        assert_eq!(core.pivot(&new).expect_err("a request runs").errno(), Errno::EBUSY);
        assert!(filter.device().is_same_storage(&old));
        filter.end(ticket, Ok(())).expect("it runs");
        core.pivot(&new).expect("drained");
        assert!(filter.device().is_same_storage(&new));
    }

    #[test]
    fn a_host_that_marks_by_hand_does_not_keep_a_drained_filter_from_being_switched() {
        // SPEC F-2, G-8
        let (old, new) = (Device::memory(4096).expect("a device"), Device::memory(4096).expect("a device"));
        let filter = Filter::new(&old).expect("a seat");
        let core = filter.core();
        core.close_gate();
        assert!(core.is_drained());
        let marking = core.gate.step_in(3);
        core.pivot(&new).expect("no request runs");
        core.see(core.gate.step_out(marking));
        core.open_gate();
        filter.write_at(0, &[1; 512]).expect("it is open");
        assert!(filter.device().is_same_storage(&new));
    }
}
