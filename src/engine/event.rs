//! What a job has to tell, in order, in a bounded queue (SPEC L-4).

use super::state::Status;
use super::{Kind, Side};
use crate::error::{Errno, IoResult};
use crate::range::ByteRange;
use std::collections::VecDeque;

/// Most events that wait to be read. A job that nobody listens to forgets its oldest news, not its memory.
const CAPACITY: usize = 256;

/// What was done about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The job ends with it.
    Report,
    /// It will be tried again.
    Ignore,
    /// The job is paused.
    Stop,
}

/// A request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was asked for.
    pub operation: Kind,
    /// At which device.
    pub side: Side,
    /// Where.
    pub range: ByteRange,
    /// How it failed.
    pub errno: Errno,
    /// What was done about it.
    pub action: Action,
}

/// Something that happened to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is in this state now.
    Status(Status),
    /// Source and target are equal for the first time.
    Ready,
    /// It waits for `finalize`.
    Pending,
    /// A request failed.
    Error(Failure),
    /// It is over, with this result.
    Completed(IoResult),
    /// It was cancelled and is over.
    Cancelled,
}

impl Event {
    /// Whether it may be forgotten when nobody reads.
    fn may_drop(self) -> bool {
        matches!(self, Self::Status(_) | Self::Error(_))
    }
}

#[derive(Debug)]
pub(crate) struct Events {
    queue: VecDeque<Event>,
    dropped: u64,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self { queue: VecDeque::with_capacity(CAPACITY + 4), dropped: 0 }
    }

    /// Appends; where there is no room the oldest event that may be dropped gives way. What may not be dropped
    /// happens at most once each in a job's life.
    pub(crate) fn push(&mut self, event: Event) {
        if self.queue.len() >= CAPACITY
            && let Some(oldest) = self.queue.iter().position(|event| event.may_drop())
        {
            self.queue.remove(oldest);
            self.dropped += 1;
        }
        self.queue.push_back(event);
    }

    pub(crate) fn pop(&mut self) -> Option<Event> {
        self.queue.pop_front()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_forgets_the_oldest_news_and_never_a_milestone() {
        // SPEC L-4
        let mut events = Events::new();
        events.push(Event::Ready);
        for _ in 0..1000 {
            events.push(Event::Status(Status::Running));
        }
        events.push(Event::Pending);
        events.push(Event::Completed(Ok(())));
        events.push(Event::Cancelled);
        assert_eq!(events.pop(), Some(Event::Ready));
        let rest: Vec<_> = std::iter::from_fn(|| events.pop()).collect();
        assert_eq!(rest.len(), CAPACITY - 1);
        assert_eq!(&rest[rest.len() - 3..], &[Event::Pending, Event::Completed(Ok(())), Event::Cancelled]);
        assert_eq!(events.dropped(), 1004 - CAPACITY as u64);
    }
}
