//! Jobs: a copy of a filter's source that is kept equal until it is told to finish.

use super::constants::*;
use super::convert::{Given, Output, check_pointer, from_c, read_struct};
use super::device::{self, mirror_device};
use super::event::mirror_event;
use super::filter::mirror_filter;
use super::guard;
use super::handle::{self, Borrowed, Handled, Retired};
use super::info::mirror_job_info;
use super::options::{Hooks, mirror_job_options, to_job_options};
use crate::clock::Nanos;
use crate::error::{Errno, Error, Result};
use crate::filter::Filter;
use crate::job::{Job, PollState};
use crate::reserve::{self, Need};
use std::ffi::c_int;

/// A job: copies a filter's device to a target, keeps the two equal, and switches the filter over when it is told to.
///
/// Threads: `mirror_job_poll` from one at a time, everything else from any. Verbs that a state doesn't accept answer
/// `-EPERM`, "Job 'ID' in state 'S' cannot accept command verb 'V'"; what they ask for is done by the next
/// `mirror_job_poll`.
pub struct mirror_job {
    _opaque: (),
}

/// Makes a job in state created: from now on guest writes are tracked. NULL `options` are the defaults. The job keeps
/// the filter and the target, whose handles can be freed.
///
/// `options->closed` is called exactly once: when the job is gone, or when this call fails. Only if the `struct_size` of
/// `options` is refused is nothing taken, because then nothing of them can be read.
///
/// 0, and `*out` is to be freed with `mirror_job_free`; `-EINVAL` for an option that makes no sense, for a target that is
/// the source, and for `replaces` that is the job's own filter, sits on the target or has another length; `-EROFS` for a
/// read-only target; `-EBUSY` if the filter, or the one to be replaced, has a job, or if requests of a job that was freed
/// are still out at the target: complete those first; `-EEXIST` if the id is taken; `-EOPNOTSUPP` to carry the writes of a
/// filter that is used with `mirror_filter_begin`; `-ENOMEM`. `mirror_last_error` names the option, its value and the rule.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_new(
    filter: *mut mirror_filter,
    target: *mut mirror_device,
    options: *const mirror_job_options,
    out: *mut *mut mirror_job,
) -> c_int {
    guard::unit("mirror_job_new", || {
        let Given { value: options, unknown } = if options.is_null() {
            Given { value: mirror_job_options::default(), unknown: Ok(()) }
        } else {
            // SAFETY: the host passes such a structure.
            unsafe { read_struct(options) }?
        };
        // From here on a failure drops this, which closes it.
        // SAFETY: the host vouches for its hooks.
        let hooks = unsafe { Hooks::new(&options) };
        unknown?;
        reserve::demand(Need::Make)?;
        check_pointer(out, "out")?;
        // SAFETY: the host passes NULL or handles.
        let filter = unsafe { handle::get::<Filter>(filter) }?;
        // SAFETY: as above.
        let target = unsafe { handle::get::<device::Handle>(target) }?;
        // SAFETY: the host passes strings and handles where it passes anything.
        let job = Job::new(&filter, &target.device, unsafe { to_job_options(&options, hooks) }?)?;
        let handle = handle::make(job)?;
        // SAFETY: `out` was checked.
        unsafe { out.write(handle) };
        Ok(())
    })
}

/// Starts the job: created → running. The work is done by `mirror_job_poll`. What is wrong with the two devices together,
/// such as different lengths, ends the job, whose result says it.
///
/// Created. 0; `-EPERM` in another state. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_start(job: *mut mirror_job) -> c_int {
    // SAFETY: the host passes NULL or a handle.
    guard::unit("mirror_job_start", || unsafe { get(job) }?.start())
}

/// Drives the job: takes what was completed, starts what can be started, and calls the devices' callbacks and the
/// `prepare` hook. It does a bounded amount of work and doesn't wait.
///
/// `now_ns` is the time in nanoseconds on any clock that doesn't go back: `mirror_clock_ns`, or the host's own. If
/// `wake_at_ns` isn't NULL, the time at which to call again, if nothing happens before, is stored there; `MIRROR_NEVER`
/// if there is none.
///
/// `MIRROR_POLL_IDLE`: wait for `mirror_job_fd` or `wake`, or for `*wake_at_ns`. `MIRROR_POLL_BUSY`: call again soon.
/// `MIRROR_POLL_CONCLUDED`: the job is over and has left its filter and its devices; until a poll says so the guest's
/// requests may still wait, whatever `mirror_job_query` tells. `-EBUSY` while another thread is in it, or from inside a
/// callback of whoever drives the job; a thread that drives it for `MIRROR_JOB_INLINE` is no hindrance, it goes on with
/// what is to be done.
///
/// Any state. After an internal failure the job is over with `-ENOTRECOVERABLE` as its result, and the guest's I/O goes on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_poll(job: *mut mirror_job, now_ns: u64, wake_at_ns: *mut u64) -> c_int {
    guard::call("mirror_job_poll", || {
        reserve::demand(Need::Drive)?;
        // SAFETY: the host passes NULL or a handle.
        let poll = unsafe { get(job) }?.poll(Nanos(now_ns))?;
        if !wake_at_ns.is_null() {
            check_pointer(wake_at_ns, "wake_at_ns")?;
            // SAFETY: `wake_at_ns` was checked.
            unsafe { wake_at_ns.write(poll.wake_at.0) };
        }
        Ok(match poll.state {
            PollState::Idle => MIRROR_POLL_IDLE,
            PollState::Busy => MIRROR_POLL_BUSY,
            PollState::Concluded => MIRROR_POLL_CONCLUDED,
        })
    })
}

/// A descriptor that is readable when `mirror_job_poll` is worth calling; poll resets it. It is the job's: don't read or
/// close it. Linux; `-EOPNOTSUPP` elsewhere, where `wake` is for that.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_fd(job: *mut mirror_job) -> c_int {
    // SAFETY: the host passes NULL or a handle.
    guard::call("mirror_job_fd", || unsafe { get(job) }?.fd())
}

/// Stops background operations; the state is paused, or standby, once none is in flight. Carried guest writes go on.
///
/// Created, running, ready. 0, and the pause takes hold in a later poll; `-EPERM` in another state, or if it is paused by
/// this function or by an error. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_pause(job: *mut mirror_job) -> c_int {
    // SAFETY: the host passes NULL or a handle.
    guard::unit("mirror_job_pause", || unsafe { get(job) }?.pause())
}

/// Lifts a pause by `mirror_job_pause` or by an error, whose requests are tried again.
///
/// Wherever the job is paused, or about to be. 0; `-EPERM` if it isn't. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_resume(job: *mut mirror_job) -> c_int {
    // SAFETY: the host passes NULL or a handle.
    guard::unit("mirror_job_resume", || unsafe { get(job) }?.resume())
}

/// Pauses for the host's own reasons, on top of any other pause: background operations stop, and once none is in flight
/// (`in_flight_ops` of `mirror_job_query` is 0) the job does nothing to its devices but carry guest writes. For hosts that
/// want the devices for themselves for a while. It nests, and `mirror_job_resume` doesn't lift it: as many calls of
/// `mirror_job_drain_end` do. A job that is cancelled by force ends all the same.
///
/// Any state; where nothing runs any more it has no effect. 0. Any thread; it doesn't wait.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_drain_begin(job: *mut mirror_job) -> c_int {
    guard::unit("mirror_job_drain_begin", || {
        // SAFETY: the host passes NULL or a handle.
        unsafe { get(job) }?.drain_begin();
        Ok(())
    })
}

/// Ends one `mirror_job_drain_begin`. The job goes on when no pause is left.
///
/// Any state. 0; `-EPERM` if none is open. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_drain_end(job: *mut mirror_job) -> c_int {
    // SAFETY: the host passes NULL or a handle.
    guard::unit("mirror_job_drain_end", || unsafe { get(job) }?.drain_end())
}

/// Finishes: makes source and target equal, holds guest requests back for a moment, calls `prepare`, and switches the
/// filter to the target.
///
/// Ready, standby. 0, a second time too; `-EPERM` in another state, or if it is being cancelled. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_complete(job: *mut mirror_job) -> c_int {
    // SAFETY: the host passes NULL or a handle.
    guard::unit("mirror_job_complete", || unsafe { get(job) }?.complete())
}

/// Leaves the state pending, for a job without `MIRROR_JOB_AUTO_FINALIZE`; the next polls call `prepare` and switch the
/// filter. Guest requests wait until then: call it as soon as the PENDING event is seen.
///
/// Pending. 0; `-EPERM` in another state. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_finalize(job: *mut mirror_job) -> c_int {
    // SAFETY: the host passes NULL or a handle.
    guard::unit("mirror_job_finalize", || unsafe { get(job) }?.finalize())
}

/// Leaves the state concluded, for a job without `MIRROR_JOB_AUTO_DISMISS`: its result has been read. It is still to be
/// freed.
///
/// Concluded. 0; `-EPERM` in another state. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_dismiss(job: *mut mirror_job) -> c_int {
    // SAFETY: the host passes NULL or a handle.
    guard::unit("mirror_job_dismiss", || unsafe { get(job) }?.dismiss())
}

/// Ends the job without the switch.
///
/// Once it is ready and without `force` it finishes well: the target is an equal copy of the source at one point in time,
/// and the result is 0. Before that, or with `force`, it stops as soon as what is in flight is done, and the result is
/// `-ECANCELED`; the target's `cancel` callback is called so that it hurries. A force can't be taken back. A pause by an
/// error is lifted.
///
/// From created to pending. 0; `-EPERM` in another state, without `force` while `mirror_job_pause` holds the job, and once
/// it is being switched. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_cancel(job: *mut mirror_job, force: bool) -> c_int {
    // SAFETY: the host passes NULL or a handle.
    guard::unit("mirror_job_cancel", || unsafe { get(job) }?.cancel(force))
}

/// Changes the rate limit of background copies, in bytes per second, at once. 0 is no limit. Guest writes that are carried
/// are not limited.
///
/// From created to standby. 0; `-EPERM` in another state. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_set_speed(job: *mut mirror_job, bytes_per_second: u64) -> c_int {
    // SAFETY: the host passes NULL or a handle.
    guard::unit("mirror_job_set_speed", || unsafe { get(job) }?.set_speed(bytes_per_second))
}

/// Changes how guest writes reach the target: `MIRROR_COPY_`. Guest requests that were accepted before keep the way that
/// they are on; `actively_synced` of `mirror_job_query` says when source and target are equal in write-blocking mode.
///
/// From created to standby, before it finishes. 0; `-EPERM` in another state, or once it is finishing; `-EINVAL` for an unknown mode; `-EOPNOTSUPP` for a job that commits, and to carry the writes of a filter that is
/// used with `mirror_filter_begin`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_change(job: *mut mirror_job, copy_mode: u32) -> c_int {
    guard::unit("mirror_job_change", || {
        // SAFETY: the host passes NULL or a handle.
        let job = unsafe { get(job) }?;
        job.change(from_c("copy_mode", copy_mode)?)
    })
}

/// Fills in a snapshot. Cheap. Any thread, any state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_query(job: *const mirror_job, info: *mut mirror_job_info) -> c_int {
    guard::unit("mirror_job_query", || {
        // SAFETY: the host passes NULL or such a structure.
        let output = unsafe { Output::new(info) }?;
        // SAFETY: the host passes NULL or a handle.
        output.write(&mirror_job_info::of(&unsafe { get(job) }?.query()));
        Ok(())
    })
}

/// Takes the oldest event that was not read. Events are kept in order, up to 256 of them; READY, PENDING, COMPLETED and
/// CANCELLED are never dropped.
///
/// 1, and `*event` is filled in; 0 if there is none. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_next_event(job: *mut mirror_job, event: *mut mirror_event) -> c_int {
    guard::call("mirror_job_next_event", || {
        // SAFETY: the host passes NULL or such a structure.
        let output = unsafe { Output::new(event) }?;
        // SAFETY: the host passes NULL or a handle.
        let Some(next) = unsafe { get(job) }?.next_event() else {
            return Ok(0);
        };
        output.write(&mirror_event::of(next));
        Ok(1)
    })
}

/// Frees a job, in any state. NULL is allowed.
///
/// One that isn't over is cancelled by force and nobody waits for it: its filter passes requests through from now on,
/// guest requests that it had are finished, and its hooks are called no more. A hook that another thread is in, or about
/// to call, is not waited for: `closed` says when `opaque` is not used any more. What its devices still do for it goes
/// on: the buffers stay until those requests are completed.
///
/// 0; `-EBUSY`, and the handle stays good, while a poll of this job runs, and from inside a callback of whoever drives it;
/// `-EINVAL` for what is no job or was freed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mirror_job_free(job: *mut mirror_job) -> c_int {
    guard::unit("mirror_job_free", || {
        if job.is_null() {
            return Ok(());
        }
        // SAFETY: the host passes a handle.
        if unsafe { get(job) }?.is_polling() {
            return Err(Error::new(
                Errno::EBUSY,
                "the job is being polled: free it from the thread that polls, outside its callbacks",
            ));
        }
        // SAFETY: as above.
        unsafe { handle::free::<Job>(job) }.map(drop)
    })
}

impl Handled for Job {
    type Handle = mirror_job;
    const KIND: usize = 2;

    fn retired() -> &'static Retired<Self> {
        static RETIRED: Retired<Job> = Retired::new();
        &RETIRED
    }
}

/// # Safety
/// `job` is NULL or a handle.
unsafe fn get(job: *const mirror_job) -> Result<Borrowed<Job>> {
    // SAFETY: passed on.
    unsafe { handle::get::<Job>(job) }
}
