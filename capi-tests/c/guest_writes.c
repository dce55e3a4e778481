/* A guest that writes all the while loses nothing, in either mode, across the switch. */
#include "disk.h"

enum { LENGTH = 2 * 1024 * 1024, WRITES = 1000 };

static uint64_t next_random(void) {
    static uint64_t x = 88172645463325252ull;
    return x ^= x << 13, x ^= x >> 7, x ^= x << 17;
}

static void mirror(uint32_t copy_mode) {
    disk *source = disk_new(LENGTH, LATER, 6), *target = disk_new(LENGTH, LATER, 0);
    uint8_t *model = memcpy(malloc(LENGTH), source->bytes, LENGTH), *bytes = malloc(20000);
    mirror_filter *filter;
    mirror_job *job;
    mirror_job_options o = options();
    o.copy_mode = copy_mode;
    o.max_io = 32768;
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, &o, &job));
    ok(mirror_job_start(job));
    outcome write = {1, 0};
    int writes = 0, over = 0, completed = 0, after = 0;
    for (int steps = 0; !over || !told(&write) || after < 50; steps++) {
        check(steps < 2000000);
        if (told(&write)) {
            eq(write.result, 0);
            size_t length = 1 + next_random() % 20000, offset = next_random() % (LENGTH - length + 1);
            memset(bytes, (int)(next_random() | 1), length);
            memcpy(model + offset, bytes, length);
            mirror_iovec iov[2] = {{bytes, length / 3}, {bytes + length / 3, length - length / 3}};
            write.calls = 0;
            ok(mirror_filter_write(filter, offset, iov, 2, 0, tell, &write));
            writes++, after += over;
        }
        if (!over)
            step(job);
        /* Disks that keep up with the guest, or a job in background mode would never be ready. */
        for (int i = 0; i < 8; i++)
            disk_finish(source, 0), disk_finish(target, 0);
        mirror_job_info i = info(job);
        if (i.ready && !completed && writes > WRITES)
            completed = ok(mirror_job_complete(job)) == 0;
        over = i.status == MIRROR_STATUS_NULL;
    }
    eq(info(job).result, 0);
    check(memcmp(target->bytes, model, LENGTH) == 0);
    check(memcmp(source->bytes, model, LENGTH) != 0); /* the last ones went to the target alone */
    if (copy_mode == MIRROR_COPY_WRITE_BLOCKING)
        check(info(job).active.ops > 100);
    else
        eq(info(job).active.ops, 0);
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(source), disk_free(target);
    free(model), free(bytes);
}

int main(void) {
    mirror(MIRROR_COPY_WRITE_BLOCKING);
    mirror(MIRROR_COPY_BACKGROUND);
    return done();
}
