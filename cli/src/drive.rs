//! The loop that polls a job.
//!
//! The thread that polls sleeps by parking itself; the job's wake hook unparks it, and so does Ctrl-C. That works on
//! every system. A host with an event loop of its own would wait for [`Job::fd`] there instead.

use blkmirror::clock::{Nanos, monotonic};
use blkmirror::error::Result;
use blkmirror::job::{Job, PollState};
use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

/// The longest sleep: what is shown to a person is never older.
const TICK: Duration = Duration::from_millis(100);

/// The wake hook for a job that is polled from the thread that calls this.
pub(crate) fn wake_hook() -> Box<dyn Fn() + Send + Sync> {
    let poller = thread::current();
    Box::new(move || poller.unpark())
}

/// Polls until the job is over, or until `look` has seen enough. It looks after each poll.
pub(crate) fn drive(job: &Job, mut look: impl FnMut(&Job) -> Result<ControlFlow<()>>) -> Result<()> {
    loop {
        let poll = job.poll(monotonic())?;
        if look(job)?.is_break() || poll.state == PollState::Concluded {
            return Ok(());
        }
        if poll.state == PollState::Idle {
            thread::park_timeout(sleep(poll.wake_at));
        }
    }
}

fn sleep(wake_at: Nanos) -> Duration {
    Duration::from_nanos(wake_at.since(monotonic())).min(TICK)
}
