//! Whatever memory the module may have, it does what it is asked for or says -ENOMEM; it never traps, and its filters go on.

mod common;

use blkmirror_wasm::constants::{
    COPY_BACKGROUND, COPY_WRITE_BLOCKING, ENOMEM, JOB_INLINE, PENDING, POLL_CONCLUDED, SYNC_FULL, SYNC_NONE,
    WRITE_STABLE,
};
use blkmirror_wasm::disks::Callbacks;
use blkmirror_wasm::layout::{DEVICE_LIMITS, DEVICE_OPS, EVENT, IOVEC, JOB_OPTIONS, Record};
use blkmirror_wasm::module::{Failure, Module, Program, Result};
use common::{MS, bare, program};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use wasmtime::Func;

const MIB: usize = 1 << 20;
/// A page of a memory device.
const PAGE: u64 = 64 << 10;

/// A disk and a job to try.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Of null devices if there is nothing to keep, else of memory.
    length: u64,
    keeps: bool,
    granularity: u64,
    buf_size: u64,
    copy_mode: u32,
    in_flight: u32,
    flags: u64,
    max_io: u64,
}

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
    };
    vec![
        small,
        Case { length: 12 << 20, copy_mode: COPY_WRITE_BLOCKING, ..small },
        Case { buf_size: 0, ..small },
        Case { flags: JOB_INLINE, copy_mode: COPY_WRITE_BLOCKING, ..small },
        Case { length: 3 << 20, granularity: 512, buf_size: 1 << 20, in_flight: 1024, ..small },
        Case { length: 64 << 30, keeps: false, ..small },
        Case { length: 1 << 40, keeps: false, granularity: 65536, ..small },
    ]
}

/// What a call came to: its answer, or that there is no memory. Nothing else may come of it.
fn check<T>(result: Result<T>, what: &str) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Failure::Refused { errno: ENOMEM, .. }) => None,
        Err(error) => panic!("{what}: {error}"),
    }
}

/// A world in limited memory. What the host itself needs of it is taken at the beginning.
struct World {
    module: Module,
    done: u32,
    out: u32,
    /// A list of one buffer, and a block of it.
    list: u32,
    event: u32,
    finished: u32,
}

const BLOCK: u32 = 16 << 10;

impl World {
    fn new(program: &Program, limit: usize) -> Self {
        let mut module = bare(program, Some(limit));
        let callbacks = Callbacks::add(&mut module).expect("a table that grows");
        let out = module.alloc(8, 8).expect("room at the start");
        let list = module.alloc(8 + BLOCK, 8).expect("room at the start");
        let event = module.alloc(EVENT.size() as u32, 8).expect("room at the start");
        let mut iov = Record::new(&IOVEC);
        iov.set("base", (list + 8).into());
        iov.set("len", BLOCK.into());
        module.bytes(list, 8).expect("memory").copy_from_slice(&iov.bytes);
        Self { module, done: callbacks.done, out, list, event, finished: 0 }
    }

    fn make(&mut self, what: &str, call: impl FnOnce(&mut Module, u32) -> Result<i32>) -> Option<u32> {
        let out = self.out;
        check(call(&mut self.module, out), what)?;
        let bytes = self.module.bytes(out, 4).expect("memory");
        Some(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    fn device(&mut self, case: &Case) -> Option<u32> {
        if case.keeps {
            self.make("memory", |module, out| module.try_call("mirror_device_new_memory", (case.length, out)))
        } else {
            self.make("null", |module, out| {
                module.try_call("mirror_device_new_null", (case.length, 0u32, out))
            })
        }
    }

    fn filter(&mut self, device: u32) -> Option<u32> {
        self.make("filter", |module, out| module.try_call("mirror_filter_new", (device, out)))
    }

    fn job(&mut self, filter: u32, target: u32, case: &Case) -> Option<u32> {
        let filled = self.module.fill(&JOB_OPTIONS, |module, options| {
            module.try_call("mirror_job_options_init", (options, JOB_OPTIONS.size() as u32))
        });
        let (_, mut options) = check(filled, "options")?;
        options.set("granularity", case.granularity);
        options.set("buf_size", case.buf_size);
        options.set("copy_mode", case.copy_mode.into());
        options.set("max_in_flight", case.in_flight.into());
        options.set("max_io", case.max_io);
        // Of a device that keeps nothing only what guests write is copied.
        options.set("sync", if case.keeps || case.max_io > 0 { SYNC_FULL } else { SYNC_NONE });
        options.set("flags", options.number("flags") | case.flags);
        let out = self.out;
        let made = self.module.with(&options, |module, options| {
            module.try_call("mirror_job_new", (filter, target, options, out))
        });
        check(made, "job")?;
        let bytes = self.module.bytes(out, 4).expect("memory");
        Some(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    /// A guest's request of a block. Whether it was accepted; its outcome comes through `done`.
    fn guest(&mut self, function: &str, filter: u32, offset: u64) -> bool {
        self.guest_with(function, filter, offset, 0)
    }

    fn guest_with(&mut self, function: &str, filter: u32, offset: u64, flags: u32) -> bool {
        let (list, done) = (self.list, self.done);
        self.finished += 1;
        let asked = self.module.try_call(function, (filter, offset, list, 1u32, flags, done, self.finished));
        check(asked, function).is_some()
    }

    /// The outcomes so far, by number: 0 or -ENOMEM.
    fn outcomes(&mut self) -> BTreeMap<u32, i32> {
        let finished = std::mem::take(&mut self.module.host().finished);
        assert!(finished.iter().all(|(_, result)| [0, -ENOMEM].contains(result)), "{finished:?}");
        finished.into_iter().collect()
    }

    /// A read that must succeed, whatever else there is no memory for.
    fn serves(&mut self, filter: u32, when: &str) {
        self.outcomes();
        for offset in [0, PAGE, 5 * PAGE] {
            assert!(self.guest("mirror_filter_read", filter, offset), "a read is refused {when}");
            let number = self.finished;
            assert_eq!(self.outcomes().get(&number), Some(&0), "a read fails {when}");
        }
    }

    /// Polls the job until it is over or has no memory, with a guest who writes meanwhile. Whether it is over, and how
    /// it ended.
    fn drive(&mut self, filter: u32, job: u32, case: &Case) -> Option<i32> {
        let (wake, event) = (self.out, self.event);
        let mut ended = None;
        for step in 0..20_000_u64 {
            let polled = check(self.module.try_call("mirror_job_poll", (job, step * MS + 1, wake)), "poll")?;
            loop {
                let mut record = Record::new(&EVENT);
                self.module.bytes(event, record.bytes.len()).expect("memory").copy_from_slice(&record.bytes);
                match check(self.module.try_call("mirror_job_next_event", (job, event)), "next_event") {
                    Some(1) => {}
                    _ => break,
                }
                record.bytes.copy_from_slice(self.module.bytes(event, EVENT.size()).expect("memory"));
                match record.number("type") {
                    2 => {
                        let _ = check(self.module.try_call("mirror_job_complete", (job,)), "complete");
                    }
                    5 => ended = Some(record.int("result")),
                    _ => {}
                }
            }
            if polled == POLL_CONCLUDED {
                return Some(ended.expect("an end is told"));
            }
            if step < 50 {
                self.guest("mirror_filter_write", filter, step * 37 % (case.length / PAGE) * PAGE);
            }
            self.outcomes();
        }
        panic!("the job doesn't end: {case:?}");
    }
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
