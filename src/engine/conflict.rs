//! Conflicts: two operations that touch a common chunk never run together (SPEC X-1).
//!
//! Chunks in flight are bits of a map, so that the background, which never waits, tests and steps over them in no
//! time. A guest's write waits instead: it counts the operations that it must wait for, each of which lists it as a
//! dependent, and starts when the count falls to zero. It waits for what runs on its chunks and for every *earlier*
//! waiter that overlaps it, and holds nothing meanwhile; so the order among overlapping writes is that of arrival,
//! the waits can't form a circle, and waking costs as much as there are dependents (SPEC ).
//!
//! A chunk that guests keep so busy that the background steps over it pass after pass is *reserved*: a background
//! operation queues for it as a guest's write would, and later writes queue behind it. Where copies are widened to
//! clusters (SPEC C-5) it queues for the whole cluster: a guest that writes to one chunk of it without a break would keep
//! the others from being copied for ever. When its turn comes it goes before every other operation, which would take
//! the buffers that it needs as fast as they become free while guests wait behind it.

use super::Engine;
use super::outbox::OpId;
use crate::bitmap::ChunkMap;
use crate::error::Result;
use crate::range::ChunkRange;

#[derive(Debug)]
pub(super) struct Conflicts {
    /// Chunks that running operations and planned pieces hold.
    in_flight: ChunkMap,
}

impl Conflicts {
    pub(super) fn new(chunks: u64) -> Result<Self> {
        Ok(Self { in_flight: ChunkMap::new(chunks)? })
    }

    pub(super) fn hold(&mut self, chunks: ChunkRange) {
        debug_assert!(!self.in_flight.any(chunks), "{chunks:?} is held twice");
        self.in_flight.set(chunks);
    }

    pub(super) fn release(&mut self, chunks: ChunkRange) {
        debug_assert!(self.in_flight.all(chunks), "{chunks:?} is released and was not held");
        self.in_flight.clear(chunks);
    }

    pub(super) fn any(&self, chunks: ChunkRange) -> bool {
        self.in_flight.any(chunks)
    }

    /// How many are held.
    pub(super) fn held_chunks(&self) -> u64 {
        self.in_flight.count()
    }

    /// The first part of `chunks` that nothing holds.
    pub(super) fn first_free_part(&self, chunks: ChunkRange) -> Option<ChunkRange> {
        let start = self.in_flight.first_clear(chunks)?;
        let rest = ChunkRange::new(start, chunks.end);
        Some(ChunkRange::new(start, self.in_flight.first_set(rest).unwrap_or(chunks.end)))
    }
}

/// Whom an operation keeps waiting, and how many it waits for itself.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) blockers: u32,
    pub(super) dependents: Vec<OpId>,
}

impl Engine {
    /// Makes `waiter` wait for whatever runs on these chunks and for every earlier waiter that overlaps them; says
    /// for how many that is.
    pub(super) fn queue_behind(&mut self, waiter: OpId, chunks: ChunkRange) -> u32 {
        let held = self.conflicts.any(chunks);
        if !held && !self.somebody_waits() {
            return 0;
        }
        let mut blockers = 0;
        if held || self.ops.reserved().is_some() {
            blockers += self.ops.make_wait(waiter, chunks);
        }
        blockers += self.guests.make_wait(waiter, chunks);
        self.queue_of(waiter).blockers = blockers;
        blockers
    }

    pub(super) fn somebody_waits(&self) -> bool {
        self.guests.waiting() > 0 || self.ops.reserved().is_some()
    }

    /// The first part of `chunks` that nothing holds and nobody waits for.
    pub(super) fn first_startable_part(&self, chunks: ChunkRange) -> Option<ChunkRange> {
        if !self.somebody_waits() {
            return self.conflicts.first_free_part(chunks);
        }
        let mut rest = chunks;
        while !rest.is_empty() {
            let part = self.conflicts.first_free_part(rest)?;
            match first_outside(part, self.guests.awaited().chain(self.ops.reserved_chunks())) {
                Some(free) => return Some(free),
                None => rest.start = part.end,
            }
        }
        None
    }

    /// An operation is over: those that waited for it wait for one less, and run if that was the last.
    pub(super) fn wake_dependents(&mut self, finished: OpId) {
        if self.queue_of(finished).dependents.is_empty() {
            return;
        }
        let mut dependents = std::mem::take(&mut self.queue_of(finished).dependents);
        for dependent in dependents.drain(..) {
            let queue = self.queue_of(dependent);
            debug_assert!(queue.blockers > 0, "{dependent:?} is woken and waits for nobody");
            queue.blockers -= 1;
            if queue.blockers == 0 {
                match dependent.guest_index() {
                    Some(index) => self.admit_guest(index),
                    None => self.take_up_reservation(dependent),
                }
            }
        }
        // Its room is kept for the next operation in this place, unless that has been given some meanwhile.
        let queue = self.queue_of(finished);
        if queue.dependents.capacity() == 0 {
            queue.dependents = dependents;
        }
    }

    fn queue_of(&mut self, op: OpId) -> &mut Queue {
        match op.guest_index() {
            Some(index) => self.guests.queue_mut(index),
            None => self.ops.queue_mut(op),
        }
    }

    /// A chunk was stepped over for a whole pass because of guests: queue for it, and for the rest of its cluster if
    /// it can only be copied with that.
    pub(super) fn reserve(&mut self, chunk: u64) {
        let chunks = self.rounded_to_clusters(ChunkRange::new(chunk, chunk + 1));
        let wanted = self.tracking.dirty.is_dirty(chunk) && self.guests.touches(chunks);
        if !wanted || self.ops.reserved().is_some() {
            return;
        }
        let Some(op) = self.ops.take_reserved(chunks) else {
            return;
        };
        if self.queue_behind(op, chunks) == 0 {
            self.take_up_reservation(op);
        }
    }

    /// Nobody is before the reservation any more: its chunks are held, and copied as soon as there are buffers.
    fn take_up_reservation(&mut self, op: OpId) {
        let Some(chunks) = self.ops.reserved_chunks().next() else {
            return;
        };
        let wanted = self.tracking.dirty.next_dirty(chunks.start).is_some_and(|chunk| chunk < chunks.end);
        // Its cluster may have been discarded while it waited.
        let whole = self.rounded_to_clusters(chunks) == chunks;
        if self.pauses.any() || !self.is_copying() || !wanted || !whole {
            self.ops.end_reservation();
            self.wake_dependents(op);
            return;
        }
        self.scan.took(self.tracking.dirty.clear(chunks));
        self.conflicts.hold(chunks);
        self.ops.hold_reservation();
    }

    /// Gives the reservation up, so that nobody waits behind an operation that will not run.
    pub(super) fn drop_reservation(&mut self) {
        let (Some(op), Some(chunks)) = (self.ops.reserved(), self.ops.reserved_chunks().next()) else {
            return;
        };
        if self.ops.reservation_is_held() {
            self.give_up_piece(chunks);
        } else {
            self.guests.forget_dependent(op);
            self.ops.forget_dependent(op);
        }
        self.ops.end_reservation();
        self.wake_dependents(op);
    }
}

/// The first part of `chunks` that none of `taken` touches.
fn first_outside(chunks: ChunkRange, taken: impl Iterator<Item = ChunkRange> + Clone) -> Option<ChunkRange> {
    let mut start = chunks.start;
    while let Some(over) = taken.clone().find(|range| range.contains(start)) {
        start = over.end;
    }
    let end = taken.filter(|range| range.start > start).map(|range| range.start).fold(chunks.end, u64::min);
    (start < end).then_some(ChunkRange { start, end })
}

#[cfg(all(test, not(loom)))]
pub(super) mod tests {
    use super::super::{
        CopyMode, Flags, GuestId, GuestKind, GuestRequest, Options, Order, Side, SideInfo, Sync,
    };
    use super::*;
    use crate::clock::Nanos;
    use crate::device::Limits;
    use crate::range::ByteRange;

    const CHUNK: u64 = 4096;

    /// An engine that carries writes and has nothing to copy.
    pub(in super::super) fn carrying() -> Engine {
        let options = Options {
            sync: Sync::None,
            copy_mode: CopyMode::WriteBlocking,
            granularity: CHUNK,
            ..Options::default()
        };
        let (length, limits) = (1024 * CHUNK, Limits::default());
        let side = SideInfo {
            length,
            limits,
            zero: true,
            discard: true,
            extents: false,
            truncate: false,
            copies: false,
        };
        let settings = options.check(length, &limits, &limits).expect("legal");
        let mut engine = Engine::new("j0".into(), settings, side, side).expect("memory");
        engine.start().expect("created");
        engine.advance(Nanos(1));
        assert_eq!(engine.outbox().orders, [Order::CarryWrites]);
        engine.outbox().requests.clear();
        engine
    }

    /// A guest writes to a chunk.
    pub(in super::super) fn write(engine: &mut Engine, guest: u32, chunk: u64) {
        let range = ByteRange::between(chunk * CHUNK, (chunk + 1) * CHUNK);
        let flags = Flags::default();
        engine.submit_guest(GuestRequest {
            guest: GuestId(guest),
            kind: GuestKind::Write,
            range,
            flags,
            owns_data: true,
        });
    }

    #[test]
    fn who_finishes_wakes_those_that_overlap_and_looks_at_no_others() {
        // SPEC X-3: ten queues of a hundred writes each, of which one moves on.
        let mut engine = carrying();
        for guest in 0..1000 {
            write(&mut engine, guest, u64::from(guest) % 10);
        }
        let first = OpId::guest(0);
        assert_eq!(engine.queue_of(first).dependents.len(), 99, "only those on its chunk");
        let sent: Vec<_> = engine.outbox().requests.drain(..).collect();
        assert_eq!(sent.len(), 20, "the first of each queue, to both sides");
        assert_eq!(engine.guests.waiting(), 990);
        engine.complete(first, Side::Source, Ok(()), false, &[]);
        assert_eq!(engine.outbox().requests, [], "the target is still out");
        engine.complete(first, Side::Target, Ok(()), false, &[]);
        let woken: Vec<_> = engine.outbox().requests.iter().map(|submit| submit.op).collect();
        assert_eq!(woken, [OpId::guest(10), OpId::guest(10)], "the next on that chunk, to both sides");
        assert_eq!(engine.guests.waiting(), 989);
    }

    /// The write of this guest, the nth that was taken, is done on both sides.
    pub(in super::super) fn finish(engine: &mut Engine, guest: u16) {
        engine.complete(OpId::guest(guest), Side::Source, Ok(()), false, &[]);
        engine.complete(OpId::guest(guest), Side::Target, Ok(()), false, &[]);
    }

    const RESERVED: ChunkRange = ChunkRange { start: 3, end: 4 };

    /// The background waits behind a guest's write for its chunk.
    fn reserved_behind_a_write() -> Engine {
        let mut engine = carrying();
        write(&mut engine, 0, RESERVED.start);
        engine.tracking.dirty.mark(RESERVED);
        engine.reserve(RESERVED.start);
        assert!(engine.ops.reserved().is_some() && !engine.ops.reservation_is_held());
        engine
    }

    #[test]
    fn a_reservation_is_held_when_its_turn_comes_and_given_up_if_there_is_nothing_to_copy() {
        // SPEC X-2: a write that came later may have made the chunk clean; the next one is none of its business.
        for clean in [false, true] {
            let mut engine = reserved_behind_a_write();
            if clean {
                engine.tracking.dirty.clear(RESERVED);
                engine.tracking.dirty.mark(ChunkRange::new(4, 5));
            }
            finish(&mut engine, 0);
            assert_eq!(engine.ops.reservation_is_held(), !clean);
            assert_eq!((engine.ops.reserved().is_some(), engine.conflicts.any(RESERVED)), (!clean, !clean));
        }
    }

    #[test]
    fn a_reservation_is_given_up_if_its_chunk_can_only_be_copied_with_its_cluster_by_then() {
        // SPEC X-2, C-5: the target owned the cluster, and a guest's discard took it away.
        let mut engine = carrying();
        engine.target.limits.cluster_size = 4 * CHUNK;
        let mut owned = ChunkMap::new(1024).expect("memory");
        owned.set_all();
        engine.scan.written = Some(owned);
        write(&mut engine, 0, RESERVED.start);
        engine.tracking.dirty.mark(RESERVED);
        engine.reserve(RESERVED.start);
        assert_eq!(engine.ops.reserved_chunks().next(), Some(RESERVED), "no more than the chunk");
        engine.scan.written.as_mut().expect("put there").clear(ChunkRange::new(0, 4));
        engine.complete(OpId::guest(0), Side::Target, Err(crate::error::Errno::EIO), false, &[]);
        engine.complete(OpId::guest(0), Side::Source, Ok(()), false, &[]);
        assert_eq!((engine.ops.reserved(), engine.conflicts.any(RESERVED)), (None, false));
        assert!(engine.tracking.dirty.is_dirty(RESERVED.start), "the next pass takes all of it");
    }

    #[test]
    fn a_pause_gives_a_reservation_up_that_has_no_buffers_yet() {
        // SPEC X-2, P-1: else guests would wait behind it for as long as the job is paused.
        let mut engine = reserved_behind_a_write();
        finish(&mut engine, 0);
        assert!(engine.ops.reservation_is_held(), "and nothing has been started");
        write(&mut engine, 1, RESERVED.start);
        engine.outbox().requests.clear();
        engine.pause().expect("running");
        assert_eq!((engine.ops.reserved(), engine.guests.waiting()), (None, 0));
        assert_eq!(engine.outbox().requests.len(), 2, "the guest's write, to both sides");
    }

    #[test]
    fn the_first_part_that_nobody_touches_is_found_between_others() {
        let range = ChunkRange::new;
        let cases: [(&[ChunkRange], Option<ChunkRange>); 6] = [
            (&[], Some(range(10, 20))),
            (&[range(13, 15)], Some(range(10, 13))),
            (&[range(5, 12), range(14, 30)], Some(range(12, 14))),
            (&[range(12, 16), range(8, 12)], Some(range(16, 20))),
            (&[range(10, 20)], None),
            (&[range(15, 25), range(0, 15)], None),
        ];
        for (taken, free) in cases {
            assert_eq!(first_outside(range(10, 20), taken.iter().copied()), free, "{taken:?}");
        }
    }
}
