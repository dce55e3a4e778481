//! A device whose bytes are the host's, and which tells extents as small as it likes.

use blkmirror_wasm::constants::{EXTENT_ALLOCATED, EXTENT_DATA, EXTENT_ZERO};
use blkmirror_wasm::disks::Host;
use blkmirror_wasm::layout::{DEVICE_LIMITS, DEVICE_OPS, Record};
use blkmirror_wasm::module::{Module, Result};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use wasmtime::{Caller, Func, Memory};

/// What it holds.
pub(crate) type Bytes = Arc<Mutex<Vec<u8>>>;

/// What kind of device it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    /// Zeroes and discards are taken.
    pub(crate) clears: bool,
    /// Extents are told in blocks of this many bytes, each a stretch of its own, 0 for no extents.
    pub(crate) extent: u64,
    /// The block after each of these is written wrong.
    pub(crate) damages: bool,
    /// Reads fill nothing.
    pub(crate) reads_nothing: bool,
}

fn memory(caller: &mut Caller<'_, Host>) -> Memory {
    caller.get_export("memory").and_then(wasmtime::Extern::into_memory).expect("the module has one")
}

/// The buffers of a list, and the places on the device that they are for.
fn buffers(memory: &[u8], iov: u32, count: u32, at: u64) -> Vec<(Range<usize>, usize)> {
    let word = |at: usize| u32::from_le_bytes(memory[at..at + 4].try_into().expect("four")) as usize;
    let mut at = at as usize;
    let entries = (0..count as usize).map(|index| iov as usize + index * 8);
    entries
        .map(|entry| {
            let (base, length) = (word(entry), word(entry + 4));
            at += length;
            (base..base + length, at - length)
        })
        .collect()
}

/// Makes such a device that holds this.
pub(crate) fn device(module: &mut Module, bytes: &Bytes, manner: Manner) -> Result<u32> {
    let length = bytes.lock().expect("one thread").len() as u64;
    let mut ops = Record::new(&DEVICE_OPS);
    let held = Arc::clone(bytes);
    let read = move |mut caller: Caller<'_, Host>, at, iov, count| {
        let held = held.lock().expect("one thread");
        let memory = memory(&mut caller).data_mut(&mut caller);
        for (buffer, at) in buffers(memory, iov, count, at) {
            if !manner.reads_nothing {
                let length = buffer.len();
                memory[buffer].copy_from_slice(&held[at..at + length]);
            }
        }
        0
    };
    let read = module.add_function(|store| {
        Func::wrap(
            store,
            move |caller: Caller<'_, Host>, _: u32, _: u64, at: u64, _: u64, iov: u32, count: u32| -> i32 {
                read(caller, at, iov, count)
            },
        )
    })?;
    ops.set("read", read.into());
    let held = Arc::clone(bytes);
    let write = move |mut caller: Caller<'_, Host>, at: u64, length: u64, iov, count| {
        let mut held = held.lock().expect("one thread");
        let memory = memory(&mut caller).data_mut(&mut caller);
        for (buffer, at) in buffers(memory, iov, count, at) {
            held[at..at + buffer.len()].copy_from_slice(&memory[buffer]);
        }
        if let Some(next) = held.get_mut((at + length) as usize).filter(|_| manner.damages) {
            *next ^= 1;
        }
        0
    };
    let write = module.add_function(|store| {
        Func::wrap(
            store,
            move |caller: Caller<'_, Host>, _: u32, _: u64, at, length, iov, count, _: u32| -> i32 {
                write(caller, at, length, iov, count)
            },
        )
    })?;
    ops.set("write", write.into());
    if manner.clears {
        let held = Arc::clone(bytes);
        let zero = move |at: u64, length: u64| {
            held.lock().expect("one thread")[at as usize..(at + length) as usize].fill(0);
            0
        };
        let discard = zero.clone();
        let zero = module.add_function(|store| {
            Func::wrap(store, move |_: u32, _: u64, at, length, _: u32| -> i32 { zero(at, length) })
        })?;
        let discard = module.add_function(|store| {
            Func::wrap(store, move |_: u32, _: u64, at, length| -> i32 { discard(at, length) })
        })?;
        ops.set("zero", zero.into());
        ops.set("discard", discard.into());
    }
    let handle = Arc::new(Mutex::new(0_u32));
    if manner.extent > 0 {
        let (held, device) = (Arc::clone(bytes), Arc::clone(&handle));
        let extents = module.add_function(|store| {
            Func::wrap(
                store,
                move |caller: Caller<'_, Host>, _: u32, token: u64, offset: u64, length: u64| {
                    let device = *device.lock().expect("one thread");
                    tell_extents(caller, device, token, offset..offset + length, manner.extent, &held)
                },
            )
        })?;
        ops.set("extents", extents.into());
    }
    let mut limits = Record::new(&DEVICE_LIMITS);
    limits.set("length", length);
    let (made, _) = module.with(&ops, |module, ops| {
        let made = module.with(&limits, |module, limits| {
            module.make(|module, out| module.try_call("mirror_device_new", (ops, limits, 0_u32, out)))
        })?;
        Ok(made.0)
    })?;
    *handle.lock().expect("one thread") = made;
    Ok(made)
}

/// Tells stretches that end at multiples of `size`, until it is enough.
fn tell_extents(
    mut caller: Caller<'_, Host>,
    device: u32,
    token: u64,
    range: Range<u64>,
    size: u64,
    held: &Bytes,
) -> wasmtime::Result<i32> {
    let tell = caller.get_export("mirror_device_extent").and_then(wasmtime::Extern::into_func);
    let tell = tell.expect("it is exported").typed::<(u32, u64, u64, u32), i32>(&caller)?;
    let mut at = range.start;
    while at < range.end {
        let end = ((at / size + 1) * size).min(range.end);
        let is_zero =
            held.lock().expect("one thread")[at as usize..end as usize].iter().all(|byte| *byte == 0);
        let flags = if is_zero { EXTENT_ZERO } else { EXTENT_DATA | EXTENT_ALLOCATED };
        match tell.call(&mut caller, (device, token, end - at, flags))? {
            0 => at = end,
            1 => break,
            refused => return Ok(refused),
        }
    }
    Ok(0)
}
