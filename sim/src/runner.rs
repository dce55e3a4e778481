//! Runs seeds on several threads until all are done or one has found something.

use blkmirror::testing::{Outcome, Run, World};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

/// A seed that broke a rule, or reached what was looked for.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) seed: u64,
    /// What was broken or reached.
    pub(crate) rule: String,
}

#[derive(Default)]
pub(crate) struct Result {
    /// Seeds that were run.
    pub(crate) seeds: u64,
    pub(crate) outcome: Outcome,
    /// The lowest seed that found something.
    pub(crate) found: Option<Found>,
}

/// Between two reports of progress.
const SEEDS_PER_REPORT: u64 = 50;

/// How long to look away from the threads.
const GLANCE: Duration = Duration::from_millis(5);

/// What a thread is at, and since when.
type Current = Mutex<Option<(u64, Instant)>>;

/// A run that takes longer than this comes to no end. Who is told ends the process: nothing else stops such a run.
pub(crate) struct Patience<'a> {
    pub(crate) limit: Duration,
    pub(crate) endless: &'a dyn Fn(u64),
}

/// Runs these seeds. Which are run after one has found something depends on the threads; that one doesn't, unless
/// another comes before it.
pub(crate) fn run(
    seeds: Range<u64>,
    steps: u32,
    threads: usize,
    find: Option<&str>,
    progress: &(dyn Fn(u64) + Sync),
    patience: &Patience<'_>,
) -> Result {
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let result = Mutex::new(Result::default());
    let current: Vec<Current> = (0..threads).map(|_| Mutex::default()).collect();
    let work = |current: &Current| {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            *current.lock().unwrap_or_else(PoisonError::into_inner) = Some((seed, Instant::now()));
            let run = World::play(seed, 0..steps);
            *current.lock().unwrap_or_else(PoisonError::into_inner) = None;
            let rule = verdict(&run, find);
            let mut result = result.lock().unwrap_or_else(PoisonError::into_inner);
            result.seeds += 1;
            result.outcome.add(&run.outcome);
            if let Some(rule) = rule {
                stop.store(true, Ordering::Relaxed);
                if result.found.as_ref().is_none_or(|found| found.seed > seed) {
                    result.found = Some(Found { seed, rule });
                }
            }
            if result.seeds.is_multiple_of(SEEDS_PER_REPORT) {
                progress(result.seeds);
            }
        }
    };
    std::thread::scope(|scope| {
        let (work, current) = (&work, &current);
        let threads: Vec<_> = current.iter().map(|current| scope.spawn(move || work(current))).collect();
        while !threads.iter().all(ScopedJoinHandle::is_finished) {
            std::thread::sleep(GLANCE);
            if let Some(seed) = endless(current, patience.limit) {
                (patience.endless)(seed);
            }
        }
    });
    result.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// A seed that has run for longer than this.
fn endless(current: &[Current], limit: Duration) -> Option<u64> {
    let all = current.iter().filter_map(|current| *current.lock().unwrap_or_else(PoisonError::into_inner));
    all.filter(|(_, since)| since.elapsed() > limit).map(|(seed, _)| seed).min()
}

/// What these steps of a seed break or reach.
pub(crate) fn judge(seed: u64, steps: impl Iterator<Item = u32>, find: Option<&str>) -> Option<String> {
    verdict(&World::play(seed, steps), find)
}

fn verdict(run: &Run, find: Option<&str>) -> Option<String> {
    if let Err(broken) = &run.result {
        return Some(broken.rule.to_owned());
    }
    let wanted = find?;
    let outcome = &run.outcome;
    let verbs = outcome.verbs.keys().map(|(status, verb, _)| format!("{verb} in {status}"));
    let faults = outcome.faults_in.keys().map(|(status, fault)| format!("{} in {status}", fault.name()));
    verbs.chain(faults).find(|reached| reached == wanted)
}

/// Disks of the world panic on purpose, and the library goes on: that is no news.
pub(crate) fn silence_planned_panics() {
    let otherwise = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str() != Some("a defect in a simulated disk") {
            otherwise(panic);
        }
    }));
}
