//! Simulated links, guests and a job on one thread, in virtual time or in real time.
//!
//! A [`Link`] is a device that moves bytes at a rate and answers after a latency. What is due is kept on a [`Timeline`];
//! whoever measures completes it, acts, and goes on to the next moment at which something happens. In virtual time that
//! moment is jumped to, so a run takes no longer than the work in it and gives the same figures on every machine; in real
//! time it is waited for, and what the library costs counts.

use blkmirror::clock::{Nanos, monotonic};
use blkmirror::device::{Answer, Backend, Completions, Device, Kind, Limits, Request, Token};
use blkmirror::error::Result;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is shorter than this is waited for without sleeping: a sleep takes longer.
const SHORTEST_SLEEP_NS: u64 = 200_000;

/// Where the time comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Time {
    Virtual,
    Real,
}

pub(super) struct Timeline {
    time: Time,
    /// Nanoseconds; in real time only what was looked at last.
    now: AtomicU64,
    due: Mutex<BinaryHeap<Reverse<Due>>>,
}

/// A request that is done at this moment, in the order in which they were sent.
struct Due {
    at: u64,
    order: u64,
    token: Token,
    completions: Completions,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Timeline {
    pub(super) fn new(time: Time) -> Arc<Self> {
        let now = AtomicU64::new(if time == Time::Real { monotonic().0 } else { 1 });
        Arc::new(Self { time, now, due: Mutex::default() })
    }

    pub(super) fn now(&self) -> u64 {
        match self.time {
            Time::Virtual => self.now.load(Ordering::Relaxed),
            Time::Real => monotonic().0,
        }
    }

    /// Completes what is due. Whether anything was.
    pub(super) fn complete_due(&self) -> bool {
        let now = self.now();
        let mut any = false;
        loop {
            let due = {
                let mut waiting = lock(&self.due);
                match waiting.peek() {
                    Some(Reverse(first)) if first.at <= now => waiting.pop(),
                    _ => return any,
                }
            };
            if let Some(Reverse(due)) = due {
                // Refused if the job is gone.
                let _ = due.completions.complete(due.token, Ok(()));
                any = true;
            }
        }
    }

    /// When the next request is due.
    pub(super) fn next_due(&self) -> u64 {
        lock(&self.due).peek().map_or(u64::MAX, |Reverse(due)| due.at)
    }

    /// Goes to this moment.
    pub(super) fn wait_until(&self, at: u64) {
        match self.time {
            Time::Virtual => {
                self.now.fetch_max(at, Ordering::Relaxed);
            }
            Time::Real => loop {
                let left = Nanos(at).since(monotonic());
                if left == 0 {
                    break;
                }
                if left > SHORTEST_SLEEP_NS {
                    std::thread::sleep(Duration::from_nanos(left - SHORTEST_SLEEP_NS));
                } else {
                    std::hint::spin_loop();
                }
            },
        }
    }
}

/// How a link behaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkOptions {
    pub(super) length: u64,
    /// Bytes per second, 0 for any number.
    pub(super) rate: u64,
    pub(super) latency_ns: u64,
}

/// Bytes go through one after the other; then each request is under way for the latency.
pub(super) struct Link {
    timeline: Arc<Timeline>,
    completions: Completions,
    options: LinkOptions,
    /// When the last byte that was sent has gone through, and how many requests were sent.
    free_at: Mutex<(u64, u64)>,
}

impl Link {
    pub(super) fn device(timeline: &Arc<Timeline>, options: LinkOptions) -> Result<Device> {
        let timeline = Arc::clone(timeline);
        Device::new(options.length, Limits::default(), |completions| {
            Ok(Self { timeline, completions, options, free_at: Mutex::new((0, 0)) })
        })
    }
}

impl Backend for Link {
    fn submit(&self, token: Token, request: &Request<'_>) -> Answer {
        let bytes = if matches!(request.kind, Kind::Read | Kind::Write) { request.range.len() } else { 0 };
        let takes = if self.options.rate == 0 {
            0
        } else {
            (u128::from(bytes) * 1_000_000_000 / u128::from(self.options.rate)) as u64
        };
        let (through, order) = {
            let mut free = lock(&self.free_at);
            *free = (free.0.max(self.timeline.now()) + takes, free.1 + 1);
            *free
        };
        let at = through + self.options.latency_ns;
        let completions = self.completions.clone();
        lock(&self.timeline.due).push(Reverse(Due { at, order, token, completions }));
        Answer::Pending
    }

    fn supports(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Read | Kind::Write | Kind::Flush)
    }
}
