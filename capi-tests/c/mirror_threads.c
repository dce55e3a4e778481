/* Each device finishes its requests on a thread of its own. */
#include "disk.h"

enum { LENGTH = 8 * 1024 * 1024 };

int main(void) {
    disk *source = disk_new(LENGTH, LATER, 2), *target = disk_new(LENGTH, LATER, 0);
    pthread_t workers[2];
    pthread_create(&workers[0], NULL, disk_worker, source);
    pthread_create(&workers[1], NULL, disk_worker, target);
    mirror_filter *filter;
    mirror_job *job;
    mirror_job_options o = options();
    o.max_io = 65536;
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, &o, &job));
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_READY);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);
    check(target->count[MIRROR_OP_WRITE] >= LENGTH / 65536);
    check(target->longest <= 65536);

    ok(mirror_job_complete(job));
    drive(job, MIRROR_STATUS_NULL);
    eq(info(job).result, 0);
    check(target->count[MIRROR_OP_FLUSH] > 0);

    uint8_t bytes[512];
    mirror_iovec iov = {bytes, sizeof bytes};
    outcome read = {0, 1};
    ok(mirror_filter_read(filter, 4096, &iov, 1, 0, tell, &read));
    while (!told(&read))
        sched_yield();
    eq(read.result, 0);
    check(memcmp(bytes, target->bytes + 4096, sizeof bytes) == 0);

    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_stop(source, workers[0]);
    disk_stop(target, workers[1]);
    disk_free(source);
    disk_free(target);
    return done();
}
