//! Who polls a job and who drives it, so that one thread drives at a time and nobody's news is left behind.
//!
//! Mostly the same thread does both, but with [`super::JobOptions::inline`] any thread that has news may drive beside
//! the one that polls.
//!
//! Who has news leaves it in a queue, and then counts it here. Who drives begins each round by forgetting the count, and
//! looks into the queues after that. Three steps are such that no news is ever seen by nobody:
//!
//! - The count is forgotten by a read-modify-write. So a round that forgets a count has acquired it, and what was left
//!   in the queues before it; a plain store would let the look into the queues be served first, and then wipe out the
//!   count of what it missed.
//! - News is counted before the look at who drives, and the turn is given back before the look at the count. In the one
//!   order that these four sequentially consistent steps have, either the teller finds that nobody drives, or who drove
//!   finds the count.
//! - So who has driven asks [`Turns::has_news`] afterwards, and goes on or says that there is more to do.
//!
//! A job *rests* if its last driver found that only news, or a certain time, can give it something to do: a poll then has
//! nothing to drive. Who drives ends the rest before it forgets any news, and a poll looks for news before it looks at
//! the rest; so what was told before a poll either keeps it from taking the job for resting, or is being looked for.

use crate::clock::Nanos;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, PoisonError};

pub(super) struct Turns<T> {
    /// A poll is running.
    polled: AtomicBool,
    /// The thread that drives, 0 for none.
    driver: AtomicUsize,
    /// News that came since the last round began.
    news: AtomicU32,
    /// Nanoseconds: before, nothing but news gives a driver anything to do. 0 while one drives.
    rests_until: AtomicU64,
    /// What the driver works with. Locked by who drives, so nobody ever waits for it.
    driven: Mutex<T>,
}

/// A poll that is running; it is over when this is dropped.
pub(super) struct Polling<'a>(&'a AtomicBool);

/// This thread drives until this is dropped, also by a panic.
struct Driving<'a>(&'a AtomicUsize);

/// What becomes of news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Somebody drives, and will find it.
    Driver,
    /// Nobody will look before somebody is told.
    Nobody,
}

impl<T> Turns<T> {
    pub(super) fn new(driven: T) -> Self {
        Self {
            polled: AtomicBool::new(false),
            driver: AtomicUsize::new(0),
            news: AtomicU32::new(0),
            rests_until: AtomicU64::new(0),
            driven: Mutex::new(driven),
        }
    }

    /// `None` if another poll is running, or if this thread drives already: it is in a callback.
    pub(super) fn begin_poll(&self) -> Option<Polling<'_>> {
        let free = !self.is_driven_here() && !self.polled.swap(true, Ordering::SeqCst);
        free.then(|| Polling(&self.polled))
    }

    pub(super) fn is_polled_or_driven_here(&self) -> bool {
        self.polled.load(Ordering::SeqCst) || self.is_driven_here()
    }

    pub(super) fn is_driven_here(&self) -> bool {
        self.driver.load(Ordering::SeqCst) == this_thread()
    }

    /// Counts news that was left in a queue before.
    pub(super) fn tell(&self) -> Told {
        self.news.fetch_add(1, Ordering::SeqCst);
        if self.driver.load(Ordering::SeqCst) == 0 { Told::Nobody } else { Told::Driver }
    }

    /// Whether there is news that no round has looked for.
    pub(super) fn has_news(&self) -> bool {
        self.news.load(Ordering::SeqCst) > 0
    }

    /// Forgets the count: what was told until now is found by who looks from now on.
    pub(super) fn begin_round(&self) {
        self.news.swap(0, Ordering::SeqCst);
    }

    /// Whether there is nothing to drive at this time.
    pub(super) fn is_resting(&self, now: Nanos) -> bool {
        !self.has_news() && now.0 < self.rests_until.load(Ordering::SeqCst)
    }

    /// Who drives has found that there is nothing to do before this time, if there is no news.
    pub(super) fn rest(&self, until: Nanos) {
        self.rests_until.store(until.0, Ordering::SeqCst);
    }

    /// Drives, unless somebody does.
    pub(super) fn try_drive<R>(&self, drive: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.driver.compare_exchange(0, this_thread(), Ordering::SeqCst, Ordering::SeqCst).ok()?;
        let _driving = Driving(&self.driver);
        self.rest(Nanos(0));
        let mut driven = self.driven.lock().unwrap_or_else(PoisonError::into_inner);
        Some(drive(&mut driven))
    }

    /// Drives for as long as there is news and nobody else drives, who would find it.
    pub(super) fn while_there_is_news<R>(&self, drive: impl Fn() -> Option<R>, then: impl Fn(R)) {
        while self.has_news() {
            let Some(outlook) = drive() else { return };
            then(outlook);
        }
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

/// A number that no other living thread has, and is not 0.
fn this_thread() -> usize {
    thread_local! {
        static PLACE: u8 = const { 0 };
    }
    // It needs no destructor, so it is there also in a thread that is ending.
    PLACE.with(|place| std::ptr::from_ref(place) as usize)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn news_a_driver_and_time_end_a_rest() {
        let turns = Turns::new(());
        assert!(!turns.is_resting(Nanos(0)), "nobody has looked yet");
        turns.try_drive(|()| turns.rest(Nanos(10))).expect("nobody drives");
        assert!(turns.is_resting(Nanos(9)));
        assert!(!turns.is_resting(Nanos(10)), "it is time");
        turns.tell();
        assert!(!turns.is_resting(Nanos(9)), "there is news");
        turns.try_drive(|()| turns.begin_round()).expect("nobody drives");
        assert!(!turns.is_resting(Nanos(9)), "the last driver did not say so");
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::super::completed::{Completed, Link};
    use super::super::signal::Signal;
    use super::*;
    use crate::device::SlotState;
    use crate::error::{Errno, IoResult};
    use loom::sync::Arc;
    use loom::thread;

    /// What a job is to those that complete its requests: slots, the list of those that are done, and whose turn it is.
    struct Model {
        slots: [(SlotState, Link); 2],
        completed: Completed,
        turns: Turns<Vec<(u16, IoResult)>>,
        signal: Signal,
    }

    impl Model {
        /// With a request out in each slot.
        fn new() -> Arc<Self> {
            let slots = [(); 2].map(|()| (SlotState::new(7), Link::new()));
            for (state, _) in &slots {
                assert_eq!(state.open(), 7);
            }
            Arc::new(Self {
                slots,
                completed: Completed::new(),
                turns: Turns::new(Vec::new()),
                signal: Signal::new(None),
            })
        }

        /// As `Seat::complete` does it. Whether there is somebody to tell.
        fn complete(&self, slot: u16, result: IoResult) -> bool {
            let (state, link) = &self.slots[usize::from(slot)];
            state.claim(7) && self.completed.push(slot, link, result)
        }

        /// As `Shared::tell` does it for a job that its host polls.
        fn complete_for_host(&self, slot: u16, result: IoResult) {
            if self.complete(slot, result) && self.turns.tell() == Told::Nobody {
                self.signal.raise();
            }
        }

        /// As `Shared::tell` does it for a job that is driven by who has news.
        fn complete_inline(&self, slot: u16, result: IoResult) {
            if self.complete(slot, result) {
                self.turns.tell();
                self.turns.while_there_is_news(|| self.drive(), |()| {});
            }
        }

        /// As `Driver::drive` does it: rounds until there is nothing to be found.
        fn drive(&self) -> Option<()> {
            self.turns.try_drive(|found| {
                loop {
                    self.turns.begin_round();
                    self.completed.take(|slot| &self.slots[usize::from(slot)].1, found);
                    if !self.completed.any() {
                        break;
                    }
                }
                self.turns.rest(Nanos(1));
            })
        }

        /// As `Job::poll` does it. Whether the host has to wait to be told.
        fn poll(&self) -> bool {
            self.signal.lower();
            if self.turns.is_resting(Nanos(0)) {
                return true;
            }
            self.drive().expect("only the host drives");
            !self.turns.has_news()
        }

        fn found(&self) -> Vec<(u16, IoResult)> {
            let mut found = self.turns.try_drive(|found| found.clone()).expect("nobody drives");
            found.sort_by_key(|(slot, _)| *slot);
            found
        }

        fn is_raised(&self) -> bool {
            self.signal.fd([None; 2]).unwrap() == 1
        }
    }

    /// In all orders with at most three preemptions.
    fn check(script: impl Fn() + Send + Sync + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(script);
    }

    fn spawn(model: &Arc<Model>, act: impl FnOnce(&Model) + 'static) -> thread::JoinHandle<()> {
        let model = model.clone();
        thread::spawn(move || act(&model))
    }

    const ALL: [(u16, IoResult); 2] = [(0, Ok(())), (1, Err(Errno::EIO))];

    #[test]
    fn a_host_that_goes_to_sleep_is_woken_for_what_it_has_not_found() {
        check(|| {
            let model = Model::new();
            let workers = [
                spawn(&model, |model| model.complete_for_host(0, Ok(()))),
                spawn(&model, |model| model.complete_for_host(1, Err(Errno::EIO))),
            ];
            while !model.poll() {}
            // It sleeps. When the others are done, it has found everything or is woken.
            workers.into_iter().for_each(|worker| worker.join().unwrap());
            if model.is_raised() {
                while !model.poll() {}
            }
            assert_eq!(model.found(), ALL, "a completion that nobody looks for");
        });
    }

    #[test]
    fn without_a_host_each_completion_is_found_once_by_who_has_news() {
        check(|| {
            let model = Model::new();
            let worker = spawn(&model, |model| model.complete_inline(0, Ok(())));
            model.complete_inline(1, Err(Errno::EIO));
            worker.join().unwrap();
            assert_eq!(model.found(), ALL, "a completion that nobody looks for");
        });
    }

    #[test]
    fn of_two_completions_of_a_request_one_counts() {
        check(|| {
            let model = Model::new();
            let twice = spawn(&model, |model| model.complete_inline(0, Err(Errno::EIO)));
            model.complete_inline(0, Ok(()));
            twice.join().unwrap();
            assert_eq!(model.found().len(), 1);
        });
    }
}
