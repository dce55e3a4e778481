//! A mirror in limited memory, driven call by call: each call answers, or says -ENOMEM.

use super::{MS, bare};
use blkmirror_wasm::constants::{ENOMEM, POLL_CONCLUDED};
use blkmirror_wasm::disks::Callbacks;
use blkmirror_wasm::layout::{EVENT, IOVEC, JOB_OPTIONS, Record};
use blkmirror_wasm::module::{Failure, Module, Program, Result};
use std::collections::BTreeMap;

/// A page of a memory device.
pub(crate) const PAGE: u64 = 64 << 10;

/// A disk and a job to try.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// Of null devices if there is nothing to keep, else of memory.
    pub(crate) length: u64,
    pub(crate) keeps: bool,
    pub(crate) granularity: u64,
    pub(crate) buf_size: u64,
    pub(crate) copy_mode: u32,
    pub(crate) in_flight: u32,
    pub(crate) flags: u64,
    pub(crate) max_io: u64,
    pub(crate) sync: u64,
    /// So many of the first polls are each followed by a guest's write.
    pub(crate) writes: u64,
}

/// What a call came to: its answer, or that there is no memory. Nothing else may come of it.
pub(crate) fn check<T>(result: Result<T>, what: &str) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(Failure::Refused { errno: ENOMEM, .. }) => None,
        Err(error) => panic!("{what}: {error}"),
    }
}

/// A world in limited memory. What the host itself needs of it is taken at the beginning.
pub(crate) struct World {
    pub(crate) module: Module,
    pub(crate) done: u32,
    pub(crate) out: u32,
    /// A list of one buffer, and a block of it.
    pub(crate) list: u32,
    pub(crate) event: u32,
    pub(crate) finished: u32,
}

pub(crate) const BLOCK: u32 = 16 << 10;

impl World {
    pub(crate) fn new(program: &Program, limit: usize) -> Self {
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

    pub(crate) fn make(
        &mut self,
        what: &str,
        call: impl FnOnce(&mut Module, u32) -> Result<i32>,
    ) -> Option<u32> {
        let out = self.out;
        check(call(&mut self.module, out), what)?;
        let bytes = self.module.bytes(out, 4).expect("memory");
        Some(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    pub(crate) fn device(&mut self, case: &Case) -> Option<u32> {
        if case.keeps {
            self.make("memory", |module, out| module.try_call("mirror_device_new_memory", (case.length, out)))
        } else {
            self.make("null", |module, out| {
                module.try_call("mirror_device_new_null", (case.length, 0u32, out))
            })
        }
    }

    pub(crate) fn filter(&mut self, device: u32) -> Option<u32> {
        self.make("filter", |module, out| module.try_call("mirror_filter_new", (device, out)))
    }

    pub(crate) fn job(&mut self, filter: u32, target: u32, case: &Case) -> Option<u32> {
        let filled = self.module.fill(&JOB_OPTIONS, |module, options| {
            module.try_call("mirror_job_options_init", (options, JOB_OPTIONS.size() as u32))
        });
        let (_, mut options) = check(filled, "options")?;
        options.set("granularity", case.granularity);
        options.set("buf_size", case.buf_size);
        options.set("copy_mode", case.copy_mode.into());
        options.set("max_in_flight", case.in_flight.into());
        options.set("max_io", case.max_io);
        options.set("sync", case.sync);
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
    pub(crate) fn guest(&mut self, function: &str, filter: u32, offset: u64) -> bool {
        self.guest_with(function, filter, offset, 0)
    }

    pub(crate) fn guest_with(&mut self, function: &str, filter: u32, offset: u64, flags: u32) -> bool {
        let (list, done) = (self.list, self.done);
        self.finished += 1;
        let asked = self.module.try_call(function, (filter, offset, list, 1u32, flags, done, self.finished));
        check(asked, function).is_some()
    }

    /// The outcomes so far, by number: 0 or -ENOMEM.
    pub(crate) fn outcomes(&mut self) -> BTreeMap<u32, i32> {
        let finished = std::mem::take(&mut self.module.host().finished);
        assert!(finished.iter().all(|(_, result)| [0, -ENOMEM].contains(result)), "{finished:?}");
        finished.into_iter().collect()
    }

    /// A read that must succeed, whatever else there is no memory for.
    pub(crate) fn serves(&mut self, filter: u32, when: &str) {
        self.outcomes();
        for offset in [0, PAGE, 5 * PAGE] {
            assert!(self.guest("mirror_filter_read", filter, offset), "a read is refused {when}");
            let number = self.finished;
            assert_eq!(self.outcomes().get(&number), Some(&0), "a read fails {when}");
        }
    }

    /// Polls the job until it is over or has no memory, with a guest who writes meanwhile. Whether it is over, and how
    /// it ended.
    pub(crate) fn drive(&mut self, filter: u32, job: u32, case: &Case) -> Option<i32> {
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
            if step < case.writes {
                self.guest("mirror_filter_write", filter, step * 37 % (case.length / PAGE) * PAGE);
            }
            self.outcomes();
        }
        panic!("the job doesn't end: {case:?}");
    }
}
