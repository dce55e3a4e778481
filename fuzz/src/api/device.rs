//! Devices made of callbacks, which do what the program says.

use super::program::{Answer, Manners, Pick};
use super::world::{Device, Kind, Request, with};
use super::{checked, inner, pick, with_handles};
use crate::Raw;
use blkmirror::capi::*;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

/// Bytes of an honest device: few, because what looks at them is slow under coverage.
const LENGTH: u64 = 16 << 10;

/// What a callback answers in the end.
enum Then {
    Answer(c_int),
    Pending,
    Complete(c_int),
}

fn limits(manners: &Manners) -> mirror_device_limits {
    let [transfer, iov, zero, cluster] = manners.limits;
    let power = |byte: u8, least: u32| 1u64 << (least + u32::from(byte) % 6);
    let odd = u64::from(manners.limits[0].is_multiple_of(8)) * 100;
    let mut flags = u32::from(manners.flags) & 31;
    if manners.honest {
        // What it can promise: it isn't read-only, and it is zero if it has no pattern.
        flags &= MIRROR_LIMIT_CHEAP_ZERO | MIRROR_LIMIT_DISCARD_ZEROES | MIRROR_LIMIT_READS_ZERO;
        if manners.pattern {
            flags &= !MIRROR_LIMIT_READS_ZERO;
        }
    }
    mirror_device_limits {
        struct_size: size_of::<mirror_device_limits>(),
        length: if manners.honest { LENGTH - odd } else { manners.length.0 },
        request_alignment: [0, 1, 512, 512, 4096, 1, 512, 3][usize::from(manners.alignment) % 8],
        memory_alignment: [0, 1, 512, 4096][usize::from(manners.alignment / 8) % 4],
        max_iov: u32::from(iov) % 5,
        flags,
        max_transfer: if transfer.is_multiple_of(3) { 0 } else { power(transfer, 12) },
        max_zero: if zero.is_multiple_of(3) { 0 } else { power(zero, 12) },
        max_discard: 0,
        zero_alignment: if zero.is_multiple_of(2) { 0 } else { power(zero / 2, 9) },
        discard_alignment: 0,
        cluster_size: if cluster.is_multiple_of(2) { 0 } else { power(cluster / 2, 9) },
    }
}

fn ops(optional: u8) -> mirror_device_ops {
    let has = |bit: u8| optional & 1 << bit != 0;
    mirror_device_ops {
        struct_size: size_of::<mirror_device_ops>(),
        read: Some(read),
        write: Some(write),
        zero: if has(0) { Some(zero) } else { None },
        discard: if has(1) { Some(discard) } else { None },
        flush: if has(2) { Some(flush) } else { None },
        extents: if has(3) { Some(extents) } else { None },
        truncate: if has(4) { Some(truncate) } else { None },
        cancel: if has(5) { Some(cancel) } else { None },
        poll: if has(6) { Some(poll) } else { None },
        close: Some(close),
        copy: None,
    }
}

pub(super) fn new_device(manners: &Manners) {
    make(manners, ops(manners.optional), size_of::<mirror_device_ops>(), 0);
}

fn make(manners: &Manners, ops: mirror_device_ops, size: usize, tail: u8) {
    let limits = limits(manners);
    let bytes = match (manners.honest, manners.pattern) {
        (false, _) => Vec::new(),
        (true, false) => vec![0; limits.length as usize],
        (true, true) => (0..limits.length).map(|at| (at / 512 % 200) as u8).collect(),
    };
    let index = with(|world| {
        world.devices.push(Device {
            honest: manners.honest,
            manners: Some(manners.clone()),
            limits: Some(limits),
            pointer: 0,
            closed: 0,
            next: 0,
            bytes,
            pending: Vec::new(),
            stale: Vec::new(),
            draining: false,
            users: 0,
        });
        world.devices.len() - 1
    });
    let ops = Raw::of(&ops, size, tail);
    let mut out = null_mut();
    let opaque = index as *mut c_void;
    let result = unsafe { mirror_device_new(ops.pointer(), &raw const limits, opaque, &raw mut out) };
    let readable = (size_of::<mirror_device_ops>()..=4096).contains(&size);
    with(|world| {
        if checked(result) == 0 {
            assert!(readable && limits.request_alignment != 3);
            world.add_device(out, index);
        } else {
            assert!(out.is_null());
            assert_eq!(world.devices[index].closed, u32::from(readable), "a refused device is closed once");
            world.devices[index].closed = 1;
        }
    });
}

/// A structure whose size is not what it should be.
pub(super) fn new_misfit(which: u8, size: usize, tail: u8) {
    let plain = Manners {
        honest: false,
        answers: Vec::new(),
        optional: which,
        pattern: false,
        flags: 0,
        alignment: 0,
        limits: [0; 4],
        length: super::program::Bytes(4096),
        extents: Vec::new(),
    };
    let fits = |known: usize| (known..=4096).contains(&size) && (tail == 0 || size == known);
    match which % 4 {
        0 => make(&plain, ops(which), size, tail),
        1 => {
            let limits = Raw::of(&limits(&plain), size, tail);
            let mut ops = ops(which);
            ops.close = None;
            let mut out = null_mut();
            let result =
                unsafe { mirror_device_new(&raw const ops, limits.pointer(), null_mut(), &raw mut out) };
            assert_eq!(checked(result) == 0, fits(size_of::<mirror_device_limits>()), "{size} {tail}");
            unsafe { mirror_device_free(out) };
        }
        2 => {
            let options = Raw::of(&mirror_job_options::default(), size.min(4096), 0);
            let result = unsafe { mirror_job_options_init(options.pointer().cast_mut(), size) };
            assert_eq!(checked(result) == 0, (size_of::<mirror_job_options>()..=4096).contains(&size));
        }
        _ => {
            let (job, good) = pick(Kind::Job, Pick(tail));
            let event: mirror_event = unsafe { std::mem::zeroed() };
            let event = Raw::of(&event, size, tail);
            let result = unsafe { mirror_job_next_event(job as _, event.pointer().cast_mut()) };
            with_handles(good, result);
        }
    }
}

pub(super) fn complete(device: Pick, which: u8, result: Answer) {
    let (pointer, good) = pick(Kind::Device, device);
    let token = with(|world| world.some_token(pointer, which));
    let result = match result {
        Answer::Fails(errno) => -i32::from(errno),
        Answer::Absurd(any) | Answer::DoneTwice(any) => any,
        _ => 0,
    };
    finish(pointer, good, token, result);
}

pub(super) fn complete_any(device: Pick, token: u64, result: i32) {
    let (pointer, good) = pick(Kind::Device, device);
    finish(pointer, good, token, result);
}

/// Completes a token, after an honest device has done what was asked for.
fn finish(pointer: usize, good: bool, token: u64, result: i32) {
    with(|world| {
        let Some(device) = world.devices.iter_mut().find(|device| device.pointer == pointer) else { return };
        if let Some(at) = device.pending.iter().position(|request| request.token == token) {
            let request = device.pending.remove(at);
            if device.honest && result == 0 {
                carry_out(device, &request);
            }
            device.stale.push(token);
        }
    });
    with_handles(good, unsafe { mirror_device_complete(pointer as _, token, result) });
}

/// Completes what is pending, and has offered again what is not; whether there was anything.
pub(super) fn finish_all() -> bool {
    let devices = with(|world| world.devices.iter().map(|device| device.pointer).collect::<Vec<_>>());
    let mut any = false;
    for pointer in devices.into_iter().filter(|pointer| *pointer != 0) {
        checked(unsafe { mirror_device_kick(pointer as _) });
        let next = |world: &mut super::World| {
            let device = world.devices.iter().find(|device| device.pointer == pointer)?;
            Some(device.pending.first()?.token)
        };
        while let Some(token) = with(next) {
            any = true;
            finish(pointer, true, token, 0);
        }
    }
    any
}

pub(super) fn free(pointer: usize) {
    with(|world| {
        world.bury(pointer, Kind::Device);
        if let Some(device) =
            world.devices.iter_mut().find(|device| pointer != 0 && device.pointer == pointer)
        {
            // The library may give back what the device was asked to use: it must not be touched from now on.
            device.pending.clear();
            device.pointer = 0;
        }
    });
    unsafe { mirror_device_free(pointer as _) };
}

fn carry_out(device: &mut Device, request: &Request) {
    let discards_to_zero =
        device.limits.is_some_and(|limits| limits.flags & MIRROR_LIMIT_DISCARD_ZEROES != 0);
    let start = request.offset as usize;
    if request.op == MIRROR_OP_TRUNCATE {
        device.bytes.resize(request.length as usize, 0);
        return;
    }
    let bytes = &mut device.bytes[start..start + request.length as usize];
    match request.op {
        MIRROR_OP_ZERO => bytes.fill(0),
        MIRROR_OP_DISCARD => bytes.fill(if discards_to_zero { 0 } else { 0xdd }),
        MIRROR_OP_READ | MIRROR_OP_WRITE => {
            let mut at = 0;
            for (base, length) in &request.iov {
                let part = &mut bytes[at..at + length];
                // SAFETY: the library lends this memory until the request is done.
                unsafe {
                    if request.op == MIRROR_OP_READ {
                        (*base as *mut u8).copy_from_nonoverlapping(part.as_ptr(), *length);
                    } else {
                        part.as_mut_ptr().copy_from_nonoverlapping(*base as *const u8, *length);
                    }
                }
                at += length;
            }
        }
        _ => {}
    }
}

fn check_request(device: &Device, request: &Request, iovcnt: usize) {
    assert_eq!(device.closed, 0, "called after it was closed");
    let limits = device.limits.expect("a device of callbacks");
    let (offset, length) = (request.offset, request.length);
    if matches!(request.op, MIRROR_OP_FLUSH | MIRROR_OP_TRUNCATE) {
        return;
    }
    let whole = if device.honest { device.bytes.len() as u64 } else { limits.length.max(offset + length) };
    let end = offset.checked_add(length).expect("no overflow");
    assert!(length > 0 && end <= whole, "beyond the end: {request:?}");
    let most = match request.op {
        MIRROR_OP_READ | MIRROR_OP_WRITE => limits.max_transfer,
        MIRROR_OP_ZERO => limits.max_zero,
        _ => 0,
    };
    assert!(most == 0 || length <= most, "too long: {request:?}");
    let alignment = u64::from(limits.request_alignment.max(1));
    let aligned = offset.is_multiple_of(alignment) && (end.is_multiple_of(alignment) || end == whole);
    assert!(aligned || request.op == MIRROR_OP_EXTENTS, "misaligned: {request:?}");
    if matches!(request.op, MIRROR_OP_READ | MIRROR_OP_WRITE) {
        assert!(limits.max_iov == 0 || iovcnt <= limits.max_iov as usize, "{iovcnt} buffers");
        assert_eq!(request.iov.iter().map(|(_, length)| *length as u64).sum::<u64>(), length);
        let unit = limits.memory_alignment.max(1) as usize;
        assert!(
            request.iov.iter().all(|(base, _)| base.is_multiple_of(unit)),
            "misaligned memory: {request:?}"
        );
    }
}

/// What every callback that takes a request does.
fn take(which: *mut c_void, request: Request, iovcnt: usize) -> c_int {
    let which = which as usize;
    let answer = with(|world| {
        let device = &mut world.devices[which];
        check_request(device, &request, iovcnt);
        if device.draining {
            // Pending, so that others come in between; whose handle is gone can't complete anything later.
            return if device.pointer == 0 { Answer::Done } else { Answer::Pending };
        }
        let answers = &device.manners.as_ref().expect("a device of callbacks").answers;
        let answer = answers.get(device.next % answers.len().max(1)).copied().unwrap_or(Answer::Done);
        device.next += 1;
        answer
    });
    if let Answer::Calls(step) | Answer::CallsPending(step) = answer {
        inner(step);
    }
    if request.op == MIRROR_OP_EXTENTS {
        tell_extents(which, &request);
    }
    match with(|world| settle(&mut world.devices[which], &request, answer)) {
        Then::Answer(answer) => answer,
        Then::Pending => MIRROR_PENDING,
        Then::Complete(answer) => {
            let pointer = with(|world| world.devices[which].pointer);
            if pointer != 0 {
                checked(unsafe { mirror_device_complete(pointer as _, request.token, 0) });
            }
            answer
        }
    }
}

fn settle(device: &mut Device, request: &Request, answer: Answer) -> Then {
    // Whose handle is gone may not touch the request's memory, which may be gone too.
    let present = device.pointer != 0;
    let did = |device: &mut Device| {
        device.stale.push(request.token);
        if device.honest && present {
            carry_out(device, request);
        }
    };
    match answer {
        Answer::Done | Answer::Calls(_) => {
            if device.honest && !present {
                return Then::Answer(-5);
            }
            did(device);
            Then::Answer(0)
        }
        Answer::Pending | Answer::CallsPending(_) => {
            if present {
                device.pending.push(request.clone());
            }
            Then::Pending
        }
        Answer::Again => Then::Answer(MIRROR_AGAIN),
        Answer::Fails(errno) => Then::Answer(-1 - i32::from(errno)),
        Answer::Early => {
            did(device);
            Then::Complete(MIRROR_PENDING)
        }
        Answer::DoneTwice(any) => {
            did(device);
            Then::Complete(any)
        }
        Answer::Absurd(any) if device.honest => Then::Answer(if any < 0 { any } else { 3 + any / 2 }),
        Answer::Absurd(MIRROR_PENDING) => {
            if present {
                device.pending.push(request.clone());
            }
            Then::Pending
        }
        Answer::Absurd(any) => Then::Answer(any),
    }
}

/// An honest device tells what is there, sector by sector; another anything.
fn tell_extents(which: usize, request: &Request) {
    let (pointer, extents) = with(|world| {
        let device = &world.devices[which];
        let manners = device.manners.as_ref().expect("a device of callbacks");
        let extents: Vec<_> = if device.honest {
            let range = request.offset as usize..(request.offset + request.length) as usize;
            let sectors = device.bytes[range].chunks(512);
            let flags = |sector: &[u8]| {
                if sector.iter().all(|byte| *byte == 0) { MIRROR_EXTENT_ZERO } else { MIRROR_EXTENT_DATA }
            };
            sectors.map(|sector| (sector.len() as u64, flags(sector) | MIRROR_EXTENT_ALLOCATED)).collect()
        } else {
            manners.extents.iter().map(|(length, flags)| (length.0, u32::from(*flags) % 9)).collect()
        };
        (device.pointer, extents)
    });
    for (length, flags) in extents {
        if pointer == 0
            || checked(unsafe { mirror_device_extent(pointer as _, request.token, length, flags) }) == 1
        {
            break;
        }
    }
}

fn request(op: u32, token: u64, offset: u64, length: u64) -> Request {
    Request { token, op, offset, length, iov: Vec::new() }
}

fn buffers(iov: *const mirror_iovec, iovcnt: usize) -> Vec<(usize, usize)> {
    // SAFETY: the library passes as many buffers as it says.
    let iov = unsafe { std::slice::from_raw_parts(iov, iovcnt) };
    iov.iter().map(|buffer| (buffer.base as usize, buffer.len)).collect()
}

unsafe extern "C" fn read(
    which: *mut c_void,
    token: u64,
    offset: u64,
    length: u64,
    iov: *const mirror_iovec,
    iovcnt: usize,
) -> c_int {
    let request = Request { iov: buffers(iov, iovcnt), ..request(MIRROR_OP_READ, token, offset, length) };
    take(which, request, iovcnt)
}

unsafe extern "C" fn write(
    which: *mut c_void,
    token: u64,
    offset: u64,
    length: u64,
    iov: *const mirror_iovec,
    iovcnt: usize,
    _: u32,
) -> c_int {
    let request = Request { iov: buffers(iov, iovcnt), ..request(MIRROR_OP_WRITE, token, offset, length) };
    take(which, request, iovcnt)
}

unsafe extern "C" fn zero(which: *mut c_void, token: u64, offset: u64, length: u64, _: u32) -> c_int {
    take(which, request(MIRROR_OP_ZERO, token, offset, length), 0)
}

unsafe extern "C" fn discard(which: *mut c_void, token: u64, offset: u64, length: u64) -> c_int {
    take(which, request(MIRROR_OP_DISCARD, token, offset, length), 0)
}

unsafe extern "C" fn flush(which: *mut c_void, token: u64) -> c_int {
    take(which, request(MIRROR_OP_FLUSH, token, 0, 0), 0)
}

unsafe extern "C" fn extents(which: *mut c_void, token: u64, offset: u64, length: u64) -> c_int {
    take(which, request(MIRROR_OP_EXTENTS, token, offset, length), 0)
}

unsafe extern "C" fn truncate(which: *mut c_void, token: u64, length: u64) -> c_int {
    take(which, request(MIRROR_OP_TRUNCATE, token, 0, length), 0)
}

fn calls(which: *mut c_void) {
    let step = with(|world| {
        let device = &mut world.devices[which as usize];
        assert_eq!(device.closed, 0, "called after it was closed");
        device.next += 1;
        device.next as u8
    });
    if step.is_multiple_of(4) {
        inner(step / 4);
    }
}

unsafe extern "C" fn cancel(which: *mut c_void) {
    calls(which);
}

unsafe extern "C" fn poll(which: *mut c_void) -> c_int {
    calls(which);
    -i32::from(which as usize % 2 == 1)
}

unsafe extern "C" fn close(which: *mut c_void) {
    with(|world| world.devices[which as usize].closed += 1);
}
