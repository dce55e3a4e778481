//! A job's options.

use super::constants::*;
use super::convert::{Opaque, Versioned, check_flags, check_pointer, from_c, outcome, text, to_c};
use super::filter::mirror_filter;
use super::{guard, handle};
use crate::clock::Nanos;
use crate::engine::Options;
use crate::error::{Error, IoResult, Result};
use crate::filter::Filter;
use crate::job::{ClockHook, JobOptions, PrepareInfo};
use std::ffi::{c_char, c_int, c_void};
use std::mem::zeroed;
use std::sync::Arc;

/// What the `prepare` hook is told: which backing the target should have once the guest sits on it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct mirror_prepare_info {
    /// How much of this structure the library has filled in.
    pub struct_size: usize,
    /// The job's `MIRROR_SYNC_`.
    pub sync: u32,
    /// The job's `MIRROR_BACKING_`.
    pub backing_mode: u32,
}

/// A job's options. Set the defaults with `mirror_job_options_init`, then change what is to be different. The structure
/// and the strings in it are copied by `mirror_job_new`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct mirror_job_options {
    /// `sizeof(mirror_job_options)`.
    pub struct_size: usize,
    /// Names the job among the live ones of the process: a letter, then letters, digits, '-', '.' and '_', at most 127
    /// of them. NULL: a name is made up.
    pub id: *const c_char,
    /// What the job is for: `MIRROR_KIND_`. Default: `MIRROR_KIND_MIRROR`.
    pub kind: u32,
    /// What is copied: `MIRROR_SYNC_`. Default: `MIRROR_SYNC_FULL`, which for a commit stands for `MIRROR_SYNC_TOP`, the only
    /// one that it takes.
    pub sync: u32,
    /// How guest writes reach the target: `MIRROR_COPY_`. Default: `MIRROR_COPY_BACKGROUND`.
    pub copy_mode: u32,
    /// Which backing the target gets at the switch, for the `prepare` hook: `MIRROR_BACKING_`. Default:
    /// `MIRROR_BACKING_SOURCE_CHAIN`.
    pub backing_mode: u32,
    /// What to do when the source fails: `MIRROR_ON_ERROR_`. Default: `MIRROR_ON_ERROR_REPORT`.
    pub on_source_error: u32,
    /// What to do when the target fails. Default: `MIRROR_ON_ERROR_REPORT`.
    pub on_target_error: u32,
    /// `MIRROR_JOB_` flags. Default: `UNMAP`, `DETECT_ZEROES`, `AUTO_FINALIZE`, `AUTO_DISMISS` and
    /// `COPY_OFFLOAD`.
    pub flags: u32,
    /// Background operations at a time, at most 1024. 0, the default: as many as the link takes. That is measured: the copy
    /// keeps as many bytes under way as come through while one copy is, and a few milliseconds' worth more.
    pub max_in_flight: u32,
    /// Bytes in a chunk, in which changes are tracked: a power of two from 512 to 67108864, not smaller than the devices'
    /// request alignment. 0, the default: 4096 up to a terabyte, more beyond.
    pub granularity: u64,
    /// Bytes of copy buffers, at most 4 GiB. 0, the default: 16 MiB.
    pub buf_size: u64,
    /// Most bytes in one copy, at least 512. 0, the default: `buf_size / max_in_flight`, or a sixteenth of `buf_size`,
    /// but at least 1 MiB.
    pub max_io: u64,
    /// Bytes per second that background copies may take. 0, the default: no limit.
    pub speed: u64,
    /// Nanoseconds between the beginnings of two passes over what guests write again and again, after the first pass.
    /// Default: 50 ms.
    pub pass_interval_ns: u64,
    /// Most bytes in one copy while guest writes are carried, at least 512. 0, the default: fitted to the link.
    pub guest_first_io: u64,
    /// Background operations at a time while guest writes are carried, at most 1024. 0, the default: what guests leave of the
    /// link, so that the copy keeps none of their writes waiting for more than about a millisecond.
    pub guest_first_in_flight: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Another filter that is drained and switched to the target instead of the job's own: as long as the target, not on
    /// it, without a job, and no other job can have it until this one is over. The job keeps it. NULL, the default: none.
    pub replaces: *mut mirror_filter,
    /// Called when `mirror_job_poll` is worth calling, from any thread, for hosts that don't wait on `mirror_job_fd`: it
    /// tells the thread that polls, and doesn't poll itself.
    pub wake: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
    /// Called by `mirror_job_poll` just before the switch, when source and target are equal and guest requests wait: the
    /// host attaches the target's backing. It answers 0, or `-errno`, which ends the job without the switch.
    pub prepare: Option<unsafe extern "C" fn(opaque: *mut c_void, info: *const mirror_prepare_info) -> c_int>,
    /// What time it is in nanoseconds, by the clock whose times `mirror_job_poll` gets. With `MIRROR_JOB_INLINE` it is asked, from
    /// any thread, by whoever drives the job outside of a poll. NULL, the default: the last poll's time counts there, and
    /// copies are less well fitted to the link. A host that passes `mirror_clock_ns()` to the poll returns it here.
    pub clock: Option<unsafe extern "C" fn(opaque: *mut c_void) -> u64>,
    /// What `wake`, `prepare` and `clock` get.
    pub opaque: *mut c_void,
    /// Called with `opaque` exactly once: when the job is gone and calls its hooks no more, or when `mirror_job_new`
    /// fails.
    pub closed: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
}

// SAFETY: repr(C), begins with the size; zero is a value of integers, pointers and nullable functions.
unsafe impl Versioned for mirror_job_options {
    const NAME: &'static str = "mirror_job_options";
    const FIRST: usize = size_of::<Self>();
}

impl Default for mirror_job_options {
    fn default() -> Self {
        let defaults = Options::default();
        let flags = [
            (defaults.unmap, MIRROR_JOB_UNMAP),
            (defaults.target_is_zero, MIRROR_JOB_TARGET_IS_ZERO),
            (defaults.detect_zeroes, MIRROR_JOB_DETECT_ZEROES),
            (defaults.auto_finalize, MIRROR_JOB_AUTO_FINALIZE),
            (defaults.auto_dismiss, MIRROR_JOB_AUTO_DISMISS),
            (defaults.auto_complete, MIRROR_JOB_AUTO_COMPLETE),
            (defaults.copy_offload, MIRROR_JOB_COPY_OFFLOAD),
        ];
        Self {
            struct_size: size_of::<Self>(),
            kind: to_c(defaults.kind),
            sync: to_c(defaults.sync),
            copy_mode: to_c(defaults.copy_mode),
            backing_mode: to_c(defaults.backing_mode),
            on_source_error: to_c(defaults.on_source_error),
            on_target_error: to_c(defaults.on_target_error),
            flags: flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag),
            max_in_flight: defaults.max_in_flight,
            granularity: defaults.granularity,
            buf_size: defaults.buf_size,
            max_io: defaults.max_io,
            speed: defaults.speed,
            pass_interval_ns: defaults.pass_interval_ns,
            guest_first_io: defaults.guest_first_io,
            guest_first_in_flight: defaults.guest_first_in_flight,
            // SAFETY: zero is a value of each field.
            ..unsafe { zeroed() }
        }
    }
}

/// Sets the defaults. `struct_size` is `sizeof(mirror_job_options)`, so that a newer library doesn't write beyond what an
/// older host has room for.
///
/// 0; `-EINVAL` for NULL or a size that is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_options_init(
    options: *mut mirror_job_options,
    struct_size: usize,
) -> c_int {
    guard::unit("mirror_job_options_init", || {
        check_pointer(options, "options")?;
        super::convert::check_size::<mirror_job_options>(struct_size)?;
        // SAFETY: the host has room for the size, which it says the structure has.
        unsafe { options.cast::<usize>().write(struct_size) };
        // SAFETY: as above.
        unsafe { super::convert::Output::new(options) }?.write(&mirror_job_options::default());
        Ok(())
    })
}

/// A host's hooks, which share their pointer.
pub(super) struct Hooks {
    wake: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
    prepare: Option<unsafe extern "C" fn(opaque: *mut c_void, info: *const mirror_prepare_info) -> c_int>,
    clock: Option<unsafe extern "C" fn(opaque: *mut c_void) -> u64>,
    opaque: Opaque,
}

impl Hooks {
    /// # Safety
    /// The hooks may be called as they are documented, until `closed` is.
    pub(super) unsafe fn new(options: &mirror_job_options) -> Self {
        // SAFETY: the caller vouches for `closed`.
        let opaque = unsafe { Opaque::new(options.opaque, options.closed) };
        Self { wake: options.wake, prepare: options.prepare, clock: options.clock, opaque }
    }

    fn call_prepare(&self, info: &PrepareInfo) -> IoResult {
        let Some(prepare) = self.prepare else {
            return Ok(());
        };
        let info = mirror_prepare_info {
            struct_size: size_of::<mirror_prepare_info>(),
            sync: to_c(info.sync),
            backing_mode: to_c(info.backing_mode),
        };
        // SAFETY: `new` vouches for the hook; `info` lives during the call.
        outcome(unsafe { prepare(self.opaque.pointer(), &raw const info) }, "prepare")
    }
}

/// The job's options as the library has them.
///
/// # Safety
/// The pointers in `options` are as documented.
pub(super) unsafe fn to_job_options(options: &mirror_job_options, hooks: Hooks) -> Result<JobOptions> {
    if options.reserved != 0 {
        return Err(Error::invalid(format!("reserved {}: must be 0", options.reserved)));
    }
    let known = MIRROR_JOB_UNMAP
        | MIRROR_JOB_TARGET_IS_ZERO
        | MIRROR_JOB_DETECT_ZEROES
        | MIRROR_JOB_AUTO_FINALIZE
        | MIRROR_JOB_AUTO_DISMISS
        | MIRROR_JOB_AUTO_COMPLETE
        | MIRROR_JOB_INLINE
        | MIRROR_JOB_COPY_OFFLOAD;
    check_flags("flags", options.flags, known)?;
    let has = |flag| options.flags & flag != 0;
    let replaces = if options.replaces.is_null() {
        None
    } else {
        // SAFETY: the caller passes NULL or a handle.
        let filter = unsafe { handle::get::<Filter>(options.replaces) };
        Some(Filter::clone(&*filter.map_err(|error| error.context("replaces"))?))
    };
    let hooks = Arc::new(hooks);
    let asked = hooks.clock.map(|clock| (clock, Arc::clone(&hooks)));
    let waking = hooks.wake.map(|wake| (wake, Arc::clone(&hooks)));
    Ok(JobOptions {
        options: Options {
            // SAFETY: the caller passes NULL or a string.
            id: unsafe { text(options.id, "id") }?.map(str::to_owned),
            kind: from_c("kind", options.kind)?,
            sync: from_c("sync", options.sync)?,
            copy_mode: from_c("copy_mode", options.copy_mode)?,
            granularity: options.granularity,
            buf_size: options.buf_size,
            max_in_flight: options.max_in_flight,
            max_io: options.max_io,
            speed: options.speed,
            on_source_error: from_c("on_source_error", options.on_source_error)?,
            on_target_error: from_c("on_target_error", options.on_target_error)?,
            unmap: has(MIRROR_JOB_UNMAP),
            target_is_zero: has(MIRROR_JOB_TARGET_IS_ZERO),
            detect_zeroes: has(MIRROR_JOB_DETECT_ZEROES),
            copy_offload: has(MIRROR_JOB_COPY_OFFLOAD),
            auto_finalize: has(MIRROR_JOB_AUTO_FINALIZE),
            auto_dismiss: has(MIRROR_JOB_AUTO_DISMISS),
            auto_complete: has(MIRROR_JOB_AUTO_COMPLETE),
            backing_mode: from_c("backing_mode", options.backing_mode)?,
            pass_interval_ns: options.pass_interval_ns,
            guest_first_io: options.guest_first_io,
            guest_first_in_flight: options.guest_first_in_flight,
        },
        inline: has(MIRROR_JOB_INLINE),
        replaces,
        wake: waking.map(|(wake, hooks)| -> Box<dyn Fn() + Send + Sync> {
            // SAFETY: `Hooks::new` vouches for the hook, from any thread, and it keeps the pointer open.
            Box::new(move || unsafe { wake(hooks.opaque.pointer()) })
        }),
        clock: asked.map(|(clock, hooks)| -> ClockHook {
            // SAFETY: as above.
            Box::new(move || Nanos(unsafe { clock(hooks.opaque.pointer()) }))
        }),
        // Always there: it keeps the pointer open as long as the job lives.
        prepare: Some(Box::new(move |info| hooks.call_prepare(info))),
    })
}
