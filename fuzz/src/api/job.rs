//! Jobs: with options of every kind, driven and ordered about at any time.

use super::guest::{self, call_hook, close_hook};
use super::program::{Answer, JobOptions, Pick};
use super::world::{Hook, Kind, with};
use super::{checked, device, inner, pick, with_handles};
use blkmirror::capi::*;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

const EBUSY: c_int = 16;

fn options(asked: &JobOptions, replaces: usize, hook: usize) -> mirror_job_options {
    let of = |byte: u8, values: &[u64]| values[usize::from(byte) % values.len()];
    let rare = |byte: u8, most: u32| if byte >= 250 { u32::from(byte) } else { u32::from(byte) % most };
    mirror_job_options {
        flags: (u32::from(asked.flags) & 127) ^ mirror_job_options::default().flags,
        kind: rare(asked.kind / 4, 2),
        sync: if asked.sync < 160 { MIRROR_SYNC_FULL } else { rare(asked.sync, 3) },
        copy_mode: rare(asked.copy_mode, 2),
        backing_mode: rare(asked.policies, 3),
        on_source_error: rare(asked.policies / 5, 5),
        on_target_error: rare(asked.policies % 5, 5),
        granularity: of(asked.granularity, &[0, 4096, 512, 65536, 1024, 8192, 3000]),
        // Not the default of 16 MiB: a small disk in small buffers shows more.
        buf_size: of(asked.buf_size, &[4096, 65536, 16384, 512, 1 << 20]),
        max_in_flight: of(asked.max_in_flight, &[0, 1, 2, 5, 1024, 1025]) as u32,
        max_io: of(asked.max_io, &[0, 4096, 512, 16384, 3]),
        speed: of(asked.max_io / 8, &[0, 0, 0, 100_000, 1, u64::MAX]),
        pass_interval_ns: of(asked.pass_interval, &[0, 1_000_000, 50_000_000, u64::MAX]),
        replaces: replaces as *mut mirror_filter,
        wake: if asked.wake.is_multiple_of(3) { None } else { Some(call_hook) },
        prepare: if asked.wake.is_multiple_of(2) { None } else { Some(prepare) },
        opaque: hook as *mut c_void,
        closed: Some(close_hook),
        ..mirror_job_options::default()
    }
}

unsafe extern "C" fn prepare(hook: *mut c_void, info: *const mirror_prepare_info) -> c_int {
    // SAFETY: the library passes one.
    assert_eq!(unsafe { (*info).struct_size }, size_of::<mirror_prepare_info>());
    let answer = with(|world| {
        let hook = &world.hooks[hook as usize];
        assert_eq!(hook.closed, 0, "called after it was closed");
        hook.prepare
    });
    match answer {
        Answer::Fails(errno) => -1 - c_int::from(errno),
        Answer::Absurd(any) | Answer::DoneTwice(any) => any,
        Answer::Calls(step) | Answer::CallsPending(step) => {
            inner(step);
            0
        }
        _ => 0,
    }
}

pub(super) fn new_job(filter: Pick, target: Pick, asked: &JobOptions) {
    let ((filter, good), (target, also)) = (pick(Kind::Filter, filter), pick(Kind::Device, target));
    let replaces = asked.replaces.map(|replaces| pick(Kind::Filter, replaces));
    let hook = with(|world| {
        world.hooks.push(Hook { closed: 0, calls: asked.wake, prepare: asked.prepare });
        world.hooks.len() - 1
    });
    let options = options(asked, replaces.map_or(0, |(pointer, _)| pointer), hook);
    let mut out = null_mut();
    let result = unsafe { mirror_job_new(filter as _, target as _, &raw const options, &raw mut out) };
    let good = good && also && replaces.is_none_or(|(pointer, good)| good || pointer == 0);
    if with_handles(good, result) < 0 {
        assert!(out.is_null());
        assert_eq!(with(|world| world.hooks[hook].closed), 1, "a refused job closes its hooks");
        return;
    }
    with(|world| {
        let [disk, device] = [filter, target].map(|pointer| world.index(pointer).expect("a good handle"));
        let fresh = world.use_device(device);
        // What is on the disk afterwards is only known if all of it is copied, and nobody has lied.
        let zero = world.devices[device].bytes.iter().all(|byte| *byte == 0);
        let lie = options.flags & MIRROR_JOB_TARGET_IS_ZERO != 0 && !zero;
        let whole = options.kind == MIRROR_KIND_MIRROR && options.sync == MIRROR_SYNC_FULL;
        world.disks[disk].devices.push(device);
        world.disks[disk].trusted &= fresh && whole && !lie && options.replaces.is_null();
        if let Some(other) = replaces.and_then(|(pointer, _)| world.index(pointer)) {
            world.disks[other].trusted = false;
        }
        world.add_job(out);
    });
}

pub(super) fn poll(job: Pick, times: u8, later: u8) {
    let (pointer, good) = pick(Kind::Job, job);
    for _ in 0..times {
        let (now, nested) = with(|world| {
            let nested = world.polling.contains(&pointer);
            world.polling.push(pointer);
            world.now += [0, 1_000_000, 110_000_000, 10_000_000_000][usize::from(later) % 4];
            // A clock that goes back is the host's mistake, and no reason to fall over.
            (if later >= 250 { world.now / 2 } else { world.now }, nested)
        });
        let mut wake_at = 0;
        let result = unsafe { mirror_job_poll(pointer as _, now, &raw mut wake_at) };
        with(|world| world.polling.pop());
        with_handles(good, result);
        // Busy inside a callback, which is also one of a thread that drives because it has news.
        let nested = nested || with(|world| world.depth) > 0;
        assert!(
            !good
                || (0..=2).contains(&result)
                || (result == -EBUSY && nested)
                || !with(|world| world.is_live(pointer)),
            "{result}"
        );
        if result != MIRROR_POLL_BUSY && later.is_multiple_of(4) {
            return;
        }
    }
}

pub(super) fn verb(job: Pick, verb: u8, argument: u8) {
    let (pointer, good) = pick(Kind::Job, job);
    let job = pointer as *mut mirror_job;
    let result = unsafe {
        match verb % 9 {
            0 => mirror_job_pause(job),
            1 => mirror_job_resume(job),
            2 | 3 => mirror_job_complete(job),
            4 => mirror_job_finalize(job),
            5 => mirror_job_dismiss(job),
            6 => mirror_job_cancel(job, argument.is_multiple_of(2)),
            7 => mirror_job_set_speed(job, u64::from(argument) * 4096),
            _ => mirror_job_change(job, u32::from(argument % 3)),
        }
    };
    with_handles(good, result);
    with_handles(good, unsafe { mirror_job_fd(job) });
}

/// Rounds in which guests write while a job is led to its end.
const WRITES: u64 = 12;

/// Leads a job to its best end, as a host does whose devices go well. Guests write meanwhile.
pub(super) fn see_through(pointer: usize) {
    let job = pointer as *mut mirror_job;
    let mut info: mirror_job_info = unsafe { std::mem::zeroed() };
    info.struct_size = size_of_val(&info);
    checked(unsafe { mirror_job_set_speed(job, 0) });
    for round in 0..40 {
        if round < WRITES {
            guest::write_everywhere(round);
        }
        while device::finish_all() {}
        let now = with(|world| {
            world.now += 110_000_000;
            world.now
        });
        let mut wake_at = 0;
        checked(unsafe { mirror_job_poll(job, now, &raw mut wake_at) });
        checked(unsafe { mirror_job_query(job, &raw mut info) });
        let answer = match info.status {
            MIRROR_STATUS_CREATED => unsafe { mirror_job_start(job) },
            MIRROR_STATUS_PAUSED | MIRROR_STATUS_STANDBY => unsafe { mirror_job_resume(job) },
            MIRROR_STATUS_READY => unsafe { mirror_job_complete(job) },
            MIRROR_STATUS_PENDING => unsafe { mirror_job_finalize(job) },
            MIRROR_STATUS_CONCLUDED | MIRROR_STATUS_NULL => return,
            _ => 0,
        };
        checked(answer);
    }
}

pub(super) fn query(job: Pick) {
    let (pointer, good) = pick(Kind::Job, job);
    let mut info: mirror_job_info = unsafe { std::mem::zeroed() };
    info.struct_size = size_of_val(&info);
    if with_handles(good, unsafe { mirror_job_query(pointer as _, &raw mut info) }) == 0 {
        assert!((MIRROR_STATUS_CREATED..=MIRROR_STATUS_NULL).contains(&info.status));
        assert!((-4095..=0).contains(&info.result) && info.done <= info.total);
    }
}

pub(super) fn events(job: Pick) {
    let (pointer, good) = pick(Kind::Job, job);
    loop {
        let mut event: mirror_event = unsafe { std::mem::zeroed() };
        event.struct_size = size_of_val(&event);
        if with_handles(good, unsafe { mirror_job_next_event(pointer as _, &raw mut event) }) != 1 {
            return;
        }
        assert!((MIRROR_EVENT_STATUS..=MIRROR_EVENT_CANCELLED).contains(&event.r#type));
    }
}

pub(super) fn free(pointer: usize) {
    let known = with(|world| world.is_live(pointer) && world.is(pointer, Kind::Job));
    // What it calls on its way out sees it as gone.
    with(|world| world.bury(pointer, Kind::Job));
    let result = checked(unsafe { mirror_job_free(pointer as _) });
    let busy = with(|world| {
        let busy = known && result == -EBUSY;
        if busy {
            assert!(world.depth > 0, "nobody polls it");
            world.dig_up(pointer);
        }
        busy
    });
    assert!(busy || (result == 0) == (known || pointer == 0), "{result}");
}
