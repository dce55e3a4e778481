//! Background operations: reading a piece of the source and writing it to the target, or sending a zero or a discard.
//!
//! # The worst that can happen
//! - The guest writes while its chunk is being read, or between the read and the write: the older data lands on the target.
//!   The bit was cleared before the read, so the write has set it again, and the chunk is copied once more.
//! - A write fails half-way: the target holds a piece of it. What was known to be zero was forgotten when it was sent, not
//!   when it was done, so no later zero is skipped there (SPEC I-5).
//! - A read finds nothing but zeroes: the operation goes on as a zero, with its chunks held and its buffers given back.
//! - The job ends, or is paused, with the read done: its chunks are dirty again before anybody can miss them.

use super::arena::{Arena, Segment};
use super::conflict::Queue;
use super::options::{MAX_IN_FLIGHT, Settings};
use super::outbox::{OpId, Side};
use super::scan::{Method, Piece};
use super::window::{Room, Stamp};
use super::{CopyMode, Engine, Extent, Flags, Kind, Status};
use crate::error::{Errno, Error, IoResult, Result};
use crate::range::{ByteRange, ChunkRange, Geometry};

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

/// Whether the target is asked to make copies by itself (SPEC C-13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offload {
    Off,
    /// As many were asked for in vain since one worked.
    On {
        in_vain: u32,
    },
}

/// Most errors speak of one place; as many in a row speak of the two sides, and each costs a request.
const MOST_IN_VAIN: u32 = 16;

impl Offload {
    fn worked(&mut self) {
        if let Self::On { in_vain } = self {
            *in_vain = 0;
        }
    }

    fn failed(&mut self, errno: Errno) {
        if let Self::On { in_vain } = self {
            *in_vain += 1;
            let never = matches!(errno, Errno::EOPNOTSUPP | Errno::EXDEV | Errno::ENOSYS);
            if never || *in_vain >= MOST_IN_VAIN {
                *self = Self::Off;
            }
        }
    }
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
    fn shorten(&mut self, id: OpId, chunks: ChunkRange, geometry: Geometry) -> ByteRange {
        let op = &mut self.slots[id.background_index()];
        let range = geometry.bytes(chunks);
        self.in_flight_bytes -= op.range.len() - range.len();
        (op.chunks, op.range) = (chunks, range);
        range
    }

    fn give_back(&mut self, id: OpId) {
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
    fn begin_reserved_read(&mut self, geometry: Geometry, max_segments: usize) -> Option<OpId> {
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
    fn begin_copy(&mut self, id: OpId, stamp: Stamp) {
        let op = &mut self.slots[id.background_index()];
        op.stamp = Some(stamp);
        self.copies += 1;
        self.copied_bytes += op.range.len();
    }

    /// A copy goes on as a zero: its buffers are not needed any more.
    fn copy_becomes_zero(&mut self, id: OpId) {
        let op = &mut self.slots[id.background_index()];
        op.state = OpState::Zero;
        op.stamp = None;
        self.copies -= 1;
        self.copied_bytes -= op.range.len();
        self.arena.give_back(&mut op.buffers);
    }

    /// Operations in flight that are no copies.
    fn others(&self) -> u32 {
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

/// What became of a piece.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Started {
    /// It is under way, or needed nothing; what is left of it comes next.
    Yes { rest: ChunkRange },
    /// There is no buffer or place for it now.
    NoRoom,
}

impl Engine {
    /// Starts the reserved copy, before everything else: guests wait behind it. Whether others may be started.
    pub(super) fn start_reservation(&mut self) -> bool {
        if self.ops.in_flight() >= self.settings.max_in_flight {
            return false;
        }
        if let Some(id) = self.ops.begin_reserved_read(self.geometry, self.max_segments()) {
            self.send_read(id);
        }
        !self.ops.reservation_is_held()
    }

    fn max_segments(&self) -> usize {
        self.source.limits.max_iov.min(self.target.limits.max_iov) as usize
    }

    /// Starts a planned piece, whose chunks are held and not dirty.
    pub(super) fn start_piece(&mut self, piece: Piece) -> Started {
        match piece.method {
            Method::Copy if self.offload != Offload::Off => self.start_offloaded(piece.chunks),
            Method::Copy | Method::CopyThrough => self.start_copy(piece.chunks),
            Method::Zero | Method::Discard => self.start_clear(piece),
        }
    }

    fn start_copy(&mut self, piece: ChunkRange) -> Started {
        if self.ops.free_chunks() == 0 || !self.has_window() {
            return Started::NoRoom;
        }
        let most = self.most_chunks_per_copy(piece.start).min(u64::from(self.ops.arena_chunks()));
        let chunks = self.first_part(piece, most);
        let range = self.geometry.bytes(chunks);
        let want = chunks.len() as u32;
        let max_segments = self.max_segments();
        let Some(id) = self.ops.take(OpState::Read, chunks, range) else {
            return Started::NoRoom;
        };
        let op = &mut self.ops.slots[id.background_index()];
        let buffers = want.div_ceil(self.ops.buffer_chunks);
        let got = self.ops.arena.take(buffers, max_segments, &mut op.buffers);
        let got = u64::from(got.saturating_mul(self.ops.buffer_chunks));
        let fits = if got < chunks.len() { self.first_part(chunks, got) } else { chunks };
        if got == 0 || fits.len() > got {
            // A whole cluster doesn't fit in what is free, or not in as few buffers as the devices take.
            self.ops.give_back(id);
            return Started::NoRoom;
        }
        self.ops.shorten(id, fits, self.geometry);
        self.send_read(id);
        Started::Yes { rest: ChunkRange::new(fits.end, piece.end) }
    }

    fn send_read(&mut self, id: OpId) {
        let alone = self.ops.copies == 0;
        let op = self.ops.op(id);
        let bytes = op.range.len();
        self.outbox.transfer(id, Side::Source, Kind::Read, op.range, &op.buffers);
        self.rate.charge(self.now, bytes);
        let stamp = self.window.sent(bytes, alone, self.guests.carried_bytes());
        self.ops.begin_copy(id, stamp);
    }

    /// Whether another copy may be on its way (SPEC C-7, C-11, C-14).
    fn has_window(&mut self) -> bool {
        if self.is_at_leisure() {
            let dirty = self.tracking.dirty.dirty_chunks().saturating_mul(self.granularity());
            if self.ops.copies >= self.window.most_at_leisure(dirty) {
                return false;
            }
        }
        let guests = self.window_guests();
        let fits = if guests.is_some() {
            self.settings.options.guest_first_in_flight == 0
        } else {
            self.settings.fits_link
        };
        if !fits {
            return true;
        }
        match self.window.room(self.ops.copied_bytes, guests) {
            Room::Yes => true,
            Room::Later => false,
            Room::At(until) => {
                self.scan.wake_at(until);
                false
            }
        }
    }

    /// The job is ready and nobody wants it to end: what is dirty is what guests write, who may have the devices.
    fn is_at_leisure(&self) -> bool {
        self.settings.fits_link
            && self.status == Status::Ready
            && self.copy_mode == CopyMode::Background
            && !self.finish.is_converging()
    }

    /// What guests have on its way to the target, if they are to be served first.
    fn window_guests(&self) -> Option<u64> {
        self.guests.are_active(self.now).then(|| self.guests.carried_bytes())
    }

    /// A chunk at least, however large it is; what is larger than a device takes at a time goes in parts.
    fn most_chunks_per_copy(&self, start: u64) -> u64 {
        let fitted = |guests| (self.window.longest_copy(guests), true);
        let (longest, changes) = match self.settings.options.guest_first_io {
            0 if self.guests.are_active(self.now) => fitted(true),
            set if self.guests.are_active(self.now) => (set, false),
            _ if self.settings.fits_link => fitted(false),
            _ => (u64::MAX, false),
        };
        let most = self
            .settings
            .max_io
            .min(longest)
            .min(self.source.limits.max_transfer)
            .min(self.target.limits.max_transfer);
        let most = (most / self.geometry.granularity()).max(1);
        // Where lengths change from copy to copy, they end where copies of equal length would.
        if changes && most.is_power_of_two() { most - start % most } else { most }
    }

    /// The target is asked to take the data over by itself: no buffer is needed, and what follows is as for any copy.
    fn start_offloaded(&mut self, piece: ChunkRange) -> Started {
        if !self.has_window() {
            return Started::NoRoom;
        }
        let chunks = self.first_part(piece, self.most_chunks_per_copy(piece.start));
        let range = self.geometry.bytes(chunks);
        let alone = self.ops.copies == 0;
        let Some(id) = self.ops.take(OpState::Copy, chunks, range) else {
            return Started::NoRoom;
        };
        // Before it is sent: one that fails may have copied some of it.
        self.start.known_zero.clear(chunks);
        self.outbox.submit(id, Side::Target, Kind::Copy, range, Flags::default());
        self.rate.charge(self.now, range.len());
        let stamp = self.window.sent(range.len(), alone, self.guests.carried_bytes());
        self.ops.begin_copy(id, stamp);
        Started::Yes { rest: ChunkRange::new(chunks.end, piece.end) }
    }

    /// What could not be copied so is copied through buffers: only that shows which side fails, if one does.
    fn offloaded_failed(&mut self, id: OpId, errno: Errno) {
        self.offload.failed(errno);
        self.copy_came_through(id, 0);
        let (chunks, _) = self.end_op(id);
        if self.is_ending() || self.pauses.any() {
            self.give_up_piece(chunks);
        } else {
            self.scan.plan_first(Piece { chunks, method: Method::CopyThrough });
            self.unplan_awaited(chunks);
        }
        self.wake_dependents(id);
    }

    /// Who came while these chunks were held doesn't wait for what is planned for them now.
    fn unplan_awaited(&mut self, chunks: ChunkRange) {
        let reserved = self.ops.reserved_chunks().filter(|_| !self.ops.reservation_is_held());
        let awaited = self.guests.awaited().chain(reserved);
        for awaited in awaited.filter(|awaited| awaited.overlaps(chunks)).collect::<Vec<_>>() {
            self.unplan_overlapping(awaited);
        }
    }

    fn start_clear(&mut self, piece: Piece) -> Started {
        let limits = &self.target.limits;
        let most = if piece.method == Method::Zero { limits.max_zero } else { limits.max_discard };
        // Cut between the target's units; a unit that is larger than it takes at a time goes in parts.
        let unit = self.clearing_unit();
        let most =
            (most / unit * unit).max(unit).max(self.geometry.granularity()) / self.geometry.granularity();
        let chunks = ChunkRange::new(piece.chunks.start, piece.chunks.end.min(piece.chunks.start + most));
        let rest = ChunkRange::new(chunks.end, piece.chunks.end);
        let range = self.geometry.bytes(chunks);
        let zero = piece.method == Method::Zero;
        if zero && self.start.known_zero.all(chunks) {
            self.skip_zero(chunks, range);
            return Started::Yes { rest };
        }
        if self.ops.others() >= self.settings.max_others {
            return Started::NoRoom;
        }
        let state = if zero { OpState::Zero } else { OpState::Discard };
        let Some(id) = self.ops.take(state, chunks, range) else {
            return Started::NoRoom;
        };
        if zero {
            self.submit_zero(id, range);
        } else {
            // Before it is sent: one that fails may have deallocated some of it.
            self.start.known_zero.clear(chunks);
            if let Some(written) = &mut self.scan.written {
                written.clear(chunks);
            }
            self.outbox.submit(id, Side::Target, Kind::Discard, range, Flags::default());
        }
        if !self.target.limits.cheap_zero {
            self.rate.charge(self.now, range.len());
        }
        Started::Yes { rest }
    }

    fn submit_zero(&mut self, id: OpId, range: ByteRange) {
        let flags = Flags { may_unmap: self.zeroes_may_unmap(), fua: false };
        self.outbox.submit(id, Side::Target, Kind::Zero, range, flags);
    }

    /// Whether a zero may deallocate on the target. Not before its backing is attached: it reads as zero now, and would
    /// show the backing then.
    pub(super) fn zeroes_may_unmap(&self) -> bool {
        self.settings.options.unmap && !self.target.limits.unattached_backing
    }

    /// The target reads zero there already: no I/O, but progress (SPEC I-5).
    fn skip_zero(&mut self, chunks: ChunkRange, range: ByteRange) {
        self.progress.skipped_zeroes(range.len());
        self.conflicts.release(chunks);
    }

    /// A background request is done.
    pub(super) fn complete_op(&mut self, id: OpId, result: IoResult, zeroes: bool, extents: &[Extent]) {
        match self.ops.op(id).state {
            OpState::Query => self.query_done(id, result, extents),
            OpState::Read => self.read_done(id, result, zeroes),
            OpState::Write => self.write_done(id, Kind::Write, result),
            OpState::Copy => self.offloaded_done(id, result),
            OpState::Zero => self.write_done(id, Kind::Zero, result),
            OpState::Discard => self.write_done(id, Kind::Discard, result),
            OpState::Flush => self.flush_done(id, result),
            OpState::Truncate => self.truncate_done(id, result),
            OpState::PreZero => self.pre_zero_done(id, result),
            OpState::Survey => self.survey_done(id, result, extents),
            OpState::Free | OpState::Reserved => {
                debug_assert!(false, "a completion for an operation that has no request");
            }
        }
    }

    fn query_done(&mut self, id: OpId, result: IoResult, extents: &[Extent]) {
        let (chunks, range) = self.end_op(id);
        if let Err(errno) = result {
            self.note_failed_extents(range, errno);
        }
        if self.is_ending() || self.pauses.any() {
            self.give_up_piece(chunks);
        } else {
            self.plan_run(chunks, if result.is_ok() { extents } else { &[] });
            self.unplan_awaited(chunks);
        }
        self.wake_dependents(id);
    }

    fn read_done(&mut self, id: OpId, result: IoResult, zeroes: bool) {
        let (chunks, range) = (self.ops.op(id).chunks, self.ops.op(id).range);
        self.progress.count(Kind::Read, range.len(), result);
        if result.is_err() || self.is_ending() {
            self.copy_came_through(id, 0);
        }
        if let Err(errno) = result {
            self.end_failed(id, Kind::Read, Side::Source, errno);
            return;
        }
        if self.is_ending() {
            self.end_op(id);
            self.give_up_piece(chunks);
            self.wake_dependents(id);
            return;
        }
        if zeroes && self.target.zero && self.is_worth_clearing(range) {
            // The buffers are not needed any more; the operation goes on as a zero.
            self.copy_came_through(id, range.len());
            self.ops.copy_becomes_zero(id);
            if self.start.known_zero.all(chunks) {
                self.end_op(id);
                self.skip_zero(chunks, range);
                self.wake_dependents(id);
            } else {
                self.submit_zero(id, range);
            }
            return;
        }
        self.start.known_zero.clear(chunks);
        let op = &mut self.ops.slots[id.background_index()];
        op.state = OpState::Write;
        self.outbox.transfer(id, Side::Target, Kind::Write, range, &op.buffers);
    }

    /// So many bytes of a copy are on the target, or need not go there.
    fn copy_came_through(&mut self, id: OpId, bytes: u64) {
        if let Some(stamp) = self.ops.op(id).stamp {
            self.window.done(stamp, bytes);
        }
    }

    fn offloaded_done(&mut self, id: OpId, result: IoResult) {
        match result {
            Ok(()) => {
                self.offload.worked();
                self.write_done(id, Kind::Copy, Ok(()));
            }
            Err(errno) => {
                self.progress.count(Kind::Copy, 0, result);
                self.offloaded_failed(id, errno);
            }
        }
    }

    fn write_done(&mut self, id: OpId, kind: Kind, result: IoResult) {
        let range = self.ops.op(id).range;
        self.progress.count(kind, range.len(), result);
        if matches!(kind, Kind::Write | Kind::Copy) {
            self.copy_came_through(id, if result.is_ok() { range.len() } else { 0 });
        }
        if let Err(errno) = result {
            self.end_failed(id, kind, Side::Target, errno);
            return;
        }
        let (chunks, range) = self.end_op(id);
        if kind == Kind::Zero {
            self.start.known_zero.set(chunks);
        }
        if kind != Kind::Discard
            && let Some(written) = &mut self.scan.written
        {
            written.set(chunks);
        }
        self.progress.add_done(range.len());
        self.conflicts.release(chunks);
        self.wake_dependents(id);
    }

    /// A failed copy, zero or discard: its chunks are dirty again before anybody can miss them (SPEC E-1).
    fn end_failed(&mut self, id: OpId, kind: Kind, side: Side, errno: Errno) {
        let (chunks, range) = self.end_op(id);
        self.give_up_piece(chunks);
        self.wake_dependents(id);
        if !self.is_ending() {
            self.failed(kind, side, range, errno);
        }
    }

    /// Frees the operation's place and its buffers. Its chunks stay held.
    pub(super) fn end_op(&mut self, id: OpId) -> (ChunkRange, ByteRange) {
        let op = self.ops.op(id);
        let what = (op.chunks, op.range);
        self.ops.give_back(id);
        what
    }

    /// Chunks that are held and were not copied: dirty again, and free.
    pub(super) fn give_up_piece(&mut self, chunks: ChunkRange) {
        if !chunks.is_empty() {
            self.scan.gave_back(self.tracking.dirty.mark(chunks));
            self.conflicts.release(chunks);
        }
    }

    /// Whether a zero or discard of exactly this range makes sense on the target: where it is not rounded to the
    /// target's units it would have to touch what it must not.
    pub(super) fn is_worth_clearing(&self, range: ByteRange) -> bool {
        let unit = self.clearing_unit();
        range.offset().is_multiple_of(unit)
            && (range.end().is_multiple_of(unit) || range.end() == self.geometry.length())
    }

    pub(super) fn clearing_unit(&self) -> u64 {
        let limits = &self.target.limits;
        limits.cluster_size.max(limits.zero_alignment).max(limits.discard_alignment).max(1)
    }

    /// The job stopped working, or is about to: nothing is started, marked or carried any more.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.status, Status::Aborting | Status::Concluded | Status::Null)
            || self.finish.is_released()
    }
}
