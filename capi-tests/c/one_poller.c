/* One thread polls. Others that drive beside it are no hindrance; a callback can neither poll the job nor free it. */
#include "disk.h"

enum { LENGTH = 4 * 1024 * 1024 };

static mirror_job *job;
static int reaped, asked_for_time;

static int reap(void *opaque) {
    (void)opaque;
    if (job && !reaped++) {
        err(EBUSY, "polled", mirror_job_poll(job, 1, NULL));
        err(EBUSY, "polled", mirror_job_free(job));
    }
    return 0;
}

static void from_a_callback(disk *d, const request *r) {
    (void)d, (void)r;
    if (job && !asked_for_time++) {
        err(EBUSY, "polled", mirror_job_poll(job, 1, NULL));
        err(EBUSY, "polled", mirror_job_free(job));
    }
}

static void callbacks_are_turned_away(void) {
    mirror_device_ops ops = disk_ops();
    ops.poll = reap;
    disk *source = disk_new_with(ops, (mirror_device_limits){.length = LENGTH}, INLINE, 1);
    disk *target = disk_new(LENGTH, INLINE, 0);
    mirror_filter *filter;
    source->on_request = from_a_callback;
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, NULL, &job));
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_READY);
    check(reaped > 0 && asked_for_time > 0);
    ok(mirror_job_free(job));
    job = NULL;
    mirror_filter_free(filter);
    disk_free(source);
    disk_free(target);
}

/* The loop of the header, while two threads complete requests and drive the job. */
static void the_documented_loop_goes_on_beside_others(void) {
    disk *source = disk_new(LENGTH, LATER, 1), *target = disk_new(LENGTH, LATER, 0);
    mirror_filter *filter;
    mirror_job *job;
    mirror_job_options o = options();
    pthread_t workers[2];
    ok(pthread_create(&workers[0], NULL, disk_worker, source));
    ok(pthread_create(&workers[1], NULL, disk_worker, target));
    o.flags |= MIRROR_JOB_INLINE | MIRROR_JOB_AUTO_COMPLETE;
    o.max_io = 16384;
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, &o, &job));
    ok(mirror_job_start(job));
    for (;;) {
        uint64_t wake_at;
        int state = ok(mirror_job_poll(job, mirror_clock_ns(), &wake_at));
        if (state == MIRROR_POLL_CONCLUDED)
            break;
        if (state == MIRROR_POLL_IDLE)
            poll(&(struct pollfd){.fd = mirror_job_fd(job), .events = POLLIN}, 1, 1000);
    }
    eq(info(job).result, 0);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);
    ok(mirror_job_free(job));
    disk_stop(source, workers[0]);
    disk_stop(target, workers[1]);
    mirror_filter_free(filter);
    disk_free(source);
    disk_free(target);
}

int main(void) {
    callbacks_are_turned_away();
    for (int i = 0; i < 10; i++)
        the_documented_loop_goes_on_beside_others();
    return done();
}
