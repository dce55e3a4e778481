//! The check of a device, which waits elsewhere, works where there is neither a clock nor a thread, and where memory ends.

mod common;

use blkmirror_wasm::constants::ENOMEM;
use blkmirror_wasm::layout::{CHECK_OPTIONS, Record};
use blkmirror_wasm::module::{Failure, Module, Program, Result};
use common::device::{Bytes, Manner, device};
use common::world::{World, check};
use common::{bare, content, program};
use std::sync::{Arc, Mutex};
use wasmtime::Func;

const MIB: usize = 1 << 20;
/// A page of linear memory.
const PAGE: usize = 64 << 10;

/// Judges a device; how many findings there are. `finding` is the place of who is told of each, or 0.
fn judge(module: &mut Module, device: u32, max_bytes: u64, finding: u32) -> Result<i32> {
    let mut options = Record::new(&CHECK_OPTIONS);
    options.set("flags", 1);
    options.set("max_bytes", max_bytes);
    let judged = module.with(&options, |module, options| {
        module.try_call("mirror_device_check", (device, options, finding, 0_u32))
    });
    Ok(judged?.0)
}

#[test]
fn a_device_is_checked_without_a_clock_and_without_threads() {
    let program = program(false);
    let mut module = bare(&program, None);
    let device = module
        .make(|module, out| module.try_call("mirror_device_new_memory", (8_u64 << 20, out)))
        .expect("a device");
    assert_eq!(judge(&mut module, device, 0, 0).expect("it is checked"), 0);
}

/// What is checked: the module's own device in memory, or one of the host's.
#[derive(Clone, Copy, Debug)]
enum Checked {
    Memory { length: u64 },
    Host { length: usize, manner: Manner },
}

impl Checked {
    fn make(self, module: &mut Module) -> Result<u32> {
        match self {
            Self::Memory { length } => {
                module.make(|module, out| module.try_call("mirror_device_new_memory", (length, out)))
            }
            Self::Host { length, manner } => {
                let bytes: Bytes = Arc::new(Mutex::new(content(length)));
                device(module, &bytes, manner)
            }
        }
    }
}

/// Counts what is found in a place of the table.
fn counter(module: &mut Module) -> (u32, Arc<Mutex<i32>>) {
    let told = Arc::new(Mutex::new(0));
    let count = Arc::clone(&told);
    let place = module.add_function(|store| {
        Func::wrap(store, move |_: u32, _: u32| *count.lock().expect("one thread") += 1)
    });
    (place.expect("a table that grows"), told)
}

/// Checks the device in so much memory: its findings, or that there is no memory, in words. Then a guest of another disk of
/// the same instance writes.
fn attempt(program: &Program, checked: Checked, max_bytes: u64, limit: usize) -> Option<i32> {
    let mut world = World::new(program, limit);
    let null = world
        .make("null", |module, out| module.try_call("mirror_device_new_null", (1_u64 << 30, 0_u32, out)))?;
    let filter = world.filter(null)?;
    let (finding, told) = counter(&mut world.module);
    let device = check(checked.make(&mut world.module), "device");
    let mut found = None;
    if let Some(device) = device {
        // Twice: what it took is given back, also where it was given up.
        for _ in 0..2 {
            *told.lock().expect("one thread") = 0;
            found = match judge(&mut world.module, device, max_bytes, finding) {
                Ok(found) => {
                    assert_eq!(found, *told.lock().expect("one thread"), "each is told once");
                    Some(found)
                }
                Err(Failure::Refused { errno: ENOMEM, text }) => {
                    assert!(text.contains("memory"), "{text}");
                    assert_eq!(text.split(": ").next(), Some("mirror_device_check"), "{text}");
                    None
                }
                Err(error) => panic!("{checked:?} in {limit} bytes: {error}"),
            };
        }
        world.module.call::<_, ()>("mirror_device_free", (device,)).expect("no trap");
    }
    assert!(world.guest("mirror_filter_write", filter, 0), "a guest is refused after {checked:?} in {limit}");
    let number = world.finished;
    assert_eq!(world.outcomes().get(&number), Some(&0), "after {checked:?} in {limit} bytes");
    found
}

/// From 1 MiB on, a page more each time, until what is found is what is found with plenty.
fn walk(checked: Checked, max_bytes: u64, finds: std::ops::RangeInclusive<i32>) {
    let program = program(false);
    let plenty = attempt(&program, checked, max_bytes, 256 * MIB).expect("there is plenty");
    assert!(finds.contains(&plenty), "{checked:?}: {plenty} findings");
    let (mut limit, mut short) = (MIB, 0);
    loop {
        match attempt(&program, checked, max_bytes, limit) {
            // Nothing is found that is not there, and nothing is missed.
            Some(found) => {
                assert_eq!(found, plenty, "{checked:?} in {limit} bytes");
                break;
            }
            None => short += 1,
        }
        limit += PAGE;
        assert!(limit < 128 * MIB, "{checked:?}: no end");
    }
    println!("{checked:?}, {max_bytes}: {short} times there was too little, {} KiB were enough", limit >> 10);
    assert!(short > 0, "{checked:?}: 1 MiB is enough");
}

#[test]
fn with_any_limit_a_memory_device_is_checked_or_there_is_no_memory() {
    walk(Checked::Memory { length: MIB as u64 }, MIB as u64, 0..=0);
    walk(Checked::Memory { length: (1 << 20) + 100 }, 0, 0..=0);
    walk(Checked::Memory { length: 1 << 33 }, MIB as u64, 0..=0);
}

#[test]
fn with_any_limit_a_host_s_device_is_checked_or_there_is_no_memory() {
    let good = Manner { clears: true, extent: 4096, ..Manner::default() };
    walk(Checked::Host { length: MIB, manner: good }, 0, 0..=0);
    // As many extents as a device can tell, for each of many requests.
    walk(Checked::Host { length: MIB, manner: Manner { extent: 1, ..good } }, 0, 0..=i32::MAX);
}

#[test]
fn with_any_limit_a_device_that_is_wrong_is_told_so_or_there_is_no_memory() {
    let good = Manner { clears: true, extent: 4096, ..Manner::default() };
    walk(Checked::Host { length: MIB, manner: Manner { damages: true, ..good } }, 0, 2..=i32::MAX);
    walk(Checked::Host { length: MIB, manner: Manner { reads_nothing: true, ..good } }, 0, 2..=i32::MAX);
}
