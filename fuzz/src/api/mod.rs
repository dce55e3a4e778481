//! Programs of C API calls against devices that answer anything, and what must hold whatever a host does:
//!
//! - nothing panics, hangs, or touches memory that isn't the library's or the request's (AddressSanitizer looks);
//! - each device and each hook is closed exactly once, and not called afterwards;
//! - a guest's request that was accepted is told exactly once, one that was refused never;
//! - requests to a device keep to its limits;
//! - a handle that is NULL, freed, foreign or of another kind is refused;
//! - where the host is honest, a guest reads what it wrote last, across jobs, failures and switches.
//!
//! One thread, no clock: a program always does the same. Callbacks run steps of the program's second list.

mod device;
mod guest;
mod job;
mod program;
mod world;

pub use program::Program;

use blkmirror::capi::*;
use device::{new_device, new_misfit};
use program::{Pick, Step};
use std::ptr::null_mut;
use world::{Kind, World, with};

/// Calls in one run, so that it ends soon.
const CALLS: u32 = 400;
/// Callbacks that call the library whose callbacks call it.
const DEPTH: u32 = 3;

/// Runs a program, then puts everything away and sees that all of it is gone.
pub fn run(program: Program) {
    let setup = program.setup.map(|setup| setup.steps()).unwrap_or_default();
    let steps = setup.into_iter().chain(program.steps).collect::<Vec<_>>();
    world::set(World::new(program.inner));
    for each in &steps {
        step(each);
    }
    put_away();
    world::check_end();
}

/// What a callback calls.
fn inner(which: u8) {
    let next = with(|world| {
        if world.depth >= DEPTH || world.inner.is_empty() {
            return None;
        }
        world.depth += 1;
        Some(world.inner[usize::from(which) % world.inner.len()].clone())
    });
    if let Some(next) = next {
        step(&next);
        with(|world| world.depth -= 1);
    }
}

/// Any result of a call.
fn checked(result: i32) -> i32 {
    assert!(result >= -4095, "{result}");
    if result < 0 {
        let text = crate::last_error();
        assert!(text.starts_with("mirror_") && text.len() > 20, "{result}: '{text}'");
        assert!(!text.contains("internal failure"), "{text}");
    }
    result
}

/// The result of a call with handles; if one of them is no good it must be refused.
fn with_handles(good: bool, result: i32) -> i32 {
    assert!(good || checked(result) < 0, "a bad handle was taken: {result}");
    checked(result)
}

fn step(step: &Step) {
    let go = with(|world| {
        world.calls += 1;
        world.calls <= CALLS
    });
    if !go {
        return;
    }
    match step {
        Step::Device(manners) => new_device(manners),
        Step::Memory(length) => {
            let mut out = null_mut();
            if checked(unsafe { mirror_device_new_memory(length.0, &raw mut out) }) == 0 {
                with(|world| world.add_built_in(out, true));
            }
        }
        Step::Null(length, flags) => {
            let mut out = null_mut();
            if checked(unsafe { mirror_device_new_null(length.0, u32::from(*flags), &raw mut out) }) == 0 {
                with(|world| world.add_built_in(out, false));
            }
        }
        Step::Misfit { which, size, tail } => new_misfit(*which, usize::from(*size), *tail),
        Step::Complete { device, which, result } => device::complete(*device, *which, *result),
        Step::CompleteAny { device, token, result } => device::complete_any(*device, *token, *result),
        Step::Extent { device, which, length, flags } => {
            let (pointer, good) = pick(Kind::Device, *device);
            let token = with(|world| world.some_token(pointer, *which));
            let result =
                unsafe { mirror_device_extent(pointer as _, token, length.0, u32::from(*flags) % 9) };
            with_handles(good, result);
        }
        Step::Kick(device) => {
            let (pointer, good) = pick(Kind::Device, *device);
            with_handles(good, unsafe { mirror_device_kick(pointer as _) });
        }
        Step::QueryDevice(device) => {
            let (pointer, good) = pick(Kind::Device, *device);
            let mut limits: mirror_device_limits = unsafe { std::mem::zeroed() };
            limits.struct_size = size_of_val(&limits);
            with_handles(good, unsafe { mirror_device_query(pointer as _, &raw mut limits) });
            let mut refused = 0;
            with_handles(good, unsafe { mirror_device_refused(pointer as _, &raw mut refused) });
        }
        Step::Same(one, other) => {
            let ((one, good), (other, also)) = (pick(Kind::Device, *one), pick(Kind::Device, *other));
            let result = with_handles(good && also, unsafe { mirror_device_same(one as _, other as _) });
            assert!(one != other || !good || result == 1);
        }
        Step::FreeDevice(device) => device::free(pick(Kind::Device, *device).0),
        Step::Filter { device, alignment } => guest::new_filter(*device, *alignment),
        Step::Io(io) => guest::submit(io),
        Step::Begin { filter, kind, offset, length } => {
            guest::begin(*filter, u32::from(*kind) % 9, offset.0, length.0);
        }
        Step::End { filter, which, result } => guest::end(*filter, *which, *result),
        Step::MarkDirty { filter, offset, length } => {
            let (pointer, good) = pick(Kind::Filter, *filter);
            with_handles(good, unsafe { mirror_filter_mark_dirty(pointer as _, offset.0, length.0) });
        }
        Step::DeviceOf(filter) => {
            let (pointer, good) = pick(Kind::Filter, *filter);
            let mut out = null_mut();
            if with_handles(good, unsafe { mirror_filter_device(pointer as _, &raw mut out) }) == 0 {
                with(|world| world.add_reference(out));
            }
        }
        Step::Opened { filter, calls } => guest::set_opened(*filter, *calls),
        Step::FreeFilter(filter) => guest::free_filter(pick(Kind::Filter, *filter).0),
        Step::Job { filter, target, options } => job::new_job(*filter, *target, options),
        Step::Start(job) => {
            let (pointer, good) = pick(Kind::Job, *job);
            with_handles(good, unsafe { mirror_job_start(pointer as _) });
        }
        Step::Poll { job, times, later } => job::poll(*job, *times % 8 + 1, *later),
        Step::Verb { job, verb, argument } => job::verb(*job, *verb, *argument),
        Step::Query(job) => job::query(*job),
        Step::Events(job) => job::events(*job),
        Step::FreeJob(job) => job::free(pick(Kind::Job, *job).0),
    }
}

/// A handle, and whether it is a live one of this kind.
fn pick(kind: Kind, pick: Pick) -> (usize, bool) {
    with(|world| world.pick(kind, pick.0))
}

/// Ends what goes on, in the order that the header asks for.
fn put_away() {
    let calls = with(|world| {
        let calls = std::mem::take(&mut world.calls);
        world.inner.clear();
        world.devices.iter_mut().for_each(|device| device.draining = true);
        calls
    });
    guest::end_all();
    // Others are freed in the middle.
    if !calls.is_multiple_of(4) {
        for job in with(|world| world.live(Kind::Job)) {
            job::see_through(job);
        }
    }
    for job in with(|world| world.live(Kind::Job)) {
        job::free(job);
        assert!(!with(|world| world.is_live(job)), "a job that nobody polls can be freed");
    }
    for _ in 0..200 {
        if !device::finish_all() {
            break;
        }
    }
    for filter in with(|world| world.live(Kind::Filter)) {
        guest::look_at_all(filter);
    }
    for _ in 0..200 {
        if !device::finish_all() {
            break;
        }
    }
    for filter in with(|world| world.live(Kind::Filter)) {
        guest::free_filter(filter);
    }
    for _ in 0..200 {
        if !device::finish_all() {
            break;
        }
    }
    for device in with(|world| world.live(Kind::Device)) {
        device::free(device);
    }
}
