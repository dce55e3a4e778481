//! Guest writes that are carried to the target before the guest sees them done (SPEC G-3 to G-5).
//!
//! A request waits for its chunks (`conflict`), then goes to the source and, as far as it is carried, to the target
//! at the same time. What is not carried is marked dirty when the source is done: a write that was accepted in
//! background mode, edges that are dirty anyway, and what the target can't take at that alignment.
//!
//! # The worst that can happen
//! - A guest writes to the same chunk in background mode, having entered the filter before writes were carried. It marks
//!   the chunk when it is done; the carried write cleared the bits before it began, so that mark stays.
//! - The source fails half-way and the target succeeds: the sides differ and nothing would be marked. All of it is, rounded
//!   out (SPEC G-5).
//! - An edge of the write lies in a dirty chunk: the copy to come reads all of it. Carried, the edge could land on the
//!   target before the copy's older data. It is not carried, and the chunk stays dirty (SPEC G-4).
//! - The job ends while the target is still writing: a guest whose data is the library's copy is told at once; one whose own
//!   memory the target reads is told when that is done.

use super::conflict::Queue;
use super::outbox::{Data, OpId, Order, Side, Submit};
use super::rate::SLICE_NS;
use super::{Engine, Flags, Kind};
use crate::bitmap::Tracking;
use crate::clock::Nanos;
use crate::error::IoResult;
use crate::range::{ByteRange, ChunkRange};
use crate::reserve;
use std::collections::TryReserveError;

/// Most carried guest requests at a time. Each costs some hundred bytes; a guest has rarely as many.
pub(super) const MAX_GUESTS: usize = 1024;

/// The driver's own name for a guest request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestId(pub u32);

/// What a guest asks for that changes the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestKind {
    /// Write its buffers.
    Write,
    /// Write zeroes.
    Zero,
    /// Forget the content.
    Discard,
}

impl GuestKind {
    pub(super) fn request_kind(self) -> Kind {
        match self {
            Self::Write => Kind::Write,
            Self::Zero => Kind::Zero,
            Self::Discard => Kind::Discard,
        }
    }
}

/// A guest request that is to be carried.
#[derive(Clone, Copy, Debug)]
pub struct GuestRequest {
    /// The driver's name for it.
    pub guest: GuestId,
    /// What it asks for.
    pub kind: GuestKind,
    /// Where; not empty, on the device.
    pub range: ByteRange,
    /// How.
    pub flags: Flags,
    /// The data is the library's copy, so the guest can be told while the target still reads it.
    pub owns_data: bool,
}

#[derive(Debug)]
struct GuestOp {
    request: GuestRequest,
    chunks: ChunkRange,
    state: GuestState,
    queue: Queue,
}

#[derive(Debug)]
enum GuestState {
    Free,
    /// Until nobody is before it on its chunks.
    Waiting,
    Running(Running),
}

#[derive(Debug)]
struct Running {
    source: Part,
    target: Part,
    /// What goes to the target, within the guest's range.
    carried: ByteRange,
    /// The chunks of that which were dirty.
    cleared: u64,
    /// It holds its chunks.
    holds: bool,
    /// The guest was told.
    told: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    NotSent,
    Out,
    Done(IoResult),
}

/// The carried guest requests.
#[derive(Debug)]
pub(super) struct Guests {
    slots: Vec<GuestOp>,
    free: Vec<u16>,
    waiting: u32,
    carried_bytes: u64,
    carried_requests: u32,
    last_carried: Option<Nanos>,
    /// One is not here yet, because there is no memory for it beside what is under way.
    wait_for_memory: bool,
}

impl Guests {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            waiting: 0,
            carried_bytes: 0,
            carried_requests: 0,
            last_carried: None,
            wait_for_memory: false,
        }
    }

    pub(super) fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Bytes on their way to the target for guests.
    pub(super) fn carried_bytes(&self) -> u64 {
        self.carried_bytes
    }

    /// Whether guest writes are being carried, or were within the last slice (SPEC C-11).
    pub(super) fn are_active(&self, now: Nanos) -> bool {
        self.carried_requests > 0 || self.last_carried.is_some_and(|last| now.since(last) < SLICE_NS)
    }

    pub(super) fn any(&self) -> bool {
        self.free.len() < self.slots.len()
    }

    pub(super) fn wait_for_memory(&self) -> bool {
        self.wait_for_memory
    }

    pub(super) fn count(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }

    /// The chunks that somebody waits for.
    pub(super) fn awaited(&self) -> impl Iterator<Item = ChunkRange> + Clone + '_ {
        self.slots.iter().filter(|op| matches!(op.state, GuestState::Waiting)).map(|op| op.chunks)
    }

    /// Whether a guest request touches these chunks.
    pub(super) fn touches(&self, chunks: ChunkRange) -> bool {
        self.slots.iter().any(|op| !matches!(op.state, GuestState::Free) && op.chunks.overlaps(chunks))
    }

    /// Lists `waiter` as a dependent of every request that touches these chunks, but for itself.
    pub(super) fn make_wait(&mut self, waiter: OpId, chunks: ChunkRange) -> u32 {
        let mut count = 0;
        for (index, op) in self.slots.iter_mut().enumerate() {
            let itself = OpId::guest(index as u16) == waiter;
            if !itself && !matches!(op.state, GuestState::Free) && op.chunks.overlaps(chunks) {
                op.queue.dependents.push(waiter);
                count += 1;
            }
        }
        count
    }

    pub(super) fn forget_dependent(&mut self, waiter: OpId) {
        for op in &mut self.slots {
            op.queue.dependents.retain(|dependent| *dependent != waiter);
        }
    }

    pub(super) fn queue_mut(&mut self, index: u16) -> &mut Queue {
        &mut self.slots[usize::from(index)].queue
    }

    fn provide(&mut self) -> Result<(), TryReserveError> {
        if self.free.is_empty() {
            self.slots.try_reserve(1)?;
        }
        self.free.try_reserve(self.slots.len() + 1 - self.free.len())?;
        self.slots.iter_mut().try_for_each(|op| op.queue.dependents.try_reserve(1))
    }

    fn take_slot(&mut self, request: GuestRequest, chunks: ChunkRange) -> u16 {
        let state = GuestState::Waiting;
        if let Some(index) = self.free.pop() {
            let op = &mut self.slots[usize::from(index)];
            (op.request, op.chunks, op.state) = (request, chunks, state);
            return index;
        }
        self.slots.push(GuestOp { request, chunks, state, queue: Queue::default() });
        (self.slots.len() - 1) as u16
    }
}

impl Engine {
    /// Whether another guest request can be submitted now; else the driver keeps it until one is done. Where memory has an
    /// end, room is made for all that comes of it; if there is none, the guest waits for others, if there are any.
    #[must_use]
    pub fn has_guest_room(&mut self) -> bool {
        let count = self.guests.count() as usize;
        let has_memory = |engine: &mut Self| reserve::may_fail(|| engine.provide_for_guest()).is_ok();
        count < MAX_GUESTS && (!cfg!(target_family = "wasm") || count == 0 || has_memory(self))
    }

    /// Memory for whatever another guest is added to: it may have to wait for everybody, and everybody may be done at once.
    fn provide_for_guest(&mut self) -> Result<(), TryReserveError> {
        let most = self.guests.count() as usize + 1;
        self.guests.provide()?;
        self.ops.provide_for_dependent()?;
        self.outbox.requests.try_reserve(2 * most)?;
        self.outbox.guests_done.try_reserve(most)
    }

    /// The operation that the next guest request will be.
    #[must_use]
    pub fn next_guest(&self) -> OpId {
        let fresh = self.guests.slots.len() as u16;
        OpId::guest(self.guests.free.last().copied().unwrap_or(fresh))
    }

    /// Whether the background starts nothing, because a guest waits for memory and no other guest's end will give it any:
    /// it is let in when nothing is under way, which would not come to pass before the whole disk is copied.
    pub fn make_way_for_guest(&mut self, waits: bool) {
        self.guests.wait_for_memory = waits && !self.guests.any();
    }

    /// Requests that are out, or about to be, at most.
    #[must_use]
    pub fn most_out(&self) -> usize {
        2 * self.guests.count() as usize + self.ops.in_flight() as usize
    }

    /// A guest write, zero or discard, accepted by the filter while writes are carried. It is answered once, through
    /// [`super::Outbox::guests_done`], whatever becomes of the job (SPEC G-9). Only with [`Engine::has_guest_room`].
    pub fn submit_guest(&mut self, request: GuestRequest) {
        debug_assert!((self.guests.count() as usize) < MAX_GUESTS && !request.range.is_empty());
        let chunks = self.geometry.touched(request.range);
        let index = self.guests.take_slot(request, chunks);
        self.unplan_overlapping(chunks);
        // Nothing that ends is waited for: once the job ends, guests only pass through.
        if self.is_ending() || self.queue_behind(OpId::guest(index), chunks) == 0 {
            self.admit_guest_now(index);
        } else {
            self.guests.waiting += 1;
        }
    }

    /// The chunks are free: it runs.
    pub(super) fn admit_guest(&mut self, index: u16) {
        self.guests.waiting -= 1;
        self.admit_guest_now(index);
    }

    fn admit_guest_now(&mut self, index: u16) {
        let GuestOp { request, chunks, .. } = self.guests.slots[usize::from(index)];
        let carried = self.carried_part(&request);
        let holds = !self.is_ending();
        if holds {
            self.conflicts.hold(chunks);
        }
        let op = OpId::guest(index);
        let kind = request.kind.request_kind();
        let may_unmap = request.flags.may_unmap && self.zeroes_may_unmap();
        let mut send = |side, range: ByteRange, skip| {
            let data = Data::Guest(request.guest, skip);
            let flags =
                if side == Side::Source { request.flags } else { Flags { may_unmap, ..request.flags } };
            self.outbox.requests.push(Submit { op, side, kind, range, flags, data });
        };
        send(Side::Source, request.range, 0);
        let (mut target, mut cleared) = (Part::NotSent, 0);
        if !carried.is_empty() {
            send(Side::Target, carried, carried.offset() - request.range.offset());
            target = Part::Out;
            // Whole chunks are equal once both writes are done; the bits fall before either begins, so that
            // whoever marks meanwhile is not forgotten (SPEC G-4).
            cleared = self.tracking.dirty.clear(self.geometry.contained(carried));
            self.scan.took(cleared);
            self.start.known_zero.clear(self.geometry.touched(carried));
            self.guests.carried_requests += 1;
            self.guests.carried_bytes += carried.len();
        }
        self.guests.slots[usize::from(index)].state =
            GuestState::Running(Running { source: Part::Out, target, carried, cleared, holds, told: false });
    }

    /// The part of a request that goes to the target as well.
    fn carried_part(&self, request: &GuestRequest) -> ByteRange {
        let range = request.range;
        let nothing = ByteRange::between(range.offset(), range.offset());
        // A device that skips discards keeps what it has, whatever it promises of those that it does.
        let both_zero = self.source.zeroes_discards() && self.target.zeroes_discards();
        if !self.is_carrying() || (request.kind == GuestKind::Discard && !both_zero) {
            return nothing;
        }
        let (mut start, mut end) = (range.offset(), range.end());
        // An edge in a chunk that is dirty stays dirty: carrying it would be in vain (SPEC G-4).
        let touched = self.geometry.touched(range);
        let granularity = self.geometry.granularity();
        if start % granularity != 0 && self.tracking.dirty.is_dirty(touched.start) {
            start = self.geometry.byte(touched.start + 1).min(end);
        }
        if end % granularity != 0
            && end != self.geometry.length()
            && self.tracking.dirty.is_dirty(touched.end - 1)
        {
            end = self.geometry.byte(touched.end - 1).max(start);
        }
        self.clip_to_target(ByteRange::between(start, end))
    }

    /// Shrinks a range to what the target can take as it is: to its request alignment, and with an unattached
    /// backing to clusters that it owns.
    fn clip_to_target(&self, range: ByteRange) -> ByteRange {
        let alignment = u64::from(self.target.limits.request_alignment);
        let (mut start, mut end) = (range.offset(), range.end());
        start = start.next_multiple_of(alignment);
        if end != self.geometry.length() {
            end -= end % alignment;
        }
        if start >= end {
            return ByteRange::between(range.offset(), range.offset());
        }
        if let Some(written) = &self.scan.written {
            let cluster = self.target.limits.cluster_size;
            let chunk_at = |byte: u64| byte / self.geometry.granularity();
            if start % cluster != 0 && !written.get(chunk_at(start)) {
                start = start.next_multiple_of(cluster);
            }
            if end % cluster != 0 && end != self.geometry.length() && !written.get(chunk_at(end - 1)) {
                end -= end % cluster;
            }
        }
        if start >= end {
            ByteRange::between(range.offset(), range.offset())
        } else {
            ByteRange::between(start, end)
        }
    }

    pub(super) fn complete_guest(&mut self, index: u16, side: Side, result: IoResult) {
        let op = &mut self.guests.slots[usize::from(index)];
        let GuestState::Running(running) = &mut op.state else {
            debug_assert!(false, "a completion for a guest request that is not running");
            return;
        };
        let part = if side == Side::Source { &mut running.source } else { &mut running.target };
        debug_assert_eq!(*part, Part::Out);
        *part = Part::Done(result);
        let request = op.request;
        let (carried, cleared) = (running.carried, running.cleared);
        if side == Side::Target {
            self.target_part_done(&request, carried, cleared, result);
        }
        self.settle_guest(index);
    }

    fn target_part_done(
        &mut self,
        request: &GuestRequest,
        carried: ByteRange,
        cleared: u64,
        result: IoResult,
    ) {
        self.guests.carried_requests -= 1;
        self.guests.carried_bytes -= carried.len();
        self.guests.last_carried = Some(self.now);
        let kind = request.kind.request_kind();
        self.progress.count_active(carried.len(), result);
        if let Err(errno) = result {
            // Marked before the policy runs: a job that goes on must find it.
            self.tracking.mark(request.range);
            if !self.is_ending() {
                self.failed(kind, Side::Target, carried, errno);
            }
            return;
        }
        self.progress.add_carried(carried.len(), cleared * self.granularity());
        if request.kind == GuestKind::Write {
            self.window.delivered(carried.len());
        }
        let whole = self.geometry.contained(carried);
        if request.kind != GuestKind::Write {
            self.start.known_zero.set(whole);
        }
        // Discards are not carried to a target whose backing is attached later.
        if let Some(written) = &mut self.scan.written {
            written.set(whole);
        }
    }

    /// Tells the guest and lets go of the chunks, as soon as each may be.
    fn settle_guest(&mut self, index: u16) {
        let ending = self.is_ending();
        let op = &mut self.guests.slots[usize::from(index)];
        let (request, chunks) = (op.request, op.chunks);
        let GuestState::Running(running) = &mut op.state else {
            return;
        };
        let Part::Done(result) = running.source else {
            return;
        };
        let (target_out, holds) = (running.target == Part::Out, running.holds);
        if !running.told && (!target_out || (ending && request.owns_data)) {
            running.told = true;
            mark_uncarried(&self.tracking, request.range, running.carried, result);
            self.outbox.guests_done.push((request.guest, result));
        }
        if target_out {
            return;
        }
        self.guests.slots[usize::from(index)].state = GuestState::Free;
        self.guests.free.push(index);
        if holds {
            self.conflicts.release(chunks);
        }
        self.wake_dependents(OpId::guest(index));
    }

    /// The job ends: whoever waits goes ahead, whoever only waits for the target is told (SPEC G-7).
    pub(super) fn let_guests_go(&mut self) {
        for index in 0..self.guests.slots.len() as u16 {
            self.settle_guest(index);
        }
        if self.guests.waiting > 0 {
            self.admit_all_waiting();
        }
    }

    fn admit_all_waiting(&mut self) {
        for index in 0..self.guests.slots.len() as u16 {
            let op = &mut self.guests.slots[usize::from(index)];
            op.queue.dependents.clear();
            if matches!(op.state, GuestState::Waiting) {
                op.queue.blockers = 0;
                self.admit_guest(index);
            }
        }
        self.ops.forget_all_dependents();
    }

    pub(super) fn order_release(&mut self) {
        self.tracking.set_synced(false);
        self.outbox.carrying = false;
        self.outbox.order(Order::Release);
    }
}

/// Marks what a finished guest request did not carry: all of it if the source failed, because nobody knows what the
/// source holds now (SPEC G-5).
fn mark_uncarried(tracking: &Tracking, range: ByteRange, carried: ByteRange, source: IoResult) {
    if source.is_err() || carried.is_empty() {
        tracking.mark(range);
        return;
    }
    for edge in
        [ByteRange::between(range.offset(), carried.offset()), ByteRange::between(carried.end(), range.end())]
    {
        if !edge.is_empty() {
            tracking.mark(edge);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::conflict::tests::{carrying, finish, write};
    use super::*;

    #[test]
    fn guests_count_while_they_are_under_way() {
        // SPEC P-3, X-2
        let mut engine = carrying();
        for guest in 0..3 {
            write(&mut engine, guest, u64::from(guest));
        }
        finish(&mut engine, 1);
        assert_eq!((engine.guests.count(), engine.info().guests), (2, 2));
        let touched = (0..4).map(|chunk| engine.guests.touches(ChunkRange::new(chunk, chunk + 1)));
        assert_eq!(touched.collect::<Vec<_>>(), [true, false, true, false]);
    }

    #[test]
    fn there_is_room_for_a_thousand_guests() {
        // SPEC G-9: the driver keeps the others.
        let mut engine = carrying();
        for guest in 0..MAX_GUESTS as u32 {
            assert!(engine.has_guest_room());
            write(&mut engine, guest, u64::from(guest));
        }
        assert!(!engine.has_guest_room());
        finish(&mut engine, 7);
        assert!(engine.has_guest_room());
    }

    #[test]
    fn guests_are_active_while_a_write_is_carried_and_for_a_slice_after_it() {
        // SPEC C-11
        let mut engine = carrying();
        assert!(!engine.guests.are_active(Nanos(1)));
        write(&mut engine, 0, 0);
        let late = Nanos(100 * SLICE_NS);
        assert!(engine.guests.are_active(late), "however long it takes");
        engine.advance(late);
        finish(&mut engine, 0);
        assert!(engine.guests.are_active(late + (SLICE_NS - 1)));
        assert!(!engine.guests.are_active(late + SLICE_NS));
    }

    #[test]
    fn what_the_target_can_not_take_as_it_is_is_cut_off() {
        // SPEC G-4, C-5: at either end.
        let mut engine = carrying();
        engine.target.limits.request_alignment = 512;
        let clip = |engine: &Engine, start, end| {
            let left = engine.clip_to_target(ByteRange::between(start, end));
            (!left.is_empty()).then_some((left.offset(), left.end()))
        };
        let aligned = [
            ((0, 4096), Some((0, 4096))),
            ((100, 2000), Some((512, 1536))),
            ((512, 700), None),
            ((100, 500), None),
        ];
        for ((start, end), left) in aligned {
            assert_eq!(clip(&engine, start, end), left, "{start}..{end}");
        }
        // Clusters of four chunks, of which it owns the second.
        let (chunk, cluster) = (engine.granularity(), 4 * engine.granularity());
        engine.target.limits.cluster_size = cluster;
        let mut owned = crate::bitmap::ChunkMap::new(1024).expect("memory");
        owned.set(ChunkRange::new(4, 8));
        engine.scan.written = Some(owned);
        let in_clusters = [
            ((0, cluster), Some((0, cluster))),
            ((0, 2 * chunk), None),
            ((chunk, 2 * chunk), None),
            ((chunk, cluster), None),
            ((chunk, 2 * cluster), Some((cluster, 2 * cluster))),
            ((3 * chunk, 6 * chunk), Some((cluster, 6 * chunk))),
            ((5 * chunk, 6 * chunk), Some((5 * chunk, 6 * chunk))),
            ((5 * chunk, 9 * chunk), Some((5 * chunk, 2 * cluster))),
            ((5 * chunk, 13 * chunk), Some((5 * chunk, 3 * cluster))),
        ];
        for ((start, end), left) in in_clusters {
            assert_eq!(clip(&engine, start, end), left, "{start}..{end}");
        }
        // The disk may end within a cluster.
        engine.target.limits.cluster_size = 5 * chunk;
        assert_eq!(clip(&engine, 1020 * chunk, 1024 * chunk), Some((1020 * chunk, 1024 * chunk)));
    }
}
