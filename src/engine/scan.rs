//! Which chunks are copied next: passes over the dirty set, runs, and the plan for a run.
//!
//! A pass moves a cursor once over the disk. What becomes dirty behind it, or is busy when it comes by, waits for the
//! next pass, and the next pass waits for its time (SPEC C-12); so a chunk that is written again and again is copied
//! once per interval, and one whose copy failed is not tried again in a hot loop (E-1).
//!
//! A run of dirty chunks is taken whole: its bits are cleared, its chunks are held, its extents are asked for. What
//! is to be done with each part of it is the *plan*, from which operations are started as there is room.
//!
//! # The worst that can happen
//! - A guest writes between the answer to the extents and the operation that follows from it: a zero is sent over what is
//!   data now. The write has set the bits again, and the chunk is copied in the next pass.
//! - Only busy chunks are dirty: passes would follow each other without end. After one that took nothing there is none
//!   before something has been let go.
//! - The answer covers a part of the run, or nothing: the rest is copied.
//! - What the source says it has not is marked all the same, by a write that failed or by hand. It reads as its backing
//!   does, and a discard would lose that on any target that does not get the same backing.

use super::copy::Started;
use super::ops::OpState;
use super::options::{JobKind, Sync};
use super::outbox::Side;
use super::rate::SLICE_NS;
use super::{Engine, Extent, ExtentFlags, Flags, Kind};
use crate::bitmap::ChunkMap;
use crate::clock::Nanos;
use crate::device::Limits;
use crate::error::Result;
use crate::range::{ByteRange, ChunkRange, Geometry};
use crate::reserve;
use std::collections::VecDeque;

/// Pieces that one round starts or skips at most; then the driver gets to see its completions (SPEC C-10).
const WORK_PER_ROUND: u32 = 1024;
/// Runs whose extents are asked for ahead of their turn.
const QUERIES_AHEAD: u32 = 4;
/// Guests that come to a run that is planned have it planned anew; it is short while they do.
const LONGEST_RUN_BESIDE_GUESTS: u64 = 256 << 10;
/// Busy runs that one round steps over at most.
const BUSY_RUNS_PER_ROUND: u32 = 256;

/// How a part of a run is brought to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Copy,
    /// Through buffers, because the target could not take it by itself.
    CopyThrough,
    Zero,
    Discard,
}

/// A part of a run. Its chunks are held and not dirty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) chunks: ChunkRange,
    pub(super) method: Method,
}

#[derive(Debug)]
pub(super) struct Scan {
    cursor: u64,
    /// Passes that have begun.
    passes: u64,
    in_pass: bool,
    pass_began: Nanos,
    /// No pass begins before, because something failed.
    hold_until: Nanos,
    /// This pass has taken something.
    took_in_pass: bool,
    /// The last pass found only chunks that are held: there is nothing to look for until one is let go.
    blocked: bool,
    /// The first chunk that this pass stepped over.
    stepped_over: Option<u64>,
    plan: VecDeque<Piece>,
    /// Which chunks of the target consist of clusters, or lie in one, that it owns; only where its backing is attached
    /// later.
    pub(super) written: Option<ChunkMap>,
    /// When time alone lets more be started.
    pub(super) deadline: Option<Nanos>,
    /// The survey marked only what holds data, so that the first pass need not ask again.
    pub(super) surveyed: bool,
    pub(super) taken: u64,
    pub(super) put_back: u64,
}

impl Scan {
    pub(super) fn new() -> Self {
        Self {
            cursor: 0,
            passes: 0,
            in_pass: false,
            pass_began: Nanos(0),
            hold_until: Nanos(0),
            took_in_pass: false,
            blocked: false,
            stepped_over: None,
            plan: VecDeque::new(),
            written: None,
            deadline: None,
            surveyed: false,
            taken: 0,
            put_back: 0,
        }
    }

    pub(super) fn plan_is_empty(&self) -> bool {
        self.plan.is_empty()
    }

    pub(super) fn passes(&self) -> u64 {
        self.passes
    }

    /// An operation has let go of its chunks.
    pub(super) fn unblock(&mut self) {
        self.blocked = false;
    }

    /// A failure: no new pass for a slice.
    pub(super) fn hold(&mut self, now: Nanos) {
        self.hold_until = now + SLICE_NS;
    }

    /// Time alone lets more be started then.
    pub(super) fn wake_at(&mut self, at: Nanos) {
        self.deadline = Some(self.deadline.map_or(at, |earlier| earlier.min(at)));
    }

    /// Until when nothing is tried again.
    pub(super) fn held_until(&self, now: Nanos) -> Option<Nanos> {
        (now < self.hold_until).then_some(self.hold_until)
    }

    /// Chunks were taken from the bitmap.
    pub(super) fn took(&mut self, chunks: u64) {
        self.taken += chunks;
    }

    /// Chunks were put back into it, not by a guest.
    pub(super) fn gave_back(&mut self, chunks: u64) {
        self.put_back += chunks;
    }

    /// Keeps account of complete clusters where a change of a part of one would take the rest from a backing that is
    /// not there yet (SPEC C-5).
    pub(super) fn settle_clusters(&mut self, target: &Limits, geometry: Geometry) -> Result<()> {
        if target.unattached_backing && target.cluster_size > 0 {
            self.written = Some(ChunkMap::new(geometry.chunks())?);
        }
        Ok(())
    }

    /// What is to be done next.
    pub(super) fn plan_first(&mut self, piece: Piece) {
        self.plan.push_front(piece);
    }

    /// What is planned and not started.
    pub(super) fn planned(&self) -> impl Iterator<Item = ChunkRange> + '_ {
        self.plan.iter().map(|piece| piece.chunks)
    }
}

impl Engine {
    /// Starts background operations until something runs out: dirty chunks, places, buffers, quota, or this round.
    pub(super) fn run_copy(&mut self) {
        if !self.is_copying() || self.finish.is_decided() || self.guests.wait_for_memory() {
            return;
        }
        if !self.start_reservation() {
            return;
        }
        let most = self.most_in_flight();
        let mut work = WORK_PER_ROUND;
        while self.ops.in_flight() < most {
            if let Some(until) = self.rate.blocked_until(self.now) {
                self.scan.deadline = Some(until);
                return;
            }
            if work == 0 {
                self.outbox.more = true;
                return;
            }
            work -= 1;
            let Some(piece) = self.scan.plan.pop_front() else {
                if self.plan_another_run() {
                    continue;
                }
                return;
            };
            let (rest, room) = match self.start_piece(piece) {
                Started::Yes { rest } => (rest, true),
                Started::NoRoom => (piece.chunks, false),
            };
            if !rest.is_empty() {
                self.scan.plan.push_front(Piece { chunks: rest, method: piece.method });
            }
            if !room {
                return;
            }
        }
    }

    /// While guests' writes are carried, the background leaves them the link (SPEC C-11).
    fn most_in_flight(&self) -> u32 {
        let most = self.settings.max_in_flight;
        let first = self.settings.options.guest_first_in_flight;
        if first > 0 && self.guests.are_active(self.now) { most.min(first) } else { most }
    }

    /// Takes the next run of dirty chunks and plans it, or asks for its extents. Whether there was one.
    fn plan_another_run(&mut self) -> bool {
        if self.ops.queries() >= QUERIES_AHEAD {
            return false;
        }
        let Some(run) = self.next_run() else { return false };
        self.scan.took(self.tracking.dirty.clear(run));
        self.conflicts.hold(run);
        self.scan.cursor = run.end;
        self.scan.took_in_pass = true;
        let range = self.geometry.bytes(run);
        let ask = self.source.extents && !(self.scan.surveyed && self.scan.passes == 1);
        let query = if ask { self.ops.take(OpState::Query, run, range) } else { None };
        match query {
            Some(id) => self.outbox.submit(id, Side::Source, Kind::Extents, range, Flags::default()),
            None => self.scan.plan.push_back(Piece { chunks: run, method: Method::Copy }),
        }
        true
    }

    /// The next run that can be started, at or after the cursor; begins a pass if it is time.
    fn next_run(&mut self) -> Option<ChunkRange> {
        if !self.scan.in_pass && !self.begin_pass() {
            return None;
        }
        let longest = self.longest_run();
        for _ in 0..BUSY_RUNS_PER_ROUND {
            let Some(run) = self.tracking.dirty.next_run(self.scan.cursor, longest) else {
                self.end_pass();
                return None;
            };
            let part = self.first_startable_part(run);
            let wide = part.and_then(|part| self.widen(part));
            if wide.is_none_or(|wide| wide.start > run.start) && self.scan.stepped_over.is_none() {
                self.scan.stepped_over = Some(run.start);
            }
            if wide.is_some() {
                return wide;
            }
            // Its first cluster is busy; what follows may not be.
            self.scan.cursor = part.map_or(run.end, |part| self.end_of_cluster(part.start).min(run.end));
        }
        self.outbox.more = true;
        None
    }

    fn longest_run(&self) -> u64 {
        let first = self.settings.options.guest_first_io;
        let bytes = if !self.guests.are_active(self.now) {
            self.settings.buf_size
        } else if first > 0 {
            first
        } else {
            LONGEST_RUN_BESIDE_GUESTS
        };
        (bytes / self.geometry.granularity()).max(1)
    }

    /// Begins a pass if there is something dirty and it is time.
    fn begin_pass(&mut self) -> bool {
        if self.scan.blocked || self.tracking.dirty.next_dirty(0).is_none() {
            return false;
        }
        let interval = if self.finish.is_converging() { 0 } else { self.settings.options.pass_interval_ns };
        let next = if self.scan.passes == 0 { Nanos(0) } else { self.scan.pass_began + interval };
        let next = next.max(self.scan.hold_until);
        if self.now < next {
            self.scan.deadline = Some(next);
            return false;
        }
        self.scan.in_pass = true;
        self.scan.took_in_pass = false;
        self.scan.passes += 1;
        self.scan.pass_began = self.now;
        self.scan.cursor = 0;
        true
    }

    fn end_pass(&mut self) {
        self.scan.in_pass = false;
        self.scan.blocked = !self.scan.took_in_pass && self.scan.stepped_over.is_some();
        if let Some(chunk) = self.scan.stepped_over.take() {
            self.reserve(chunk);
        }
        // What is dirty behind the cursor waits for its pass, and for nothing else: not for what is still in flight.
        if self.begin_pass() {
            self.outbox.more = true;
        }
    }

    /// Splits a run by what the source says of it. What isn't covered by the answer, or is too small or not rounded
    /// to the target's units, is copied (SPEC C-3, C-4, D-6).
    ///
    /// Where there is no memory for a long plan it is a short one.
    pub(super) fn plan_run(&mut self, run: ChunkRange, extents: &[Extent]) {
        let most = 2 * extents.len() + 1;
        let has_room = reserve::may_fail(|| self.scan.plan.try_reserve(most)).is_ok();
        let extents = if has_room { extents } else { &[] };
        let bytes = self.geometry.bytes(run);
        let mut at = bytes.offset();
        let mut planned = run.start;
        let mut extents = extents.iter().peekable();
        while let Some(extent) = extents.next() {
            let method = self.method_for(extent.flags);
            let start = at;
            at = at.saturating_add(extent.length).min(bytes.end());
            // A stretch may be told in pieces that are smaller than the target's units.
            while let Some(more) = extents.next_if(|next| self.method_for(next.flags) == method) {
                at = at.saturating_add(more.length).min(bytes.end());
            }
            let Some(method) = method else { continue };
            let clear = self.rounded_inward(ByteRange::between(start, at));
            if !clear.is_empty() {
                self.plan_piece(ChunkRange::new(planned, clear.start), Method::Copy);
                self.plan_piece(clear, method);
                planned = clear.end;
            }
        }
        self.plan_piece(ChunkRange::new(planned, run.end), Method::Copy);
    }

    fn plan_piece(&mut self, chunks: ChunkRange, method: Method) {
        if chunks.is_empty() {
            return;
        }
        if let Some(last) = self.scan.plan.back_mut()
            && last.method == method
            && last.chunks.end == chunks.start
        {
            last.chunks.end = chunks.end;
            return;
        }
        self.scan.plan.push_back(Piece { chunks, method });
    }

    /// `None` for what is copied.
    fn method_for(&self, flags: ExtentFlags) -> Option<Method> {
        if flags.holds_data() {
            None
        } else if flags.zero {
            self.target.zero.then_some(Method::Zero)
        } else {
            self.shows_backing().then_some(Method::Discard)
        }
    }

    /// Whether the target, where it is discarded, will show what the source shows where it holds nothing of its own:
    /// the backing that it is to get. Anywhere else a discard would lose that: what the source reads as there is
    /// copied (SPEC C-3).
    fn shows_backing(&self) -> bool {
        let limits = &self.target.limits;
        let options = &self.settings.options;
        self.target.discard
            && limits.unattached_backing
            && !limits.discard_zeroes
            && limits.max_discard >= self.clearing_unit()
            && options.kind == JobKind::Mirror
            && options.sync != Sync::Full
    }

    /// The whole chunks within a range whose ends are multiples of the target's units.
    fn rounded_inward(&self, range: ByteRange) -> ChunkRange {
        let unit = self.clearing_unit().max(self.geometry.granularity());
        let start = range.offset().checked_next_multiple_of(unit).unwrap_or(u64::MAX);
        let end = if range.end() == self.geometry.length() { range.end() } else { range.end() / unit * unit };
        self.geometry.contained(ByteRange::between(start, end))
    }

    /// Gives back what is planned and not started, so that nobody waits for it.
    pub(super) fn unplan_all(&mut self) {
        while let Some(piece) = self.scan.plan.pop_front() {
            self.give_up_piece(piece.chunks);
        }
        self.drop_reservation();
    }

    /// A guest wants chunks that are planned: what is planned there waits for the next pass.
    pub(super) fn unplan_overlapping(&mut self, chunks: ChunkRange) {
        if self.scan.plan.is_empty() {
            return;
        }
        let mut kept = 0;
        while let Some(piece) = self.scan.plan.get(kept).copied() {
            if piece.chunks.overlaps(chunks) {
                self.scan.plan.remove(kept);
                self.give_up_piece(piece.chunks);
            } else {
                kept += 1;
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::conflict::tests::{carrying, write};
    use super::*;

    #[test]
    fn of_what_a_pass_steps_over_the_first_chunk_is_reserved() {
        // SPEC X-2: not what it took, nor the last; else one chunk could wait for ever while others get their turns.
        let mut engine = carrying();
        engine.settings.options.guest_first_in_flight = 16;
        write(&mut engine, 0, 5);
        write(&mut engine, 1, 9);
        for (first, end) in [(0, 1), (5, 7), (9, 10)] {
            engine.tracking.dirty.mark(ChunkRange::new(first, end));
        }
        engine.advance(Nanos(2));
        assert_eq!(engine.ops.reserved_chunks().next(), Some(ChunkRange::new(5, 6)));
        assert!(engine.tracking.dirty.is_dirty(9) && !engine.tracking.dirty.is_dirty(0));
    }

    #[test]
    fn a_run_is_no_longer_than_the_buffers_and_shorter_while_guests_write() {
        // SPEC C-1, C-11
        let mut engine = carrying();
        let chunk = engine.granularity();
        engine.settings.options.guest_first_io = 7 * chunk;
        assert_eq!(engine.longest_run(), engine.settings.buf_size / chunk);
        write(&mut engine, 0, 5);
        assert_eq!(engine.longest_run(), 7);
        engine.settings.options.guest_first_io = 0;
        assert_eq!(engine.longest_run(), LONGEST_RUN_BESIDE_GUESTS / chunk);
    }

    #[test]
    fn nothing_is_started_while_a_guest_waits_for_what_is_under_way() {
        let mut engine = carrying();
        engine.tracking.dirty.mark(ChunkRange::new(0, 1));
        engine.make_way_for_guest(true);
        engine.advance(Nanos(2));
        assert!(engine.outbox().requests.is_empty() && !engine.outbox().more);
        write(&mut engine, 0, 5);
        engine.make_way_for_guest(true);
        engine.advance(Nanos(2));
        assert!(engine.ops.in_flight() > 0, "it waits for another guest");
    }

    #[test]
    fn a_round_steps_over_a_bounded_number_of_zeroes() {
        // SPEC C-10, I-5: they take no request, and so no place.
        let mut engine = carrying();
        let chunks = ChunkRange::new(0, u64::from(WORK_PER_ROUND));
        engine.target.limits.max_zero = engine.granularity();
        engine.start.known_zero.set_all();
        engine.conflicts.hold(chunks);
        engine.scan.plan.push_back(Piece { chunks, method: Method::Zero });
        engine.advance(Nanos(2));
        assert!(engine.outbox().more, "it may not look for more in this round");
        engine.advance(Nanos(2));
        assert!(!engine.outbox().more);
        assert_eq!(engine.info().skipped_zeroes, chunks.len() * engine.granularity());
    }
}
