//! The table of background operations, their places, and the copy buffers that they hold.

use super::arena::{Arena, Segment};
use super::conflict::Queue;
use super::options::{MAX_IN_FLIGHT, Settings};
use super::outbox::OpId;
use super::window::Stamp;
use crate::error::{Errno, Error, Result};
use crate::range::{ByteRange, ChunkRange, Geometry};
use std::collections::TryReserveError;

/// What a background operation waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpState {
    Free,
    /// The extents of a run, to plan it.
    Query,
    Read,
    Write,
    /// The target copies by itself.
    Copy,
    Zero,
    Discard,
    /// The target's flush, before ready or at the end.
    Flush,
    /// The target's growing.
    Truncate,
    /// A part of the pre-zero pass.
    PreZero,
    /// A part of the allocation scan.
    Survey,
    /// Its turn at a chunk that guests keep busy.
    Reserved,
}

#[derive(Debug)]
struct Op {
    state: OpState,
    chunks: ChunkRange,
    range: ByteRange,
    buffers: Vec<Segment>,
    /// When a copy was sent.
    stamp: Option<Stamp>,
    queue: Queue,
}

/// A place in the queue for a chunk that guests keep busy.
#[derive(Clone, Copy, Debug)]
struct Reservation {
    op: OpId,
    /// Its turn has come: the chunk is held and not dirty.
    held: bool,
}

/// The background operations and the copy buffers.
#[derive(Debug)]
pub(super) struct Ops {
    slots: Vec<Op>,
    free: Vec<u16>,
    most: u16,
    arena: Arena,
    /// Chunks that one buffer holds.
    buffer_chunks: u32,
    in_flight: u32,
    in_flight_bytes: u64,
    /// Those whose data is on its way, through buffers or not, and their bytes.
    copies: u32,
    copied_bytes: u64,
    reserved: Option<Reservation>,
    queries: u32,
}

impl Ops {
    pub(super) fn new(settings: &Settings, geometry: Geometry) -> Result<Self> {
        let no_memory = |_| Error::new(Errno::ENOMEM, "no memory for the table of operations");
        // One more than may be in flight, for the reservation.
        let most = (settings.max_in_flight + 1).min(MAX_IN_FLIGHT) as u16;
        let (mut slots, mut free) = (Vec::new(), Vec::new());
        slots.try_reserve_exact(usize::from(most)).map_err(no_memory)?;
        free.try_reserve_exact(usize::from(most)).map_err(no_memory)?;
        // No more buffers than the device can fill.
        let buffer_chunks = settings.buffer_unit / settings.granularity;
        let buffers =
            (settings.buf_size / settings.buffer_unit).min(geometry.chunks().div_ceil(buffer_chunks).max(1));
        let arena = Arena::new(u32::try_from(buffers).unwrap_or(u32::MAX))?;
        Ok(Self {
            slots,
            free,
            most,
            arena,
            buffer_chunks: buffer_chunks as u32,
            in_flight: 0,
            in_flight_bytes: 0,
            copies: 0,
            copied_bytes: 0,
            reserved: None,
            queries: 0,
        })
    }

    pub(super) fn buffers(&self) -> u32 {
        self.arena.chunks()
    }

    /// Chunks that all buffers hold together.
    pub(super) fn arena_chunks(&self) -> u32 {
        self.arena.chunks().saturating_mul(self.buffer_chunks)
    }

    /// Chunks that the free buffers hold.
    pub(super) fn free_chunks(&self) -> u32 {
        self.arena.free_chunks().saturating_mul(self.buffer_chunks)
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub(super) fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Those whose data is on its way.
    pub(super) fn copies(&self) -> u32 {
        self.copies
    }

    pub(super) fn copied_bytes(&self) -> u64 {
        self.copied_bytes
    }

    pub(super) fn queries(&self) -> u32 {
        self.queries
    }

    /// A place that is free. There are no more than were ever needed at a time, because some things look at all.
    fn place(&mut self) -> Option<u16> {
        if let Some(index) = self.free.pop() {
            return Some(index);
        }
        let index = self.slots.len() as u16;
        if index == self.most {
            return None;
        }
        self.slots.push(Op {
            state: OpState::Free,
            chunks: ChunkRange::default(),
            range: ByteRange::default(),
            buffers: Vec::new(),
            stamp: None,
            queue: Queue::default(),
        });
        Some(index)
    }

    /// Starts an operation; `None` if all places are taken.
    pub(super) fn take(&mut self, state: OpState, chunks: ChunkRange, range: ByteRange) -> Option<OpId> {
        let index = self.place()?;
        let op = &mut self.slots[usize::from(index)];
        (op.state, op.chunks, op.range) = (state, chunks, range);
        self.in_flight += 1;
        self.in_flight_bytes += progress_bytes(state, range);
        self.queries += u32::from(state == OpState::Query);
        Some(OpId::background(index))
    }

    /// An operation that was just taken does only this part of its work.
    pub(super) fn shorten(&mut self, id: OpId, chunks: ChunkRange, geometry: Geometry) -> ByteRange {
        let op = &mut self.slots[id.background_index()];
        let range = geometry.bytes(chunks);
        self.in_flight_bytes -= op.range.len() - range.len();
        (op.chunks, op.range) = (chunks, range);
        range
    }

    pub(super) fn give_back(&mut self, id: OpId) {
        let op = &mut self.slots[id.background_index()];
        self.in_flight -= 1;
        self.in_flight_bytes -= progress_bytes(op.state, op.range);
        if op.stamp.take().is_some() {
            self.copies -= 1;
            self.copied_bytes -= op.range.len();
        }
        self.queries -= u32::from(op.state == OpState::Query);
        op.state = OpState::Free;
        self.arena.give_back(&mut op.buffers);
        self.free.push(id.background_index() as u16);
    }

    fn op(&self, id: OpId) -> &Op {
        &self.slots[id.background_index()]
    }

    pub(super) fn state(&self, id: OpId) -> OpState {
        self.op(id).state
    }

    pub(super) fn chunks(&self, id: OpId) -> ChunkRange {
        self.op(id).chunks
    }

    pub(super) fn range(&self, id: OpId) -> ByteRange {
        self.op(id).range
    }

    pub(super) fn buffers_of(&self, id: OpId) -> &[Segment] {
        &self.op(id).buffers
    }

    pub(super) fn stamp(&self, id: OpId) -> Option<Stamp> {
        self.op(id).stamp
    }

    /// Takes buffers for so many chunks, or for as many as there are; for how many it has got some.
    pub(super) fn take_buffers(&mut self, id: OpId, chunks: u32, max_segments: usize) -> u64 {
        let buffers = &mut self.slots[id.background_index()].buffers;
        let got = self.arena.take(chunks.div_ceil(self.buffer_chunks), max_segments, buffers);
        u64::from(got.saturating_mul(self.buffer_chunks))
    }

    pub(super) fn queue_mut(&mut self, id: OpId) -> &mut Queue {
        &mut self.slots[id.background_index()].queue
    }

    /// Lists `waiter` as a dependent of every operation on these chunks.
    pub(super) fn make_wait(&mut self, waiter: OpId, chunks: ChunkRange) -> u32 {
        let mut count = 0;
        for (index, op) in self.slots.iter_mut().enumerate() {
            let itself = OpId::background(index as u16) == waiter;
            if !itself && op.state != OpState::Free && op.chunks.overlaps(chunks) {
                op.queue.dependents.push(waiter);
                count += 1;
            }
        }
        count
    }

    /// Room for another to wait for each.
    pub(super) fn provide_for_dependent(&mut self) -> Result<(), TryReserveError> {
        self.slots.iter_mut().try_for_each(|op| op.queue.dependents.try_reserve(1))
    }

    pub(super) fn forget_dependent(&mut self, waiter: OpId) {
        for op in &mut self.slots {
            op.queue.dependents.retain(|dependent| *dependent != waiter);
        }
    }

    pub(super) fn forget_all_dependents(&mut self) {
        for op in &mut self.slots {
            op.queue.dependents.clear();
        }
    }

    pub(super) fn reserved(&self) -> Option<OpId> {
        self.reserved.map(|reservation| reservation.op)
    }

    pub(super) fn reserved_chunks(&self) -> impl Iterator<Item = ChunkRange> + Clone + '_ {
        self.reserved.iter().map(|reservation| self.op(reservation.op).chunks)
    }

    pub(super) fn reservation_is_held(&self) -> bool {
        self.reserved.is_some_and(|reservation| reservation.held)
    }

    /// A reservation takes a place but is not in flight: nothing of it is under way.
    pub(super) fn take_reserved(&mut self, chunks: ChunkRange) -> Option<OpId> {
        let index = self.place()?;
        let op = &mut self.slots[usize::from(index)];
        (op.state, op.chunks, op.range) = (OpState::Reserved, chunks, ByteRange::default());
        let op = OpId::background(index);
        self.reserved = Some(Reservation { op, held: false });
        Some(op)
    }

    pub(super) fn hold_reservation(&mut self) {
        if let Some(reservation) = &mut self.reserved {
            reservation.held = true;
        }
    }

    pub(super) fn end_reservation(&mut self) {
        if let Some(Reservation { op, .. }) = self.reserved.take() {
            let slot = &mut self.slots[op.background_index()];
            slot.state = OpState::Free;
            slot.queue.blockers = 0;
            self.free.push(op.background_index() as u16);
        }
    }

    /// The reservation becomes a read of its chunks, if it has its turn and there are buffers.
    pub(super) fn begin_reserved_read(&mut self, geometry: Geometry, max_segments: usize) -> Option<OpId> {
        let Reservation { op: id, held: true } = self.reserved? else {
            return None;
        };
        let op = &mut self.slots[id.background_index()];
        let want = (op.chunks.len() as u32).div_ceil(self.buffer_chunks);
        if self.arena.take(want, max_segments, &mut op.buffers) < want {
            self.arena.give_back(&mut op.buffers);
            return None;
        }
        op.state = OpState::Read;
        op.range = geometry.bytes(op.chunks);
        self.in_flight += 1;
        self.in_flight_bytes += op.range.len();
        self.reserved = None;
        Some(id)
    }

    /// The operation's read is sent.
    pub(super) fn begin_copy(&mut self, id: OpId, stamp: Stamp) {
        let op = &mut self.slots[id.background_index()];
        op.stamp = Some(stamp);
        self.copies += 1;
        self.copied_bytes += op.range.len();
    }

    /// A copy goes on as a zero: its buffers are not needed any more.
    pub(super) fn copy_becomes_zero(&mut self, id: OpId) {
        let op = &mut self.slots[id.background_index()];
        op.state = OpState::Zero;
        op.stamp = None;
        self.copies -= 1;
        self.copied_bytes -= op.range.len();
        self.arena.give_back(&mut op.buffers);
    }

    /// The data of a read is in its buffers, and goes to the target.
    pub(super) fn read_becomes_write(&mut self, id: OpId) {
        self.slots[id.background_index()].state = OpState::Write;
    }

    /// Operations in flight that are no copies.
    pub(super) fn others(&self) -> u32 {
        self.in_flight - self.copies
    }
}

/// The bytes of progress that an operation stands for: what it takes from the dirty set.
fn progress_bytes(state: OpState, range: ByteRange) -> u64 {
    match state {
        OpState::Query
        | OpState::Read
        | OpState::Write
        | OpState::Copy
        | OpState::Zero
        | OpState::Discard => range.len(),
        _ => 0,
    }
}
