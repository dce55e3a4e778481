//! The host's side of the callbacks: disks in files, and what the guest was told.

use crate::constants::{DONE, EINVAL, EIO};
use crate::layout::{DEVICE_LIMITS, DEVICE_OPS, Record};
use crate::module::{Module, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use wasmtime::{Caller, Func, Memory, StoreLimits, StoreLimitsBuilder};

/// The source's number, which is the `opaque` of its callbacks.
pub const SOURCE: u32 = 0;
/// The target's.
pub const TARGET: u32 = 1;

/// Which disk has what the guest was told is done. It must be known at any moment: the module may be lost at any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// Nothing was switched.
    Source,
    /// The switch is about to be made: the two are equal until one of them is written to.
    Either,
    /// The guest is on the target.
    Target,
}

/// What a store of Wasmtime holds for us. It outlives the module.
pub struct Host {
    /// The source and the target.
    pub disks: [File; 2],
    /// Where the guest is.
    pub live: Live,
    /// Guest requests that are done, well or not: their numbers and results.
    pub finished: Vec<(u32, i32)>,
    /// How much linear memory there may be.
    pub limits: StoreLimits,
    /// Bytes that go to the two disks.
    pub written: [u64; 2],
    /// Callbacks until one fails as a host's can, and takes the module with it. For tests.
    pub trap_in: Option<u64>,
    pub(crate) memory: Option<Memory>,
}

impl Host {
    /// With these disks, and at most so many bytes of linear memory.
    #[must_use]
    pub fn new(source: File, target: File, memory_limit: Option<usize>) -> Self {
        let limits = memory_limit
            .map_or_else(StoreLimits::default, |limit| StoreLimitsBuilder::new().memory_size(limit).build());
        let disks = [source, target];
        Self {
            disks,
            live: Live::Source,
            finished: Vec::new(),
            limits,
            written: [0; 2],
            trap_in: None,
            memory: None,
        }
    }

    /// The disk that the guest has to go on with if there is no mirror any more.
    #[must_use]
    pub fn live_disk(&self) -> &File {
        match self.live {
            Live::Source | Live::Either => &self.disks[SOURCE as usize],
            Live::Target => &self.disks[TARGET as usize],
        }
    }

    /// A disk is about to be changed. Once the switch is due only guests write, and they write to where they are.
    fn is_changed(&mut self, disk: u32, bytes: u64) {
        if self.live == Live::Either {
            self.live = if disk == TARGET { Live::Target } else { Live::Source };
        }
        self.written[disk as usize & 1] += bytes;
    }

    fn count_down(&mut self) -> wasmtime::Result<()> {
        match &mut self.trap_in {
            Some(0) => Err(wasmtime::Error::msg("the host's callback failed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Whatever goes wrong with a file, as the library is told it.
fn outcome(result: io::Result<()>) -> i32 {
    result.map_or_else(|error| -error.raw_os_error().unwrap_or(EIO), |()| DONE)
}

/// Linear memory, and the host beside it: the host's system calls read and write the module's buffers where they are.
fn split<'a>(caller: &'a mut Caller<'_, Host>) -> wasmtime::Result<(&'a mut [u8], &'a mut Host)> {
    caller.data_mut().count_down()?;
    let memory = caller.data().memory.ok_or_else(|| wasmtime::Error::msg("no memory yet"))?;
    Ok(memory.data_and_store_mut(caller))
}

/// The buffers of a list, as ranges of linear memory. One that points beyond it is the module's mistake.
fn buffers(memory: &[u8], iov: u32, count: u32) -> Option<Vec<std::ops::Range<usize>>> {
    let list = memory.get(iov as usize..)?.get(..count as usize * 8)?;
    let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    list.chunks_exact(8)
        .map(|entry| {
            let (base, length) = (word(entry), word(&entry[4..]));
            (base.checked_add(length)? <= memory.len()).then(|| base..base + length)
        })
        .collect()
}

fn read(
    mut caller: Caller<'_, Host>,
    disk: u32,
    _token: u64,
    offset: u64,
    _length: u64,
    iov: u32,
    count: u32,
) -> wasmtime::Result<i32> {
    let (memory, host) = split(&mut caller)?;
    let (Some(buffers), Some(file)) = (buffers(memory, iov, count), host.disks.get(disk as usize)) else {
        return Ok(-EINVAL);
    };
    let mut at = offset;
    Ok(outcome(buffers.into_iter().try_for_each(|buffer| {
        let start = at;
        at += buffer.len() as u64;
        file.read_exact_at(&mut memory[buffer], start)
    })))
}

#[expect(clippy::too_many_arguments, reason = "they are those of the header's callback")]
fn write(
    mut caller: Caller<'_, Host>,
    disk: u32,
    _token: u64,
    offset: u64,
    length: u64,
    iov: u32,
    count: u32,
    flags: u32,
) -> wasmtime::Result<i32> {
    let (memory, host) = split(&mut caller)?;
    host.is_changed(disk, length);
    let (Some(buffers), Some(file)) = (buffers(memory, iov, count), host.disks.get(disk as usize)) else {
        return Ok(-EINVAL);
    };
    let mut at = offset;
    let written = buffers.into_iter().try_for_each(|buffer| {
        let start = at;
        at += buffer.len() as u64;
        file.write_all_at(&memory[buffer], start)
    });
    let is_durable = flags & crate::constants::FUA != 0;
    Ok(outcome(written.and_then(|()| if is_durable { file.sync_data() } else { Ok(()) })))
}

fn flush(mut caller: Caller<'_, Host>, disk: u32, _token: u64) -> wasmtime::Result<i32> {
    let (_, host) = split(&mut caller)?;
    Ok(host.disks.get(disk as usize).map_or(-EINVAL, |file| outcome(file.sync_data())))
}

/// Functions of the host in the module's table, which is where C's pointers to functions point.
pub struct Callbacks {
    read: u32,
    write: u32,
    flush: u32,
    /// Of a guest's request: `void (*done)(void *opaque, int result)`.
    pub done: u32,
    /// Of a job: `int (*prepare)(void *opaque, const mirror_prepare_info *info)`.
    pub prepare: u32,
}

impl Callbacks {
    /// Adds them.
    pub fn add(module: &mut Module) -> Result<Self> {
        Ok(Self {
            read: module.add_function(|store| Func::wrap(store, read))?,
            write: module.add_function(|store| Func::wrap(store, write))?,
            flush: module.add_function(|store| Func::wrap(store, flush))?,
            done: module.add_function(|store| {
                Func::wrap(store, |mut caller: Caller<'_, Host>, request: u32, result: i32| {
                    caller.data_mut().finished.push((request, result));
                })
            })?,
            prepare: module.add_function(|store| {
                Func::wrap(store, |mut caller: Caller<'_, Host>, _opaque: u32, _info: u32| {
                    caller.data_mut().live = Live::Either;
                    0
                })
            })?,
        })
    }

    /// Makes a device of one of the host's disks.
    pub fn device(&self, module: &mut Module, disk: u32, length: u64) -> Result<u32> {
        let mut ops = Record::new(&DEVICE_OPS);
        ops.set("read", self.read.into());
        ops.set("write", self.write.into());
        ops.set("flush", self.flush.into());
        let mut limits = Record::new(&DEVICE_LIMITS);
        limits.set("length", length);
        let made = module.with(&ops, |module, ops| {
            module.with(&limits, |module, limits| {
                module.make(|module, out| module.try_call("mirror_device_new", (ops, limits, disk, out)))
            })
        })?;
        Ok(made.0.0)
    }
}
