//! What `query` answers, as far as `watch` shows it, and how it is shown.

use crate::size::Size;
use serde::Deserialize;
use std::fmt;
use std::time::Duration;

/// The answer to `query`.
#[derive(Deserialize)]
pub(super) struct State {
    /// The disk that is served.
    pub(super) disk: Disk,
    /// The job that runs or ran last.
    pub(super) job: Option<Job>,
}

/// The disk.
#[derive(Deserialize)]
pub(super) struct Disk {
    /// The file that it is now.
    pub(super) file: String,
}

/// The job.
#[derive(Clone, Deserialize, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) id: String,
    pub(super) target: String,
    pub(super) status: String,
    pub(super) result: i32,
    pub(super) message: String,
    pub(super) done: u64,
    pub(super) total: u64,
    pub(super) copy_rate: u64,
    pub(super) eta_ns: Option<u64>,
}

impl Job {
    /// Whether nothing will happen any more.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "concluded" | "null")
    }

    /// Whether it is copying for the first time, so that an estimate means something.
    fn is_on_its_way(&self) -> bool {
        self.status == "running" && self.copy_rate > 0
    }

    /// How fast it goes and how long it will take.
    pub(super) fn pace(&self) -> String {
        if !self.is_on_its_way() {
            return String::new();
        }
        let eta = match self.eta_ns {
            Some(ns) => format!("{}s", Duration::from_nanos(ns).as_secs_f64().ceil()),
            None => "never, at this rate".to_owned(),
        };
        format!("{}/s  ETA {eta}", Size(self.copy_rate))
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (done, total) = (Size(self.done), Size(self.total));
        write!(f, "{} {}: {done} of {total}", self.id, self.status)?;
        match self.pace() {
            pace if pace.is_empty() => Ok(()),
            pace => write!(f, "  {pace}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(status: &str, eta_ns: Option<u64>) -> Job {
        Job {
            id: "job-1".to_owned(),
            target: "/t".to_owned(),
            status: status.to_owned(),
            result: 0,
            message: String::new(),
            done: 1 << 20,
            total: 4 << 20,
            copy_rate: 2 << 20,
            eta_ns,
        }
    }

    #[test]
    fn a_job_is_shown_with_its_pace_while_that_means_something() {
        for (job, line) in [
            (job("running", Some(1_400_000_000)), "job-1 running: 1 MiB of 4 MiB  2 MiB/s  ETA 2s"),
            (job("running", None), "job-1 running: 1 MiB of 4 MiB  2 MiB/s  ETA never, at this rate"),
            (job("ready", Some(0)), "job-1 ready: 1 MiB of 4 MiB"),
        ] {
            assert_eq!(job.to_string(), line);
        }
    }
}
