//! `blkmirror-sim`: runs simulated worlds from seeds, on all cores, counts what they reached, and makes what fails small.

mod minimise;
mod report;
mod runner;
mod steps;

use clap::Parser;
use report::Summary;
use runner::Found;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use steps::Steps;

/// Run simulated mirror jobs among guests, faults and an operator, and hold what they do against the rules.
///
/// The exit code is 0 if no rule was broken, 1 if one was, 2 for options that make no sense. Of a failure the seed, the
/// rule, the history of a small part of the run that still breaks it, and the command that repeats it are printed.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many steps each seed takes.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// How many threads to run on; all cores if left out.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Repeat one seed and print its history.
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "from", "threads", "json", "find"])]
    replay: Option<u64>,
    /// Take only these steps of the seed, such as 12,57,60-80.
    #[arg(long, value_name = "STEPS", requires = "replay", conflicts_with = "steps")]
    only: Option<Steps>,
    /// Stop at the first seed that reaches this, and make its run small as if it were a failure: a verb and a state,
    /// such as `cancel in waiting`, or a fault and a state, such as `torn in ready`.
    #[arg(long, value_name = "WHAT")]
    find: Option<String>,
    /// How long to make a failure smaller, in seconds.
    #[arg(long, default_value_t = 20)]
    patience: u64,
    /// A seed that runs for longer than this comes to no end, and that is a failure; in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86400))]
    limit: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    runner::silence_planned_panics();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr().lock(), "blkmirror-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    if let Some(seed) = arguments.replay {
        let steps = arguments.only.clone().unwrap_or_else(|| Steps::first(arguments.steps));
        return replay(&mut out, seed, &steps);
    }
    let began = Instant::now();
    let threads = arguments
        .threads
        .map_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get), usize::from);
    let progress = |seeds: u64| {
        if io::stderr().is_terminal() {
            let rate = seeds as f64 / began.elapsed().as_secs_f64();
            let _ = write!(io::stderr(), "\r{seeds} of {} seeds, {rate:.0} per second ", arguments.seeds);
        }
    };
    let result = runner::run(
        arguments.from..arguments.from.saturating_add(arguments.seeds),
        arguments.steps,
        threads,
        arguments.find.as_deref(),
        &progress,
        &runner::Patience {
            limit: Duration::from_secs(arguments.limit),
            endless: &|seed| report_endless(seed, arguments),
        },
    );
    if io::stderr().is_terminal() {
        let _ = writeln!(io::stderr());
    }
    let found = result.found.map(|first| make_small(&first, arguments));
    let summary = Summary {
        from: arguments.from,
        steps: arguments.steps,
        threads,
        seeds: result.seeds,
        elapsed: began.elapsed(),
        outcome: &result.outcome,
        found: found.as_ref(),
    };
    if arguments.json {
        writeln!(out, "{:#}", summary.json())?;
    } else {
        write!(out, "{}", summary.text())?;
    }
    Ok(if found.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A run that comes to no end can neither be made smaller nor be stopped.
fn report_endless(seed: u64, arguments: &Arguments) -> ! {
    let mut out = io::stdout();
    let _ = if arguments.json {
        writeln!(out, "{:#}", report::endless_json(seed, arguments.limit))
    } else {
        write!(out, "{}", report::endless(seed, arguments.steps, arguments.limit))
    };
    std::process::exit(1)
}

/// A part of the run that still shows what was found, and its history.
fn make_small(first: &Found, arguments: &Arguments) -> report::Small {
    let until = Instant::now() + Duration::from_secs(arguments.patience);
    let find = arguments.find.as_deref();
    let shows = |steps: &[u32]| {
        runner::judge(first.seed, steps.iter().copied(), find).is_some_and(|rule| rule == first.rule)
    };
    let steps = minimise::minimise((0..arguments.steps).collect(), shows, || Instant::now() < until);
    let told = blkmirror::testing::World::tell(first.seed, steps.iter().copied());
    report::Small {
        seed: first.seed,
        rule: first.rule.clone(),
        text: told.result.err().map(|broken| broken.text),
        steps: Steps::new(steps),
        history: told.history,
    }
}

fn replay(out: &mut impl Write, seed: u64, steps: &Steps) -> io::Result<ExitCode> {
    let run = blkmirror::testing::World::tell(seed, steps.iter());
    write!(out, "{}", run.history)?;
    match run.result {
        Ok(()) => {
            writeln!(out, "seed {seed}: no rule is broken")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(broken) => {
            writeln!(out, "seed {seed}: {} is broken: {}", broken.rule, broken.text)?;
            Ok(ExitCode::FAILURE)
        }
    }
}
