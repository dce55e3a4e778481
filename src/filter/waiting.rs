//! The gate from a request's side: those that wait there, and those that the host does by itself.

use super::core::Core;
use super::gate::{Counted, Entry};
use super::slots::Path;
use super::{Begin, lock, shard, too_many};
use crate::device::{Kind, Token};
use crate::error::{Errno, Error, IoResult, Result, contain};
use crate::range::{ByteRange, check_bounds};
use std::sync::atomic::Ordering;

impl Core {
    pub(super) fn begin(&self, kind: Kind, range: ByteRange) -> Result<Begin> {
        check_bounds(range, self.length.load(Ordering::Acquire))?;
        let shard = shard();
        let counted = loop {
            match self.gate.enter(shard, kind.changes_data()) {
                Entry::Pass(counted, inside) => {
                    self.see(self.gate.step_out(inside));
                    break counted;
                }
                Entry::Crowded => return Err(too_many()),
                Entry::Closed if self.will_say_when_open() => return Ok(Begin::Again),
                // It was opened in between.
                Entry::Closed => {}
                Entry::Carry(inside) => {
                    self.see(self.gate.exit_and_step_out(inside, Counted::Other));
                    return Err(host_io_while_carrying());
                }
            }
        };
        self.has_host_io.store(true, Ordering::SeqCst);
        let index = self.slots.take(shard).inspect_err(|_| self.see(self.gate.exit(shard, counted)))?;
        // SAFETY: just taken.
        let guest = unsafe { self.slots.owned(index) };
        (guest.kind, guest.range, guest.path, guest.shard) = (kind, range, Path::Host(counted), shard as u8);
        let generation = self.slots.get(index).map_or(0, |slot| slot.ticket.open());
        Ok(Begin::Go(Token::new(0, index, generation).raw()))
    }

    /// Has the opened hook called when the gate opens; `false` if it is open. Whoever opens it does so under the same lock
    /// and looks afterwards.
    fn will_say_when_open(&self) -> bool {
        let _waiting = lock(&self.waiting);
        let closed = self.gate.is_closed();
        if closed {
            self.begin_waits.store(true, Ordering::SeqCst);
        }
        closed
    }

    pub(super) fn end(&self, ticket: u64, result: IoResult) -> Result<()> {
        let token = Token::from_raw(ticket);
        let claimed = token.client() == 0
            && self.slots.get(token.slot()).is_some_and(|slot| slot.ticket.claim(token.generation()));
        if !claimed {
            return Err(Error::new(
                Errno::ENOENT,
                format!("ticket {ticket:#x}: no request with this ticket is running"),
            ));
        }
        self.finish(token.slot(), result).run();
        Ok(())
    }

    /// No handle is left that a ticket could be ended with.
    pub(super) fn end_tickets(&self) {
        for (index, slot) in self.slots.all() {
            if slot.ticket.claim_any() {
                self.finish(index, Err(Errno::ECANCELED)).run();
            }
        }
    }

    /// Queues a request that came to a closed gate. If it was opened meanwhile the request tries again like any other:
    /// it must not slip through should the gate be closed, and drained, once more.
    pub(super) fn wait_at_gate(&self, index: u16) {
        // SAFETY: the caller owns the slot, until it is in the queue.
        let guest = unsafe { self.slots.owned(index) };
        let (shard, changes_data) = (usize::from(guest.shard), guest.kind.changes_data());
        loop {
            {
                let mut waiting = lock(&self.waiting);
                if self.gate.is_closed() {
                    waiting.push_back(index);
                    return;
                }
            }
            let entry = self.gate.enter(shard, changes_data);
            match entry {
                Entry::Closed => {}
                Entry::Crowded => std::thread::yield_now(),
                Entry::Pass(..) | Entry::Carry(_) => {
                    self.go_on(index, entry);
                    return;
                }
            }
        }
    }

    /// Lets a request in that waited, by whoever is opening the gate and still keeps it closed for others.
    fn let_in(&self, index: u16) {
        // SAFETY: a waiting slot is owned by whoever takes it from the queue.
        let guest = unsafe { self.slots.owned(index) };
        let entry = self.gate.enter_first(usize::from(guest.shard), guest.kind.changes_data());
        self.go_on(index, entry);
    }

    /// A request that had to wait is in.
    fn go_on(&self, index: u16, entry: Entry) {
        // SAFETY: the caller owns the slot.
        let guest = unsafe { self.slots.owned(index) };
        match entry {
            Entry::Pass(counted, inside) => {
                self.see(self.gate.step_out(inside));
                guest.path = Path::Stepped(counted);
                self.send_stepped(index);
            }
            Entry::Carry(inside) => {
                guest.path = Path::Carried;
                self.carry(index, inside);
            }
            Entry::Closed | Entry::Crowded => debug_assert!(false, "it is in"),
        }
    }

    /// Opens the gate, after those that wait there have gone through it in order.
    pub(crate) fn open_gate(&self) {
        if !self.gate.is_closed() || self.abandoned.load(Ordering::SeqCst) && lock(&self.waiting).is_empty() {
            return;
        }
        loop {
            let mut waiting = lock(&self.waiting);
            let Some(index) = waiting.pop_front() else {
                if !self.abandoned.load(Ordering::SeqCst) {
                    self.gate.open();
                    // Whose last handle went just now closed it for good.
                    if self.abandoned.load(Ordering::SeqCst) {
                        self.gate.close();
                    }
                }
                break;
            };
            drop(waiting);
            self.let_in(index);
        }
        if self.begin_waits.swap(false, Ordering::SeqCst) {
            let hook = lock(&self.opened).clone();
            if let Some(hook) = hook {
                let _ = contain("an opened hook", || hook());
            }
        }
    }
}

pub(super) fn host_io_while_carrying() -> Error {
    Error::new(
        Errno::EOPNOTSUPP,
        "write-blocking mode needs the data of each write, which begin/end don't give: use the filter's own read and \
         write, or background mode",
    )
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::filter::Filter;
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use std::sync::{Arc, Condvar, Mutex};
    use std::time::Duration;

    #[test]
    fn a_begin_that_is_turned_away_is_always_told_when_to_try_again() {
        // API: `begin`. The worst moment is the one in which the gate opens.
        let filter = Filter::new(&Device::memory(4096).expect("a device")).expect("a seat");
        let opened = Arc::new((Mutex::new(0u64), Condvar::new()));
        let tell = Arc::clone(&opened);
        filter.set_opened_hook(Some(Box::new(move || {
            *lock(&tell.0) += 1;
            tell.1.notify_all();
        })));
        let (stop, turned_away) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let try_again = || {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let before = *lock(&opened.0);
                        match filter.begin(Kind::Write, ByteRange::between(0, 512)).expect("in range") {
                            Begin::Go(ticket) => filter.end(ticket, Ok(())).expect("it runs"),
                            Begin::Again => {
                                turned_away.fetch_add(1, Ordering::Relaxed);
                                let wait = opened.1.wait_timeout_while(
                                    lock(&opened.0),
                                    Duration::from_secs(20),
                                    |count| *count == before,
                                );
                                assert!(!wait.expect("no panic").1.timed_out(), "never told");
                            }
                        }
                    }
                })
            };
            let hosts = [try_again(), try_again()];
            while turned_away.load(Ordering::Relaxed) < 5_000
                && !hosts.iter().any(std::thread::ScopedJoinHandle::is_finished)
            {
                filter.core().close_gate();
                filter.core().open_gate();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
