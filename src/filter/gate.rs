//! The gate that guest requests pass: counts those that are running, and can be closed so that they drain.
//!
//! It is spread over shards, each a single word with flags and counts, so that entering reads the flags and counts the
//! request in one atomic step: no request slips in between "closed" and "nothing runs". A thread uses one shard, so
//! threads don't contend; closing and asking for the sums visits all shards, which only a finishing job does.
//!
//! # Who is inside
//! Besides requests, which may run long after the call that made them, a shard counts the threads that are *inside*: that
//! may hold a pointer to what the filter is switched to or hung with. Both are counted in the same step, and, of a request
//! that the device did at once, counted out in the same step too. What is replaced may be freed when everybody who was
//! inside then has left, which a stream of others must not delay: so there are two counts of threads, for two *phases*
//! that take turns (as in SRCU, "sleepable read-copy-update"). Turning a shard sends whoever comes from then on to the
//! other count; when the old one is empty, nobody who was inside at the turn is left. See `grace`.

use crate::sync::atomic::{AtomicU64, Ordering};
use crossbeam::utils::CachePadded;

/// More than a host has I/O threads that never sleep, few enough to be visited in no time.
#[cfg(not(loom))]
pub(super) const SHARDS: usize = 16;
#[cfg(loom)]
pub(super) const SHARDS: usize = 2;

const CLOSED: u64 = 1;
/// Writes are handed to the job.
const CARRY: u64 = 1 << 1;
/// A job is to be told of what is written.
const HOOKED: u64 = 1 << 2;
/// Which phase threads that come now are of.
const PHASE: u64 = 1 << 3;
/// Somebody waits for the threads of the other phase.
const TURNING: u64 = 1 << 4;
/// One request whose writing is not carried.
const MARKED: u64 = 1 << 5;
/// One request of any other kind.
const OTHER: u64 = 1 << 22;
/// A thread of each phase that is inside.
const THREAD: [u64; 2] = [1 << 39, 1 << 51];

// As many bits as requests can be running at a time (16384, and those that are being turned away).
const MARKED_MASK: u64 = OTHER - MARKED;
const THREADS: [u64; 2] = [THREAD[1] - THREAD[0], (1 << 63) - THREAD[1]];
const REQUESTS_MASK: u64 = THREAD[0] - MARKED;
const RUNNING_MASK: u64 = (1 << 63) - MARKED;
/// Most threads of a phase that a shard lets in with requests of their own. Those that finish others' requests, or offer again
/// what was held back, are fewer by far, and the count has room for as many of them again.
const MAX_THREADS: u64 = 2047;

/// As what a request was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// A write that only the current device gets; it is marked when it is done.
    Marked,
    /// A read, a flush, or a write that is carried.
    Other,
}

impl Counted {
    fn unit(self) -> u64 {
        match self {
            Self::Marked => MARKED,
            Self::Other => OTHER,
        }
    }
}

/// A thread that is counted as inside a shard; it has to be counted out again.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) struct Inside {
    shard: usize,
    phase: usize,
}

/// What a request may do. Its thread is inside if it may do anything.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Go to the current device.
    Pass(Counted, Inside),
    /// Be handed to the job.
    Carry(Inside),
    /// Wait.
    Closed,
    /// Be turned away: too many threads are inside.
    Crowded,
}

/// What leaving a shard may have brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Left {
    /// Nothing that anybody waits for.
    Quietly,
    /// The gate is closed and this shard is empty; or writes are carried and the last one of this shard that wasn't is
    /// done; or nobody of the old phase is left in it.
    AsTheLast,
}

/// A job has to be told first of what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hooked;

#[derive(Debug)]
pub(super) struct Gate {
    shards: [CachePadded<AtomicU64>; SHARDS],
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| CachePadded::new(AtomicU64::new(0))) }
    }

    /// Lets a request in and counts it, unless the gate is closed.
    pub(super) fn enter(&self, shard: usize, changes_data: bool) -> Entry {
        self.try_enter(shard, changes_data, CLOSED)
    }

    /// Lets a request in that waited, before the gate is open for others.
    pub(super) fn enter_first(&self, shard: usize, changes_data: bool) -> Entry {
        self.try_enter(shard, changes_data, 0)
    }

    fn try_enter(&self, shard: usize, changes_data: bool, keeps_out: u64) -> Entry {
        let word = &self.shards[shard];
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            if seen & keeps_out != 0 {
                return Entry::Closed;
            }
            let phase = phase_of(seen);
            if keeps_out != 0 && threads(seen, phase) >= MAX_THREADS {
                return Entry::Crowded;
            }
            let carry = changes_data && seen & CARRY != 0;
            let counted = if changes_data && !carry { Counted::Marked } else { Counted::Other };
            let next = seen + counted.unit() + THREAD[phase];
            match word.compare_exchange_weak(seen, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => {
                    let inside = Inside { shard, phase };
                    return if carry { Entry::Carry(inside) } else { Entry::Pass(counted, inside) };
                }
                Err(now) => seen = now,
            }
        }
    }

    /// Counts a thread as inside that has no request of its own: one that finishes another's. It leaves soon.
    pub(super) fn step_in(&self, shard: usize) -> Inside {
        let word = &self.shards[shard];
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            let phase = phase_of(seen);
            match word.compare_exchange_weak(seen, seen + THREAD[phase], Ordering::SeqCst, Ordering::Relaxed)
            {
                Ok(_) => return Inside { shard, phase },
                Err(now) => seen = now,
            }
        }
    }

    /// Counts a thread out whose request goes on without it.
    #[expect(clippy::needless_pass_by_value, reason = "nobody is inside any more")]
    pub(super) fn step_out(&self, inside: Inside) -> Left {
        self.count_out(inside.shard, THREAD[inside.phase])
    }

    /// A request that was to be carried goes to the device after all.
    pub(super) fn recount_as_marked(&self, shard: usize) {
        self.shards[shard].fetch_add(MARKED.wrapping_sub(OTHER), Ordering::SeqCst);
    }

    /// Counts a request out that changed nothing, or of which the job has been told.
    pub(super) fn exit(&self, shard: usize, counted: Counted) -> Left {
        self.count_out(shard, counted.unit())
    }

    /// As [`Gate::exit`], with the thread.
    #[expect(clippy::needless_pass_by_value, reason = "nobody is inside any more")]
    pub(super) fn exit_and_step_out(&self, inside: Inside, counted: Counted) -> Left {
        self.count_out(inside.shard, counted.unit() + THREAD[inside.phase])
    }

    /// Counts a request out that changed something, if no job is to be told of it.
    ///
    /// That there is none is seen in the same step: so either a job that comes finds everything that the request did, or
    /// the request finds the job.
    pub(super) fn exit_untold(&self, shard: usize, counted: Counted) -> Result<Left, Hooked> {
        self.try_count_out(shard, counted.unit())
    }

    /// As [`Gate::exit_untold`], with the thread, which comes back, still inside, if there is a job.
    pub(super) fn exit_untold_and_step_out(&self, inside: Inside, counted: Counted) -> Result<Left, Inside> {
        self.try_count_out(inside.shard, counted.unit() + THREAD[inside.phase]).map_err(|_hooked| inside)
    }

    fn count_out(&self, shard: usize, units: u64) -> Left {
        left(self.shards[shard].fetch_sub(units, Ordering::SeqCst) - units, units)
    }

    fn try_count_out(&self, shard: usize, units: u64) -> Result<Left, Hooked> {
        let word = &self.shards[shard];
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            if seen & HOOKED != 0 {
                return Err(Hooked);
            }
            match word.compare_exchange_weak(seen, seen - units, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return Ok(left(seen - units, units)),
                Err(now) => seen = now,
            }
        }
    }

    pub(super) fn close(&self) {
        self.set(CLOSED, true);
    }

    pub(super) fn open(&self) {
        self.set(CLOSED, false);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.shards[0].load(Ordering::SeqCst) & CLOSED != 0
    }

    pub(super) fn set_carry(&self, carry: bool) {
        self.set(CARRY, carry);
    }

    /// Whether there is a job to be told of what is written.
    pub(super) fn set_hooked(&self, hooked: bool) {
        self.set(HOOKED, hooked);
    }

    fn set(&self, flag: u64, on: bool) {
        for shard in &self.shards {
            if on {
                shard.fetch_or(flag, Ordering::SeqCst);
            } else {
                shard.fetch_and(!flag, Ordering::SeqCst);
            }
        }
    }

    /// Whether nothing runs and nobody is inside. Meaningful while the gate is closed: then requests of a shard that was
    /// seen empty stay away.
    pub(super) fn is_drained(&self) -> bool {
        self.shards.iter().all(|shard| shard.load(Ordering::SeqCst) & RUNNING_MASK == 0)
    }

    /// Whether no request runs, whoever is inside. Meaningful while the gate is closed.
    pub(super) fn has_no_requests(&self) -> bool {
        self.shards.iter().all(|shard| shard.load(Ordering::SeqCst) & REQUESTS_MASK == 0)
    }

    /// Whether every write that is not carried is done. Meaningful while writes are carried.
    pub(super) fn uncarried_writes_done(&self) -> bool {
        self.shards.iter().all(|shard| shard.load(Ordering::SeqCst) & MARKED_MASK == 0)
    }

    /// Begins a new phase in a shard, in which the phase before the present one is over. Whether anybody of the present one
    /// is inside; [`Gate::has_turned`] tells when they have left.
    pub(super) fn turn(&self, shard: usize) -> bool {
        let word = &self.shards[shard];
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            debug_assert!(seen & TURNING == 0 && threads(seen, 1 - phase_of(seen)) == 0, "{seen:#x}");
            let any = threads(seen, phase_of(seen)) > 0;
            let next = seen ^ PHASE | if any { TURNING } else { 0 };
            match word.compare_exchange_weak(seen, next, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return any,
                Err(now) => seen = now,
            }
        }
    }

    /// Whether everybody of the last phase has left a shard that was turned. Asked by one thread at a time.
    pub(super) fn has_turned(&self, shard: usize) -> bool {
        let word = &self.shards[shard];
        let seen = word.load(Ordering::SeqCst);
        let turned = threads(seen, 1 - phase_of(seen)) == 0;
        if turned {
            word.fetch_and(!TURNING, Ordering::SeqCst);
        }
        turned
    }
}

fn phase_of(word: u64) -> usize {
    usize::from(word & PHASE != 0)
}

fn threads(word: u64, phase: usize) -> u64 {
    (word & THREADS[phase]) / THREAD[phase]
}

/// What it means that these units were counted out of a shard, of which this was left.
fn left(word: u64, units: u64) -> Left {
    if word & (CLOSED | CARRY | TURNING) == 0 {
        return Left::Quietly;
    }
    let drained = word & CLOSED != 0 && word & RUNNING_MASK == 0;
    let last_marked = units & MARKED_MASK != 0 && word & CARRY != 0 && word & MARKED_MASK == 0;
    let old = 1 - phase_of(word);
    let turned = word & TURNING != 0 && units & THREADS[old] != 0 && threads(word, old) == 0;
    if drained || last_marked || turned { Left::AsTheLast } else { Left::Quietly }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Lets a request in whose thread goes away, and says as what it is counted.
    fn pass(gate: &Gate, shard: usize, changes_data: bool) -> Counted {
        match gate.enter(shard, changes_data) {
            Entry::Pass(counted, inside) => {
                assert_eq!(gate.step_out(inside), Left::Quietly);
                counted
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_closed_gate_drains_and_lets_nobody_in() {
        let gate = Gate::new();
        assert_eq!(pass(&gate, 0, true), Counted::Marked);
        assert_eq!(pass(&gate, 1, false), Counted::Other);
        gate.close();
        assert_eq!(gate.enter(0, false), Entry::Closed);
        assert!(!gate.is_drained());
        assert_eq!(gate.exit(0, Counted::Marked), Left::AsTheLast);
        assert!(!gate.is_drained());
        assert_eq!(gate.exit(1, Counted::Other), Left::AsTheLast);
        assert!(gate.is_drained());
        let Entry::Pass(Counted::Other, inside) = gate.enter_first(0, false) else { panic!("it is let in") };
        gate.open();
        assert_eq!(gate.exit_and_step_out(inside, Counted::Other), Left::Quietly);
    }

    #[test]
    fn a_thread_that_is_inside_keeps_a_gate_from_draining() {
        let gate = Gate::new();
        let Entry::Pass(counted, inside) = gate.enter(4, true) else { panic!("it is open") };
        gate.close();
        assert_eq!(gate.exit(4, counted), Left::Quietly, "its thread is still there");
        assert!(!gate.is_drained());
        assert_eq!(gate.step_out(inside), Left::AsTheLast);
        assert!(gate.is_drained());
    }

    #[test]
    fn carrying_is_decided_in_the_step_that_counts() {
        let gate = Gate::new();
        assert_eq!(pass(&gate, 3, true), Counted::Marked);
        gate.set_carry(true);
        assert!(!gate.uncarried_writes_done());
        let Entry::Carry(inside) = gate.enter(3, true) else { panic!("writes are carried") };
        assert_eq!(gate.step_out(inside), Left::Quietly);
        assert_eq!(pass(&gate, 3, false), Counted::Other);
        assert_eq!(gate.exit(3, Counted::Marked), Left::AsTheLast, "the last write of the old kind");
        assert!(gate.uncarried_writes_done());
        gate.recount_as_marked(3);
        assert!(!gate.uncarried_writes_done());
        gate.set_carry(false);
        assert_eq!(gate.exit(3, Counted::Marked), Left::Quietly);
        assert_eq!(gate.exit(3, Counted::Other), Left::Quietly);
    }

    #[test]
    fn who_has_changed_something_does_not_leave_before_a_job_is_told() {
        let gate = Gate::new();
        let Entry::Pass(counted, inside) = gate.enter(2, true) else { panic!("it is open") };
        gate.set_hooked(true);
        assert_eq!(gate.exit_untold(2, counted), Err(Hooked));
        let inside = gate.exit_untold_and_step_out(inside, counted).expect_err("it is hooked");
        gate.close();
        assert!(!gate.is_drained(), "it is still counted");
        gate.set_hooked(false);
        assert_eq!(gate.exit_untold_and_step_out(inside, counted), Ok(Left::AsTheLast));
        assert!(gate.is_drained());
    }

    #[test]
    fn a_crowd_is_turned_away_before_the_counts_overflow() {
        let gate = Gate::new();
        let mut crowd: Vec<_> = (0..MAX_THREADS).map(|_| gate.enter(5, false)).collect();
        assert_eq!(gate.enter(5, false), Entry::Crowded);
        crowd.push(gate.enter_first(5, false));
        let finishing: Vec<_> = (0..MAX_THREADS).map(|_| gate.step_in(5)).collect();
        for entry in crowd {
            let Entry::Pass(counted, inside) = entry else { panic!("{entry:?}") };
            assert_eq!(gate.exit_and_step_out(inside, counted), Left::Quietly);
        }
        for inside in finishing {
            assert_eq!(gate.step_out(inside), Left::Quietly);
        }
        assert!(gate.is_drained());
        assert_eq!(pass(&gate, 5, true), Counted::Marked);
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicUsize};

    #[test]
    fn what_a_drained_gate_let_through_is_visible() {
        loom::model(|| {
            let gate = Arc::new(Gate::new());
            let written = Arc::new(AtomicUsize::new(0));
            let told = Arc::new(AtomicBool::new(false));
            let guest = {
                let (gate, written, told) = (gate.clone(), written.clone(), told.clone());
                loom::thread::spawn(move || {
                    let Entry::Pass(counted, inside) = gate.enter(1, true) else { return false };
                    written.store(1, Ordering::Relaxed);
                    if gate.exit_and_step_out(inside, counted) == Left::AsTheLast {
                        told.store(true, Ordering::SeqCst);
                    }
                    true
                })
            };
            gate.close();
            let drained = gate.is_drained();
            let seen = written.load(Ordering::Relaxed);
            let passed = guest.join().unwrap();
            if drained && passed {
                assert_eq!(seen, 1, "drained, and the write of a request that passed is not visible");
            }
            if !drained {
                assert!(told.load(Ordering::SeqCst), "nobody says that the gate has drained");
            }
            assert!(gate.is_drained());
        });
    }

    #[test]
    fn a_job_that_comes_sees_what_was_written_or_is_told_of_it() {
        loom::model(|| {
            let gate = Arc::new(Gate::new());
            let (written, marked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
            let guest = {
                let (gate, written, marked) = (gate.clone(), written.clone(), marked.clone());
                loom::thread::spawn(move || {
                    let Entry::Pass(counted, inside) = gate.enter(1, true) else { panic!("it is open") };
                    written.store(1, Ordering::Relaxed);
                    if let Err(inside) = gate.exit_untold_and_step_out(inside, counted) {
                        marked.store(true, Ordering::Relaxed);
                        let _ = gate.exit_and_step_out(inside, counted);
                    }
                })
            };
            gate.set_hooked(true);
            let copied = written.load(Ordering::Relaxed);
            guest.join().unwrap();
            assert!(copied == 1 || marked.load(Ordering::Relaxed), "a write is lost");
        });
    }
}
