//! Whatever a host does to the module, or keeps from it, comes to an answer or to a loss that the host survives.

mod common;

use blkmirror_wasm::constants::{
    COPY_BACKGROUND, COPY_WRITE_BLOCKING, EINVAL, ENOMEM, JOB_INLINE, SYNC_FULL,
};
use blkmirror_wasm::disks::{Host, Live};
use blkmirror_wasm::layout::{CHECK_OPTIONS, DEVICE_LIMITS, JOB_INFO, JOB_OPTIONS, Record};
use blkmirror_wasm::mirror::{Mirror, Settings};
use blkmirror_wasm::module::{Failure, Module, Program, Result};
use common::world::{Case, World, check};
use common::{Fate, bare, content, disk, program, read_all, run};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use wasmtime::{Caller, Func, StoreLimitsBuilder};

const MIB: usize = 1 << 20;

fn case() -> Case {
    Case {
        length: 1 << 20,
        keeps: true,
        granularity: 4096,
        buf_size: 64 << 10,
        copy_mode: COPY_WRITE_BLOCKING,
        in_flight: 4,
        flags: 0,
        max_io: 0,
        sync: SYNC_FULL,
        writes: 0,
    }
}

/// A job in the middle of its work, and what calls are made with.
struct Busy {
    world: World,
    source: u32,
    target: u32,
    filter: u32,
    job: u32,
    info: u32,
    limits: u32,
    options: u32,
    check: u32,
    extents: u32,
}

/// A structure that stays where it is.
fn stored(module: &mut Module, record: &Record) -> u32 {
    let at = module.alloc(record.bytes.len() as u32, 8).expect("room at the start");
    module.bytes(at, record.bytes.len()).expect("memory").copy_from_slice(&record.bytes);
    at
}

impl Busy {
    fn new(program: &Program, limit: usize) -> Self {
        Self::with(program, limit, 0)
    }

    fn with(program: &Program, limit: usize, flags: u64) -> Self {
        let mut world = World::new(program, limit);
        let case = Case { flags, ..case() };
        let source = world.device(&case).expect("room at the start");
        let target = world.device(&case).expect("room at the start");
        let filter = world.filter(source).expect("room at the start");
        let job = world.job(filter, target, &case).expect("room at the start");
        let module = &mut world.module;
        let info = stored(module, &Record::new(&JOB_INFO));
        let limits = stored(module, &Record::new(&DEVICE_LIMITS));
        let (_, options) = module
            .fill(&JOB_OPTIONS, |module, options| {
                module.try_call("mirror_job_options_init", (options, JOB_OPTIONS.size() as u32))
            })
            .expect("room at the start");
        let options = stored(module, &options);
        let mut checked = Record::new(&CHECK_OPTIONS);
        checked.set("flags", 1);
        checked.set("max_bytes", 1 << 20);
        let check = stored(module, &checked);
        let extents = module.alloc(64 * 16, 8).expect("room at the start");
        Self { world, source, target, filter, job, info, limits, options, check, extents }
    }
}

type Call = fn(&mut Busy) -> Result<i32>;

/// Calls a function whose arguments are the handle and so on.
macro_rules! calls {
    ($($name:literal $busy:ident => $arguments:expr;)*) => {
        &[$(($name, |$busy: &mut Busy| {
            let arguments = $arguments;
            $busy.world.module.try_call($name, arguments)
        })),*]
    };
}

/// Each verb, and what else may be asked of a job, a filter and a device while there is a job.
const CALLS: &[(&str, Call)] = calls! {
    "mirror_job_start" busy => (busy.job,);
    "mirror_job_poll" busy => (busy.job, 1_u64, busy.world.out);
    "mirror_job_pause" busy => (busy.job,);
    "mirror_job_resume" busy => (busy.job,);
    "mirror_job_drain_begin" busy => (busy.job,);
    "mirror_job_drain_end" busy => (busy.job,);
    "mirror_job_set_speed" busy => (busy.job, 1_000_000_u64);
    "mirror_job_change" busy => (busy.job, COPY_BACKGROUND);
    "mirror_job_query" busy => (busy.job, busy.info);
    "mirror_job_next_event" busy => (busy.job, busy.world.event);
    "mirror_job_complete" busy => (busy.job,);
    "mirror_job_finalize" busy => (busy.job,);
    "mirror_job_dismiss" busy => (busy.job,);
    "mirror_job_cancel" busy => (busy.job, 0_u32);
    "mirror_job_fd" busy => (busy.job,);
    "mirror_filter_read" busy => (busy.filter, 0_u64, busy.world.list, 1_u32, 0_u32, busy.world.done, 1_u32);
    "mirror_filter_write" busy => (busy.filter, 0_u64, busy.world.list, 1_u32, 0_u32, busy.world.done, 2_u32);
    "mirror_filter_zero" busy => (busy.filter, 0_u64, 4096_u64, 0_u32, busy.world.done, 3_u32);
    "mirror_filter_discard" busy => (busy.filter, 0_u64, 4096_u64, busy.world.done, 4_u32);
    "mirror_filter_flush" busy => (busy.filter, busy.world.done, 5_u32);
    "mirror_filter_extents" busy =>
        (busy.filter, 0_u64, 1_u64 << 20, busy.extents, 64_u32, busy.world.out, busy.world.done, 6_u32);
    "mirror_filter_begin" busy => (busy.filter, 1_u32, 0_u64, 4096_u64, busy.world.out);
    "mirror_filter_end" busy => (busy.filter, 77_u64, 0_i32);
    "mirror_filter_set_opened" busy => (busy.filter, 0_u32, 0_u32, 0_u32);
    "mirror_filter_mark_dirty" busy => (busy.filter, 0_u64, 4096_u64);
    "mirror_filter_device" busy => (busy.filter, busy.world.out);
    "mirror_filter_length" busy => (busy.filter, busy.world.out);
    "mirror_filter_new" busy => (busy.source, busy.world.out);
    "mirror_filter_new_aligned" busy => (busy.source, 512_u32, busy.world.out);
    "mirror_device_new_memory" busy => (1_u64 << 20, busy.world.out);
    "mirror_device_new_null" busy => (1_u64 << 20, 0_u32, busy.world.out);
    "mirror_device_open_file" busy => (busy.info, 0_u32, 0_u64, busy.world.out);
    "mirror_device_complete" busy => (busy.source, 99_u64, 0_i32);
    "mirror_device_extent" busy => (busy.source, 99_u64, 4096_u64, 1_u32);
    "mirror_device_kick" busy => (busy.target,);
    "mirror_device_query" busy => (busy.source, busy.limits);
    "mirror_device_refused" busy => (busy.source, busy.world.out);
    "mirror_device_same" busy => (busy.source, busy.target);
    "mirror_device_check" busy => (busy.source, busy.check, 0_u32, 0_u32);
    "mirror_job_new" busy => (busy.filter, busy.target, busy.options, busy.world.out);
    "mirror_set_log" busy => (0_u32, 0_u32, 0_u32, 0_u32);
    "mirror_job_free" busy => (busy.job,);
};

#[test]
fn each_call_that_runs_out_of_fuel_loses_the_module_and_nothing_else() {
    let program = program(true);
    for (name, call) in CALLS {
        let (mut fuel, mut lost) = (0, 0);
        loop {
            let mut busy = Busy::new(&program, 8 * MIB);
            busy.world.module.try_call("mirror_job_start", (busy.job,)).expect("it starts");
            busy.world.module.set_fuel(fuel).expect("it counts");
            match call(&mut busy) {
                Err(Failure::Lost(error)) => {
                    assert!(format!("{error:?}").contains("fuel"), "{name}: {error:?}");
                    lost += 1;
                }
                Ok(_) | Err(Failure::Refused { .. }) => break,
            }
            // Slowly at first, so that each is stopped at many places.
            fuel += 1 + fuel / 8;
        }
        assert!(lost > 3, "{name} is stopped {lost} times");
    }
}

#[test]
fn each_call_is_answered_when_all_memory_is_taken() {
    let program = program(false);
    for ((name, call), flags) in CALLS.iter().flat_map(|call| [(call, 0), (call, JOB_INLINE)]) {
        let mut busy = Busy::with(&program, 4 * MIB, flags);
        if *name != "mirror_job_start" {
            busy.world.module.try_call("mirror_job_start", (busy.job,)).expect("it starts");
        }
        for size in [65536, 4096, 256, 16] {
            while check(busy.world.module.alloc(size, 8), "alloc").is_some() {}
        }
        // Again and again: none of them takes a little each time until nothing is left.
        for now in 1..2000_u64 {
            if now % 100 == 0 {
                let out = busy.world.out;
                check(busy.world.module.try_call("mirror_job_poll", (busy.job, now, out)), "poll");
            }
            if let Err(Failure::Lost(error)) = call(&mut busy) {
                panic!("{name}: {error:?}");
            }
            busy.world.module.host().finished.clear();
            if *name == "mirror_job_free" {
                break;
            }
        }
        if *name != "mirror_job_free" {
            busy.world.module.try_call("mirror_job_free", (busy.job,)).expect("it can be freed");
        }
        busy.world.module.call::<_, ()>("mirror_filter_free", (busy.filter,)).expect("no trap");
    }
}

#[test]
fn texts_of_any_length_are_refused_in_words_when_all_memory_is_taken() {
    let program = program(false);
    for length in [130, 5_000, 70_000, 300_000, 1_000_000] {
        let mut busy = Busy::new(&program, 4 * MIB);
        let module = &mut busy.world.module;
        let text = module.alloc(length + 1, 1).expect("room at the start");
        module.bytes(text, length as usize).expect("memory").fill(b'!');
        module.bytes(text + length, 1).expect("memory")[0] = 0;
        let (_, _, id) = JOB_OPTIONS.offsets().find(|(name, ..)| *name == "id").expect("a field");
        let place = busy.options + id as u32;
        module.bytes(place, 4).expect("memory").copy_from_slice(&text.to_le_bytes());
        for size in [65536, 4096, 256, 16] {
            while check(module.alloc(size, 8), "alloc").is_some() {}
        }
        let asked = (busy.filter, busy.source, busy.options, busy.world.out);
        for refused in [
            module.try_call("mirror_job_new", asked),
            module.try_call("mirror_device_open_file", (text, 0_u32, 0_u64, busy.world.out)),
        ] {
            let Err(Failure::Refused { text, .. }) = refused else { panic!("{length}: {refused:?}") };
            assert!(text.len() < 1000, "{} bytes", text.len());
        }
    }
}

#[test]
fn room_of_any_size_and_alignment_is_given_or_refused() {
    let program = program(false);
    for limit in [2 * MIB, 64 * MIB] {
        let mut module = bare(&program, Some(limit));
        for size in [0, 1, 7, 4096, 65536, 1 << 20, 1 << 30, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            for align in [0, 1, 2, 3, 8, 24, 4096, 65536, 1 << 20, 1 << 30, 1 << 31, u32::MAX] {
                match module.alloc(size, align) {
                    Ok(block) => {
                        assert_eq!(block % align, 0, "{size} {align}");
                        module.bytes(block, size as usize).expect("it is there").fill(7);
                        module.free(block, size, align).expect("no trap");
                    }
                    Err(Failure::Refused { .. }) => {}
                    Err(error) => panic!("{size} {align}: {error}"),
                }
            }
        }
        assert!(module.memory_size() <= limit);
        // Nothing of it is left.
        let most = check(module.alloc(1 << 20, 8), "alloc").expect("it is free again");
        module.free(most, 1 << 20, 8).expect("no trap");
    }
}

#[test]
fn sizes_beyond_all_measure_are_refused() {
    let program = program(false);
    let mut busy = Busy::new(&program, 8 * MIB);
    let out = busy.world.out;
    for length in [1 << 40, 1 << 62, u64::MAX / 2, u64::MAX] {
        let made = busy.world.module.try_call("mirror_device_new_memory", (length, out));
        assert!(matches!(made, Err(Failure::Refused { errno: ENOMEM, .. })), "{length}: {made:?}");
    }
    let (list, done) = (busy.world.list, busy.world.done);
    for (offset, length) in [(0, u64::MAX), (u64::MAX, 1), (1 << 63, 1 << 63), (1 << 20, 1)] {
        let zero = (busy.filter, offset, length, 0_u32, done, 1_u32);
        let refused = busy.world.module.try_call("mirror_filter_zero", zero);
        assert!(matches!(refused, Err(Failure::Refused { .. })), "{offset} {length}: {refused:?}");
    }
    for count in [1025, 1 << 29, u32::MAX] {
        let read = (busy.filter, 0_u64, list, count, 0_u32, done, 1_u32);
        let refused = busy.world.module.try_call("mirror_filter_read", read);
        assert!(matches!(refused, Err(Failure::Refused { errno: EINVAL, .. })), "{count}: {refused:?}");
    }
    // Of what was refused nothing is told.
    assert_eq!(busy.world.module.host().finished, []);
}

#[test]
fn without_room_in_the_table_there_is_no_mirror_and_nothing_is_lost() {
    let program = program(false);
    let before = content(1 << 20);
    let mut refused = 0;
    for more in 0..8 {
        // What the module has by itself is known only to it: find where it begins, and refuse from there on.
        for elements in [more, 100 + more, 200 + more, 300 + more, 400 + more, 10_000] {
            let mut host = Host::new(disk(&before), disk(&vec![0; before.len()]), None);
            host.limits = StoreLimitsBuilder::new().table_elements(elements).build();
            match Mirror::new(&program, host, &Settings::default()) {
                Ok(mirror) => assert_eq!(read_all(&mirror.into_disks()[0]), before),
                Err(Failure::Lost(_)) => refused += 1,
                Err(error) => panic!("{elements}: {error}"),
            }
        }
    }
    assert!(refused > 8, "it has all the room that it wants");
}

#[test]
fn instances_that_are_dropped_in_the_middle_leave_the_disks_as_they_were() {
    let program = program(false);
    let before = content(1 << 20);
    for polls in 0..40 {
        let host = Host::new(disk(&before), disk(&vec![0; before.len()]), Some(8 * MIB));
        let settings = Settings { buf_size: 64 << 10, speed: 10 << 20, ..Settings::default() };
        let mut mirror = Mirror::new(&program, host, &settings).expect("it begins");
        for step in 0..polls {
            mirror.poll(step * common::MS + 1, |_| ());
        }
        assert_eq!(mirror.live(), Live::Source);
        assert_eq!(read_all(&mirror.into_disks()[0]), before);
    }
}

#[test]
fn instances_of_one_module_at_the_same_time_know_nothing_of_each_other() {
    let program = program(false);
    let settings = |copy_mode| Settings { copy_mode, buf_size: 256 << 10, ..Settings::default() };
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (program, settings) =
                (&program, settings(if seed % 2 == 0 { COPY_BACKGROUND } else { COPY_WRITE_BLOCKING }));
            scope.spawn(move || {
                for round in 0..5 {
                    let outcome = run(program, &settings, seed * 10 + round, 1 << 20, Fate::Lives);
                    assert_eq!((outcome.lost, outcome.ended, outcome.live), (None, Some(0), Live::Target));
                }
            });
        }
    });
    // And call by call in turn; the handles of one mean nothing to the other.
    let mut two = [Busy::new(&program, 8 * MIB), Busy::new(&program, 8 * MIB)];
    let case = case();
    for busy in &mut two {
        busy.world.module.try_call("mirror_job_start", (busy.job,)).expect("it starts");
    }
    for now in 1..50_u64 {
        for busy in &mut two {
            busy.world.guest("mirror_filter_write", busy.filter, now % 16 * 65536);
            busy.world.outcomes();
            let out = busy.world.out;
            busy.world.module.try_call("mirror_job_poll", (busy.job, now, out)).expect("it goes on");
        }
    }
    for busy in &mut two {
        assert_eq!(busy.world.drive(busy.filter, busy.job, &case), Some(0));
    }
}

#[test]
fn a_guest_that_asks_for_thousands_from_inside_an_answer_is_told_of_each_or_refused() {
    const WRITES: u32 = 40_000;
    let program = program(false);
    let mut world = World::new(&program, 3 * MIB);
    let device = world
        .make("null", |module, out| module.try_call("mirror_device_new_null", (1_u64 << 30, 0_u32, out)));
    let filter = world.filter(device.expect("room at the start")).expect("room at the start");
    let (list, done) = (world.list, world.done);
    let accepted = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&accepted);
    let first = world.module.add_function(|store| {
        Func::wrap(store, move |mut caller: Caller<'_, Host>, _: u32, _: i32| -> wasmtime::Result<()> {
            let write = caller.get_export("mirror_filter_write").and_then(wasmtime::Extern::into_func);
            let write =
                write.expect("it is exported").typed::<(u32, u64, u32, u32, u32, u32, u32), i32>(&caller)?;
            for number in 0..WRITES {
                let answer = write.call(&mut caller, (filter, 0, list, 1, 0, done, number))?;
                assert!([0, -ENOMEM].contains(&answer), "{answer}");
                counted.fetch_add(u32::from(answer == 0), Ordering::Relaxed);
            }
            Ok(())
        })
    });
    let first = first.expect("a table that grows");
    for size in [65536, 4096, 256, 16] {
        while check(world.module.alloc(size, 8), "alloc").is_some() {}
    }
    let asked = (filter, 0_u64, list, 1_u32, 0_u32, first, 0_u32);
    world.module.try_call("mirror_filter_write", asked).expect("a guest is served");
    let (accepted, told) = (accepted.load(Ordering::Relaxed), world.module.host().finished.len());
    println!("{accepted} of {WRITES} are accepted");
    assert_eq!(told as u32, accepted, "each is told of once");
    assert!(accepted > 100);
    world.serves(filter, "afterwards");
}
