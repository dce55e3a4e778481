//! A disk is mirrored by the module, and the host outlives the module, whenever and however it is lost.

mod common;

use blkmirror_wasm::constants::{COPY_BACKGROUND, COPY_WRITE_BLOCKING};
use blkmirror_wasm::disks::Live;
use blkmirror_wasm::mirror::Settings;
use common::{Fate, program, run};

const LENGTH: usize = 3 << 20;

fn settings(copy_mode: u32) -> Settings {
    // Slow enough that the guest writes to what is copied and to what isn't.
    Settings { copy_mode, buf_size: 256 << 10, speed: 100 << 20, ..Settings::default() }
}

#[test]
fn the_guest_ends_on_the_target_with_all_that_it_wrote() {
    let program = program(false);
    for copy_mode in [COPY_BACKGROUND, COPY_WRITE_BLOCKING] {
        for seed in 0..20 {
            let outcome = run(&program, &settings(copy_mode), seed, LENGTH, Fate::Lives);
            assert_eq!((outcome.lost, outcome.ended), (None, Some(0)));
            assert_eq!(outcome.live, Live::Target);
            let told: Vec<_> = outcome.words.iter().filter(|word| *word != "status").collect();
            assert_eq!(told, ["ready", "completed"]);
        }
    }
}

#[test]
fn a_module_that_runs_out_of_fuel_anywhere_leaves_the_guest_its_disk() {
    let program = program(true);
    for copy_mode in [COPY_BACKGROUND, COPY_WRITE_BLOCKING] {
        let settings = settings(copy_mode);
        let all = run(&program, &settings, 1, LENGTH, Fate::Lives).fuel_used;
        assert!(all > 100_000, "{all}");
        let mut on_target = 0;
        for stop in 0..150 {
            let outcome = run(&program, &settings, 1, LENGTH, Fate::Fuel(all * stop / 150));
            let lost = outcome.lost.expect("it is stopped");
            assert!(lost.contains("fuel"), "{lost}");
            on_target += u32::from(outcome.live == Live::Target);
        }
        // Before the switch and after it.
        assert!((1..149).contains(&on_target), "{on_target} ended on the target");
    }
}

#[test]
fn a_trap_in_any_callback_leaves_the_guest_its_disk() {
    let program = program(false);
    for copy_mode in [COPY_BACKGROUND, COPY_WRITE_BLOCKING] {
        let (mut lost, mut on_target) = (0, 0);
        for calls in 0..1000 {
            let outcome = run(&program, &settings(copy_mode), 1, LENGTH, Fate::TrapAfter(calls));
            let Some(reason) = outcome.lost else {
                assert_eq!(outcome.ended, Some(0));
                break;
            };
            assert!(reason.contains("the host's callback failed"), "{reason}");
            lost += 1;
            on_target += u32::from(outcome.live == Live::Target);
        }
        assert!(
            lost > 50 && (1..lost).contains(&on_target),
            "lost {lost} times, {on_target} after the switch"
        );
    }
}
