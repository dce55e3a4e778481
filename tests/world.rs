//! Seeds of the simulated world that every test run goes through.

use blkmirror::testing::World;

#[test]
fn seeds_end_well() {
    // SPEC X-1, P-2, G-9: and that nothing is lost, whatever guests, faults and an operator do.
    let seeds = std::env::var("SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(300u64);
    let from = std::env::var("FROM").ok().and_then(|n| n.parse().ok()).unwrap_or(0u64);
    let (mut pivots, mut copies, mut synced) = (0, 0, 0);
    for seed in from..from + seeds {
        match World::run(seed, 1500) {
            Ok(outcome) => {
                pivots += outcome.pivots;
                copies += outcome.soft_cancels;
                synced += outcome.synced_checks;
            }
            Err(failure) => {
                panic!("{failure}\nrepeat: FROM={seed} SEEDS=1 cargo test --features testing --test world")
            }
        }
    }
    eprintln!("{seeds} seeds: {pivots} pivots, {copies} copies, {synced} synced checks");
    assert!(seeds < 100 || (pivots > 20 && copies > 20 && synced > 100), "the seeds exercise too little");
}
