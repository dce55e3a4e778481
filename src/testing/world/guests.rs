//! What guests do: requests through the filter, and requests that the host does by itself around it.

use super::super::faults::Fault;
use super::super::oracle::{SECTOR, Stamp};
use super::verdict::{Broken, broken};
use super::{World, stamped, stamps};
use crate::device::{Callback, IoVec, Kind};
use crate::error::{Errno, IoResult};
use crate::filter::{Begin, GuestFlags, GuestIo};
use crate::range::ByteRange;
use std::sync::{Arc, PoisonError};

/// Somebody who has so many requests at a time; with one, they are in the order of the program.
#[derive(Clone, Copy)]
pub(super) struct Guest {
    pub(super) front: usize,
    pub(super) depth: usize,
}

/// A guest's request that is under way.
pub(super) struct Request {
    /// Whose filter it goes through.
    pub(super) front: usize,
    guest: usize,
    pub(super) kind: Kind,
    pub(super) range: ByteRange,
    /// A read's buffer, or the data of a write.
    memory: Memory,
    /// What could be seen when a read was submitted.
    pub(super) before: Vec<Vec<(Stamp, bool)>>,
    /// What a change leaves.
    pub(super) stamp: Stamp,
    /// The number of a change.
    pub(super) change: u64,
    /// Where a change took place, if it did.
    pub(super) certain: bool,
    /// It began when its filter had no job: nobody carries it.
    before_jobs: bool,
    by: By,
}

impl Request {
    /// What a discarded range reads as is nobody's promise.
    pub(super) fn is_wild(&self) -> bool {
        self.kind == Kind::Discard
    }
}

/// Memory that lies as far from a page's beginning as was drawn, so that it does in every run of the seed.
#[derive(Default)]
struct Memory {
    block: Box<[u8]>,
    from: usize,
    length: usize,
}

const PAGE: usize = 4096;

impl Memory {
    fn new(length: usize, skew: usize) -> Self {
        let block = vec![0; length + PAGE + skew].into_boxed_slice();
        let from = block.as_ptr().align_offset(PAGE) + skew;
        Self { block, from, length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.block[self.from..self.from + self.length]
    }
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
    pub(super) fn range(&mut self) -> ByteRange {
        let start = self.window.0 + self.random.within(0, self.window.1);
        let most = self.random.pick(&[1, 2, 9, 64]);
        let count = self.random.within(1, most + 1);
        ByteRange::between(
            (start * self.unit).min(self.length),
            ((start + count) * self.unit).min(self.length),
        )
    }

    /// Where guests are busy from now on. Were that everywhere, every chunk would soon have been written, and what was
    /// wrong with it would be right again.
    pub(super) fn draw_window(&mut self) {
        let units = self.length.div_ceil(self.unit);
        self.window = if self.random.one_in(2) {
            (0, units)
        } else {
            let start = self.random.within(0, units);
            (start, self.random.within(1, units / 4 + 2).min(units.saturating_sub(start)))
        };
    }

    pub(super) fn guest(&mut self) {
        if self.random.one_in(3) && self.advance_host_request() {
            return;
        }
        let guest = self.random.within(0, self.guests.len() as u64) as usize;
        let Guest { front, depth } = self.guests[guest];
        if self.requests.values().filter(|request| request.guest == guest).count() >= depth {
            return;
        }
        if self.random.one_in(40) {
            let range = self.range();
            self.note(|| format!("{range:?} of front {front} is marked by hand"));
            self.fronts[front].filter.mark_dirty(range).expect("on the disk");
            return;
        }
        let kind = match self.random.within(0, 20) {
            0..9 => Kind::Write,
            9..13 => Kind::Zero,
            13..14 => Kind::Discard,
            14..19 => Kind::Read,
            _ => Kind::Flush,
        };
        let range = if kind == Kind::Flush { ByteRange::default() } else { self.range() };
        if self.fronts[front].host_io && kind != Kind::Flush && self.random.one_in(2) {
            self.begin_host_request(guest, kind, range);
            return;
        }
        let flags = GuestFlags {
            fua: self.random.one_in(8),
            may_unmap: self.random.one_in(2),
            stable: self.random.one_in(3),
        };
        self.submit((guest, front), kind, range, flags);
    }

    /// Makes a request known to the oracle and to whoever watches.
    fn announce(&mut self, (guest, front): (usize, usize), kind: Kind, range: ByteRange, by: By) -> u64 {
        let id = self.next_request;
        self.next_request += 1;
        let skew = self.random.pick(&[0, 0, 1, 8, 512]);
        let mut request = Request {
            front,
            guest,
            kind,
            range,
            memory: Memory::default(),
            before: Vec::new(),
            stamp: 0,
            change: 0,
            certain: true,
            before_jobs: self.running.as_ref().is_none_or(|running| running.front != front),
            by,
        };
        let oracle = &mut self.fronts[front].oracle;
        if matches!(kind, Kind::Read | Kind::Write) {
            request.memory = Memory::new(range.len() as usize, skew);
        }
        if kind == Kind::Write {
            self.stamps += 1;
            request.stamp = self.stamps;
            request.memory.bytes().copy_from_slice(&stamped(range, self.stamps));
        }
        if kind == Kind::Read {
            request.memory.bytes().fill(0x55);
            request.before = oracle.snapshot(range);
        }
        if kind.changes_data() {
            request.change = oracle.submit(range, request.stamp, request.is_wild());
            self.may_be_seen(front, range, request.stamp, request.is_wild());
        }
        self.outcome.guest_requests += 1;
        self.requests.insert(id, request);
        id
    }

    pub(super) fn submit(
        &mut self,
        (guest, front): (usize, usize),
        kind: Kind,
        range: ByteRange,
        flags: GuestFlags,
    ) {
        let id = self.announce((guest, front), kind, range, By::Filter);
        self.note(|| format!("guest {guest} of front {front}: {id}: {} {range:?} {flags:?}", kind.name()));
        let pieces = self.random.pick(&[1, 1, 2, 3]);
        let cut = self.random.draw();
        let memory = self.requests.get_mut(&id).map_or(&mut [][..], |request| request.memory.bytes());
        let iov = in_pieces(memory, pieces, cut);
        let done = Arc::clone(&self.done);
        let callback = Callback::from_closure(move |result| {
            done.lock().unwrap_or_else(PoisonError::into_inner).push((id, result));
        });
        let io = GuestIo { kind, range, flags, iov: &iov };
        if let Err(error) = self.fronts[front].filter.submit(&io, callback) {
            unreachable!("a legal guest request is refused: {error}");
        }
    }

    /// A change that is submitted while a read runs, or a copy is made, may be part of what it finds, even if another
    /// replaces it before that ends.
    fn may_be_seen(&mut self, front: usize, range: ByteRange, stamp: Stamp, wild: bool) {
        let reads = self.requests.values_mut().filter(|request| request.kind == Kind::Read);
        let reads = reads.filter(|request| request.front == front);
        let mut observers: Vec<_> = reads.map(|request| (request.range, &mut request.before)).collect();
        let running = self.running.as_mut().filter(|running| running.front == front);
        if let Some(before) = running.and_then(|running| running.cancelled_at.as_mut()) {
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

    pub(super) fn take_done(&mut self) -> Result<(), Broken> {
        let before = self.done_before_switch();
        let done = std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner));
        let (old, new) = done.split_at(before.unwrap_or(0).min(done.len()));
        for (id, result) in old {
            self.finish(*id, *result)?;
        }
        if before.is_some() {
            self.take_over()?;
        }
        for (id, result) in new {
            self.finish(*id, *result)?;
        }
        Ok(())
    }

    fn finish(&mut self, id: u64, result: IoResult) -> Result<(), Broken> {
        self.note(|| format!("guest request {id} done: {result:?}"));
        let Some(mut request) = self.requests.remove(&id) else {
            return broken("G-9", format!("request {id} is done twice"));
        };
        if request.kind.changes_data() && !request.range.is_empty() {
            self.remember(request.range.offset());
            self.remember(request.range.end() - 1);
        }
        let oracle = &mut self.fronts[request.front].oracle;
        if request.kind.changes_data() {
            oracle.done(request.range, request.change, result.is_ok() && request.certain);
        } else if request.kind == Kind::Read && result.is_ok() {
            let found = stamps(request.memory.bytes())?;
            if let Err(wrong) = oracle.check(request.range, &request.before, &found) {
                return broken("oracle a", format!("request {id}: {wrong}"));
            }
        }
        Ok(())
    }

    fn remember(&mut self, byte: u64) {
        self.places.rotate_right(1);
        self.places[0] = byte;
    }

    /// Whether a change by guests of the running job touches this range at this moment.
    pub(super) fn is_being_changed(&self, front: usize, range: ByteRange) -> bool {
        let mut changes = self.requests.values().filter(|request| request.kind.changes_data());
        changes.any(|request| request.front == front && request.range.overlaps(range))
    }

    /// Whether a change that no job knows of is still under way.
    pub(super) fn is_being_changed_as_before(&self, front: usize) -> bool {
        let mut changes = self.requests.values().filter(|request| request.kind.changes_data());
        changes.any(|request| request.front == front && request.before_jobs && !request.range.is_empty())
    }

    // Requests that the host does by itself (SPEC G-8).

    fn begin_host_request(&mut self, guest: usize, kind: Kind, range: ByteRange) {
        let index = self.guests[guest].front;
        let front = &mut self.fronts[index];
        let begun = front.filter.begin(kind, range).expect("no writes are carried");
        let Begin::Go(ticket) = begun else {
            front.take_opened();
            front.turned_away = true;
            self.note(|| format!("the host's {} {range:?} is turned away", kind.name()));
            return;
        };
        let device = front.filter.device();
        let disk = self.disks.iter().position(|disk| disk.device().is_same_storage(&device));
        let disk = disk.expect("the filter sits on a disk of this world");
        let id = self.announce((guest, index), kind, range, By::Host { ticket, disk });
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
                    Kind::Write => layer.write(request.range.offset(), request.memory.bytes()),
                    Kind::Zero => layer.zero(request.range, true),
                    Kind::Discard => layer.discard(request.range, self.random.one_in(2)),
                    _ => request.memory.bytes().copy_from_slice(&layer.read(request.range)),
                }
                request.by = By::HostDone { ticket, result: if fails { Err(Errno::EIO) } else { Ok(()) } };
                self.note(|| format!("host {id} is carried out: {happens}"));
                if fails {
                    self.count_fault(Fault::Host);
                }
            }
            By::HostDone { ticket, result } => {
                let front = request.front;
                self.fronts[front].filter.end(ticket, result).expect("begun and not ended");
                self.done.lock().unwrap_or_else(PoisonError::into_inner).push((id, result));
            }
        }
        true
    }
}

/// These bytes as buffers: so many, cut somewhere.
fn in_pieces(memory: &mut [u8], pieces: u64, cut: u64) -> Vec<IoVec> {
    let (base, length) = (memory.as_mut_ptr(), memory.len());
    let mut ends: Vec<usize> = (1..pieces).map(|piece| (cut >> piece) as usize % length.max(1)).collect();
    ends.push(length);
    ends.sort_unstable();
    let mut from = 0;
    let mut iov = Vec::new();
    for end in ends {
        if end > from {
            // SAFETY: the piece lies in the memory, which stays in `requests`, unmoved on the heap, until the request is
            // done; nothing else touches it.
            iov.push(unsafe { IoVec::new(base.add(from).cast(), end - from) });
            from = end;
        }
    }
    iov
}
