//! Background operations: reading a piece of the source and writing it to the target, or sending a zero or a discard.
//!
//! # The worst that can happen
//! - The guest writes while its chunk is being read, or between the read and the write: the older data lands on the target.
//!   The bit was cleared before the read, so the write has set it again, and the chunk is copied once more.
//! - A write fails half-way: the target holds a piece of it. What was known to be zero was forgotten when it was sent, not
//!   when it was done, so no later zero is skipped there (SPEC I-5).
//! - A read finds nothing but zeroes: the operation goes on as a zero, with its chunks held and its buffers given back.
//! - The job ends, or is paused, with the read done: its chunks are dirty again before anybody can miss them.

use super::ops::OpState;
use super::outbox::{OpId, Side};
use super::scan::{Method, Piece};
use super::window::Room;
use super::{CopyMode, Engine, Extent, Flags, Kind, Status};
use crate::error::{Errno, IoResult};
use crate::range::{ByteRange, ChunkRange};

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
            Method::Copy if self.offload.is_on() => self.start_offloaded(piece.chunks),
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
        let got = self.ops.take_buffers(id, want, max_segments);
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
        let range = self.ops.range(id);
        self.outbox.transfer(id, Side::Source, Kind::Read, range, self.ops.buffers_of(id));
        self.copy_begins(id, range.len());
    }

    /// A copy of so many bytes is sent.
    pub(super) fn copy_begins(&mut self, id: OpId, bytes: u64) {
        self.rate.charge(self.now, bytes);
        let stamp = self.window.sent(bytes, self.ops.copies() == 0, self.guests.carried_bytes());
        self.ops.begin_copy(id, stamp);
        if self.is_at_leisure() {
            self.leisure.spend(self.now, &self.window, bytes);
        }
    }

    /// Whether another copy may be on its way (SPEC C-7, C-11, C-14).
    pub(super) fn has_window(&mut self) -> bool {
        let room = self.room();
        if let Room::At(until) = room {
            self.scan.wake_at(until);
        }
        room == Room::Yes
    }

    fn room(&mut self) -> Room {
        if self.is_at_leisure() {
            let room = self.leisure.room(self.now, &self.window, self.ops.copies(), self.not_begun_bytes());
            if room != Room::Yes {
                return room;
            }
        }
        let guests = self.window_guests();
        let fits = if guests.is_some() {
            self.settings.options.guest_first_in_flight == 0
        } else {
            self.settings.fits_link
        };
        if fits { self.window.room(self.ops.copied_bytes(), guests) } else { Room::Yes }
    }

    /// Bytes that are to be copied and not on their way: dirty, or taken from what is dirty in a run and held for their turn.
    fn not_begun_bytes(&self) -> u64 {
        let chunks = self.tracking.dirty.dirty_chunks() + self.conflicts.held_chunks();
        chunks.saturating_mul(self.granularity()).saturating_sub(self.ops.copied_bytes())
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
    pub(super) fn most_chunks_per_copy(&self, start: u64) -> u64 {
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

    /// Who came while these chunks were held doesn't wait for what is planned for them now.
    pub(super) fn unplan_awaited(&mut self, chunks: ChunkRange) {
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
        match self.ops.state(id) {
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
        let (chunks, range) = (self.ops.chunks(id), self.ops.range(id));
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
        self.ops.read_becomes_write(id);
        self.outbox.transfer(id, Side::Target, Kind::Write, range, self.ops.buffers_of(id));
    }

    /// So many bytes of a copy are on the target, or need not go there.
    pub(super) fn copy_came_through(&mut self, id: OpId, bytes: u64) {
        if let Some(stamp) = self.ops.stamp(id) {
            self.window.done(stamp, bytes);
        }
    }

    pub(super) fn write_done(&mut self, id: OpId, kind: Kind, result: IoResult) {
        let range = self.ops.range(id);
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
        let what = (self.ops.chunks(id), self.ops.range(id));
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
