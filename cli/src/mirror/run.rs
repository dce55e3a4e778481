//! The copy itself: a job from its start to its end.

use super::endpoints::Endpoints;
use super::options::Arguments;
use super::progress::Progress;
use crate::drive::{drive, wake_hook};
use crate::failure::Failure;
use crate::interrupt;
use blkmirror::engine::{Action, Event, Failure as Mishap, Info, IoStatus};
use blkmirror::error::{Error, Result as JobResult};
use blkmirror::filter::Filter;
use blkmirror::job::{Job, JobOptions};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// How long a job that was stopped by an error waits until it tries again.
const RETRY: Duration = Duration::from_secs(5);
/// More errors than this are counted, not shown.
const MOST_SHOWN: u64 = 10;

/// How a copy ended.
pub(super) struct Outcome {
    /// What the job knew at the end.
    pub(super) info: Info,
    /// From the start to the flush.
    pub(super) elapsed: Duration,
    /// `Ok` if all was copied and flushed.
    pub(super) result: JobResult<()>,
}

/// Copies. An error means that there was no job; what became of the job is in the outcome.
pub(super) fn copy(endpoints: &Endpoints, arguments: &Arguments) -> Result<Outcome, Failure> {
    // Nobody else uses the filter, but the job keeps it to what both devices can take.
    let filter = Filter::with_alignment(&endpoints.source, endpoints.request_alignment())?;
    let options = JobOptions { options: arguments.options(), wake: wake_hook(), ..JobOptions::default() };
    let job = Job::new(&filter, &endpoints.target, options)?;
    let begin = Instant::now();
    job.start()?;
    let mut watch = Watch::new();
    drive(&job, |job| watch.look(job))?;
    drop(watch);
    let info = job.query();
    let result = match &info.error {
        None => Ok(()),
        Some((errno, message)) => Err(Error::new(*errno, message.clone())),
    };
    Ok(Outcome { info, elapsed: begin.elapsed(), result })
}

/// What happens beside the copying.
struct Watch {
    progress: Progress,
    cancelled: bool,
    errors: u64,
    resume_at: Option<Instant>,
}

impl Watch {
    fn new() -> Self {
        Self { progress: Progress::new("copying"), cancelled: false, errors: 0, resume_at: None }
    }

    fn look(&mut self, job: &Job) -> JobResult<ControlFlow<()>> {
        while let Some(event) = job.next_event() {
            if let Event::Error(mishap) = event {
                self.tell(&mishap);
            }
        }
        if interrupt::requested() && !self.cancelled {
            self.cancelled = true;
            // It is refused at the very end only, and then the copy is whole.
            let _ = job.cancel(true);
        }
        if self.progress.is_due() {
            let info = job.query();
            self.progress.show_job(&info);
            self.resume(job, &info)?;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The error that ends a job is told at its end.
    fn tell(&mut self, mishap: &Mishap) {
        let then = match mishap.action {
            Action::Report => return,
            Action::Ignore => "trying again",
            Action::Stop => "waiting: trying again every 5 seconds, Ctrl-C gives up",
        };
        self.errors += 1;
        if self.errors <= MOST_SHOWN {
            self.progress.complain(&format!(
                "{} of the {} at offset {} length {} failed: {}; {then}",
                mishap.operation.name(),
                mishap.side.name(),
                mishap.range.offset(),
                mishap.range.len(),
                mishap.errno
            ));
        } else if self.errors == MOST_SHOWN + 1 {
            self.progress.complain("there are more errors; they are only counted from here on");
        }
    }

    /// A job that was stopped by an error waits for somebody to put it right, and to resume it.
    fn resume(&mut self, job: &Job, info: &Info) -> JobResult<()> {
        if info.io_status == IoStatus::Ok || !info.paused || self.cancelled {
            self.resume_at = None;
            return Ok(());
        }
        if Instant::now() >= *self.resume_at.get_or_insert_with(|| Instant::now() + RETRY) {
            self.resume_at = None;
            job.resume()?;
        }
        Ok(())
    }
}
