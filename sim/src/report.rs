//! What a set of runs came to, for people and for programs.

use crate::steps::Steps;
use blkmirror::engine::{Status, Verb};
use blkmirror::testing::{Fault, Outcome, Shape};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

/// What was found, in as few steps as could be had.
pub(crate) struct Small {
    pub(crate) seed: u64,
    /// What was broken, or reached.
    pub(crate) rule: String,
    /// What was seen, if a rule was broken.
    pub(crate) text: Option<String>,
    pub(crate) steps: Steps,
    pub(crate) history: String,
}

impl Small {
    fn command(&self) -> String {
        format!("cargo run --release -p blkmirror-sim -- --replay {} --only '{}'", self.seed, self.steps)
    }
}

pub(crate) struct Summary<'a> {
    pub(crate) from: u64,
    pub(crate) steps: u32,
    pub(crate) threads: usize,
    pub(crate) seeds: u64,
    pub(crate) elapsed: Duration,
    pub(crate) outcome: &'a Outcome,
    pub(crate) found: Option<&'a Small>,
}

/// Where a fault may find a job: nowhere, or in a state in which it still does something.
const LIVE: [&str; 9] =
    ["no job", "created", "running", "paused", "ready", "standby", "waiting", "pending", "aborting"];

impl Summary<'_> {
    fn seeds_per_second(&self) -> f64 {
        self.seeds as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let (outcome, seconds) = (self.outcome, self.elapsed.as_secs_f64());
        let Self { seeds, from, steps, threads, .. } = self;
        let rate = self.seeds_per_second();
        let _ = writeln!(
            out,
            "{seeds} seeds from {from}, {steps} steps each, {threads} threads: {seconds:.1} s, {rate:.1} seeds/s"
        );
        let _ = writeln!(
            out,
            "{} steps, {} guest requests, {} jobs ended without success",
            outcome.steps, outcome.guest_requests, outcome.failures
        );
        let _ = writeln!(
            out,
            "compared: {} times all of both sides, {} clean chunks, {} chunks of zeroes; {} idle jobs polled again\n",
            outcome.synced_checks, outcome.clean_chunks, outcome.zero_chunks, outcome.idle_checks
        );
        self.jobs(&mut out);
        self.faults(&mut out);
        self.verbs(&mut out);
        self.what_is_missing(&mut out);
        if let Some(small) = self.found {
            tell(&mut out, small);
        }
        out
    }

    fn jobs(&self, out: &mut String) {
        let _ =
            writeln!(out, "{:<14}{:>10}{:>10}{:>10}{:>10}", "jobs", "begun", "pivots", "replaced", "copies");
        for shape in Shape::ALL {
            let tally = self.outcome.jobs.get(&shape).copied().unwrap_or_default();
            let _ = writeln!(
                out,
                "{:<14}{:>10}{:>10}{:>10}{:>10}",
                shape.name(),
                tally.begun,
                tally.pivots,
                tally.replaced,
                tally.copies
            );
        }
        out.push('\n');
    }

    fn faults(&self, out: &mut String) {
        let _ = write!(out, "{:<16}{:>10}", "faults", "all");
        for status in LIVE {
            let _ = write!(out, "{status:>10}");
        }
        out.push('\n');
        for fault in Fault::ALL {
            let _ = write!(out, "{:<16}{:>10}", fault.name(), self.outcome.faults.of(fault));
            for status in LIVE {
                let count = self.outcome.faults_in.get(&(status, fault)).copied().unwrap_or(0);
                let _ = write!(out, "{count:>10}");
            }
            out.push('\n');
        }
        out.push('\n');
    }

    fn verbs(&self, out: &mut String) {
        let _ = writeln!(out, "accepted/refused");
        let _ = write!(out, "{:<11}", "verbs");
        for status in Status::ALL {
            let _ = write!(out, "{:>13}", status.name());
        }
        out.push('\n');
        for verb in verbs() {
            let _ = write!(out, "{verb:<11}");
            for status in Status::ALL {
                let count =
                    |accepted| self.outcome.verbs.get(&(status.name(), verb, accepted)).copied().unwrap_or(0);
                let _ = write!(out, "{:>13}", format!("{}/{}", count(true), count(false)));
            }
            out.push('\n');
        }
        out.push('\n');
    }

    fn what_is_missing(&self, out: &mut String) {
        let missing = self.never_reached();
        for status in std::iter::once("no job").chain(Status::ALL.map(Status::name)) {
            let here = missing.iter().filter(|(_, at)| *at == status).map(|(what, _)| *what);
            let (possible, impossible): (Vec<_>, Vec<_>) =
                here.partition(|what| why_never(what, status).is_none());
            if !possible.is_empty() {
                let _ = writeln!(out, "never in {status}: {}", possible.join(", "));
            }
            if let Some(why) = impossible.first().and_then(|what| why_never(what, status)) {
                let _ = writeln!(out, "never in {status}, as it must be ({why}): {}", impossible.join(", "));
            }
        }
        if missing.is_empty() {
            let _ = writeln!(out, "every verb and every fault was seen in every state");
        }
    }

    /// Verbs and faults in a state in which they never came, by the names that `--find` takes.
    fn never_reached(&self) -> Vec<(&'static str, &'static str)> {
        let outcome = self.outcome;
        let verbs = verbs().flat_map(|verb| Status::ALL.map(|status| (verb, status.name())));
        let verbs = verbs.filter(|(verb, status)| {
            ![true, false].iter().any(|accepted| outcome.verbs.contains_key(&(*status, *verb, *accepted)))
        });
        // That a hook has refused is seen once the job is over.
        let faults = Fault::ALL.into_iter().filter(|fault| *fault != Fault::Prepare);
        let faults = faults.flat_map(|fault| LIVE.map(|status| (fault, status)));
        let faults = faults.filter(|(fault, status)| !outcome.faults_in.contains_key(&(*status, *fault)));
        verbs.chain(faults.map(|(fault, status)| (fault.name(), status))).collect()
    }

    pub(crate) fn json(&self) -> Value {
        let outcome = self.outcome;
        let jobs: serde_json::Map<_, _> = outcome
            .jobs
            .iter()
            .map(|(shape, tally)| {
                let value = json!({
                    "begun": tally.begun, "pivots": tally.pivots, "replaced": tally.replaced, "copies": tally.copies,
                });
                (shape.name().to_owned(), value)
            })
            .collect();
        let faults: serde_json::Map<_, _> =
            outcome.faults.iter().map(|(fault, count)| (fault.name().to_owned(), json!(count))).collect();
        let faults_in: Vec<_> = outcome
            .faults_in
            .iter()
            .map(|((status, fault), count)| json!({"state": status, "fault": fault.name(), "count": count}))
            .collect();
        let verbs: Vec<_> = outcome
            .verbs
            .iter()
            .map(|((status, verb, accepted), count)| {
                json!({"state": status, "verb": verb, "accepted": accepted, "count": count})
            })
            .collect();
        let found = self.found.map(|small| {
            json!({
                "seed": small.seed, "rule": small.rule, "text": small.text, "only": small.steps.to_string(),
                "command": small.command(), "history": small.history.lines().collect::<Vec<_>>(),
            })
        });
        let never_reached: Vec<_> =
            self.never_reached().into_iter().map(|(what, status)| format!("{what} in {status}")).collect();
        json!({
            "seeds": self.seeds, "from": self.from, "steps": self.steps, "threads": self.threads,
            "seconds": self.elapsed.as_secs_f64(), "seeds_per_second": self.seeds_per_second(),
            "guest_requests": outcome.guest_requests, "failures": outcome.failures,
            "synced_checks": outcome.synced_checks, "clean_chunks": outcome.clean_chunks,
            "zero_chunks": outcome.zero_chunks, "idle_checks": outcome.idle_checks,
            "jobs": jobs, "faults": faults, "faults_in": faults_in, "verbs": verbs,
            "never_reached": never_reached, "found": found,
        })
    }
}

/// What can be said of a seed that runs for longer than so many seconds.
pub(crate) fn endless(seed: u64, steps: u32, limit: u64) -> String {
    format!(
        "seed {seed} comes to no end: it has run for {limit} s\n\
         repeat: cargo run --release -p blkmirror-sim -- --replay {seed} --steps {steps}\n"
    )
}

/// The same for programs.
pub(crate) fn endless_json(seed: u64, limit: u64) -> Value {
    let text = format!("it has run for {limit} s");
    json!({"found": {"seed": seed, "rule": "no end", "text": text}})
}

/// Why something can't happen in this state, where it can't.
fn why_never(what: &str, status: &str) -> Option<&'static str> {
    match (what, status) {
        (_, "waiting") => Some("a job passes through it between two rounds of one poll"),
        ("truncate-error", "ready" | "standby" | "aborting") => Some("a base is grown before anything else"),
        ("truncate-error" | "panic", "pending") => Some("nothing is asked of the target"),
        _ => None,
    }
}

fn verbs() -> impl Iterator<Item = &'static str> {
    std::iter::once("start").chain(Verb::ALL.into_iter().map(Verb::name))
}

fn tell(out: &mut String, small: &Small) {
    let Small { seed, rule, text, steps, history } = small;
    let _ = match text {
        Some(text) => writeln!(out, "\nseed {seed} breaks {rule}: {text}"),
        None => writeln!(out, "\nseed {seed} reaches {rule}"),
    };
    let _ = writeln!(out, "{} of its steps are enough:", steps.len());
    out.push_str(history);
    let _ = writeln!(out, "repeat: {}", small.command());
}
