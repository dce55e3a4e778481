//! The loop that polls a job.
//!
//! Where there is a descriptor to wait for, the thread that polls waits for it: then the job needs no other thread that
//! looks for completions. Elsewhere it sleeps by parking itself; the job's wake hook unparks it, and so does Ctrl-C.

use blkmirror::clock::{Nanos, monotonic};
use blkmirror::error::Result;
use blkmirror::job::{Job, PollState};
use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

/// The longest sleep: what is shown to a person is never older.
const TICK: Duration = Duration::from_millis(100);

/// A hook that wakes who polls a job.
type WakeHook = Box<dyn Fn() + Send + Sync>;

/// The wake hook for a job that is polled from the thread that calls this; `None` where it waits for the descriptor.
pub(crate) fn wake_hook() -> Option<WakeHook> {
    if cfg!(target_os = "linux") {
        return None;
    }
    let poller = thread::current();
    Some(Box::new(move || poller.unpark()))
}

/// Polls until the job is over, or until `look` has seen enough. It looks after each poll.
pub(crate) fn drive(job: &Job, mut look: impl FnMut(&Job) -> Result<ControlFlow<()>>) -> Result<()> {
    loop {
        let poll = job.poll(monotonic())?;
        if look(job)?.is_break() || poll.state == PollState::Concluded {
            return Ok(());
        }
        if poll.state == PollState::Idle {
            wait(job, longest(poll.wake_at))?;
        }
    }
}

#[cfg(target_os = "linux")]
fn wait(job: &Job, longest: Duration) -> Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    use std::os::fd::BorrowedFd;
    // SAFETY: the descriptor is the job's, which has it as long as it lives.
    let fd = unsafe { BorrowedFd::borrow_raw(job.fd()?) };
    let longest = longest.try_into().ok();
    // A signal ends it early, and so does anything else that may be wrong: then the job is polled for nothing.
    let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], longest.as_ref());
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn wait(_: &Job, longest: Duration) -> Result<()> {
    thread::park_timeout(longest);
    Ok(())
}

fn longest(wake_at: Nanos) -> Duration {
    Duration::from_nanos(wake_at.since(monotonic())).min(TICK)
}
