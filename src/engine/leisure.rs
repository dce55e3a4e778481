//! What a ready job takes from guests while nobody waits for it (SPEC C-14).
//!
//! Guests and copies share processors and devices, and no copy is urgent while a switch would find little to do. So copies
//! have few places at the devices, and begin in slices: when those of a slice have cost its share, the job rests for as long
//! as they were worth, and with it the host, who is woken once for all of them. What a copy is worth is several times what it
//! takes of a processor.
//!
//! A job that falls behind hurries as any other does, if that helps: where guests write faster than is copied, all of the disk
//! will be dirty soon in any case. So what it gained is looked at, and if that was little it leaves them in peace for a while.

use super::window::{Room, Window};
use crate::clock::Nanos;

/// How long it may take to copy what is dirty before the job hurries, and when it is near enough again.
const MOST_BEHIND_NS: u64 = 2_000_000_000;
const NEAR_NS: u64 = 1_000_000_000;
/// What a copy is worth: so many times what one takes alone, and its bytes at the rate that was seen, for that is the most
/// that it can cost a processor. Of the first no more than this, for where a copy takes long that is not the processor.
const TIMES: u64 = 8;
const LEAST_COPY_NS: u64 = 100_000;
const MOST_COPY_NS: u64 = 500_000;
/// Copies that begin together are worth so much.
const SLICE_NS: u64 = 1_000_000;
const LEAST_IN_FLIGHT: u64 = 1;
/// After how long is looked at what hurry has gained, which must be this part of what was copied.
const TRIAL_NS: u64 = 250_000_000;
const LEAST_GAIN: u64 = 4;
/// How long nothing is hurried when it was in vain; twice as long each time.
const FIRST_PEACE_NS: u64 = 8_000_000_000;
const LONGEST_PEACE_NS: u64 = 128_000_000_000;

/// Whether there is a reason to hurry.
#[derive(Clone, Copy, Debug)]
enum Pace {
    Calm,
    /// It hurries since then, when so many bytes were dirty; so many were copied.
    Hurries {
        since: Nanos,
        dirty: u64,
        copied: u64,
    },
    /// It was in vain.
    Resigned {
        until: Nanos,
    },
}

#[derive(Debug)]
pub(super) struct Leisure {
    pace: Pace,
    /// How long it rests when it is in vain the next time.
    peace_ns: u64,
    /// When the slice began, if any copy of it has.
    began: Nanos,
    spent: u64,
    rests_until: Nanos,
}

impl Leisure {
    pub(super) fn new() -> Self {
        let never = Nanos(0);
        Self { pace: Pace::Calm, peace_ns: FIRST_PEACE_NS, began: never, spent: 0, rests_until: never }
    }

    /// Whether a ready job may begin another copy beside so many, with so many bytes dirty. Looks at the pace as well, which
    /// may change by it.
    pub(super) fn room(&mut self, now: Nanos, window: &Window, copies: u32, dirty: u64) -> Room {
        if self.hurries(now, window, dirty) {
            return Room::Yes;
        }
        // Where copies take long a guest doesn't notice some more of them.
        if u64::from(copies) >= (window.base() / LEAST_COPY_NS).max(LEAST_IN_FLIGHT) {
            Room::Later
        } else if now < self.rests_until {
            // It may hurry again before a long rest is over.
            match self.pace {
                Pace::Resigned { until } if now < until => Room::At(until.min(self.rests_until)),
                _ => Room::At(self.rests_until),
            }
        } else {
            Room::Yes
        }
    }

    fn hurries(&mut self, now: Nanos, window: &Window, dirty: u64) -> bool {
        let Some(behind) = window.time_to_copy(dirty) else {
            return true;
        };
        if behind <= NEAR_NS {
            (self.pace, self.peace_ns) = (Pace::Calm, FIRST_PEACE_NS);
            return false;
        }
        match self.pace {
            Pace::Calm if behind <= MOST_BEHIND_NS => return false,
            Pace::Resigned { until } if now < until || behind <= MOST_BEHIND_NS => return false,
            Pace::Hurries { since, dirty: before, copied } if now.since(since) >= TRIAL_NS => {
                if before.saturating_sub(dirty) < copied / LEAST_GAIN {
                    self.pace = Pace::Resigned { until: now + self.peace_ns };
                    self.peace_ns = (self.peace_ns * 2).min(LONGEST_PEACE_NS);
                    return false;
                }
            }
            Pace::Hurries { .. } => return true,
            Pace::Calm | Pace::Resigned { .. } => {}
        }
        self.pace = Pace::Hurries { since: now, dirty, copied: 0 };
        true
    }

    /// Nothing is copied for a while: what hurry has gained until now says nothing.
    pub(super) fn interrupt(&mut self) {
        if matches!(self.pace, Pace::Hurries { .. }) {
            self.pace = Pace::Calm;
        }
    }

    /// A copy begins.
    pub(super) fn spend(&mut self, now: Nanos, window: &Window, bytes: u64) {
        if let Pace::Hurries { copied, .. } = &mut self.pace {
            *copied = copied.saturating_add(bytes);
        }
        if self.spent == 0 {
            self.began = now;
        }
        let copy = window.base().saturating_mul(TIMES).clamp(LEAST_COPY_NS, MOST_COPY_NS);
        let bytes = window.time_to_copy(bytes).unwrap_or(0).saturating_mul(TIMES);
        self.spent = self.spent.saturating_add(copy).saturating_add(bytes);
        if self.spent >= SLICE_NS {
            self.rests_until = self.began + self.spent;
            self.spent = 0;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const RATE: u64 = 100_000_000;
    const PAGE: u64 = 4096;

    /// What a guest finds, second by second.
    struct Ready {
        leisure: Leisure,
        window: Window,
        now: Nanos,
        dirty: u64,
    }

    impl Ready {
        /// After copies that took so long, at a hundred megabytes a second.
        fn new(base: u64) -> Self {
            let window = Window::seen(RATE, base);
            Self { leisure: Leisure::new(), window, now: Nanos(3_600_000 * MS), dirty: PAGE }
        }

        fn room(&mut self, copies: u32) -> Room {
            self.leisure.room(self.now, &self.window, copies, self.dirty)
        }

        /// A second, with a look at it in each tenth of a millisecond, in which guests make so many bytes dirty and each copy
        /// is done at once. How many began.
        fn second(&mut self, written: u64) -> u64 {
            let mut begun = 0;
            for _ in 0..10_000 {
                // A hundred megabytes a second, if that is asked for.
                for _ in 0..3 {
                    if self.dirty >= PAGE && self.room(0) == Room::Yes {
                        self.leisure.spend(self.now, &self.window, PAGE);
                        self.dirty -= PAGE;
                        begun += 1;
                    }
                }
                self.dirty += written / 10_000;
                self.now = self.now + 100_000;
            }
            begun
        }
    }

    /// Bytes that are more than what two seconds copy.
    const MUCH: u64 = 3 * RATE;

    #[test]
    fn copies_begin_in_slices_with_rests_between_them() {
        // SPEC C-14: eight times ten microseconds and eight times what a page takes are some four tenths of a millisecond.
        let mut ready = Ready::new(10_000);
        for _ in 0..3 {
            assert_eq!(ready.room(0), Room::Yes);
            assert_eq!(ready.room(1), Room::Later, "one at a time");
            ready.leisure.spend(ready.now, &ready.window, PAGE);
        }
        let worth = 3 * (100_000 + 8 * PAGE * 10);
        assert_eq!(ready.room(0), Room::At(ready.now + worth));
        ready.now = ready.now + worth;
        assert_eq!(ready.room(0), Room::Yes);
        ready.dirty = RATE;
        let begun = ready.second(0);
        assert!((2100..2400).contains(&begun), "{begun} in a second");
    }

    #[test]
    fn where_copies_take_long_more_are_on_their_way() {
        // SPEC C-14
        let mut ready = Ready::new(2 * MS);
        assert_eq!((ready.room(19), ready.room(20)), (Room::Yes, Room::Later));
        ready.dirty = RATE;
        let begun = ready.second(0);
        assert!((1000..1300).contains(&begun), "half a millisecond each, and the bytes: {begun}");
    }

    #[test]
    fn a_job_hurries_if_that_brings_it_nearer() {
        // SPEC C-14: guests make a tenth dirty of what is copied.
        let mut ready = Ready::new(10_000);
        ready.dirty = MUCH;
        let mut seconds = 0;
        // What they write in the second in which it gets there is more than nothing.
        let near = RATE + RATE / 10;
        while ready.dirty > near {
            let begun = ready.second(RATE / 10);
            assert!(begun > 10_000, "{begun}");
            seconds += 1;
            assert!(seconds < 5, "{} are dirty", ready.dirty);
        }
        assert!(ready.second(0) < 3000, "it is near enough");
        ready.dirty = 2 * RATE;
        assert!(ready.second(0) < 3000, "it is not far");
    }

    #[test]
    fn a_job_that_hurries_in_vain_leaves_guests_in_peace() {
        // SPEC C-14
        let mut ready = Ready::new(10_000);
        ready.dirty = MUCH;
        let hurried = (0..120).filter(|_| ready.second(2 * RATE) > 5000).count();
        assert!((2..=5).contains(&hurried), "in {hurried} of 120 seconds");
        // Guests have had enough: so it is seen again, a little later.
        ready.dirty = MUCH;
        let waited = (0..130).take_while(|_| ready.second(0) < 5000 && ready.dirty > 2 * RATE).count();
        assert!(waited < 130);
        // To be a little nearer for a moment is no news.
        ready.leisure.pace = Pace::Resigned { until: ready.now + 3_600_000 * MS };
        (ready.dirty, ready.leisure.peace_ns) = (3 * RATE / 2, LONGEST_PEACE_NS);
        ready.second(0);
        ready.dirty = MUCH;
        assert!(ready.second(0) < 3000);
        ready.dirty = RATE;
        ready.second(0);
        ready.dirty = MUCH;
        assert!(ready.second(0) > 10_000, "what was in vain once is forgotten when it is near");
    }

    #[test]
    fn who_rests_long_is_woken_to_hurry_again() {
        // SPEC C-14: a large copy on a slow link was worth more than the peace lasts.
        let mut ready = Ready::new(10_000);
        ready.dirty = 10 * MUCH;
        ready.leisure.pace = Pace::Resigned { until: ready.now + FIRST_PEACE_NS };
        ready.leisure.spend(ready.now, &ready.window, 2 * RATE);
        assert_eq!(ready.room(0), Room::At(ready.now + FIRST_PEACE_NS));
        ready.now = ready.now + FIRST_PEACE_NS;
        assert_eq!(ready.room(0), Room::Yes);
        ready.leisure.pace = Pace::Resigned { until: ready.now };
        ready.dirty = 2 * RATE;
        assert!(matches!(ready.room(0), Room::At(at) if at > ready.now), "not at once, for ever");
    }

    #[test]
    fn a_pause_is_no_hurry_in_vain() {
        // SPEC C-14
        let mut ready = Ready::new(10_000);
        ready.dirty = 2 * MUCH;
        assert_eq!(ready.room(1000), Room::Yes, "it hurries");
        ready.leisure.spend(ready.now, &ready.window, PAGE);
        ready.leisure.interrupt();
        ready.now = ready.now + 3_600_000 * MS;
        assert!(ready.second(0) > 10_000, "and goes on with that");
    }

    #[test]
    fn nothing_is_held_back_before_anything_is_known_of_the_devices() {
        let mut leisure = Leisure::new();
        assert_eq!(leisure.room(Nanos(1), &Window::new(), 1000, u64::MAX), Room::Yes);
    }

    #[test]
    fn nothing_overflows() {
        let mut leisure = Leisure::new();
        let window = Window::seen(1, u64::MAX);
        for now in [0, 1, u64::MAX / 2, u64::MAX] {
            let _ = leisure.room(Nanos(now), &window, u32::MAX, u64::MAX);
            leisure.spend(Nanos(now), &window, u64::MAX);
            leisure.spend(Nanos(now), &window, 1);
            let _ = leisure.room(Nanos(now), &window, 0, 0);
        }
    }
}
