//! The rate limit: a quota of bytes in each slice of time (SPEC C-9).

use crate::clock::Nanos;

/// The length of a slice: short enough that a limited copy looks even, long enough to be worth a wake-up.
pub(crate) const SLICE_NS: u64 = 100_000_000;

/// Lets an operation start while the current slice has quota left; an operation that is larger than what is
/// left borrows from the slices to come, so that the average holds however large the operations are.
#[derive(Debug)]
pub(crate) struct Rate {
    quota: u64,
    slice_start: Nanos,
    charged: u64,
}

impl Rate {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { quota: quota(bytes_per_second), slice_start: Nanos(0), charged: 0 }
    }

    /// Takes effect at once: what was borrowed at the old speed is forgiven.
    pub(crate) fn set_speed(&mut self, bytes_per_second: u64) {
        self.quota = quota(bytes_per_second);
        self.charged = 0;
    }

    /// When the next operation may start: `None` for now.
    pub(crate) fn blocked_until(&mut self, now: Nanos) -> Option<Nanos> {
        if self.quota == 0 || self.charged < self.quota {
            return None;
        }
        let slices = self.charged / self.quota;
        let free = self.slice_start + slices.saturating_mul(SLICE_NS);
        if now < free {
            return Some(free);
        }
        if now.since(free) < SLICE_NS {
            // What was borrowed from this slice counts.
            self.slice_start = free;
            self.charged %= self.quota;
        } else {
            self.slice_start = now;
            self.charged = 0;
        }
        None
    }

    pub(crate) fn charge(&mut self, now: Nanos, bytes: u64) {
        if self.quota == 0 {
            return;
        }
        if self.charged < self.quota && now.since(self.slice_start) >= SLICE_NS {
            self.slice_start = now;
            self.charged = 0;
        }
        self.charged = self.charged.saturating_add(bytes);
    }
}

fn quota(bytes_per_second: u64) -> u64 {
    if bytes_per_second == 0 { 0 } else { (bytes_per_second / 10).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes let through in ten virtual seconds of operations of this size.
    fn in_ten_seconds(speed: u64, operation: u64) -> u64 {
        let mut rate = Rate::new(speed);
        let mut now = Nanos(5);
        let mut bytes = 0;
        while now < Nanos(10_000_000_005) {
            match rate.blocked_until(now) {
                Some(until) => {
                    assert!(until > now, "a wait that is over at once");
                    now = until;
                }
                None => {
                    rate.charge(now, operation);
                    bytes += operation;
                }
            }
        }
        bytes
    }

    #[test]
    fn the_average_holds_for_small_and_for_large_operations() {
        // SPEC C-9
        for (speed, operation) in
            [(1 << 20, 4096), (1 << 20, 1 << 20), (10 << 20, 64 << 10), (100, 1), (5, 1)]
        {
            let bytes = in_ten_seconds(speed, operation);
            let wanted = quota(speed) * 100;
            assert!(
                bytes >= wanted && bytes <= wanted + wanted / 50 + operation,
                "{speed} B/s in operations of {operation}: {bytes}"
            );
        }
    }

    #[test]
    fn a_changed_speed_takes_effect_at_once() {
        // SPEC C-9
        let mut rate = Rate::new(10);
        rate.charge(Nanos(0), 1 << 20);
        assert!(rate.blocked_until(Nanos(1)).is_some());
        rate.set_speed(0);
        assert_eq!(rate.blocked_until(Nanos(1)), None);
        rate.set_speed(10);
        assert_eq!(rate.blocked_until(Nanos(1)), None);
    }

    #[test]
    fn time_that_was_not_used_is_not_saved_up() {
        // SPEC C-9
        let mut rate = Rate::new(1000);
        rate.charge(Nanos(0), 100);
        let late = Nanos(60_000_000_000);
        assert_eq!(rate.blocked_until(late), None);
        rate.charge(late, 100);
        assert_eq!(rate.blocked_until(late), Some(late + SLICE_NS));
    }

    #[test]
    fn what_was_begun_in_a_slice_that_is_over_does_not_count_in_the_next() {
        // SPEC C-9
        let mut rate = Rate::new(1000);
        rate.charge(Nanos(0), 50);
        let late = Nanos(10_000_000_000);
        rate.charge(late, 50);
        assert_eq!(rate.blocked_until(late), None, "half of this slice is left");
        rate.charge(late, 50);
        assert_eq!(rate.blocked_until(late), Some(late + SLICE_NS), "and now nothing");
    }
}
