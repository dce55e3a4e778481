//! The numbers of the C API.

/// The version that this header is of: major << 16 | minor << 8 | patch. Compare `mirror_version`.
pub const MIRROR_VERSION: u32 = 0x000100;
/// Of that version: what changes when programs have to be changed or built anew.
pub const MIRROR_VERSION_MAJOR: u32 = 0;
/// Of that version: what changes when something is added.
pub const MIRROR_VERSION_MINOR: u32 = 1;
/// Of that version: what changes when something is mended.
pub const MIRROR_VERSION_PATCH: u32 = 0;

/// "Never", as a time, and as an estimate.
pub const MIRROR_NEVER: u64 = 0xffff_ffff_ffff_ffff;

/// Longest list of buffers in one request.
pub const MIRROR_IOV_MAX: usize = 1024;

/// A device's answer: finished, well.
pub const MIRROR_DONE: i32 = 0;
/// A device's answer: accepted, to be completed later with `mirror_device_complete`.
pub const MIRROR_PENDING: i32 = 1;
/// A device's answer: no room, not taken; to be offered again. Also the answer of `mirror_filter_begin` while the gate
/// is closed.
pub const MIRROR_AGAIN: i32 = 2;

/// Request flag: durable before it is done.
pub const MIRROR_FUA: u32 = 1;
/// Request flag of a zero: it may deallocate.
pub const MIRROR_MAY_UNMAP: u32 = 2;
/// Request flag of a guest's write: the buffers don't change until it is done, so that no copy of them need be made.
pub const MIRROR_WRITE_STABLE: u32 = 4;

/// Limits flag: the device refuses every change.
pub const MIRROR_LIMIT_READ_ONLY: u32 = 1;
/// Limits flag: a zero that may deallocate is much cheaper than writing zeroes.
pub const MIRROR_LIMIT_CHEAP_ZERO: u32 = 2;
/// Limits flag: every byte reads as zero now. It holds until the library first writes to the device.
pub const MIRROR_LIMIT_READS_ZERO: u32 = 4;
/// Limits flag: a discarded range reads as zero.
pub const MIRROR_LIMIT_DISCARD_ZEROES: u32 = 8;
/// Limits flag: a backing layer will be attached later, so what is unallocated won't read as zero then.
pub const MIRROR_LIMIT_UNATTACHED_BACKING: u32 = 16;

/// Extent flag: there is data to read.
pub const MIRROR_EXTENT_DATA: u32 = 1;
/// Extent flag: it reads as zero.
pub const MIRROR_EXTENT_ZERO: u32 = 2;
/// Extent flag: it is allocated in this layer, above the base.
pub const MIRROR_EXTENT_ALLOCATED: u32 = 4;

/// File flag: never change the file; a request to do so fails with `EROFS`.
pub const MIRROR_OPEN_READ_ONLY: u32 = 1;
/// File flag: bypass the page cache.
pub const MIRROR_OPEN_DIRECT: u32 = 2;
/// File flag: create the file if it is missing, and give an empty one its length.
pub const MIRROR_OPEN_CREATE: u32 = 4;
/// File flag: leave all work to threads, even where io_uring is to be had.
pub const MIRROR_OPEN_THREADS: u32 = 8;

/// Null device flag: reads fill their buffers with zeroes.
pub const MIRROR_NULL_READ_ZEROES: u32 = 1;
/// Null device flag: it says that it is unallocated everywhere.
pub const MIRROR_NULL_UNALLOCATED: u32 = 2;

/// Check flag: the caller vouches that the device holds nothing that anybody needs.
pub const MIRROR_CHECK_DESTROY: u32 = 1;

/// Kind of request: read.
pub const MIRROR_OP_READ: u32 = 1;
/// Kind of request: write.
pub const MIRROR_OP_WRITE: u32 = 2;
/// Kind of request: make a range read as zero.
pub const MIRROR_OP_ZERO: u32 = 3;
/// Kind of request: a range's content is no longer needed.
pub const MIRROR_OP_DISCARD: u32 = 4;
/// Kind of request: make what is done durable.
pub const MIRROR_OP_FLUSH: u32 = 5;
/// Kind of request: tell what a range holds.
pub const MIRROR_OP_EXTENTS: u32 = 6;
/// Kind of request: change the device's length.
pub const MIRROR_OP_TRUNCATE: u32 = 7;
/// `mirror_event.operation`: the target copies by itself.
pub const MIRROR_OP_COPY: u32 = 8;

/// What a job is for: the target becomes an equal of the source.
pub const MIRROR_KIND_MIRROR: u32 = 0;
/// What a job is for: the target is the base of the source's chain, into which what lies above is merged down.
pub const MIRROR_KIND_COMMIT_ACTIVE: u32 = 1;

/// What is copied: everything.
pub const MIRROR_SYNC_FULL: u32 = 0;
/// What is copied: what is allocated above the base.
pub const MIRROR_SYNC_TOP: u32 = 1;
/// What is copied: what is written from now on.
pub const MIRROR_SYNC_NONE: u32 = 2;

/// Guest writes are marked and copied later.
pub const MIRROR_COPY_BACKGROUND: u32 = 0;
/// Guest writes are carried to the target before the guest sees them done.
pub const MIRROR_COPY_WRITE_BLOCKING: u32 = 1;

/// After an error: the job ends with it.
pub const MIRROR_ON_ERROR_REPORT: u32 = 0;
/// After an error: it is tried again later.
pub const MIRROR_ON_ERROR_IGNORE: u32 = 1;
/// After an error: the job pauses itself until it is resumed.
pub const MIRROR_ON_ERROR_STOP: u32 = 2;
/// After an error: stop if the device is full, else report.
pub const MIRROR_ON_ERROR_ENOSPC: u32 = 3;
/// After an error: what is best, which is to stop if the device is full, else to report.
pub const MIRROR_ON_ERROR_AUTO: u32 = 4;

/// The target's backing after the switch: what follows from `sync` (FULL: none, TOP: the source's, NONE: the source).
pub const MIRROR_BACKING_SOURCE_CHAIN: u32 = 0;
/// The target's backing after the switch: what the target's image names.
pub const MIRROR_BACKING_OPEN: u32 = 1;
/// The target's backing after the switch: untouched.
pub const MIRROR_BACKING_LEAVE: u32 = 2;

/// Job flag: zeroes may deallocate on the target. On by default.
pub const MIRROR_JOB_UNMAP: u32 = 1;
/// Job flag: the caller vouches that the target reads as zero.
pub const MIRROR_JOB_TARGET_IS_ZERO: u32 = 2;
/// Job flag: buffers that are all zero are sent as zeroes. On by default.
pub const MIRROR_JOB_DETECT_ZEROES: u32 = 4;
/// Job flag: go from pending to concluded without `mirror_job_finalize`. On by default.
pub const MIRROR_JOB_AUTO_FINALIZE: u32 = 8;
/// Job flag: go from concluded to null without `mirror_job_dismiss`. On by default.
pub const MIRROR_JOB_AUTO_DISMISS: u32 = 16;
/// Job flag: complete as soon as the job is ready.
pub const MIRROR_JOB_AUTO_COMPLETE: u32 = 32;
/// Job flag: whoever brings news (a completion, a guest request) drives the job if nobody does, so that a carried guest
/// write need not wait for the thread that polls. Device callbacks and `prepare` then run on those threads too. It is to
/// be polled all the same: time passes only there.
pub const MIRROR_JOB_INLINE: u32 = 64;
/// `mirror_job_options.flags`: data doesn't come through buffers where the target can take it from the source by itself:
/// with its `copy`, or for files where both lie in one file system that shares blocks.
pub const MIRROR_JOB_COPY_OFFLOAD: u32 = 128;

/// `mirror_job_poll`: nothing to do until `wake_at_ns`, or until the job wakes its host.
pub const MIRROR_POLL_IDLE: i32 = 0;
/// `mirror_job_poll`: more to do at once.
pub const MIRROR_POLL_BUSY: i32 = 1;
/// `mirror_job_poll`: the job is over.
pub const MIRROR_POLL_CONCLUDED: i32 = 2;

/// State: made, not started.
pub const MIRROR_STATUS_CREATED: u32 = 1;
/// State: copying.
pub const MIRROR_STATUS_RUNNING: u32 = 2;
/// State: paused before it was ready.
pub const MIRROR_STATUS_PAUSED: u32 = 3;
/// State: source and target are equal but for what is written now.
pub const MIRROR_STATUS_READY: u32 = 4;
/// State: paused after it was ready.
pub const MIRROR_STATUS_STANDBY: u32 = 5;
/// State: done with its work.
pub const MIRROR_STATUS_WAITING: u32 = 6;
/// State: waits for `mirror_job_finalize`; the gate is closed.
pub const MIRROR_STATUS_PENDING: u32 = 7;
/// State: ending without success.
pub const MIRROR_STATUS_ABORTING: u32 = 8;
/// State: over; waits for `mirror_job_dismiss`.
pub const MIRROR_STATUS_CONCLUDED: u32 = 9;
/// State: over and dismissed.
pub const MIRROR_STATUS_NULL: u32 = 10;

/// No error has stopped the job.
pub const MIRROR_IO_OK: u32 = 0;
/// The job is stopped: a device failed.
pub const MIRROR_IO_FAILED: u32 = 1;
/// The job is stopped: the target is full.
pub const MIRROR_IO_NOSPACE: u32 = 2;

/// Event: the job is in another state.
pub const MIRROR_EVENT_STATUS: u32 = 1;
/// Event: source and target are equal for the first time.
pub const MIRROR_EVENT_READY: u32 = 2;
/// Event: the job waits for `mirror_job_finalize`.
pub const MIRROR_EVENT_PENDING: u32 = 3;
/// Event: a request failed.
pub const MIRROR_EVENT_ERROR: u32 = 4;
/// Event: the job is over, well or not.
pub const MIRROR_EVENT_COMPLETED: u32 = 5;
/// Event: the job was cancelled and is over.
pub const MIRROR_EVENT_CANCELLED: u32 = 6;

/// Where a request failed: at the source.
pub const MIRROR_SIDE_SOURCE: u32 = 1;
/// Where a request failed: at the target.
pub const MIRROR_SIDE_TARGET: u32 = 2;

/// What was done about an error: the job ends with it.
pub const MIRROR_ACTION_REPORT: u32 = 1;
/// What was done about an error: it will be tried again.
pub const MIRROR_ACTION_IGNORE: u32 = 2;
/// What was done about an error: the job is paused.
pub const MIRROR_ACTION_STOP: u32 = 3;

/// No messages.
pub const MIRROR_LOG_OFF: u32 = 0;
/// Messages about what should never happen.
pub const MIRROR_LOG_ERROR: u32 = 1;
/// Messages about mistakes of the host and failures of devices.
pub const MIRROR_LOG_WARN: u32 = 2;
/// Messages about the life of jobs.
pub const MIRROR_LOG_INFO: u32 = 3;
/// Messages for whoever looks for a fault.
pub const MIRROR_LOG_DEBUG: u32 = 4;
/// Everything.
pub const MIRROR_LOG_TRACE: u32 = 5;
