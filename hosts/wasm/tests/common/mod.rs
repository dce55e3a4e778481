//! What the tests share: the module, scratch disks, and a run of a mirror with a guest.
#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod device;
pub(crate) mod world;

use blkmirror_wasm::constants::EVENT_COMPLETED;
use blkmirror_wasm::disks::{Host, Live};
use blkmirror_wasm::guest::Guest;
use blkmirror_wasm::mirror::{Mirror, Progress, Settings};
use blkmirror_wasm::module::{Failure, Module, Program};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

pub(crate) const MS: u64 = 1_000_000;

/// Where `make wasm` puts the module.
pub(crate) fn module_path() -> PathBuf {
    std::env::var_os("BLKMIRROR_WASM").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/wasm/blkmirror.wasm"),
        PathBuf::from,
    )
}

pub(crate) fn program(has_fuel: bool) -> Program {
    Program::load(&module_path(), has_fuel)
        .unwrap_or_else(|error| panic!("{error}: `make test-wasm` builds it"))
}

/// A file that nobody else sees.
pub(crate) fn disk(content: &[u8]) -> File {
    let file = tempfile::tempfile().expect("a scratch file");
    file.write_all_at(content, 0).expect("room for it");
    file
}

pub(crate) fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 512 * 7 + at) as u8).collect()
}

pub(crate) fn read_all(file: &File) -> Vec<u8> {
    let mut all = vec![0; file.metadata().expect("a file").len() as usize];
    file.read_exact_at(&mut all, 0).expect("readable");
    all
}

/// What became of a run.
pub(crate) struct Outcome {
    pub(crate) lost: Option<String>,
    /// How the job ended, if it did.
    pub(crate) ended: Option<i32>,
    pub(crate) live: Live,
    pub(crate) fuel_used: u64,
    pub(crate) words: Vec<String>,
}

/// What may happen to the module.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    Lives,
    Fuel(u64),
    TrapAfter(u64),
}

/// Mirrors a disk while a guest uses it, and holds that the guest finds what it was told is written: at each read of its
/// own, and on the disk that it is on in the end. If the module is lost it goes on all the same.
pub(crate) fn run(program: &Program, settings: &Settings, seed: u64, length: usize, fate: Fate) -> Outcome {
    let before = content(length);
    let host = Host::new(disk(&before), disk(&vec![0; length]), settings.memory_limit);
    let mut mirror = Mirror::new(program, host, settings).expect("it begins");
    let fuel = match fate {
        Fate::Fuel(fuel) => fuel,
        _ => u64::MAX / 2,
    };
    if let Some(module) = mirror.module() {
        // Without fuel in the configuration there is none to set.
        let _ = module.set_fuel(fuel);
    }
    if let Fate::TrapAfter(calls) = fate {
        mirror.host().trap_in = Some(calls);
    }
    let mut guest = Guest::new(seed, before);
    let mut outcome =
        Outcome { lost: None, ended: None, live: Live::Source, fuel_used: 0, words: Vec::new() };
    let mut ready = false;
    for step in 0..100_000_u64 {
        let progress = mirror.poll(step * MS + 1, |event| {
            ready |= event.word == "ready";
            if event.record.number("type") == EVENT_COMPLETED {
                outcome.ended = Some(event.record.int("result"));
            }
            outcome.words.push(event.word.clone());
        });
        if step < 60 {
            guest.ask(&mut mirror);
            guest.ask(&mut mirror);
        }
        guest.settle(&mut mirror).unwrap_or_else(|error| panic!("{error}; {fate:?}, seed {seed}"));
        if ready && step >= 40 {
            ready = false;
            // If that is what it dies of, the next poll says so.
            match mirror.complete() {
                Ok(()) | Err(Failure::Lost(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        if progress == Progress::Over && step >= 60 && guest.waits_for() == 0 {
            break;
        }
    }
    assert_eq!(guest.waits_for(), 0, "the guest is left waiting; {fate:?}, seed {seed}");
    if let Some(module) = mirror.module() {
        outcome.fuel_used = fuel.saturating_sub(module.fuel());
    }
    outcome.lost = mirror.lost.clone();
    outcome.live = mirror.live();
    let disks = mirror.into_disks();
    let live = &disks[usize::from(outcome.live == Live::Target)];
    assert!(read_all(live) == guest.model, "{:?} has something else; {fate:?}, seed {seed}", outcome.live);
    outcome
}

/// A module without disks.
pub(crate) fn bare(program: &Program, memory_limit: Option<usize>) -> Module {
    let host = Host::new(disk(&[]), disk(&[]), memory_limit);
    Module::new(program, host).expect("an instance")
}
