/* The log sink is called without a lock, also on threads of the library's own, so it may ask about the job that failed. */
#include "disk.h"
#include <time.h>
#include <unistd.h>

enum { LENGTH = 4 * 1024 * 1024 };

static mirror_job *job;
static int told_failures, told_starts;

static void sink(void *opaque, uint32_t level, const char *text) {
    (void)opaque;
    if (strstr(text, "failed")) {
        eq(level, MIRROR_LOG_WARN);
        check(info(job).errors > 0);
        __atomic_fetch_add(&told_failures, 1, __ATOMIC_RELEASE);
    }
    if (strstr(text, "' is running")) {
        eq(level, MIRROR_LOG_INFO);
        __atomic_fetch_add(&told_starts, 1, __ATOMIC_RELEASE);
    }
}

int main(void) {
    char path[] = "/tmp/blkmirror-XXXXXX";
    int fd = mkstemp(path);
    check(fd >= 0);
    static char bytes[LENGTH];
    memset(bytes, 7, sizeof bytes);
    eq(write(fd, bytes, sizeof bytes), LENGTH);
    mirror_device *source, *target;
    mirror_filter *filter;
    ok(mirror_device_open_file(path, 0, 0, &source));
    ok(mirror_device_new_memory(LENGTH, &target));
    ok(mirror_filter_new(source, &filter));
    eq(ftruncate(fd, 4096), 0); /* reads beyond it fail, on the device's threads, which then drive the job */
    mirror_job_options o = options();
    o.flags |= MIRROR_JOB_INLINE;
    ok(mirror_job_new(filter, target, &o, &job));
    ok(mirror_set_log(sink, NULL, MIRROR_LOG_INFO, NULL));
    ok(mirror_job_start(job));
    ok(mirror_job_poll(job, mirror_clock_ns(), NULL));
    eq(__atomic_load_n(&told_starts, __ATOMIC_ACQUIRE), 1);
    /* From here on only those threads drive. */
    struct timespec moment = {0, 1000000};
    for (int i = 0; i < 20000 && __atomic_load_n(&told_failures, __ATOMIC_ACQUIRE) == 0; i++)
        nanosleep(&moment, NULL);
    check(told_failures > 0);
    drive(job, MIRROR_STATUS_NULL);
    eq(info(job).result, -EIO);
    ok(mirror_job_free(job));
    ok(mirror_set_log(NULL, NULL, MIRROR_LOG_OFF, NULL));
    mirror_filter_free(filter);
    mirror_device_free(source);
    mirror_device_free(target);
    close(fd);
    unlink(path);
    return done();
}
