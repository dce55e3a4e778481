/* blkmirror: live block-device mirroring.
 *
 * A mirror copies a live disk to another device and keeps the two equal while a guest goes on reading and writing; when
 * it is told to, it switches the guest over. This header is the whole interface, and its manual. It compiles as C99, C11
 * and C++17. It is generated from src/capi: don't edit it.
 *
 *
 * The objects
 *
 * A mirror_device is something that can be read and written: a host's callbacks (mirror_device_new), a file, memory. A
 * mirror_filter is the live disk: it sits on a device, and the guest's requests go through it. A mirror_job copies a
 * filter's device, the source, to another, the target. When the job completes, the filter sits on the target.
 *
 *     mirror_device *source, *target;
 *     mirror_filter *disk;
 *     mirror_job *job;
 *     mirror_device_open_file("old.img", 0, 0, &source);
 *     mirror_device_open_file("new.img", MIRROR_OPEN_CREATE, length, &target);
 *     mirror_filter_new(source, &disk);                  // the guest's I/O goes to mirror_filter_read, _write ...
 *     mirror_job_new(disk, target, NULL, &job);          // from here on guest writes are tracked
 *     mirror_job_start(job);
 *
 *
 * The loop
 *
 * The library has no thread of its own for a job: a thread of the host polls it.
 *
 *     for (;;) {
 *         uint64_t wake_at;
 *         int r = mirror_job_poll(job, mirror_clock_ns(), &wake_at);
 *         mirror_event event;
 *         event.struct_size = sizeof event;
 *         while (mirror_job_next_event(job, &event) == 1) {
 *             if (event.type == MIRROR_EVENT_READY)
 *                 mirror_job_complete(job);              // or later, whenever it suits
 *         }
 *         if (r == MIRROR_POLL_CONCLUDED || r < 0)
 *             break;
 *         if (r == MIRROR_POLL_IDLE)
 *             wait_for(mirror_job_fd(job), wake_at);     // poll(2) with a timeout, or an event loop
 *     }
 *     mirror_job_free(job);
 *
 *
 * The life of a job
 *
 *     created --start--> running --> ready --complete--> waiting --> pending --finalize--> concluded --dismiss--> null
 *
 * The job becomes ready when source and target are equal for the first time; from then on it keeps them equal. pause and
 * resume lead to paused (before ready) or standby (after) and back. An error or a cancel leads through aborting to
 * concluded. By default finalize and dismiss happen by themselves.
 *
 *
 * Results
 *
 * A function that returns int answers 0, or the positive value that its text names, and -errno (of <errno.h>) when it
 * fails. mirror_last_error says in words what was wrong: which argument, its value, and the rule. Outputs are written
 * only on success. A host's mistake is refused with -EINVAL and changes nothing. An internal failure is
 * -ENOTRECOVERABLE: nothing that the library does ends the process.
 *
 * Numbers: offsets and lengths are bytes in uint64_t; times are nanoseconds. Enumerations are carried in uint32_t, and a
 * number or a flag that isn't known is refused.
 *
 *
 * Structures
 *
 * Each structure that a host fills, or has filled in, begins with size_t struct_size, which the host sets to its sizeof.
 * Structures grow at their end only. A library that knows more takes what an older host doesn't know for zero, which
 * means what it was before; one that knows less refuses what isn't zero, and zeroes what it doesn't fill in.
 *
 *
 * Ownership
 *
 * Devices, filters and jobs are handles, each freed with its own function; a job keeps what it uses, so that the handles
 * of its filter and devices can be freed before it. NULL, a handle of another type and, as a rule, a handle that was
 * freed before are recognised and refused with -EINVAL.
 *
 * With each opaque pointer goes a hook that is told, exactly once, that the library won't use it any more: also when the
 * call that took the pointer fails. For a guest request that is `done`, which is not called if the request was refused.
 *
 *
 * Threads and callbacks
 *
 * Everything can be called from any thread, but for mirror_job_poll: one thread at a time (-EBUSY). A host's callbacks
 * are called with no lock held, so that they may call any function, with two exceptions: a poll of the job that is being
 * polled, and the free of it, answer -EBUSY. Callbacks must not throw, longjmp or block for long.
 */


#ifndef BLKMIRROR_H
#define BLKMIRROR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Whether this header is of that version or a later one: `#if MIRROR_VERSION_AT_LEAST(0, 2, 0)`.
#define MIRROR_VERSION_AT_LEAST(major, minor, patch) (MIRROR_VERSION >= ((major) << 16 | (minor) << 8 | (patch)))

// The version that this header is of: major << 16 | minor << 8 | patch. Compare `mirror_version`.
#define MIRROR_VERSION 256

// Of that version: what changes when programs have to be changed or built anew.
#define MIRROR_VERSION_MAJOR 0

// Of that version: what changes when something is added.
#define MIRROR_VERSION_MINOR 1

// Of that version: what changes when something is mended.
#define MIRROR_VERSION_PATCH 0

// "Never", as a time, and as an estimate.
#define MIRROR_NEVER 18446744073709551615ull

// Longest list of buffers in one request.
#define MIRROR_IOV_MAX 1024

// A device's answer: finished, well.
#define MIRROR_DONE 0

// A device's answer: accepted, to be completed later with `mirror_device_complete`.
#define MIRROR_PENDING 1

// A device's answer: no room, not taken; to be offered again. Also the answer of `mirror_filter_begin` while the gate
// is closed.
#define MIRROR_AGAIN 2

// Request flag: durable before it is done.
#define MIRROR_FUA 1

// Request flag of a zero: it may deallocate.
#define MIRROR_MAY_UNMAP 2

// Request flag of a guest's write: the buffers don't change until it is done, so that no copy of them need be made.
#define MIRROR_WRITE_STABLE 4

// Limits flag: the device refuses every change.
#define MIRROR_LIMIT_READ_ONLY 1

// Limits flag: a zero that may deallocate is much cheaper than writing zeroes.
#define MIRROR_LIMIT_CHEAP_ZERO 2

// Limits flag: every byte reads as zero now. It holds until the library first writes to the device.
#define MIRROR_LIMIT_READS_ZERO 4

// Limits flag: a discarded range reads as zero.
#define MIRROR_LIMIT_DISCARD_ZEROES 8

// Limits flag: a backing layer will be attached later, so what is unallocated won't read as zero then.
#define MIRROR_LIMIT_UNATTACHED_BACKING 16

// Extent flag: there is data to read.
#define MIRROR_EXTENT_DATA 1

// Extent flag: it reads as zero.
#define MIRROR_EXTENT_ZERO 2

// Extent flag: it is allocated in this layer, above the base.
#define MIRROR_EXTENT_ALLOCATED 4

// File flag: never change the file; a request to do so fails with `EROFS`.
#define MIRROR_OPEN_READ_ONLY 1

// File flag: bypass the page cache.
#define MIRROR_OPEN_DIRECT 2

// File flag: create the file if it is missing, and give an empty one its length.
#define MIRROR_OPEN_CREATE 4

// File flag: leave all work to threads, even where io_uring is to be had.
#define MIRROR_OPEN_THREADS 8

// Null device flag: reads fill their buffers with zeroes.
#define MIRROR_NULL_READ_ZEROES 1

// Null device flag: it says that it is unallocated everywhere.
#define MIRROR_NULL_UNALLOCATED 2

// Check flag: the caller vouches that the device holds nothing that anybody needs.
#define MIRROR_CHECK_DESTROY 1

// Kind of request: read.
#define MIRROR_OP_READ 1

// Kind of request: write.
#define MIRROR_OP_WRITE 2

// Kind of request: make a range read as zero.
#define MIRROR_OP_ZERO 3

// Kind of request: a range's content is no longer needed.
#define MIRROR_OP_DISCARD 4

// Kind of request: make what is done durable.
#define MIRROR_OP_FLUSH 5

// Kind of request: tell what a range holds.
#define MIRROR_OP_EXTENTS 6

// Kind of request: change the device's length.
#define MIRROR_OP_TRUNCATE 7

// `mirror_event.operation`: the target copies by itself.
#define MIRROR_OP_COPY 8

// What a job is for: the target becomes an equal of the source.
#define MIRROR_KIND_MIRROR 0

// What a job is for: the target is the base of the source's chain, into which what lies above is merged down.
#define MIRROR_KIND_COMMIT_ACTIVE 1

// What is copied: everything.
#define MIRROR_SYNC_FULL 0

// What is copied: what is allocated above the base.
#define MIRROR_SYNC_TOP 1

// What is copied: what is written from now on.
#define MIRROR_SYNC_NONE 2

// Guest writes are marked and copied later.
#define MIRROR_COPY_BACKGROUND 0

// Guest writes are carried to the target before the guest sees them done.
#define MIRROR_COPY_WRITE_BLOCKING 1

// After an error: the job ends with it.
#define MIRROR_ON_ERROR_REPORT 0

// After an error: it is tried again later.
#define MIRROR_ON_ERROR_IGNORE 1

// After an error: the job pauses itself until it is resumed.
#define MIRROR_ON_ERROR_STOP 2

// After an error: stop if the device is full, else report.
#define MIRROR_ON_ERROR_ENOSPC 3

// After an error: what is best, which is to stop if the device is full, else to report.
#define MIRROR_ON_ERROR_AUTO 4

// The target's backing after the switch: what follows from `sync` (FULL: none, TOP: the source's, NONE: the source).
#define MIRROR_BACKING_SOURCE_CHAIN 0

// The target's backing after the switch: what the target's image names.
#define MIRROR_BACKING_OPEN 1

// The target's backing after the switch: untouched.
#define MIRROR_BACKING_LEAVE 2

// Job flag: zeroes may deallocate on the target. On by default.
#define MIRROR_JOB_UNMAP 1

// Job flag: the caller vouches that the target reads as zero.
#define MIRROR_JOB_TARGET_IS_ZERO 2

// Job flag: buffers that are all zero are sent as zeroes. On by default.
#define MIRROR_JOB_DETECT_ZEROES 4

// Job flag: go from pending to concluded without `mirror_job_finalize`. On by default.
#define MIRROR_JOB_AUTO_FINALIZE 8

// Job flag: go from concluded to null without `mirror_job_dismiss`. On by default.
#define MIRROR_JOB_AUTO_DISMISS 16

// Job flag: complete as soon as the job is ready.
#define MIRROR_JOB_AUTO_COMPLETE 32

// Job flag: whoever brings news (a completion, a guest request) drives the job if nobody does, so that a carried guest
// write need not wait for the thread that polls. Device callbacks and `prepare` then run on those threads too. It is to
// be polled all the same: time passes only there.
#define MIRROR_JOB_INLINE 64

// `mirror_job_options.flags`: data doesn't come through buffers where the target can take it from the source by itself:
// with its `copy`, or for files where both lie in one file system that shares blocks.
#define MIRROR_JOB_COPY_OFFLOAD 128

// `mirror_job_poll`: nothing to do until `wake_at_ns`, or until the job wakes its host.
#define MIRROR_POLL_IDLE 0

// `mirror_job_poll`: more to do at once.
#define MIRROR_POLL_BUSY 1

// `mirror_job_poll`: the job is over.
#define MIRROR_POLL_CONCLUDED 2

// State: made, not started.
#define MIRROR_STATUS_CREATED 1

// State: copying.
#define MIRROR_STATUS_RUNNING 2

// State: paused before it was ready.
#define MIRROR_STATUS_PAUSED 3

// State: source and target are equal but for what is written now.
#define MIRROR_STATUS_READY 4

// State: paused after it was ready.
#define MIRROR_STATUS_STANDBY 5

// State: done with its work.
#define MIRROR_STATUS_WAITING 6

// State: waits for `mirror_job_finalize`; the gate is closed.
#define MIRROR_STATUS_PENDING 7

// State: ending without success.
#define MIRROR_STATUS_ABORTING 8

// State: over; waits for `mirror_job_dismiss`.
#define MIRROR_STATUS_CONCLUDED 9

// State: over and dismissed.
#define MIRROR_STATUS_NULL 10

// No error has stopped the job.
#define MIRROR_IO_OK 0

// The job is stopped: a device failed.
#define MIRROR_IO_FAILED 1

// The job is stopped: the target is full.
#define MIRROR_IO_NOSPACE 2

// Event: the job is in another state.
#define MIRROR_EVENT_STATUS 1

// Event: source and target are equal for the first time.
#define MIRROR_EVENT_READY 2

// Event: the job waits for `mirror_job_finalize`.
#define MIRROR_EVENT_PENDING 3

// Event: a request failed.
#define MIRROR_EVENT_ERROR 4

// Event: the job is over, well or not.
#define MIRROR_EVENT_COMPLETED 5

// Event: the job was cancelled and is over.
#define MIRROR_EVENT_CANCELLED 6

// Where a request failed: at the source.
#define MIRROR_SIDE_SOURCE 1

// Where a request failed: at the target.
#define MIRROR_SIDE_TARGET 2

// What was done about an error: the job ends with it.
#define MIRROR_ACTION_REPORT 1

// What was done about an error: it will be tried again.
#define MIRROR_ACTION_IGNORE 2

// What was done about an error: the job is paused.
#define MIRROR_ACTION_STOP 3

// No messages.
#define MIRROR_LOG_OFF 0

// Messages about what should never happen.
#define MIRROR_LOG_ERROR 1

// Messages about mistakes of the host and failures of devices.
#define MIRROR_LOG_WARN 2

// Messages about the life of jobs.
#define MIRROR_LOG_INFO 3

// Messages for whoever looks for a fault.
#define MIRROR_LOG_DEBUG 4

// Everything.
#define MIRROR_LOG_TRACE 5

// A device: what a mirror copies from or to, and what a filter sits on.
//
// Threads: every function from any thread.
typedef struct mirror_device mirror_device;

// A filter: the live disk. It sits on a device, passes the guest's requests on, and is switched to the mirror's target
// while the guest runs.
//
// Threads: every function from any thread, several at once.
//
// A guest request (`mirror_filter_read` and its like) that answers 0 was accepted, and its outcome comes through `done`
// exactly once: later, on any thread, or before the call returns. One that answers `-errno` was not, and `done` is not
// called: `opaque` stays the caller's. A `done` that is due while another runs on the same thread is called after that
// has returned, so one must not wait for another. The list of buffers is copied or used up during the call; the memory
// that it names belongs to the request until `done`.
typedef struct mirror_filter mirror_filter;

// A job: copies a filter's device to a target, keeps the two equal, and switches the filter over when it is told to.
//
// Threads: `mirror_job_poll` from one at a time, everything else from any. Verbs that a state doesn't accept answer
// `-EPERM`, "Job 'ID' in state 'S' cannot accept command verb 'V'"; what they ask for is done by the next
// `mirror_job_poll`.
typedef struct mirror_job mirror_job;

// A buffer: `len` bytes at `base`. Laid out as POSIX `struct iovec`, so that a list of those can be cast.
typedef struct {
    // The first byte. NULL only if `len` is 0.
    void *base;
    // How many bytes.
    size_t len;
} mirror_iovec;

// What a host's device can do. Fill it with zeroes, set `struct_size` to `sizeof(mirror_device_ops)` and what there is.
//
// `read` and `write` are required, the others may be NULL: an absent `zero` is emulated by writing zeroes, an absent
// `discard` is skipped, an absent `flush` succeeds, an absent `extents` means that all is allocated data.
//
// A callback that takes a request answers `MIRROR_DONE`; `MIRROR_PENDING`, and the request's `token` goes to
// `mirror_device_complete` exactly once, later or even before the callback returns, from any thread; `MIRROR_AGAIN` if
// there is no room, and the request is offered again, in order, once another has completed or `mirror_device_kick` was
// called; or `-errno`. Anything else is logged and counts as `-EIO`.
//
// Requests keep to the device's limits and lie within its length. A list of buffers holds exactly `length` bytes; the
// list is good during the callback, the memory that it names until the request is done.
//
// Callbacks are called from whichever thread has something to do: from those that call `mirror_filter_*`, from the one
// that calls `mirror_job_poll`, and from those that call `mirror_device_complete`; several at once. No lock is held, so
// they may call the library. They must not block for long, throw or `longjmp`.
typedef struct {
    // `sizeof(mirror_device_ops)`.
    size_t struct_size;
    // Fill the buffers from the range. Required.
    int (*read)(void *opaque, uint64_t token, uint64_t offset, uint64_t length, const mirror_iovec *iov, size_t iovcnt);
    // Write the buffers to the range. `flags`: `MIRROR_FUA`. Required. The buffers may be a guest's, who can change them
    // meanwhile.
    int (*write)(void *opaque,
                 uint64_t token,
                 uint64_t offset,
                 uint64_t length,
                 const mirror_iovec *iov,
                 size_t iovcnt,
                 uint32_t flags);
    // Make the range read as zero. `flags`: `MIRROR_MAY_UNMAP`, `MIRROR_FUA`.
    int (*zero)(void *opaque, uint64_t token, uint64_t offset, uint64_t length, uint32_t flags);
    // The range's content is no longer needed.
    int (*discard)(void *opaque, uint64_t token, uint64_t offset, uint64_t length);
    // Make what is done durable.
    int (*flush)(void *opaque, uint64_t token);
    // Tell what the range holds: call `mirror_device_extent` for each stretch of it, in order, and then finish as any
    // request. What is not told counts as data.
    int (*extents)(void *opaque, uint64_t token, uint64_t offset, uint64_t length);
    // Change the device's length.
    int (*truncate)(void *opaque, uint64_t token, uint64_t length);
    // Hurry what is in flight: a job that uses the device is being cancelled.
    void (*cancel)(void *opaque);
    // Reap completions, for a device without a thread of its own: called at the start of each `mirror_job_poll`. A
    // negative answer is logged.
    int (*poll)(void *opaque);
    // The device is not used any more, and `opaque` with it. Called exactly once, from the thread that lets go of it last.
    void (*close)(void *opaque);
    // Take the range over from another device, without buffers: a storage server that copies by itself, blocks that both
    // share. Asked of a job's target if its source was made with the same `copy`; `source` is that one's `opaque`. What
    // fails is copied through buffers; after `-EOPNOTSUPP`, `-EXDEV` or `-ENOSYS` all the rest of the job is.
    int (*copy)(void *opaque, uint64_t token, void *source, uint64_t offset, uint64_t length);
} mirror_device_ops;

// What a device is like. 0 is "no limit", "any" or "none". A request never breaks these limits; where two devices take
// part, the stricter one rules.
typedef struct {
    // `sizeof(mirror_device_limits)`.
    size_t struct_size;
    // Length in bytes.
    uint64_t length;
    // Offsets and lengths are multiples of this: a power of two up to 65536. The device's end counts as aligned.
    uint32_t request_alignment;
    // Buffers begin on multiples of this: a power of two up to 65536.
    uint32_t memory_alignment;
    // Most buffers in one request; at most `MIRROR_IOV_MAX` are ever sent.
    uint32_t max_iov;
    // `MIRROR_LIMIT_` flags.
    uint32_t flags;
    // Most bytes in one read or write, at least 512; at most 64 MiB are ever sent.
    uint64_t max_transfer;
    // Most bytes in one zero, at least 512; at most 2 GiB are ever sent.
    uint64_t max_zero;
    // Most bytes in one discard, at least 512; at most 2 GiB are ever sent.
    uint64_t max_discard;
    // Zeroes are worth sending on multiples of this: a power of two up to 1 GiB.
    uint64_t zero_alignment;
    // Discards are worth sending on multiples of this: a power of two up to 1 GiB.
    uint64_t discard_alignment;
    // The device's own allocation unit: a power of two up to 1 GiB.
    uint64_t cluster_size;
} mirror_device_limits;

// What `mirror_device_check` may do. Fill it with zeroes, set `struct_size`, `flags` and whatever is to be different.
typedef struct {
    // `sizeof(mirror_check_options)`.
    size_t struct_size;
    // `MIRROR_CHECK_DESTROY`, which must be set.
    uint32_t flags;
    // Must be 0.
    uint32_t reserved;
    // Another seed tries other places and lengths; the same one the same.
    uint64_t seed;
    // Most bytes of the device that are touched, at least 1 MiB. 0: 64 MiB. A longer device is sampled: its ends, its
    // middle, and around the offsets 2^31, 2^32 and 2^41.
    uint64_t max_bytes;
    // Nanoseconds without any completion after which what is out counts as lost. 0: five seconds.
    uint64_t timeout_ns;
} mirror_check_options;

// A rule that a device has broken. The texts are good during the call.
typedef struct {
    // How much of this structure the library has filled in.
    size_t struct_size;
    // The rule's name, such as "write-stores"; names stay what they are.
    const char *rule;
    // The rule of the specification that it is part of: "D-1" to "D-6".
    const char *spec;
    // What the rule says.
    const char *text;
    // What was asked for.
    const char *asked;
    // What was to be expected.
    const char *expected;
    // What came.
    const char *came;
    // All of it in one line.
    const char *line;
    // The request's `MIRROR_OP_`; 0 if the finding is of no request in particular, and what follows is 0 then too.
    uint32_t operation;
    // The request's flags: `MIRROR_FUA`, `MIRROR_MAY_UNMAP`.
    uint32_t flags;
    // Where it begins.
    uint64_t offset;
    // Its length; of a truncate, the length that the device was to have.
    uint64_t length;
} mirror_check_finding;

// A stretch of the disk and what it holds.
typedef struct {
    // How many bytes.
    uint64_t length;
    // `MIRROR_EXTENT_`.
    uint32_t flags;
    // 0.
    uint32_t reserved;
} mirror_extent;

// What the `prepare` hook is told: which backing the target should have once the guest sits on it.
typedef struct {
    // How much of this structure the library has filled in.
    size_t struct_size;
    // The job's `MIRROR_SYNC_`.
    uint32_t sync;
    // The job's `MIRROR_BACKING_`.
    uint32_t backing_mode;
} mirror_prepare_info;

// A job's options. Set the defaults with `mirror_job_options_init`, then change what is to be different. The structure
// and the strings in it are copied by `mirror_job_new`.
typedef struct {
    // `sizeof(mirror_job_options)`.
    size_t struct_size;
    // Names the job among the live ones of the process: a letter, then letters, digits, '-', '.' and '_', at most 127
    // of them. NULL: a name is made up.
    const char *id;
    // What the job is for: `MIRROR_KIND_`. Default: `MIRROR_KIND_MIRROR`.
    uint32_t kind;
    // What is copied: `MIRROR_SYNC_`. Default: `MIRROR_SYNC_FULL`, which for a commit stands for `MIRROR_SYNC_TOP`, the only
    // one that it takes.
    uint32_t sync;
    // How guest writes reach the target: `MIRROR_COPY_`. Default: `MIRROR_COPY_BACKGROUND`.
    uint32_t copy_mode;
    // Which backing the target gets at the switch, for the `prepare` hook: `MIRROR_BACKING_`. Default:
    // `MIRROR_BACKING_SOURCE_CHAIN`.
    uint32_t backing_mode;
    // What to do when the source fails: `MIRROR_ON_ERROR_`. Default: `MIRROR_ON_ERROR_REPORT`.
    uint32_t on_source_error;
    // What to do when the target fails. Default: `MIRROR_ON_ERROR_REPORT`.
    uint32_t on_target_error;
    // `MIRROR_JOB_` flags. Default: `UNMAP`, `DETECT_ZEROES`, `AUTO_FINALIZE`, `AUTO_DISMISS` and
    // `COPY_OFFLOAD`.
    uint32_t flags;
    // Background operations at a time, at most 1024. 0, the default: as many as the link takes. That is measured: the copy
    // keeps as many bytes under way as come through while one copy is, and a few milliseconds' worth more.
    uint32_t max_in_flight;
    // Bytes in a chunk, in which changes are tracked: a power of two from 512 to 67108864, not smaller than the devices'
    // request alignment. 0, the default: 4096 up to a terabyte, more beyond.
    uint64_t granularity;
    // Bytes of copy buffers, at most 4 GiB. 0, the default: 16 MiB.
    uint64_t buf_size;
    // Most bytes in one copy, at least 512. 0, the default: `buf_size / max_in_flight`, or a sixteenth of `buf_size`,
    // but at least 1 MiB.
    uint64_t max_io;
    // Bytes per second that background copies may take. 0, the default: no limit.
    uint64_t speed;
    // Nanoseconds between the beginnings of two passes over what guests write again and again, after the first pass.
    // Default: 50 ms.
    uint64_t pass_interval_ns;
    // Most bytes in one copy while guest writes are carried, at least 512. 0, the default: fitted to the link.
    uint64_t guest_first_io;
    // Background operations at a time while guest writes are carried, at most 1024. 0, the default: what guests leave of the
    // link, so that the copy keeps none of their writes waiting for more than about a millisecond.
    uint32_t guest_first_in_flight;
    // Must be 0.
    uint32_t reserved;
    // Another filter that is drained and switched to the target instead of the job's own: as long as the target, not on
    // it, without a job, and no other job can have it until this one is over. The job keeps it. NULL, the default: none.
    mirror_filter *replaces;
    // Called when `mirror_job_poll` is worth calling, from any thread, for hosts that don't wait on `mirror_job_fd`: it
    // tells the thread that polls, and doesn't poll itself.
    void (*wake)(void *opaque);
    // Called by `mirror_job_poll` just before the switch, when source and target are equal and guest requests wait: the
    // host attaches the target's backing. It answers 0, or `-errno`, which ends the job without the switch.
    int (*prepare)(void *opaque, const mirror_prepare_info *info);
    // What time it is in nanoseconds, by the clock whose times `mirror_job_poll` gets. With `MIRROR_JOB_INLINE` it is asked, from
    // any thread, by whoever drives the job outside of a poll. NULL, the default: the last poll's time counts there, and
    // copies are less well fitted to the link. A host that passes `mirror_clock_ns()` to the poll returns it here.
    uint64_t (*clock)(void *opaque);
    // What `wake`, `prepare` and `clock` get.
    void *opaque;
    // Called with `opaque` exactly once: when the job is gone and calls its hooks no more, or when `mirror_job_new`
    // fails.
    void (*closed)(void *opaque);
} mirror_job_options;

// Operations of one kind.
typedef struct {
    // How many were done, well or not.
    uint64_t ops;
    // Bytes of those that were done well.
    uint64_t bytes;
    // How many failed.
    uint64_t errors;
} mirror_counter;

// A snapshot of a job. Set `struct_size` before `mirror_job_query` fills in the rest.
typedef struct {
    // `sizeof(mirror_job_info)`.
    size_t struct_size;
    // The job's name.
    char id[128];
    // What the result says, for people: empty while the job runs and after success.
    char message[256];
    // `MIRROR_KIND_`.
    uint32_t kind;
    // Where the job is in its life: `MIRROR_STATUS_`.
    uint32_t status;
    // How guest writes reach the target: `MIRROR_COPY_`.
    uint32_t copy_mode;
    // Whether an error has stopped it: `MIRROR_IO_`.
    uint32_t io_status;
    // Something is in flight, or could be started.
    bool busy;
    // A pause is asked for; `status` says when it has taken hold.
    bool paused;
    // It has been ready.
    bool ready;
    // Every guest write is carried, and source and target are equal but for those under way.
    bool actively_synced;
    // How the job ended, or will: 0, or `-errno`.
    int result;
    // The rate limit in bytes per second, 0 for none.
    uint64_t speed;
    // Bytes copied. Never falls.
    uint64_t done;
    // `done` plus what is dirty or in flight.
    uint64_t total;
    // Bytes that differ or may differ.
    uint64_t dirty;
    // Bytes that were zeroed or looked at before the copy began.
    uint64_t prepared;
    // Bytes in flight: of background operations and of carried guest writes.
    uint64_t in_flight_bytes;
    // Background operations in flight.
    uint32_t in_flight_ops;
    // Carried guest requests in flight or waiting.
    uint32_t guests;
    // Passes over the dirty chunks that have begun.
    uint64_t passes;
    // Background reads of the source.
    mirror_counter reads;
    // Background writes to the target.
    mirror_counter writes;
    // Background zeroes.
    mirror_counter zeroes;
    // Background discards.
    mirror_counter discards;
    // Flushes of the target.
    mirror_counter flushes;
    // Guest writes, zeroes and discards that were carried to the target.
    mirror_counter active;
    // Bytes of zeroes that were not sent because the target reads zero there.
    uint64_t skipped_zeroes;
    // Guest writes, zeroes and discards that ended, well or not, while the job had its filter. `active.ops` are those that
    // were carried.
    uint64_t guest_writes;
    // Failures that were told.
    uint64_t errors;
    // Events that nobody read in time.
    uint64_t events_dropped;
    // Bytes per second that guests make dirty, over the last seconds.
    uint64_t dirty_rate;
    // Bytes per second that are copied, over the last seconds.
    uint64_t copy_rate;
    // Nanoseconds until nothing is dirty, at these rates; `MIRROR_NEVER` if the guest is faster.
    uint64_t eta_ns;
    // Bytes in a chunk.
    uint64_t granularity;
    // Copies of guest data that were made meanwhile: of carried writes without `MIRROR_WRITE_STABLE`, and where a device
    // wants its memory better aligned than the guest's.
    uint64_t bounce_copies;
    // Copies that the target made by itself.
    mirror_counter copies;
} mirror_job_info;

// Something that happened to a job. Set `struct_size` before `mirror_job_next_event` fills in the rest; fields that a
// type doesn't name are 0.
typedef struct {
    // `sizeof(mirror_event)`.
    size_t struct_size;
    // What happened: `MIRROR_EVENT_`.
    uint32_t type;
    // `MIRROR_EVENT_STATUS`: the new state, `MIRROR_STATUS_`.
    uint32_t status;
    // `MIRROR_EVENT_COMPLETED`, `_CANCELLED`: how the job ended, 0 or `-errno`. `MIRROR_EVENT_ERROR`: how the request
    // failed, `-errno`.
    int result;
    // `MIRROR_EVENT_ERROR`: what was asked for, `MIRROR_OP_`.
    uint32_t operation;
    // `MIRROR_EVENT_ERROR`: of which device, `MIRROR_SIDE_`.
    uint32_t side;
    // `MIRROR_EVENT_ERROR`: what is done about it, `MIRROR_ACTION_`.
    uint32_t action;
    // `MIRROR_EVENT_ERROR`: where, in bytes.
    uint64_t offset;
    // `MIRROR_EVENT_ERROR`: how much, in bytes.
    uint64_t length;
} mirror_event;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library that runs, as `MIRROR_VERSION` is that of the header. Any thread.
uint32_t mirror_version(void);

// The version of the library that runs, as text: "0.1.0". Static. Any thread.
const char *mirror_version_string(void);

// Nanoseconds on this process's monotonic clock, for a host that has no clock of its own to pass to
// `mirror_job_poll`. On WebAssembly, which imports no clock, it is always 0. Any thread.
uint64_t mirror_clock_ns(void);

// What was wrong with this thread's last call that failed: the name of the function, and the value and the rule
// that it broke. Empty if none has failed; a call that succeeds leaves it.
//
// The text is the library's, good until this thread's next call that fails. Any thread.
const char *mirror_last_error(void);

// Sends the library's messages to `log`, of this level and the more important ones: `MIRROR_LOG_ERROR` to
// `MIRROR_LOG_TRACE`. NULL, or `MIRROR_LOG_OFF`, sends them nowhere, as it is at first.
//
// There is one sink in a process. `log` gets `opaque`, the level and one line of text that is good during the call;
// it is called from whichever thread has something to say, several at once, never with a lock held, and may call the
// library (what that logs is not told). `closed`, if it isn't NULL, is called with `opaque` exactly once: when another
// sink has taken its place and no call of `log` is running, or when this call fails.
//
// Any thread. 0; `-EINVAL` for an unknown level; `-EBUSY` if the process is a Rust program with a logger of its own.
int mirror_set_log(void (*log)(void *opaque, uint32_t level, const char *message),
                   void *opaque,
                   uint32_t level,
                   void (*closed)(void *opaque));

// Makes a device of a host's callbacks, which get `opaque`. `ops` and `limits` are copied.
//
// `ops->close` is called exactly once: when neither a handle nor a filter nor a job uses the device any more, or when
// this call fails. Only if `ops` is NULL or its `struct_size` is refused is nothing taken, because then nothing of it
// can be read.
//
// 0, and `*out` is to be freed with `mirror_device_free`; `-EINVAL` for a missing `read` or `write`, a limit that makes
// no sense, or an unknown flag.
int mirror_device_new(const mirror_device_ops *ops,
                      const mirror_device_limits *limits,
                      void *opaque,
                      mirror_device **out);

// Opens a regular file or a block device. `flags`: `MIRROR_OPEN_`.
//
// With `MIRROR_OPEN_CREATE` a missing file is created, and an empty one gets `create_length` bytes; a file that has a
// length keeps it. Without that flag `create_length` must be 0. Two devices that are the same file are known to be.
//
// Requests are carried out through io_uring where the kernel allows it, else by threads that the device starts when there
// is something to do; `mirror_device_engine` tells. A completion callback may be called from within the call that
// submits the request, or from a thread of the device's.
//
// 0, and `*out` is to be freed with `mirror_device_free`; `-errno` of the operating system; `-EOPNOTSUPP` where the
// library was built without files.
int mirror_device_open_file(const char *path,
                            uint32_t flags,
                            uint64_t create_length,
                            mirror_device **out);

// Makes a device of `length` bytes in memory, all zero; pages take room when they are first written.
//
// 0, and `*out` is to be freed with `mirror_device_free`; `-ENOMEM`.
int mirror_device_new_memory(uint64_t length, mirror_device **out);

// Makes a device of `length` bytes that succeeds at once at everything and keeps nothing, for measuring the rest.
// `flags`: `MIRROR_NULL_`.
//
// 0, and `*out` is to be freed with `mirror_device_free`.
int mirror_device_new_null(uint64_t length, uint32_t flags, mirror_device **out);

// Reports the outcome of a request that was answered with `MIRROR_PENDING`: 0 or `-errno`; anything else counts as
// `-EIO`. Any thread, also from inside a callback. What waited for it may go on from inside this call: a guest's `done` may be
// called, and the `close` of a device that nobody uses any more. A thread that is inside a device's callback holds up the
// switch of its filter until that returns, so nothing that is called from there may wait for a job to be over.
//
// 0; `-ENOENT` if no request with this token is out (it was completed before, or the job that sent it is gone), which
// is counted, logged and otherwise harmless.
int mirror_device_complete(mirror_device *device,
                           uint64_t token,
                           int result);

// Tells what the next `length` bytes of an extents request hold, before it is completed. `flags`: `MIRROR_EXTENT_`.
//
// `MIRROR_EXTENT_DATA` and `MIRROR_EXTENT_ZERO` say what a read of the device finds, whichever layer it comes from;
// `MIRROR_EXTENT_ALLOCATED` that it comes from this layer, above the base: that is what a job copies with
// `MIRROR_SYNC_TOP`. So an overlay tells data of its backing as `MIRROR_EXTENT_DATA` alone. Neither data nor zero is what
// no layer holds, which a copy may discard; if it is allocated it counts as data. Any thread.
//
// 0, or 1 if that is enough for one answer: what follows will be asked for again, so complete the request. `-ENOENT` if no
// such request is out; `-EINVAL` for length 0 or an unknown flag.
int mirror_device_extent(mirror_device *device,
                         uint64_t token,
                         uint64_t length,
                         uint32_t flags);

// Says that a device that answered `MIRROR_AGAIN` may have room: what waits is offered again from inside this call. A
// completion implies it. Any thread.
int mirror_device_kick(mirror_device *device);

// Fills in the device's length, which changes only when a job grows it, and its limits as they are used: a 0 that meant
// "no limit" is replaced by the most that is ever sent. Any thread.
int mirror_device_query(const mirror_device *device, mirror_device_limits *limits);

// Stores a word for what carries out the device's requests: of a file "io_uring" or "threads"; NULL where there is no
// choice. The word lives as long as the library. Any thread.
int mirror_device_engine(const mirror_device *device, const char **engine);

// Stores how many completions were refused so far: second ones, stale ones, and such of tokens that were never given
// out. Any thread.
int mirror_device_refused(const mirror_device *device, uint64_t *count);

// Whether two handles are of the same storage: the same device, or the same file behind two. 1 or 0. Any thread.
int mirror_device_same(const mirror_device *device, const mirror_device *other);

// Frees a handle. The device lives on while a filter or a job uses it. NULL is allowed.
//
// The handle that `mirror_device_new` gave is the one that requests are completed with. When it is freed, what is out
// fails with `-ECANCELED`, and so does what the device answers with `MIRROR_PENDING` or `MIRROR_AGAIN` later; so free it
// after the filters and jobs, unless all that the device does is finished inline. Its callbacks must have stopped using
// the memory of requests that are out.
//
// Any thread. A handle that was freed before is recognised, as a rule, and logged.
void mirror_device_free(mirror_device *device);

// Judges a host's device: sends it requests as filters and jobs do, at and within its limits, and tells each rule that it
// breaks. **What the device holds is lost.**
//
// Tried are reads and writes of every length, at the ends and from odd lists of buffers; overlapping requests, many at a
// time and from several threads; zeroes, discards, flushes and FUA; extents against what is read; completions, AGAIN, the
// `cancel` and the `poll` hook; and what the limits promise: that it reads as zero, only if nothing was written through it
// before. The device must be a scratch device that no filter or job uses. If it has `truncate` it is grown by a few
// kilobytes and asked to shrink again; if it is read-only it must refuse a write. Callbacks are called from this thread
// and for a moment from four others; `ops->poll` is called while this waits.
//
// `finding`, if it isn't NULL, is called for each finding when it is made, with `opaque`, from this thread; of each rule a
// few at most. What comes first matters most: what comes later may be damage from it.
//
// A device that lets this wait for `timeout_ns` is told so; at the third time the check gives up. The memory of a request
// that is never completed stays with the device until that is gone: such a device must have let go of it when its handle
// is freed.
//
// The number of findings, 0 for a device that conforms. `-EINVAL` without `MIRROR_CHECK_DESTROY` and for options that make
// no sense; `-EBUSY` if a filter or a job uses the device, or an earlier check has requests out; `-ENOMEM`. Any thread.
int mirror_device_check(mirror_device *device,
                        const mirror_check_options *options,
                        void (*finding)(void *opaque, const mirror_check_finding *finding),
                        void *opaque);

// Makes a filter on `source`, to which it keeps a reference.
//
// 0, and `*out` is to be freed with `mirror_filter_free`.
int mirror_filter_new(mirror_device *source, mirror_filter **out);

// As `mirror_filter_new`, for a guest whose requests are multiples of `alignment`, a power of two up to 65536, where the
// source itself asks for less: choose the target's, and a mirror to it needs no smaller chunks than it can write.
int mirror_filter_new_aligned(mirror_device *source,
                              uint32_t alignment,
                              mirror_filter **out);

// A guest's read of as many bytes as the buffers hold. `flags`: none yet, 0.
//
// 0, and `done(opaque, result)` follows; `-EINVAL` for a bad argument, a misaligned range or more than `MIRROR_IOV_MAX`
// buffers; `-ERANGE` beyond the end.
int mirror_filter_read(mirror_filter *filter,
                       uint64_t offset,
                       const mirror_iovec *iov,
                       size_t iovcnt,
                       uint32_t flags,
                       void (*done)(void *opaque, int result),
                       void *opaque);

// A guest's write of the buffers. `flags`: `MIRROR_FUA`, `MIRROR_WRITE_STABLE`.
//
// While a job carries writes, it is done when it is done on both sides; its result is the source's alone. A guest may
// change the buffers meanwhile, unless `MIRROR_WRITE_STABLE` promises that it won't. Results as of
// `mirror_filter_read`.
int mirror_filter_write(mirror_filter *filter,
                        uint64_t offset,
                        const mirror_iovec *iov,
                        size_t iovcnt,
                        uint32_t flags,
                        void (*done)(void *opaque, int result),
                        void *opaque);

// A guest's wish that `length` bytes read as zero. `flags`: `MIRROR_MAY_UNMAP`, `MIRROR_FUA`. Results as of
// `mirror_filter_read`.
int mirror_filter_zero(mirror_filter *filter,
                       uint64_t offset,
                       uint64_t length,
                       uint32_t flags,
                       void (*done)(void *opaque, int result),
                       void *opaque);

// A guest's hint that it doesn't need what `length` bytes hold. Results as of `mirror_filter_read`.
int mirror_filter_discard(mirror_filter *filter,
                          uint64_t offset,
                          uint64_t length,
                          void (*done)(void *opaque, int result),
                          void *opaque);

// A guest's wish that what it was told is done be durable. Results as of `mirror_filter_read`.
int mirror_filter_flush(mirror_filter *filter, void (*done)(void *opaque, int result), void *opaque);

// A guest's question what `length` bytes hold, for hosts that pass it on (NBD's block status, SCSI's logical block
// status). The answer is of the device that the filter is on; a write that runs meanwhile may be in it or not.
//
// `extents` has room for `capacity` of them, at least one; more than 1024 are never told. When `done` is called with 0,
// `*count` and as many of `extents` have been filled in: from `offset` on, none empty and no two neighbours alike. They
// reach the end of the range unless there is no room for more: then ask again from where they end. A device that doesn't
// tell has one extent of data. Both belong to the request until `done`. Results as of `mirror_filter_read`.
int mirror_filter_extents(mirror_filter *filter,
                          uint64_t offset,
                          uint64_t length,
                          mirror_extent *extents,
                          size_t capacity,
                          size_t *count,
                          void (*done)(void *opaque, int result),
                          void *opaque);

// Announces a request that the host will carry out by itself, on the filter's current device: `kind` is
// `MIRROR_OP_READ`, `_WRITE`, `_ZERO`, `_DISCARD` or `_FLUSH` (whose range is 0, 0). For hosts that have an I/O path of
// their own; `mirror_filter_end` with the ticket follows when it is done.
//
// 0, and `*ticket` is set; `MIRROR_AGAIN` while the gate is closed for the switch: the hook of
// `mirror_filter_set_opened` says when to try again, on the device that `mirror_filter_device` names then;
// `-EOPNOTSUPP` while a job carries writes, which needs their data.
int mirror_filter_begin(mirror_filter *filter, uint32_t kind, uint64_t offset, uint64_t length, uint64_t *ticket);

// Ends a request that `mirror_filter_begin` announced, with its result, 0 or `-errno`, before the guest is told.
//
// 0; `-ENOENT` if no request with this ticket is under way.
int mirror_filter_end(mirror_filter *filter, uint64_t ticket, int result);

// Marks a range as changed behind the filter's back, so that the mirror copies it again. Call it after the change.
//
// Unlike `mirror_filter_begin` it holds up no switch: what is marked once the job is pending is not copied any more. A
// host that changes the device while a job may finish announces it with `mirror_filter_begin`.
//
// 0, also without a job; `-EINVAL` or `-ERANGE` for a range that isn't on the device.
int mirror_filter_mark_dirty(mirror_filter *filter, uint64_t offset, uint64_t length);

// Gives a new handle to the device that the filter is on now: the source, and after the switch the target. Compare it
// with `mirror_device_same`. To be freed with `mirror_device_free`, which cancels nothing.
int mirror_filter_device(const mirror_filter *filter, mirror_device **out);

// Stores the length of the disk in bytes.
int mirror_filter_length(const mirror_filter *filter, uint64_t *length);

// Sets what is called, with `opaque`, when the gate opens again after `mirror_filter_begin` answered `MIRROR_AGAIN`. It
// may be called from any thread and may call the library. NULL takes it away.
//
// `closed`, if it isn't NULL, is called with `opaque` exactly once: when another hook has taken this one's place or the
// filter is gone, and it isn't running; or when this call fails.
int mirror_filter_set_opened(mirror_filter *filter,
                             void (*opened)(void *opaque),
                             void *opaque,
                             void (*closed)(void *opaque));

// Frees a handle. A job keeps its filter, and requests that are under way are finished; those that
// `mirror_filter_begin` announced can't be ended any more and count as ended once the filter has no job. NULL is
// allowed; a handle that was freed before is recognised, as a rule, and logged. Any thread.
void mirror_filter_free(mirror_filter *filter);

// Sets the defaults. `struct_size` is `sizeof(mirror_job_options)`, so that a newer library doesn't write beyond what an
// older host has room for.
//
// 0; `-EINVAL` for NULL or a size that is none.
int mirror_job_options_init(mirror_job_options *options,
                            size_t struct_size);

// The word for a `MIRROR_STATUS_`: "running"; "unknown" for any other number. Static. Any thread.
const char *mirror_status_name(uint32_t status);

// The word for a `MIRROR_EVENT_`: "ready"; "unknown" for any other number. Static. Any thread.
const char *mirror_event_name(uint32_t event_type);

// The word for a `MIRROR_OP_`: "write"; "unknown" for any other number. Static. Any thread.
const char *mirror_operation_name(uint32_t operation);

// Makes a job in state created: from now on guest writes are tracked. NULL `options` are the defaults. The job keeps
// the filter and the target, whose handles can be freed.
//
// `options->closed` is called exactly once: when the job is gone, or when this call fails. Only if the `struct_size` of
// `options` is refused is nothing taken, because then nothing of them can be read.
//
// 0, and `*out` is to be freed with `mirror_job_free`; `-EINVAL` for an option that makes no sense, for a target that is
// the source, and for `replaces` that is the job's own filter, sits on the target or has another length; `-EROFS` for a
// read-only target; `-EBUSY` if the filter, or the one to be replaced, has a job, or if requests of a job that was freed
// are still out at the target: complete those first; `-EEXIST` if the id is taken; `-EOPNOTSUPP` to carry the writes of a
// filter that is used with `mirror_filter_begin`; `-ENOMEM`. `mirror_last_error` names the option, its value and the rule.
int mirror_job_new(mirror_filter *filter,
                   mirror_device *target,
                   const mirror_job_options *options,
                   mirror_job **out);

// Starts the job: created → running. The work is done by `mirror_job_poll`. What is wrong with the two devices together,
// such as different lengths, ends the job, whose result says it.
//
// Created. 0; `-EPERM` in another state. Any thread.
int mirror_job_start(mirror_job *job);

// Drives the job: takes what was completed, starts what can be started, and calls the devices' callbacks and the
// `prepare` hook. It does a bounded amount of work and doesn't wait.
//
// `now_ns` is the time in nanoseconds on any clock that doesn't go back: `mirror_clock_ns`, or the host's own. If
// `wake_at_ns` isn't NULL, the time at which to call again, if nothing happens before, is stored there; `MIRROR_NEVER`
// if there is none.
//
// `MIRROR_POLL_IDLE`: wait for `mirror_job_fd` or `wake`, or for `*wake_at_ns`. `MIRROR_POLL_BUSY`: call again soon.
// `MIRROR_POLL_CONCLUDED`: the job is over and has left its filter and its devices; until a poll says so the guest's
// requests may still wait, whatever `mirror_job_query` tells. `-EBUSY` while another thread is in it, or from inside a
// callback of whoever drives the job; a thread that drives it for `MIRROR_JOB_INLINE` is no hindrance, it goes on with
// what is to be done.
//
// Any state. After an internal failure the job is over with `-ENOTRECOVERABLE` as its result, and the guest's I/O goes on.
int mirror_job_poll(mirror_job *job,
                    uint64_t now_ns,
                    uint64_t *wake_at_ns);

// A descriptor that is readable when `mirror_job_poll` is worth calling; poll resets it. It is the job's: don't read or
// close it. Linux; `-EOPNOTSUPP` elsewhere, where `wake` is for that.
int mirror_job_fd(mirror_job *job);

// Stops background operations; the state is paused, or standby, once none is in flight. Carried guest writes go on.
//
// Created, running, ready. 0, and the pause takes hold in a later poll; `-EPERM` in another state, or if it is paused by
// this function or by an error. Any thread.
int mirror_job_pause(mirror_job *job);

// Lifts a pause by `mirror_job_pause` or by an error, whose requests are tried again.
//
// Wherever the job is paused, or about to be. 0; `-EPERM` if it isn't. Any thread.
int mirror_job_resume(mirror_job *job);

// Pauses for the host's own reasons, on top of any other pause: background operations stop, and once none is in flight
// (`in_flight_ops` of `mirror_job_query` is 0) the job does nothing to its devices but carry guest writes. For hosts that
// want the devices for themselves for a while. It nests, and `mirror_job_resume` doesn't lift it: as many calls of
// `mirror_job_drain_end` do. A job that is cancelled by force ends all the same.
//
// Any state; where nothing runs any more it has no effect. 0. Any thread; it doesn't wait.
int mirror_job_drain_begin(mirror_job *job);

// Ends one `mirror_job_drain_begin`. The job goes on when no pause is left.
//
// Any state. 0; `-EPERM` if none is open. Any thread.
int mirror_job_drain_end(mirror_job *job);

// Finishes: makes source and target equal, holds guest requests back for a moment, calls `prepare`, and switches the
// filter to the target.
//
// Ready, standby. 0, a second time too; `-EPERM` in another state, or if it is being cancelled. Any thread.
int mirror_job_complete(mirror_job *job);

// Leaves the state pending, for a job without `MIRROR_JOB_AUTO_FINALIZE`; the next polls call `prepare` and switch the
// filter. Guest requests wait until then: call it as soon as the PENDING event is seen.
//
// Pending. 0; `-EPERM` in another state. Any thread.
int mirror_job_finalize(mirror_job *job);

// Leaves the state concluded, for a job without `MIRROR_JOB_AUTO_DISMISS`: its result has been read. It is still to be
// freed.
//
// Concluded. 0; `-EPERM` in another state. Any thread.
int mirror_job_dismiss(mirror_job *job);

// Ends the job without the switch.
//
// Once it is ready and without `force` it finishes well: the target is an equal copy of the source at one point in time,
// and the result is 0. Before that, or with `force`, it stops as soon as what is in flight is done, and the result is
// `-ECANCELED`; the target's `cancel` callback is called so that it hurries. A force can't be taken back. A pause by an
// error is lifted.
//
// From created to pending. 0; `-EPERM` in another state, without `force` while `mirror_job_pause` holds the job, and once
// it is being switched. Any thread.
int mirror_job_cancel(mirror_job *job,
                      bool force);

// Changes the rate limit of background copies, in bytes per second, at once. 0 is no limit. Guest writes that are carried
// are not limited.
//
// From created to standby. 0; `-EPERM` in another state. Any thread.
int mirror_job_set_speed(mirror_job *job,
                         uint64_t bytes_per_second);

// Changes how guest writes reach the target: `MIRROR_COPY_`. Guest requests that were accepted before keep the way that
// they are on; `actively_synced` of `mirror_job_query` says when source and target are equal in write-blocking mode.
//
// From created to standby, before it finishes. 0; `-EPERM` in another state, or once it is finishing; `-EINVAL` for an unknown mode; `-EOPNOTSUPP` for a job that commits, and to carry the writes of a filter that is
// used with `mirror_filter_begin`. Any thread.
int mirror_job_change(mirror_job *job,
                      uint32_t copy_mode);

// Fills in a snapshot. Cheap. Any thread, any state.
int mirror_job_query(const mirror_job *job, mirror_job_info *info);

// Takes the oldest event that was not read. Events are kept in order, up to 256 of them; READY, PENDING, COMPLETED and
// CANCELLED are never dropped.
//
// 1, and `*event` is filled in; 0 if there is none. Any thread.
int mirror_job_next_event(mirror_job *job, mirror_event *event);

// Frees a job, in any state. NULL is allowed.
//
// One that isn't over is cancelled by force and nobody waits for it: its filter passes requests through from now on,
// guest requests that it had are finished, and its hooks are called no more. A hook that another thread is in, or about
// to call, is not waited for: `closed` says when `opaque` is not used any more. What its devices still do for it goes
// on: the buffers stay until those requests are completed.
//
// 0; `-EBUSY`, and the handle stays good, while a poll of this job runs, and from inside a callback of whoever drives it;
// `-EINVAL` for what is no job or was freed before.
int mirror_job_free(mirror_job *job);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* BLKMIRROR_H */
