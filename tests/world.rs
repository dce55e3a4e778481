//! Seeds of the simulated world that every test run goes through.

use blkmirror::testing::{Shape, Tally, World};
use std::collections::BTreeMap;

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
    let mut jobs: BTreeMap<Shape, Tally> = BTreeMap::new();
    let (mut synced, mut clean, mut zero) = (0, 0, 0);
    for seed in from..from + seeds {
        match World::run(seed, 1500) {
            Ok(outcome) => {
                for (shape, tally) in outcome.jobs {
                    let sum = jobs.entry(shape).or_default();
                    sum.begun += tally.begun;
                    sum.pivots += tally.pivots;
                    sum.copies += tally.copies;
                }
                synced += outcome.synced_checks;
                clean += outcome.clean_chunks;
                zero += outcome.zero_chunks;
            }
            Err(failure) => {
                panic!("{failure}\nrepeat: FROM={seed} SEEDS=1 cargo test --features testing --test world")
            }
        }
    }
    eprintln!("{seeds} seeds: {synced} synced checks, {clean} clean chunks, {zero} zero chunks; {jobs:#?}");
    if seeds >= 1000 {
        for shape in Shape::ALL {
            let tally = jobs.get(&shape).copied().unwrap_or_default();
            assert!(tally.pivots > 10 && tally.copies > 10, "{shape:?} is exercised too little: {tally:?}");
        }
        assert!(synced > 100 && clean > 10_000 && zero > 1000, "the seeds exercise too little");
    }
}
