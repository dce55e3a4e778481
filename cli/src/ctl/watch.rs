//! `ctl watch`: shows a job until it is over. A bar where there is a terminal, elsewhere a line when something has changed.

use super::connection::Connection;
use super::state::{Job, State};
use crate::failure::Failure;
use crate::interrupt;
use crate::output;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

/// The server isn't asked more often than this.
const INTERVAL: Duration = Duration::from_millis(100);
/// Nor is a log given more lines than this, unless the job is in another state.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// The command. It fails as the job does.
pub(super) fn watch(server: &mut Connection) -> Result<(), Failure> {
    let mut shown = Shown::new();
    loop {
        let answer = server.ask("query")?;
        let state: State = serde_json::from_value(answer.value)
            .map_err(Failure::with("the server's answer is not what this program knows"))?;
        let Some(job) = state.job else {
            return Err(Failure::Failed("no job runs, and none did".to_owned()));
        };
        if job.is_over() {
            drop(shown);
            return conclude(&job, &state.disk.file);
        }
        shown.show(&job)?;
        // Ctrl-C ends the pause.
        thread::park_timeout(INTERVAL);
        if interrupt::requested() {
            return Err(Failure::Interrupted("interrupted; the job goes on".to_owned()));
        }
    }
}

fn conclude(job: &Job, disk: &str) -> Result<(), Failure> {
    let id = &job.id;
    match job.result {
        0 if disk == job.target => output::say(format!("{id} completed: the disk is {disk} now")),
        0 => output::say(format!("{id} ended: {} is a copy, and the disk is {disk}", job.target)),
        _ if job.message.is_empty() => Err(Failure::Failed(format!("{id} failed with {}", job.result))),
        _ => Err(Failure::Failed(job.message.clone())),
    }
}

/// Where a job is shown.
enum Shown {
    Bar(ProgressBar),
    Lines { last: Option<(Job, Instant)> },
}

impl Shown {
    fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines { last: None };
        }
        let style =
            ProgressStyle::with_template("{prefix} {wide_bar} {binary_bytes} of {binary_total_bytes}  {msg}")
                .expect("the template is valid");
        Self::Bar(ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style))
    }

    fn show(&mut self, job: &Job) -> Result<(), Failure> {
        match self {
            Self::Bar(bar) => {
                bar.set_prefix(format!("{} {}", job.id, job.status));
                bar.set_message(job.pace());
                // Of nothing, all is done.
                bar.set_length(job.total.max(1));
                bar.set_position(if job.total == 0 { 1 } else { job.done });
                Ok(())
            }
            Self::Lines { last } => {
                let is_news = last.as_ref().is_none_or(|(before, at)| {
                    before.status != job.status || before != job && at.elapsed() >= LINE_INTERVAL
                });
                if is_news {
                    output::say(job)?;
                    *last = Some((job.clone(), Instant::now()));
                }
                Ok(())
            }
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
