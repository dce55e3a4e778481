//! Seeds of the simulated world that every test run goes through.
//!
//! Which history a seed stands for changes whenever the world does. So a bug that a seed has found is held by a test
//! of its own that plays the few steps that it takes (tests/scenarios, tests/layered and others); the list of
//! [`FOUND`] says which, and its seeds run here as well because they ended somewhere unusual once.

use blkmirror::testing::{Fault, Outcome, Shape, World};

/// Seeds and steps that have broken a rule, with what it was and the test that holds it now.
const FOUND: &[(u64, u32, &str)] = &[
    (
        527,
        1500,
        "idle with dirty chunks and a free place: \
         scenarios copy::what_is_dirty_behind_the_cursor_waits_for_no_operation_in_flight",
    ),
    (
        72,
        1500,
        "idle on an empty disk that was to be completed: \
         scenarios start::an_empty_disk_is_completed_in_the_poll_that_finds_it_ready",
    ),
];

fn play(seed: u64, steps: u32) -> Outcome {
    World::run(seed, steps).unwrap_or_else(|failure| {
        panic!("{failure}repeat: cargo run --release -p blkmirror-sim -- --replay {seed} --steps {steps}")
    })
}

/// Disks that are told to panic do so often, and each report costs more than the seed.
fn quiet_planted_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str() != Some("a defect in a simulated disk") {
            report(panic);
        }
    }));
}

#[test]
fn seeds_end_well() {
    // SPEC X-1, P-2, G-9: and that nothing is lost, whatever guests, faults and an operator do.
    quiet_planted_panics();
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let (seeds, from) = (number("SEEDS").unwrap_or(1000), number("FROM").unwrap_or(0));
    let mut all = Outcome::default();
    for seed in from..from + seeds {
        all.add(&play(seed, 1500));
    }
    eprintln!("{seeds} seeds: {all:#?}");
    if seeds >= 1000 {
        for shape in Shape::ALL {
            let tally = all.jobs.get(&shape).copied().unwrap_or_default();
            assert!(tally.pivots > 10 && tally.copies > 10, "{shape:?} is exercised too little: {tally:?}");
        }
        for fault in Fault::ALL {
            assert!(all.faults.of(fault) > 0, "{} never happened", fault.name());
        }
        let replaced: u64 = all.jobs.values().map(|tally| tally.replaced).sum();
        assert!(replaced > 10, "{replaced} filters were replaced");
        let checks = (all.synced_checks, all.clean_chunks, all.zero_chunks, all.idle_checks);
        assert!(
            checks.0 > 100 && checks.1 > 10_000 && checks.2 > 1000 && checks.3 > 1000,
            "the seeds exercise too little: {checks:?}"
        );
    }
}

#[test]
fn seeds_that_found_something_end_well() {
    for (seed, steps, _) in FOUND {
        play(*seed, *steps);
    }
}

#[test]
fn a_seed_has_one_history_and_so_have_some_of_its_steps() {
    let mut lines = 0;
    for seed in 1_000_000..1_000_040 {
        let some = || (0..600).filter(|step| step % 3 != 0);
        let whole = World::tell(seed, 0..600);
        assert_eq!(whole.history, World::tell(seed, 0..600).history, "seed {seed}");
        assert_eq!(World::tell(seed, some()).history, World::tell(seed, some()).history, "seed {seed}");
        let silent = World::play(seed, 0..600);
        assert_eq!((silent.outcome, silent.ended_ns), (whole.outcome, whole.ended_ns), "seed {seed}");
        lines += whole.history.lines().count();
    }
    assert!(lines > 20_000, "{lines} lines are no history");
}
