//! Whatever memory the module may have, it does what it is asked for or says -ENOMEM; it never traps, and its filters go on.

mod common;

use blkmirror_wasm::constants::{
    COPY_BACKGROUND, COPY_WRITE_BLOCKING, ENOMEM, JOB_INLINE, PENDING, SYNC_FULL, SYNC_NONE, WRITE_STABLE,
};
use blkmirror_wasm::layout::{DEVICE_LIMITS, DEVICE_OPS, Record};
use blkmirror_wasm::module::Program;
use common::world::{Case, PAGE, World, check};
use common::{MS, program};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use wasmtime::Func;

const MIB: usize = 1 << 20;

fn cases() -> Vec<Case> {
    let small = Case {
        length: 1 << 20,
        keeps: true,
        granularity: 0,
        buf_size: 64 << 10,
        copy_mode: COPY_BACKGROUND,
        in_flight: 0,
        flags: 0,
        max_io: 0,
        sync: SYNC_FULL,
        writes: 50,
    };
    vec![
        small,
        Case { length: 12 << 20, copy_mode: COPY_WRITE_BLOCKING, ..small },
        Case { buf_size: 0, ..small },
        Case { flags: JOB_INLINE, copy_mode: COPY_WRITE_BLOCKING, ..small },
        Case { length: 3 << 20, granularity: 512, buf_size: 1 << 20, in_flight: 1024, ..small },
        // Of devices that keep nothing only what guests write is copied.
        Case { length: 64 << 30, keeps: false, sync: SYNC_NONE, ..small },
        Case { length: 1 << 40, keeps: false, sync: SYNC_NONE, granularity: 65536, ..small },
    ]
}

/// What came of a case: how far it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    NoFilter,
    NoJob,
    NoMemoryToGoOn,
    Ended(bool),
}

fn attempt(world: &mut World, case: &Case) -> Reached {
    let Some(source) = world.device(case) else { return Reached::NoFilter };
    let Some(filter) = world.filter(source) else { return Reached::NoFilter };
    world.module.call::<_, ()>("mirror_device_free", (source,)).expect("no trap");
    for page in 0..(case.length / PAGE).min(256) {
        world.guest("mirror_filter_write", filter, page * PAGE);
    }
    world.serves(filter, "before the job");
    let reached = copy(world, filter, case);
    world.serves(filter, "after the job");
    world.module.call::<_, ()>("mirror_filter_free", (filter,)).expect("no trap");
    reached
}

fn copy(world: &mut World, filter: u32, case: &Case) -> Reached {
    let Some(target) = world.device(case) else { return Reached::NoJob };
    let job = world.job(filter, target, case);
    world.module.call::<_, ()>("mirror_device_free", (target,)).expect("no trap");
    let Some(job) = job else { return Reached::NoJob };
    world.module.try_call("mirror_job_start", (job,)).expect("a job that was made starts");
    let ended = world.drive(filter, job, case);
    world.serves(filter, "while there is a job");
    world.module.try_call("mirror_job_free", (job,)).expect("a job can always be freed");
    match ended {
        None => Reached::NoMemoryToGoOn,
        Some(result) => {
            assert!([0, -ENOMEM].contains(&result), "{result}");
            Reached::Ended(result == 0)
        }
    }
}

#[test]
fn with_any_limit_a_mirror_works_or_says_enomem() {
    let program = program(false);
    let mut reached = BTreeMap::<_, u32>::new();
    for case in cases() {
        let mut before = Vec::new();
        for limit in (4..=128).map(|quarters| quarters * MIB / 4) {
            let mut world = World::new(&program, limit);
            let first = attempt(&mut world, &case);
            let second = attempt(&mut world, &case);
            // What was freed can be had again, though it may be in pieces: a little more makes up for that.
            before.push(first);
            let with_less = before.len().checked_sub(5).map_or(Reached::NoFilter, |at| before[at]);
            assert!(second >= with_less, "{case:?} in {limit} bytes: {second:?} the second time");
            *reached.entry(first).or_default() += 1;
        }
        println!("{case:?}: {:?}", before.last());
        assert_eq!(before.last(), Some(&Reached::Ended(true)), "{case:?} doesn't work in 32 MiB");
    }
    println!("{reached:?}");
    // The limits are where they matter: all that can come of it is seen.
    assert!(
        reached.contains_key(&Reached::NoJob) && reached.contains_key(&Reached::Ended(false)),
        "{reached:?}"
    );
}

#[test]
fn whoever_takes_all_the_memory_is_told_so_and_the_filter_serves() {
    let program = program(false);
    let case = Case { in_flight: 16, ..cases()[0] };
    for limit in [MIB, 2 * MIB, 5 * MIB] {
        let mut world = World::new(&program, limit);
        let source = world.device(&case).expect("room for one");
        let filter = world.filter(source).expect("room for one");
        world.serves(filter, "at first");
        // Everything that can be made, until nothing can.
        let (mut devices, mut filters, mut jobs, mut blocks) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..100_000 {
            let Some(device) = world.device(&case) else { break };
            devices.push(device);
            let Some(target) = world.device(&case) else { break };
            devices.push(target);
            let Some(filter) = world.filter(device) else { break };
            filters.push(filter);
            let Some(job) = world.job(filter, target, &case) else { break };
            jobs.push(job);
        }
        for size in [65536, 4096, 256, 16] {
            while let Some(block) = check(world.module.alloc(size, 8), "alloc") {
                blocks.push((block, size));
                assert!(blocks.len() < 1_000_000);
            }
        }
        for round in 0..300 {
            assert!(world.device(&case).is_none() || round == 0, "there is room again");
            world.serves(filter, "when all is taken");
            for job in &jobs {
                world.module.try_call("mirror_job_start", (*job,)).ok();
                let out = world.out;
                check(world.module.try_call("mirror_job_poll", (*job, 1u64, out)), "poll");
            }
        }
        for job in jobs {
            world.module.try_call("mirror_job_cancel", (job, 1u32)).expect("it can be cancelled");
            world.module.try_call("mirror_job_free", (job,)).expect("it can be freed");
        }
        for filter in filters {
            world.module.call::<_, ()>("mirror_filter_free", (filter,)).expect("no trap");
        }
        for device in devices {
            world.module.call::<_, ()>("mirror_device_free", (device,)).expect("no trap");
        }
        for (block, size) in blocks {
            world.module.free(block, size, 8).expect("no trap");
        }
        world.serves(filter, "when all is given back");
        assert!(world.device(&case).is_some(), "what was given back is not to be had");
    }
}

/// A device of the host's that finishes nothing by itself: what it was asked for, by token.
type Tokens = Arc<Mutex<Vec<u64>>>;

fn slow_device(world: &mut World, length: u64) -> (u32, Tokens) {
    let tokens = Tokens::default();
    let (read, write) = (Arc::clone(&tokens), Arc::clone(&tokens));
    let module = &mut world.module;
    let read = module.add_function(|store| {
        Func::wrap(store, move |_: u32, token: u64, _: u64, _: u64, _: u32, _: u32| -> i32 {
            read.lock().expect("one thread").push(token);
            PENDING
        })
    });
    let write = module.add_function(|store| {
        Func::wrap(store, move |_: u32, token: u64, _: u64, _: u64, _: u32, _: u32, _: u32| -> i32 {
            write.lock().expect("one thread").push(token);
            PENDING
        })
    });
    let mut ops = Record::new(&DEVICE_OPS);
    ops.set("read", read.expect("a table that grows").into());
    ops.set("write", write.expect("a table that grows").into());
    let mut limits = Record::new(&DEVICE_LIMITS);
    limits.set("length", length);
    let out = world.out;
    let made = module.with(&ops, |module, ops| {
        module.with(&limits, |module, limits| module.try_call("mirror_device_new", (ops, limits, 0u32, out)))
    });
    made.expect("room for it");
    let bytes = module.bytes(out, 4).expect("memory");
    (u32::from_le_bytes(bytes.try_into().expect("four bytes")), tokens)
}

#[test]
fn a_thousand_requests_at_once_take_no_more_than_there_is() {
    let program = program(false);
    for (inline, requests, at_least) in [(0, 100, 1000), (JOB_INLINE, 20, 200)] {
        let mut world = World::new(&program, 16 * MIB);
        let case = Case {
            length: 16 << 30,
            keeps: false,
            granularity: 65536,
            buf_size: 8 << 20,
            copy_mode: COPY_WRITE_BLOCKING,
            in_flight: 1024,
            flags: inline,
            max_io: 8192,
            ..cases()[0]
        };
        let (source, at_source) = slow_device(&mut world, case.length);
        let (target, at_target) = slow_device(&mut world, case.length);
        let filter = world.filter(source).expect("room for it");
        let job = world.job(filter, target, &case).expect("room for it");
        world.module.try_call("mirror_job_start", (job,)).expect("it starts");
        let (mut accepted, mut done, mut refused, mut most) = (0, 0, 0, 0);
        for round in 0..60_u64 {
            if round == 12 {
                // Everything else is taken: from now on each call has the reserve and nothing more.
                for size in [65536, 4096, 64] {
                    while check(world.module.alloc(size, 8), "alloc").is_some() {}
                }
            }
            for request in 0..requests {
                let at = (round * requests + request) * PAGE % case.length;
                accepted += u32::from(world.guest_with("mirror_filter_write", filter, at, WRITE_STABLE));
            }
            let out = world.out;
            refused += u32::from(
                check(world.module.try_call("mirror_job_poll", (job, round * MS + 1, out)), "poll").is_none(),
            );
            most = most.max(
                at_source.lock().expect("one thread").len() + at_target.lock().expect("one thread").len(),
            );
            // Sometimes all of them are done at once.
            if round % 20 == 19 {
                for (device, tokens) in [(source, &at_source), (target, &at_target)] {
                    let tokens = std::mem::take(&mut *tokens.lock().expect("one thread"));
                    for token in tokens {
                        world
                            .module
                            .try_call("mirror_device_complete", (device, token, 0))
                            .expect("it was out");
                    }
                }
            }
            done += world.outcomes().len();
        }
        println!("{accepted} accepted, {done} done, {refused} polls refused, {most} requests out at most");
        assert!(most > at_least, "only {most} were out");
        world.module.try_call("mirror_job_free", (job,)).expect("it can be freed");
        while done < accepted as usize {
            let before = done;
            for (device, tokens) in [(source, &at_source), (target, &at_target)] {
                let tokens = std::mem::take(&mut *tokens.lock().expect("one thread"));
                for token in tokens {
                    world.module.try_call("mirror_device_complete", (device, token, 0)).expect("it was out");
                }
            }
            done += world.outcomes().len();
            assert!(done > before, "{} guests wait for ever", accepted as usize - done);
        }
    }
}

/// Completes what the devices hold; how many that was.
fn complete_all(world: &mut World, devices: &[(u32, Tokens)]) -> usize {
    let mut count = 0;
    for (device, tokens) in devices {
        let tokens = std::mem::take(&mut *tokens.lock().expect("one thread"));
        for token in tokens {
            world.module.try_call("mirror_device_complete", (*device, token, 0)).expect("it was out");
            count += 1;
        }
    }
    count
}

/// Guests by the hundred come to a job that has seen none, when there is no memory beside the reserve: each is refused, or
/// done in the end.
fn crowd(program: &Program, inline: u64, granularity: u64, spread: u64) {
    let mut world = World::new(program, 4 * MIB);
    let case = Case {
        length: 1 << 30,
        keeps: false,
        granularity,
        buf_size: 1 << 20,
        copy_mode: COPY_WRITE_BLOCKING,
        in_flight: 16,
        flags: inline,
        sync: SYNC_NONE,
        ..cases()[0]
    };
    let devices = [slow_device(&mut world, case.length), slow_device(&mut world, case.length)];
    let filter = world.filter(devices[0].0).expect("room for it");
    // The filter has room for them from earlier times.
    for request in 0..1500_u64 {
        world.guest("mirror_filter_read", filter, request * PAGE % case.length);
    }
    complete_all(&mut world, &devices);
    world.outcomes();
    let job = world.job(filter, devices[1].0, &case).expect("room for it");
    world.module.try_call("mirror_job_start", (job,)).expect("it starts");
    let out = world.out;
    let poll = |world: &mut World, now: u64| {
        check(world.module.try_call("mirror_job_poll", (job, now, out)), "poll").is_some()
    };
    for now in 1..20 {
        poll(&mut world, now);
        complete_all(&mut world, &devices);
    }
    take_all(&mut world);
    let (mut accepted, mut done, mut polls) = (0, 0, 0);
    for request in 0..3000_u64 {
        let at = request * spread % case.length;
        accepted += usize::from(world.guest_with("mirror_filter_write", filter, at, WRITE_STABLE));
        if request % 600 == 599 {
            polls += u32::from(poll(&mut world, request));
            done += world.outcomes().len();
        }
    }
    for now in 3000..8_000 {
        poll(&mut world, now);
        let completed = complete_all(&mut world, &devices);
        done += world.outcomes().len();
        if completed == 0 && done == accepted {
            break;
        }
    }
    println!("{granularity} {spread}: {accepted} accepted, {done} done, {polls} of 5 polls");
    assert_eq!(done, accepted, "guests wait for ever: {granularity} {spread}");
    world.module.try_call("mirror_job_free", (job,)).expect("it can be freed");
    assert!(accepted > 1000, "only {accepted} are served");
}

#[test]
fn a_crowd_that_comes_when_all_memory_is_taken_is_served_or_refused() {
    let program = program(false);
    for inline in [0, JOB_INLINE] {
        // Each to a chunk of its own, and all to one.
        for (granularity, spread) in [(65536, 65536), (1 << 20, 16384), (1 << 20, 0)] {
            crowd(&program, inline, granularity, spread);
        }
    }
}

/// Completes the older half of what the devices hold, so that the job always has something under way.
fn complete_half(world: &mut World, devices: &[(u32, Tokens)]) {
    for (device, tokens) in devices {
        let mut held = tokens.lock().expect("one thread");
        let older = held.len().div_ceil(2);
        let older: Vec<u64> = held.drain(..older).collect();
        drop(held);
        for token in older {
            world.module.try_call("mirror_device_complete", (*device, token, 0)).expect("it was out");
        }
    }
}

#[test]
fn guests_that_find_no_memory_wait_for_what_is_under_way_and_not_for_the_whole_disk() {
    let program = program(false);
    let mut world = World::new(&program, 4 * MIB);
    let case = Case {
        length: 1 << 30,
        keeps: false,
        granularity: 65536,
        buf_size: 1 << 20,
        copy_mode: COPY_WRITE_BLOCKING,
        in_flight: 16,
        max_io: 65536,
        ..cases()[0]
    };
    let devices = [slow_device(&mut world, case.length), slow_device(&mut world, case.length)];
    let filter = world.filter(devices[0].0).expect("room for it");
    let job = world.job(filter, devices[1].0, &case).expect("room for it");
    world.module.try_call("mirror_job_start", (job,)).expect("it starts");
    let out = world.out;
    let mut now = 0;
    let mut round = |world: &mut World| {
        now += MS;
        check(world.module.try_call("mirror_job_poll", (job, now, out)), "poll")
            .expect("the reserve is there");
        complete_half(world, &devices);
    };
    // The filter has room for them from earlier times.
    for request in 0..1500_u64 {
        world.guest("mirror_filter_read", filter, request * PAGE);
    }
    complete_all(&mut world, &devices);
    world.outcomes();
    for _ in 0..20 {
        round(&mut world);
    }
    take_all(&mut world);
    // So many that the table of them would be a large block of memory.
    let mut waiting = 0;
    for request in 0..3000_u64 {
        let at = (1 << 30) - PAGE * (request + 1);
        waiting += usize::from(world.guest_with("mirror_filter_write", filter, at, WRITE_STABLE));
    }
    assert!(waiting > 1000, "only {waiting} are accepted");
    let waited = (0..5000).take_while(|_| {
        round(&mut world);
        world.outcomes().is_empty()
    });
    let waited = waited.count();
    assert!(waited < 100, "for {waited} rounds");
}

/// Takes all that is left; what it took.
fn take_all(world: &mut World) -> Vec<(u32, u32)> {
    let mut blocks = Vec::new();
    for size in [65536, 4096, 256, 16] {
        while let Some(block) = check(world.module.alloc(size, 8), "alloc") {
            blocks.push((block, size));
        }
    }
    blocks
}

#[test]
fn whoever_takes_all_the_memory_before_anything_else_is_told_so() {
    let program = program(false);
    for limit in [MIB, 3 * MIB] {
        let mut world = World::new(&program, limit);
        let blocks = take_all(&mut world);
        assert!(blocks.len() > 10);
        for (block, size) in blocks {
            world.module.free(block, size, 8).expect("no trap");
        }
        let device = world.device(&cases()[0]).expect("all is given back");
        let filter = world.filter(device).expect("all is given back");
        world.serves(filter, "when all is given back");
    }
}

#[test]
fn zeroes_that_had_no_memory_once_have_some_later() {
    let program = program(false);
    let mut world = World::new(&program, 2 * MIB);
    // It has no zero: zeroes are written to it, out of a block that all share and that is made when it is first needed.
    let (device, tokens) = slow_device(&mut world, 1 << 20);
    let filter = world.filter(device).expect("room at the start");
    let blocks = take_all(&mut world);
    let zero = |world: &mut World| {
        world.finished += 1;
        let (done, number) = (world.done, world.finished);
        let asked =
            world.module.try_call("mirror_filter_zero", (filter, 0_u64, 65536_u64, 0_u32, done, number));
        check(asked, "zero").expect("a guest is not refused");
        complete_all(world, &[(device, Arc::clone(&tokens))]);
        world.outcomes().get(&number).copied()
    };
    assert_eq!(zero(&mut world), Some(-ENOMEM));
    for (block, size) in blocks {
        world.module.free(block, size, 8).expect("no trap");
    }
    assert_eq!(zero(&mut world), Some(0));
}
