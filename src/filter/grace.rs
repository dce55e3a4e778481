//! What a filter is switched to and hung with, read by guest requests without a lock, and replaced under them.
//!
//! A reader is a thread that is inside the gate; it takes no other protection, which would cost it two more atomic steps.
//! So what is replaced must live until everybody who was inside then has left: a *grace period*. [`Grace`] turns the
//! gate's shards and frees what waits once all have turned. Of what is replaced meanwhile the grace period comes next:
//! a shard can be turned again only when nobody of the phase before is left.
//!
//! Why no reader sees what was freed: whoever replaces swaps the pointer first and turns the shards afterwards. The turn
//! of a reader's shard comes either after the reader stepped in, and then it is waited for; or before, and then the
//! reader, whose stepping in follows the turn on the same word, sees the new pointer.

use super::gate::{Gate, Inside, SHARDS};
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::{Mutex, MutexGuard, PoisonError};
use std::ptr;
use std::sync::Arc;

/// A pointer that whoever is inside the gate may read.
#[derive(Debug)]
pub(super) struct Published<T> {
    read: AtomicPtr<T>,
    /// Keeps what is read. Locked by those who replace it, and by those who want to keep it for longer than they are inside.
    kept: Mutex<Option<Arc<T>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Published<T> {
    pub(super) fn new() -> Self {
        Self { read: AtomicPtr::new(ptr::null_mut()), kept: Mutex::new(None) }
    }

    /// What it points at. `inside` is of the gate whose grace period what is replaced here is given to.
    #[inline]
    pub(super) fn get<'a>(&'a self, _inside: &'a Inside) -> Option<&'a T> {
        // SAFETY: null, or kept until it is replaced and then until everybody who was inside has left; see above.
        unsafe { self.read.load(Ordering::Acquire).as_ref() }
    }

    /// What it points at, to keep.
    pub(super) fn keep(&self) -> Option<Arc<T>> {
        lock(&self.kept).clone()
    }

    /// Points at something else from now on. What it pointed at must go to [`Grace::retire`].
    #[must_use]
    pub(super) fn replace(&self, with: Option<Arc<T>>) -> Option<Arc<T>> {
        let mut kept = lock(&self.kept);
        let pointer = with.as_ref().map_or(ptr::null_mut(), |with| Arc::as_ptr(with).cast_mut());
        self.read.swap(pointer, Ordering::AcqRel);
        std::mem::replace(&mut *kept, with)
    }
}

/// What waits until nobody can see it any more. `T` owns it.
#[derive(Debug)]
pub(super) struct Grace<T>(Mutex<Waiting<T>>);

#[derive(Debug)]
struct Waiting<T> {
    /// A bit for each shard in which somebody is left of the last phase.
    turning: u32,
    /// Freed when no shard is turning.
    now: Vec<T>,
    /// Freed at the end of the grace period that comes after that.
    next: Vec<T>,
}

impl<T> Grace<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Waiting { turning: 0, now: Vec::new(), next: Vec::new() }))
    }

    /// Takes what was replaced. What nobody can see any more comes back, to be dropped outside of any lock.
    pub(super) fn retire(&self, gate: &Gate, replaced: T) -> Vec<T> {
        let mut waiting = lock(&self.0);
        waiting.next.push(replaced);
        if waiting.turning == 0 { waiting.turn(gate) } else { Vec::new() }
    }

    /// Somebody has left a shard as the last. What nobody can see any more comes back.
    pub(super) fn advance(&self, gate: &Gate) -> Vec<T> {
        let mut waiting = lock(&self.0);
        if waiting.turning == 0 {
            return Vec::new();
        }
        let turning = waiting.turning;
        let left = (0..SHARDS).filter(|shard| turning & 1 << shard != 0 && !gate.has_turned(*shard));
        waiting.turning = left.fold(0, |mask, shard| mask | 1 << shard);
        if waiting.turning > 0 {
            return Vec::new();
        }
        let mut free = std::mem::take(&mut waiting.now);
        if !waiting.next.is_empty() {
            free.append(&mut waiting.turn(gate));
        }
        free
    }
}

impl<T> Waiting<T> {
    /// Begins the grace period of what waits for the next. What needs none comes back.
    fn turn(&mut self, gate: &Gate) -> Vec<T> {
        let turning = (0..SHARDS).filter(|shard| gate.turn(*shard));
        self.turning = turning.fold(0, |mask, shard| mask | 1 << shard);
        let begun = std::mem::take(&mut self.next);
        if self.turning == 0 {
            return begun;
        }
        self.now = begun;
        Vec::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::gate::Left;
    use super::*;

    #[test]
    fn what_somebody_may_see_waits_until_they_have_left() {
        let (gate, grace) = (Gate::new(), Grace::new());
        assert_eq!(grace.retire(&gate, 1), [1], "nobody is inside");
        let first = gate.step_in(3);
        assert_eq!(grace.retire(&gate, 2), []);
        let later = gate.step_in(3);
        assert_eq!(grace.retire(&gate, 3), [], "its turn comes when the first has left");
        assert_eq!(grace.advance(&gate), []);
        assert_eq!(gate.step_out(first), Left::AsTheLast);
        assert_eq!(grace.advance(&gate), [2], "whoever came later does not see it");
        assert_eq!(gate.step_out(later), Left::AsTheLast);
        assert_eq!(grace.advance(&gate), [3]);
        assert_eq!(grace.advance(&gate), []);
        assert_eq!(grace.retire(&gate, 4), [4]);
    }

    #[test]
    fn a_stream_of_threads_delays_nothing() {
        let (gate, grace) = (Gate::new(), Grace::new());
        let mut inside = gate.step_in(0);
        for round in 0..10 {
            assert_eq!(grace.retire(&gate, round), []);
            let next = gate.step_in(0);
            assert_eq!(gate.step_out(std::mem::replace(&mut inside, next)), Left::AsTheLast);
            assert_eq!(grace.advance(&gate), [round]);
        }
        assert_eq!(gate.step_out(inside), Left::Quietly);
    }

    #[test]
    fn all_shards_have_to_turn() {
        let (gate, grace) = (Gate::new(), Grace::new());
        let (one, other) = (gate.step_in(1), gate.step_in(2));
        assert_eq!(grace.retire(&gate, 'a'), []);
        assert_eq!(gate.step_out(other), Left::AsTheLast);
        assert_eq!(grace.advance(&gate), []);
        assert_eq!(gate.step_out(one), Left::AsTheLast);
        assert_eq!(grace.advance(&gate), ['a']);
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::super::gate::Left;
    use super::*;
    use loom::sync::atomic::AtomicBool;

    /// Knows whether it was freed.
    struct Watched {
        freed: Arc<AtomicBool>,
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            assert!(!self.freed.swap(true, Ordering::Relaxed), "freed twice");
        }
    }

    struct Disk {
        gate: Gate,
        grace: Grace<Arc<Watched>>,
        published: Published<Watched>,
    }

    impl Disk {
        fn replace(&self, with: Option<Arc<Watched>>) {
            if let Some(replaced) = self.published.replace(with) {
                drop(self.grace.retire(&self.gate, replaced));
            }
        }

        fn read(&self, shard: usize) {
            let inside = self.gate.step_in(shard);
            let freed = self.published.get(&inside).map(|watched| Arc::clone(&watched.freed));
            loom::thread::yield_now();
            if let Some(freed) = freed {
                assert!(!freed.load(Ordering::Relaxed), "freed under a reader");
            }
            if self.gate.step_out(inside) == Left::AsTheLast {
                drop(self.grace.advance(&self.gate));
            }
        }
    }

    #[test]
    fn nothing_is_freed_under_a_reader_and_everything_at_last() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let freed: Vec<_> = (0..2).map(|_| Arc::new(AtomicBool::new(false))).collect();
            let watched = |index: usize| Some(Arc::new(Watched { freed: Arc::clone(&freed[index]) }));
            let disk = loom::sync::Arc::new(Disk {
                gate: Gate::new(),
                grace: Grace::new(),
                published: Published::new(),
            });
            disk.replace(watched(0));
            let reader = {
                let disk = disk.clone();
                loom::thread::spawn(move || {
                    disk.read(0);
                    disk.read(0);
                })
            };
            disk.replace(watched(1));
            disk.replace(None);
            reader.join().unwrap();
            assert!(
                freed.iter().all(|freed| freed.load(Ordering::Relaxed)),
                "not freed though nobody is inside"
            );
        });
    }
}
