//! Guests' requests, and what they may see.

use super::program::{Bytes, Io, Pick};
use super::world::{Disk, Guest, Hook, Kind, World, with};
use super::{checked, inner, pick, with_handles};
use blkmirror::capi::*;
use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};

/// Most bytes of a guest's buffers.
const MOST: u64 = 16 << 10;
const PAGE: u64 = 4096;

pub(super) fn new_filter(device: Pick, alignment: u8) {
    let (pointer, good) = pick(Kind::Device, device);
    let mut out = null_mut();
    let alignment = [1, 1, 512, 4096, 0, 3, 1 << 20, 65536][usize::from(alignment) % 8];
    let result = unsafe {
        if alignment == 1 {
            mirror_filter_new(pointer as _, &raw mut out)
        } else {
            mirror_filter_new_aligned(pointer as _, alignment, &raw mut out)
        }
    };
    if with_handles(good, result) != 0 {
        return;
    }
    let mut length = 0;
    assert_eq!(unsafe { mirror_filter_length(out, &raw mut length) }, 0);
    with(|world| {
        let device = world.index(pointer).expect("a good handle");
        world.add_filter(out, device, length as usize);
    });
}

/// Stands for a change that came beside another, of which nobody knows which is the last.
const BESIDE: u32 = u32::MAX;

impl Disk {
    /// A write, zero or discard of these bytes begins: what they are is open until it is done.
    fn change(&mut self, offset: usize, length: usize) -> Vec<u32> {
        let range = offset..offset + length;
        self.known[range.clone()].fill(None);
        for at in range.clone() {
            self.changes[at] += 1;
            self.under_way[at] += 1;
        }
        let alone = |at: usize| if self.under_way[at] == 1 { self.changes[at] } else { BESIDE };
        range.map(alone).collect()
    }

    /// It is done, or was never taken. Bytes that nobody else was changing meanwhile have this value, if there is one.
    fn changed(&mut self, offset: usize, since: &[u32], value: Option<u8>) {
        for (at, since) in (offset..).zip(since) {
            self.under_way[at] -= 1;
            if self.changes[at] == *since {
                self.changes[at] += 1;
                self.known[at] = value;
            }
        }
    }

    /// Bytes that nobody has changed since the read began are what they were.
    fn check(&self, offset: usize, since: &[u32], seen: &[u8]) {
        for ((at, since), seen) in (offset..).zip(since).zip(seen) {
            let known = self.known[at].filter(|_| self.changes[at] == *since);
            assert!(known.is_none_or(|known| known == *seen), "byte {at} is {seen}, was {known:?}");
        }
    }
}

const KINDS: [u32; 6] =
    [MIRROR_OP_READ, MIRROR_OP_WRITE, MIRROR_OP_WRITE, MIRROR_OP_ZERO, MIRROR_OP_DISCARD, MIRROR_OP_FLUSH];

pub(super) fn submit(io: &Io) {
    submit_to(pick(Kind::Filter, io.filter), io);
}

/// Writes a page to each disk of which is known what it holds, in each round another.
pub(super) fn write_everywhere(round: u64) {
    for pointer in with(|world| world.live(Kind::Filter)) {
        let pages = with(|world| {
            let filter = world.index(pointer).expect("a good handle");
            if world.is_trusted(filter) { world.disks[filter].known.len() as u64 / PAGE } else { 0 }
        });
        if pages > 0 {
            let (filter, offset) = (Pick(0), Bytes(round % pages * PAGE));
            let io = Io { filter, kind: 1, offset, length: Bytes(PAGE), flags: 0, pieces: 0, then: 0 };
            submit_to((pointer, true), &io);
        }
    }
}

/// Reads a disk of which is known what it holds, from its beginning to its end: a guest's last look.
pub(super) fn look_at_all(pointer: usize) {
    let length = with(|world| {
        let filter = world.index(pointer).expect("a good handle");
        if world.is_trusted(filter) { world.disks[filter].known.len() as u64 } else { 0 }
    });
    let mut offset = 0;
    while offset < length {
        let part = MOST.min(length - offset);
        let (filter, at, length) = (Pick(0), Bytes(offset), Bytes(part));
        let io = Io { filter, kind: 0, offset: at, length, flags: 0, pieces: 0, then: 0 };
        submit_to((pointer, true), &io);
        offset += part;
    }
}

fn submit_to((pointer, good): (usize, bool), io: &Io) {
    let kind = KINDS[usize::from(io.kind) % KINDS.len()];
    let (offset, length) = (io.offset.0, io.length.0);
    let in_memory = matches!(kind, MIRROR_OP_READ | MIRROR_OP_WRITE);
    let length = if in_memory { length.min(MOST) } else { length };
    let index = with(|world| {
        let filter = good.then(|| world.index(pointer).expect("a good handle"));
        let number = world.guests.len();
        let value = (number % 251 + 1) as u8;
        world.guests.push(Guest {
            filter: filter.unwrap_or(usize::MAX),
            kind,
            offset: offset as usize,
            value,
            buffer: vec![value; if in_memory { length as usize } else { 0 }],
            changes: Vec::new(),
            accepted: false,
            told: 0,
            then: io.then,
        });
        begin_change(world, number, length);
        number
    });
    let iov = with(|world| cut(&mut world.guests[index].buffer, io.pieces));
    let opaque = index as *mut c_void;
    let flags = u32::from(io.flags);
    let odd_flags = if flags >= 0xf0 { flags } else { 0 };
    // Accepted, as far as is known: it may be told before the call returns.
    with(|world| world.guests[index].accepted = true);
    let filter = pointer as *mut mirror_filter;
    let (list, count) = if iov.is_empty() { (null(), 0) } else { (iov.as_ptr(), iov.len()) };
    let result = unsafe {
        match kind {
            MIRROR_OP_READ => mirror_filter_read(filter, offset, list, count, odd_flags, Some(done), opaque),
            MIRROR_OP_WRITE => {
                let flags = flags & (MIRROR_FUA | MIRROR_WRITE_STABLE) | odd_flags;
                mirror_filter_write(filter, offset, list, count, flags, Some(done), opaque)
            }
            MIRROR_OP_ZERO => {
                let flags = flags & (MIRROR_FUA | MIRROR_MAY_UNMAP) | odd_flags;
                mirror_filter_zero(filter, offset, length, flags, Some(done), opaque)
            }
            MIRROR_OP_DISCARD => mirror_filter_discard(filter, offset, length, Some(done), opaque),
            _ => mirror_filter_flush(filter, Some(done), opaque),
        }
    };
    if with_handles(good, result) < 0 {
        with(|world| {
            let guest = &mut world.guests[index];
            assert_eq!(guest.told, 0, "told of a refused request");
            guest.accepted = false;
            guest.buffer = Vec::new();
            let (filter, offset, changes) = (guest.filter, guest.offset, std::mem::take(&mut guest.changes));
            if kind != MIRROR_OP_READ && !changes.is_empty() {
                world.disks[filter].changed(offset, &changes, None);
            }
        });
    }
}

/// Takes note of what a request is about to change, or of what it must see.
fn begin_change(world: &mut World, index: usize, length: u64) {
    let guest = &world.guests[index];
    let (filter, offset, kind) = (guest.filter, guest.offset, guest.kind);
    if filter == usize::MAX || !world.is_trusted(filter) {
        return;
    }
    let disk = &mut world.disks[filter];
    let fits = offset.checked_add(length as usize).is_some_and(|end| end <= disk.known.len());
    if fits && kind != MIRROR_OP_FLUSH {
        let range = offset..offset + length as usize;
        let changes = if kind == MIRROR_OP_READ {
            disk.changes[range].to_vec()
        } else {
            disk.change(offset, length as usize)
        };
        world.guests[index].changes = changes;
    }
}

/// The buffer as a list of up to eight.
fn cut(buffer: &mut [u8], pieces: u8) -> Vec<mirror_iovec> {
    let pieces = usize::from(pieces % 8) + 1;
    let size = buffer.len().div_ceil(pieces).max(1);
    buffer
        .chunks_mut(size)
        .map(|part| mirror_iovec { base: part.as_mut_ptr().cast(), len: part.len() })
        .collect()
}

unsafe extern "C" fn done(opaque: *mut c_void, result: c_int) {
    let then = with(|world| {
        let index = opaque as usize;
        let guest = &mut world.guests[index];
        assert!(guest.accepted, "told of a refused request");
        assert_eq!(guest.told, 0, "told twice");
        assert!((-4095..=0).contains(&result), "told {result}");
        guest.told = 1;
        let changes = std::mem::take(&mut guest.changes);
        // The memory is the guest's again: who uses it from now on is seen.
        let buffer = std::mem::take(&mut guest.buffer);
        let (filter, offset, kind, value, then) =
            (guest.filter, guest.offset, guest.kind, guest.value, guest.then);
        if !changes.is_empty() {
            let trusted = world.is_trusted(filter);
            let disk = &mut world.disks[filter];
            let value = match kind {
                MIRROR_OP_WRITE => Some(value),
                MIRROR_OP_ZERO => Some(0),
                _ => None,
            };
            if kind != MIRROR_OP_READ {
                disk.changed(offset, &changes, value.filter(|_| result == 0));
            } else if result == 0 && trusted {
                disk.check(offset, &changes, &buffer);
            }
        }
        then
    });
    if then >= 192 {
        inner(then);
    }
}

pub(super) fn begin(filter: Pick, kind: u32, offset: u64, length: u64) {
    let (pointer, good) = pick(Kind::Filter, filter);
    let mut ticket = 0;
    let result = unsafe { mirror_filter_begin(pointer as _, kind, offset, length, &raw mut ticket) };
    if with_handles(good, result) == 0 {
        with(|world| {
            let index = world.index(pointer).expect("a good handle");
            world.disks[index].tickets.push(ticket);
        });
    }
}

pub(super) fn end(filter: Pick, which: u8, result: i32) {
    let (pointer, good) = pick(Kind::Filter, filter);
    let ticket = with(|world| {
        let disk = good.then(|| world.index(pointer)).flatten().map(|index| &mut world.disks[index]);
        let tickets = disk.map(|disk| &mut disk.tickets).filter(|tickets| !tickets.is_empty());
        tickets.map_or((u64::from(which), false), |tickets| {
            let which = usize::from(which) % tickets.len();
            (tickets.swap_remove(which), true)
        })
    });
    let answer = with_handles(good, unsafe { mirror_filter_end(pointer as _, ticket.0, result) });
    assert!(!ticket.1 || answer == 0, "a ticket is not taken back: {answer}");
    if ticket.1 {
        assert!(
            unsafe { mirror_filter_end(pointer as _, ticket.0, result) } < 0,
            "a ticket is taken back twice"
        );
    }
}

pub(super) fn end_all() {
    for filter in with(|world| world.live(Kind::Filter)) {
        let tickets = with(|world| {
            let index = world.index(filter).expect("live");
            std::mem::take(&mut world.disks[index].tickets)
        });
        for ticket in tickets {
            assert_eq!(checked(unsafe { mirror_filter_end(filter as _, ticket, 0) }), 0);
        }
    }
}

pub(super) fn set_opened(filter: Pick, calls: u8) {
    let (pointer, good) = pick(Kind::Filter, filter);
    let hook = with(|world| {
        world.hooks.push(Hook { closed: 0, calls, prepare: super::program::Answer::Done });
        world.hooks.len() - 1
    });
    let opened = if calls.is_multiple_of(4) { None } else { Some(call_hook as _) };
    let result =
        unsafe { mirror_filter_set_opened(pointer as _, opened, hook as *mut c_void, Some(close_hook)) };
    if with_handles(good, result) < 0 {
        assert_eq!(with(|world| world.hooks[hook].closed), 1, "a refused hook is closed");
    }
}

pub(super) unsafe extern "C" fn call_hook(hook: *mut c_void) {
    let calls = with(|world| {
        let hook = &world.hooks[hook as usize];
        assert_eq!(hook.closed, 0, "called after it was closed");
        hook.calls
    });
    if calls >= 128 {
        inner(calls);
    }
}

pub(super) unsafe extern "C" fn close_hook(hook: *mut c_void) {
    with(|world| world.hooks[hook as usize].closed += 1);
}

pub(super) fn free_filter(pointer: usize) {
    let tickets = with(|world| {
        let index =
            world.index(pointer).filter(|_| world.is_live(pointer) && world.is(pointer, Kind::Filter));
        index.map(|index| std::mem::take(&mut world.disks[index].tickets)).unwrap_or_default()
    });
    // They could not be taken back afterwards.
    for ticket in tickets {
        checked(unsafe { mirror_filter_end(pointer as _, ticket, 0) });
    }
    with(|world| world.bury(pointer, Kind::Filter));
    unsafe { mirror_filter_free(pointer as _) };
}
