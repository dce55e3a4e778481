/* NULL for whatever is not allowed to be is refused and named; NULL is freed. */
#include "disk.h"

#define NO(call) err(EINVAL, "NULL", call)

int main(void) {
    disk *d = disk_new(65536, INLINE, 0), *t = disk_new(65536, INLINE, 0);
    mirror_device_limits limits = {.struct_size = sizeof limits, .length = 4096};
    mirror_device_ops ops = disk_ops();
    mirror_device *device;
    mirror_filter *filter, *nofilter = NULL;
    mirror_job *job, *nojob = NULL;
    mirror_event event = {.struct_size = sizeof event};
    mirror_job_info snapshot = {.struct_size = sizeof snapshot};
    mirror_iovec iov = {NULL, 512};
    uint64_t number;
    const char *word;
    ops.close = NULL;
    ok(mirror_filter_new(d->device, &filter));
    ok(mirror_job_new(filter, t->device, NULL, &job));

    NO(mirror_device_new(NULL, &limits, NULL, &device));
    NO(mirror_device_new(&ops, NULL, NULL, &device));
    NO(mirror_device_new(&ops, &limits, NULL, NULL));
    NO(mirror_device_open_file(NULL, 0, 0, &device));
    NO(mirror_device_open_file("x", 0, 0, NULL));
    NO(mirror_device_new_memory(512, NULL));
    NO(mirror_device_new_null(512, 0, NULL));
    NO(mirror_device_complete(NULL, 1, 0));
    NO(mirror_device_extent(NULL, 1, 1, 0));
    NO(mirror_device_kick(NULL));
    NO(mirror_device_query(NULL, &limits));
    NO(mirror_device_query(d->device, NULL));
    NO(mirror_device_refused(NULL, &number));
    NO(mirror_device_refused(d->device, NULL));
    NO(mirror_device_engine(NULL, &word));
    NO(mirror_device_engine(d->device, NULL));
    NO(mirror_device_same(NULL, d->device));
    NO(mirror_device_same(d->device, NULL));
    NO(mirror_filter_new(NULL, &nofilter));
    NO(mirror_filter_new(d->device, NULL));
    NO(mirror_filter_new_aligned(NULL, 512, &nofilter));
    NO(mirror_filter_new_aligned(d->device, 512, NULL));
    NO(mirror_filter_read(NULL, 0, NULL, 0, 0, tell, NULL));
    NO(mirror_filter_read(filter, 0, NULL, 1, 0, tell, NULL));
    NO(mirror_filter_read(filter, 0, &iov, 1, 0, tell, NULL));
    NO(mirror_filter_write(NULL, 0, NULL, 0, 0, tell, NULL));
    NO(mirror_filter_write(filter, 0, NULL, 1, 0, tell, NULL));
    NO(mirror_filter_write(filter, 0, &iov, 1, 0, tell, NULL));
    NO(mirror_filter_write(filter, 0, NULL, 0, 0, NULL, NULL));
    NO(mirror_filter_zero(NULL, 0, 512, 0, tell, NULL));
    NO(mirror_filter_zero(filter, 0, 512, 0, NULL, NULL));
    NO(mirror_filter_discard(NULL, 0, 512, tell, NULL));
    NO(mirror_filter_discard(filter, 0, 512, NULL, NULL));
    NO(mirror_filter_flush(NULL, tell, NULL));
    NO(mirror_filter_flush(filter, NULL, NULL));
    NO(mirror_filter_begin(NULL, MIRROR_OP_WRITE, 0, 512, &number));
    NO(mirror_filter_begin(filter, MIRROR_OP_WRITE, 0, 512, NULL));
    NO(mirror_filter_end(NULL, 1, 0));
    NO(mirror_filter_mark_dirty(NULL, 0, 512));
    NO(mirror_filter_device(NULL, &device));
    NO(mirror_filter_device(filter, NULL));
    NO(mirror_filter_length(NULL, &number));
    NO(mirror_filter_length(filter, NULL));
    NO(mirror_filter_set_opened(NULL, NULL, NULL, NULL));
    NO(mirror_job_options_init(NULL, sizeof(mirror_job_options)));
    NO(mirror_job_new(NULL, t->device, NULL, &nojob));
    NO(mirror_job_new(filter, NULL, NULL, &nojob));
    NO(mirror_job_new(filter, t->device, NULL, NULL));
    NO(mirror_job_start(NULL));
    NO(mirror_job_poll(NULL, 0, &number));
    NO(mirror_job_fd(NULL));
    NO(mirror_job_pause(NULL));
    NO(mirror_job_resume(NULL));
    NO(mirror_job_drain_begin(NULL));
    NO(mirror_job_drain_end(NULL));
    NO(mirror_job_complete(NULL));
    NO(mirror_job_finalize(NULL));
    NO(mirror_job_dismiss(NULL));
    NO(mirror_job_cancel(NULL, true));
    NO(mirror_job_set_speed(NULL, 0));
    NO(mirror_job_change(NULL, 0));
    NO(mirror_job_query(NULL, &snapshot));
    NO(mirror_job_query(job, NULL));
    NO(mirror_job_next_event(NULL, &event));
    NO(mirror_job_next_event(job, NULL));
    check(nofilter == NULL && nojob == NULL);

    ok(mirror_set_log(NULL, NULL, 0, NULL));
    ok(mirror_filter_set_opened(filter, NULL, NULL, NULL));
    ok(mirror_job_poll(job, 1, NULL));
    ok(mirror_job_next_event(job, &event)); /* the refused call did not take it */
    eq(event.type, MIRROR_EVENT_STATUS);
    mirror_device_free(NULL);
    mirror_filter_free(NULL);
    ok(mirror_job_free(NULL));
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(d);
    disk_free(t);
    return done();
}
