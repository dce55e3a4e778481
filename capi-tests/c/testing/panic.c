/* SPEC E-3: a panic inside the library ends the job, not the process. The guest's I/O goes on, its requests that the job
 * had are told, the filter can have another job, and everything can be freed. Needs a library built for tests. */
#include "../disk.h"

enum { LENGTH = 256 * 1024, CHUNK = 4096 };

int mirror_testing_device_new_defective(uint64_t length, uint64_t requests, mirror_device **out);

static int closed;
static void note(void *opaque) { (void)opaque, closed++; }

/* The job is over by its own fault, and says so everywhere. */
static void is_poisoned(mirror_job *job) {
    mirror_job_info now = info(job);
    eq(now.status, MIRROR_STATUS_CONCLUDED);
    eq(now.result, -ENOTRECOVERABLE);
    has(now.message, "a defect in the library");
    eq(now.guests, 0);
    int result = 0;
    for (mirror_event event = {.struct_size = sizeof event}; ok(mirror_job_next_event(job, &event)) == 1;)
        if (event.type == MIRROR_EVENT_COMPLETED)
            result = event.result;
    eq(result, -ENOTRECOVERABLE);
    eq(mirror_job_poll(job, UINT64_MAX - 1, NULL), MIRROR_POLL_CONCLUDED);
    err(EPERM, "cannot accept command verb", mirror_job_pause(job));
    err(EPERM, "cannot accept command verb", mirror_job_complete(job));
    err(EPERM, "cannot accept command verb", mirror_job_cancel(job, true));
}

/* Guests read and write as before, and another job copies the disk. */
static void the_filter_is_as_good_as_new(disk *source, mirror_filter *filter) {
    guest_write(filter, CHUNK, 0x77, 2 * CHUNK);
    eq(source->bytes[CHUNK], 0x77);
    disk *target = disk_new(LENGTH, INLINE, 0);
    mirror_job *job;
    ok(mirror_job_new(filter, target->device, NULL, &job));
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_READY);
    ok(mirror_job_complete(job));
    drive(job, MIRROR_STATUS_NULL);
    eq(info(job).result, 0);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);
    guest_write(filter, 0, 0x78, 512);
    eq(target->bytes[0], 0x78);
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(target);
}

/* It fails after so many requests to the target: in the copy, or in the flush before ready. */
static void in_the_background(uint64_t requests, uint32_t flags) {
    disk *source = disk_new(LENGTH, INLINE, 1);
    mirror_device *target;
    mirror_filter *filter;
    mirror_job *job;
    mirror_job_options o = options();
    o.closed = note, o.flags ^= flags, o.max_io = o.buf_size = 16 * CHUNK;
    ok(mirror_testing_device_new_defective(LENGTH, requests, &target));
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target, &o, &job));
    ok(mirror_job_start(job));
    guest_write(filter, 0, 0x55, 512);
    drive(job, MIRROR_STATUS_CONCLUDED);
    is_poisoned(job);
    int before = closed;
    ok(mirror_job_free(job));
    eq(closed, before + 1);
    mirror_device_free(target);
    the_filter_is_as_good_as_new(source, filter);
    disk_free(source);
}

/* It fails under a guest's write, which the source may have already, or have refused for want of room. */
static void under_a_guest(enum answer answer, size_t depth, uint32_t flags) {
    disk *source = disk_new(LENGTH, INLINE, 0);
    mirror_device *target;
    mirror_filter *filter;
    mirror_job *job;
    mirror_job_options o = options();
    o.closed = note, o.flags ^= flags, o.copy_mode = MIRROR_COPY_WRITE_BLOCKING;
    o.sync = MIRROR_SYNC_NONE; /* ready at once: the only requests are two flushes at most, and the guest's */
    ok(mirror_testing_device_new_defective(LENGTH, 1, &target));
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target, &o, &job));
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_READY);
    source->answer = answer, source->depth = depth;
    uint8_t bytes[3][CHUNK];
    outcome outcomes[3] = {{0, 1}, {0, 1}, {0, 1}};
    for (int i = 0; i < 3; i++) {
        mirror_iovec iov = {memset(bytes[i], 0x60 + i, CHUNK), CHUNK};
        ok(mirror_filter_write(filter, (uint64_t)i * CHUNK, &iov, 1, 0, tell, &outcomes[i]));
    }
    drive(job, MIRROR_STATUS_CONCLUDED);
    for (int i = 0; i < 1000 && !(told(&outcomes[0]) && told(&outcomes[1]) && told(&outcomes[2])); i++)
        disk_finish(source, 0), ok(mirror_job_poll(job, UINT64_MAX - 2, NULL));
    for (int i = 0; i < 3; i++) {
        eq(told(&outcomes[i]), 1);
        eq(outcomes[i].result, 0);
        eq(source->bytes[i * CHUNK], 0x60 + i);
    }
    is_poisoned(job);
    int before = closed;
    ok(mirror_job_free(job));
    eq(closed, before + 1);
    mirror_device_free(target);
    source->answer = INLINE, source->depth = 0;
    the_filter_is_as_good_as_new(source, filter);
    disk_free(source);
}

int main(void) {
    for (uint64_t requests = 0; requests < 5; requests++) {
        in_the_background(requests, 0);
        in_the_background(requests, MIRROR_JOB_INLINE);
    }
    for (uint32_t flags = 0; flags <= MIRROR_JOB_INLINE; flags += MIRROR_JOB_INLINE) {
        under_a_guest(INLINE, 0, flags);
        under_a_guest(EARLY, 0, flags);
        under_a_guest(LATER, 0, flags);
        under_a_guest(LATER, 1, flags);
    }
    return done();
}
