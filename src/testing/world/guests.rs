//! What guests do: requests through the filter, and requests that the host does by itself around it.

use super::super::oracle::{SECTOR, Stamp};
use super::{MAX_GUEST_REQUESTS, World, stamped, stamps};
use crate::device::{Callback, IoVec, Kind};
use crate::error::{Errno, IoResult};
use crate::filter::{Begin, GuestFlags, GuestIo};
use crate::range::ByteRange;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// A guest's request that is under way.
pub(super) struct Request {
    pub(super) kind: Kind,
    pub(super) range: ByteRange,
    /// A read's buffer, or the data of a write.
    memory: Box<[u8]>,
    /// What could be seen when a read was submitted.
    before: Vec<Vec<(Stamp, bool)>>,
    /// The number of a change.
    change: u64,
    by: By,
}

/// Who carries a request out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Filter,
    /// The host, on this disk; it has not begun.
    Host {
        ticket: u64,
        disk: usize,
    },
    /// The host has done it, and has to say so.
    HostDone {
        ticket: u64,
        result: IoResult,
    },
}

impl World {
    fn range(&mut self) -> ByteRange {
        let units = self.length.div_ceil(self.unit);
        let start = self.random.within(0, units);
        let most = self.random.pick(&[1, 2, 9, 64]);
        let count = self.random.within(1, most + 1);
        ByteRange::between(
            (start * self.unit).min(self.length),
            ((start + count) * self.unit).min(self.length),
        )
    }

    pub(super) fn guest(&mut self) {
        if self.random.one_in(3) && self.advance_host_request() {
            return;
        }
        if self.requests.len() >= MAX_GUEST_REQUESTS {
            return;
        }
        if self.random.one_in(40) {
            let range = self.range();
            self.note(|| format!("{range:?} is marked by hand"));
            self.filter.mark_dirty(range).expect("on the disk");
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
        if self.host_io && kind != Kind::Flush && self.random.one_in(2) {
            self.begin_host_request(kind, range);
            return;
        }
        let flags = GuestFlags {
            fua: self.random.one_in(8),
            may_unmap: self.random.one_in(2),
            stable: self.random.one_in(3),
        };
        self.submit(kind, range, flags);
    }

    /// Makes a request known to the oracle and to whoever watches.
    fn announce(&mut self, kind: Kind, range: ByteRange, by: By) -> u64 {
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
        self.outcome.guest_requests += 1;
        self.requests.insert(id, Request { kind, range, memory, before, change, by });
        id
    }

    pub(super) fn submit(&mut self, kind: Kind, range: ByteRange, flags: GuestFlags) {
        let id = self.announce(kind, range, By::Filter);
        self.note(|| format!("guest {id}: {} {range:?} {flags:?}", kind.name()));
        let memory = self.requests.get_mut(&id).map_or(&mut [][..], |request| &mut request.memory);
        // SAFETY: the box stays in `requests`, unmoved on the heap, until the request is done; nothing else touches it.
        let iov = [unsafe { IoVec::new(memory.as_mut_ptr().cast(), memory.len()) }];
        let iov: &[IoVec] = if memory.is_empty() { &[] } else { &iov };
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

    pub(super) fn take_done(&mut self) -> Result<(), String> {
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

    /// Whether a change of a guest's touches this range at this moment.
    pub(super) fn is_being_changed(&self, range: ByteRange) -> bool {
        self.requests.values().any(|request| request.kind.changes_data() && request.range.overlaps(range))
    }

    // Requests that the host does by itself (SPEC G-8).

    /// From its first `begin` on the filter knows that there is such a host.
    pub(super) fn become_host(&mut self) {
        let opened = Arc::clone(&self.opened);
        self.filter.set_opened_hook(Some(Box::new(move || opened.store(true, Ordering::SeqCst))));
        match self.filter.begin(Kind::Read, ByteRange::default()) {
            Ok(Begin::Go(ticket)) => self.filter.end(ticket, Ok(())).expect("just begun"),
            other => unreachable!("nothing is in the way of a first begin: {other:?}"),
        }
    }

    fn begin_host_request(&mut self, kind: Kind, range: ByteRange) {
        let begun = self.filter.begin(kind, range).expect("no writes are carried");
        let Begin::Go(ticket) = begun else {
            self.note(|| format!("the host's {} {range:?} is turned away", kind.name()));
            self.take_opened();
            self.turned_away = true;
            return;
        };
        let device = self.filter.device();
        let disk = self.disks.iter().position(|disk| disk.device().is_same_storage(&device));
        let disk = disk.expect("the filter sits on a disk of this world");
        let id = self.announce(kind, range, By::Host { ticket, disk });
        self.note(|| format!("host {id}: {} {range:?} on disk {disk}", kind.name()));
    }

    /// Carries a host's request out, or says that it is done. Whether there was one.
    pub(super) fn advance_host_request(&mut self) -> bool {
        let waiting: Vec<u64> =
            self.requests.iter().filter(|(_, request)| request.by != By::Filter).map(|(id, _)| *id).collect();
        if waiting.is_empty() {
            return false;
        }
        let id = self.random.pick(&waiting);
        let Some(request) = self.requests.get_mut(&id) else { return false };
        match request.by {
            By::Filter => return false,
            By::Host { ticket, disk } => {
                let fails = self.faulty && self.random.one_in(8);
                let happens = !fails || self.random.one_in(2);
                let layer = self.disks[disk].layer();
                match request.kind {
                    _ if !happens => {}
                    Kind::Write => layer.write(request.range.offset(), &request.memory),
                    Kind::Zero => layer.zero(request.range, true),
                    Kind::Discard => layer.discard(request.range, self.random.one_in(2)),
                    _ => request.memory.copy_from_slice(&layer.read(request.range)),
                }
                request.by = By::HostDone { ticket, result: if fails { Err(Errno::EIO) } else { Ok(()) } };
                self.note(|| format!("host {id} is carried out: {happens}"));
            }
            By::HostDone { ticket, result } => {
                self.filter.end(ticket, result).expect("begun and not ended");
                self.done.lock().unwrap_or_else(PoisonError::into_inner).push((id, result));
            }
        }
        true
    }
}
