//! `blkmirror mirror`: copies one file or block device to another.
//!
//! It is a mirror job whose disk nobody writes to. Once everything is copied the job could be cancelled softly, which
//! leaves a copy of that instant, or completed, which also switches the disk to the copy. Without a guest the two
//! come to the same; it completes, because that is what a job reports as its success.

mod endpoints;
mod options;
mod progress;
mod run;
mod summary;
mod verify;

use crate::failure::Failure;
use crate::interrupt;
use crate::output;
use blkmirror::error::Error;
use endpoints::Endpoints;
pub(crate) use options::{Arguments, CopyMode};
use options::{Report, Sync};
use run::Outcome;
use summary::{Summary, Verified};

/// What the job is called where it is called anything.
const JOB: &str = "mirror";

/// The command.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let endpoints = Endpoints::open(arguments)?;
    let outcome = run::copy(&endpoints, arguments)?;
    let verified = match &outcome.result {
        Ok(()) if arguments.compares() => verify::compare(&arguments.source, &arguments.target)?,
        _ => Verified::NotAsked,
    };
    let failure = explain(arguments, &outcome, verified);
    let summary = Summary::new(arguments, &endpoints, &outcome, verified, failure.as_ref());
    match arguments.report() {
        Report::Json => output::say(summary.to_json())?,
        Report::Line if failure.is_none() => output::say(&summary)?,
        Report::Line => {}
    }
    failure.map_or(Ok(()), Err)
}

/// What is wrong with the copy, if anything is.
fn explain(arguments: &Arguments, outcome: &Outcome, verified: Verified) -> Option<Failure> {
    let target = arguments.target.display();
    match (&outcome.result, verified) {
        (Err(_), _) if interrupt::requested() => {
            Some(Failure::Interrupted(format!("interrupted: {target} is incomplete")))
        }
        (Err(error), _) => Some(Failure::Failed(format!("{}; {target} is incomplete", reason(error)))),
        (Ok(()), Verified::Interrupted) => Some(Failure::Interrupted(format!(
            "interrupted while verifying: {target} is complete, but not all of it was compared"
        ))),
        (Ok(()), Verified::Differs { offset }) => Some(Failure::Failed(format!(
            "{target} differs from {} at offset {offset}: {}",
            arguments.source.display(),
            why_it_differs(arguments)
        ))),
        (Ok(()), Verified::NotAsked | Verified::Equal) => None,
    }
}

/// What the job says, without its name: there is only one here.
fn reason(error: &Error) -> &str {
    let message = error.message();
    message.strip_prefix(&format!("Job '{JOB}': ")).unwrap_or(message)
}

fn why_it_differs(arguments: &Arguments) -> &'static str {
    match arguments.sync {
        Sync::None => {
            "with --sync none nothing is copied of what was there before; --sync full copies everything"
        }
        Sync::Top => {
            "with --sync top it keeps what it had where the source has holes; --sync full copies everything"
        }
        Sync::Full if arguments.target_is_zero => {
            "it did not read as zero, as --target-is-zero says, or the source was changed meanwhile"
        }
        Sync::Full => "the disk doesn't hold what was written to it, or the source was changed meanwhile",
    }
}
