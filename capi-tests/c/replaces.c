/* SPEC F-3, O-6: another filter is drained and switched to the target instead of the job's own. */
#include "disk.h"

enum { LENGTH = 1024 * 1024 };

typedef struct { mirror_filter *own, *other; mirror_job *job; outcome at_own, at_other; int answer; } host;

static uint8_t bytes[2][512];

/* Both wait at their gates while the hook runs. */
static int prepare(void *opaque, const mirror_prepare_info *told_info) {
    host *h = opaque;
    (void)told_info;
    mirror_iovec iov[2] = {{memset(bytes[0], 0xa1, 512), 512}, {memset(bytes[1], 0xb2, 512), 512}};
    ok(mirror_filter_write(h->own, 0, &iov[0], 1, 0, tell, &h->at_own));
    ok(mirror_filter_write(h->other, 0, &iov[1], 1, 0, tell, &h->at_other));
    eq(told(&h->at_own) + told(&h->at_other), 0);
    return h->answer;
}

static bool is_on(mirror_filter *filter, disk *d) {
    mirror_device *now;
    ok(mirror_filter_device(filter, &now));
    int same = ok(mirror_device_same(now, d->device));
    mirror_device_free(now);
    return same;
}

static void replace(int answer, uint32_t flags) {
    disk *source = disk_new(LENGTH, INLINE, 3), *target = disk_new(LENGTH, INLINE, 0), *old = disk_new(LENGTH, INLINE, 9);
    host h = {.answer = answer};
    ok(mirror_filter_new(source->device, &h.own));
    ok(mirror_filter_new(old->device, &h.other));
    mirror_job_options o = options();
    o.replaces = h.other;
    o.flags |= flags;
    o.prepare = prepare, o.opaque = &h;
    ok(mirror_job_new(h.own, target->device, &o, &h.job));
    ok(mirror_job_start(h.job));
    guest_write(h.other, 4096, 0x55, 512); /* not marked: it isn't what is copied */
    eq(info(h.job).guest_writes, 0);
    if (!(flags & MIRROR_JOB_AUTO_COMPLETE)) {
        drive(h.job, MIRROR_STATUS_READY);
        ok(mirror_job_complete(h.job));
    }
    drive(h.job, MIRROR_STATUS_NULL);
    eq(step(h.job), MIRROR_POLL_CONCLUDED);
    eq(info(h.job).result, answer);
    eq(told(&h.at_own) + told(&h.at_other), 2);
    eq(h.at_own.result | h.at_other.result, 0);
    check(is_on(h.own, source));
    check(is_on(h.other, answer ? old : target));
    eq(source->bytes[0], 0xa1);
    eq((answer ? old : target)->bytes[0], 0xb2);
    check(memcmp(source->bytes + 512, target->bytes + 512, LENGTH - 512) == 0);
    check(old->bytes[4096] == 0x55 && target->bytes[4096] != 0x55);
    ok(mirror_job_free(h.job));
    mirror_filter_free(h.own), mirror_filter_free(h.other);
    disk_free(source), disk_free(target), disk_free(old);
}

static void refused(void) {
    disk *source = disk_new(LENGTH, INLINE, 3), *target = disk_new(LENGTH, INLINE, 0);
    disk *old = disk_new(LENGTH, INLINE, 9), *spare = disk_new(LENGTH, INLINE, 0), *longer = disk_new(2 * LENGTH, INLINE, 0);
    mirror_filter *own, *other, *on_target, *on_longer;
    mirror_job *job = NULL, *busy;
    ok(mirror_filter_new(source->device, &own));
    ok(mirror_filter_new(old->device, &other));
    ok(mirror_filter_new(target->device, &on_target));
    ok(mirror_filter_new(longer->device, &on_longer));
    mirror_job_options o = options();
    o.replaces = own;
    err(EINVAL, "replaces: is the job's own filter", mirror_job_new(own, target->device, &o, &job));
    o.replaces = on_target;
    err(EINVAL, "replaces: ", mirror_job_new(own, target->device, &o, &job));
    o.replaces = on_longer;
    err(EINVAL, "replaces: that filter has 2097152 bytes, the target 1048576", mirror_job_new(own, target->device, &o, &job));
    o.replaces = other;
    ok(mirror_job_new(other, spare->device, NULL, &busy));
    err(EBUSY, "replaces: that filter has a job", mirror_job_new(own, target->device, &o, &job));
    ok(mirror_job_free(busy));
    check(job == NULL);
    ok(mirror_job_new(own, target->device, &o, &job)); /* nothing was left behind */
    err(EBUSY, "the filter has a job", mirror_job_new(other, spare->device, NULL, &busy));
    ok(mirror_job_free(job));
    ok(mirror_job_new(other, spare->device, NULL, &busy));
    ok(mirror_job_free(busy));
    mirror_filter_free(own), mirror_filter_free(other), mirror_filter_free(on_target), mirror_filter_free(on_longer);
    disk_free(source), disk_free(target), disk_free(old), disk_free(spare), disk_free(longer);
}

int main(void) {
    replace(0, 0);
    replace(0, MIRROR_JOB_AUTO_COMPLETE);
    replace(-EACCES, 0);
    refused();
    return done();
}
