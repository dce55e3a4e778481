//! A filter with guests of its own; what they may read, and how that changes when a job replaces their disk.

use super::super::oracle::Oracle;
use super::verdict::Broken;
use super::{World, stamps};
use crate::device::Kind;
use crate::filter::{Begin, Filter};
use crate::range::ByteRange;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub(super) struct Front {
    pub(super) filter: Filter,
    /// The disk that it sits on.
    pub(super) source: usize,
    pub(super) oracle: Oracle,
    /// The host does some requests by itself, between `begin` and `end`.
    pub(super) host_io: bool,
    /// A `begin` was turned away and has not been told to try again.
    pub(super) turned_away: bool,
    opened: Arc<AtomicBool>,
}

/// What the prepare hook saw of a disk that another filter's guests will get.
pub(super) struct Switch {
    bytes: Vec<u8>,
    /// Requests that were done and not looked at by then.
    done_before: usize,
}

/// Filled in by the prepare hook.
pub(super) type Switched = Arc<Mutex<Option<Switch>>>;

impl Switch {
    pub(super) fn new(bytes: Vec<u8>, done_before: usize) -> Self {
        Self { bytes, done_before }
    }
}

impl Front {
    pub(super) fn new(filter: Filter, source: usize, oracle: Oracle, host_io: bool) -> Self {
        let front = Self { filter, source, oracle, host_io, turned_away: false, opened: Arc::default() };
        if host_io {
            front.become_host();
        }
        front
    }

    /// From its first `begin` on the filter knows that there is such a host.
    fn become_host(&self) {
        let opened = Arc::clone(&self.opened);
        self.filter.set_opened_hook(Some(Box::new(move || opened.store(true, Ordering::SeqCst))));
        match self.filter.begin(Kind::Read, ByteRange::default()) {
            Ok(Begin::Go(ticket)) => self.filter.end(ticket, Ok(())).expect("just begun"),
            other => unreachable!("nothing is in the way of a first begin: {other:?}"),
        }
    }

    /// Whether the gate has been opened for a `begin` that was turned away.
    pub(super) fn take_opened(&mut self) {
        if self.opened.swap(false, Ordering::SeqCst) {
            self.turned_away = false;
        }
    }
}

impl World {
    /// If the running job has just switched another filter than its own: how many of the requests that are done were so
    /// before that.
    pub(super) fn done_before_switch(&mut self) -> Option<usize> {
        let running = self.running.as_ref()?;
        let front = &self.fronts[running.replaces?];
        let mut switch = running.switched.lock().unwrap_or_else(PoisonError::into_inner);
        let switch = switch.as_mut()?;
        if front.filter.device().is_same_storage(self.disks[running.target].device()) {
            return Some(switch.done_before);
        }
        // All that is done was done on the old disk.
        switch.done_before = 0;
        None
    }

    /// The guests of the filter that was replaced have another disk from now on. None of their requests ran when it
    /// was switched: what had not ended waited, and goes to the new disk (SPEC F-2, F-3).
    ///
    /// Only where whoever brought the last completion drove the job as well can a request have ended before and be
    /// told after; there either disk may be what it saw.
    pub(super) fn take_over(&mut self) -> Result<(), Broken> {
        let Some(running) = &self.running else { return Ok(()) };
        let (Some(index), certain) = (running.replaces, !running.inline) else { return Ok(()) };
        let switch = running.switched.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Switch { bytes, .. }) = switch else { return Ok(()) };
        let target = running.target;
        let front = &mut self.fronts[index];
        front.source = target;
        let old = std::mem::replace(&mut front.oracle, Oracle::new(&stamps(&bytes)?, self.length));
        let mut waiting: Vec<_> =
            self.requests.values_mut().filter(|request| request.front == index).collect();
        for request in waiting.iter_mut().filter(|request| request.kind.changes_data()) {
            request.change = front.oracle.submit(request.range, request.stamp, request.is_wild());
            request.certain = certain;
        }
        for request in waiting.iter_mut().filter(|request| request.kind == Kind::Read) {
            let mut now = front.oracle.snapshot(request.range);
            if !certain {
                let sectors =
                    old.snapshot(request.range).into_iter().zip(std::mem::take(&mut request.before));
                for (sector, (then, before)) in now.iter_mut().zip(sectors) {
                    sector.extend(then.into_iter().chain(before));
                }
            }
            request.before = now;
        }
        self.note(|| format!("front {index} is on disk {target}"));
        Ok(())
    }
}
