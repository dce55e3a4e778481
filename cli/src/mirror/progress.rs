//! The progress bar, on standard error if that is a terminal.

use blkmirror::engine::Info;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

/// The job isn't asked more often than this.
const INTERVAL: Duration = Duration::from_millis(100);

/// A bar, or nothing. It is cleared when it is dropped.
pub(super) struct Progress {
    bar: ProgressBar,
    next: Option<Instant>,
}

impl Progress {
    pub(super) fn new(what: &'static str) -> Self {
        let target = if io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template(
            "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}",
        )
        .expect("the template is valid");
        let bar = ProgressBar::with_draw_target(None, target).with_style(style).with_message(what);
        Self { bar, next: None }
    }

    /// Whether it is time to show something new.
    pub(super) fn is_due(&mut self) -> bool {
        let now = Instant::now();
        if self.next.is_some_and(|next| now < next) {
            return false;
        }
        self.next = Some(now + INTERVAL);
        true
    }

    pub(super) fn show_job(&self, info: &Info) {
        self.show(info.done, info.total);
    }

    pub(super) fn show(&self, done: u64, total: u64) {
        // Of nothing, all is done: a full bar before it has begun.
        if total > 0 {
            self.bar.set_length(total);
            self.bar.set_position(done);
        }
    }

    /// Says something without spoiling the bar.
    pub(super) fn complain(&self, line: &str) {
        self.bar.suspend(|| crate::output::complain(line));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
