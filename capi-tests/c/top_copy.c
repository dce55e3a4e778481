/* SPEC I-4, F-4: an overlay is copied without what its base holds; the prepare hook gives the copy that base. */
#include "overlay.h"

enum { LENGTH = 40 * CLUSTER + 1536 };

typedef struct { overlay *target; disk *base; int calls; mirror_prepare_info told; } attachment;

static int attach(void *opaque, const mirror_prepare_info *info) {
    attachment *a = opaque;
    a->calls++;
    a->told = *info;
    eq(info->struct_size, sizeof *info);
    /* What was written in part before had nothing to be filled from: each cluster was copied whole. */
    eq(a->target->partial, 0);
    a->target->backing = a->base;
    return 0;
}

static void copy(uint32_t copy_mode, uint64_t granularity) {
    disk *base = disk_new(LENGTH, INLINE, 8);
    overlay *source = overlay_new(base, LENGTH, 0);
    overlay *target = overlay_new(NULL, LENGTH, MIRROR_LIMIT_UNATTACHED_BACKING);
    attachment a = {.target = target, .base = base};
    mirror_filter *filter;
    mirror_job *job;
    ok(mirror_filter_new(source->device, &filter));
    guest_write(filter, 3 * CLUSTER + 100, 0x33, 1000); /* part of a cluster, the rest of which comes from the base */
    guest_write(filter, 10 * CLUSTER, 0x44, 3 * CLUSTER);

    mirror_job_options o = options();
    o.sync = MIRROR_SYNC_TOP;
    o.copy_mode = copy_mode;
    o.granularity = granularity;
    o.prepare = attach, o.opaque = &a;
    ok(mirror_job_new(filter, target->device, &o, &job));
    ok(mirror_job_start(job));
    for (int i = 0; i < 5 && info(job).status == MIRROR_STATUS_RUNNING; i++) {
        step(job);
        if (copy_mode == MIRROR_COPY_BACKGROUND)
            guest_write(filter, (uint64_t)i * 5 * CLUSTER + 4000, (uint8_t)(0x50 + i), 2000);
    }
    drive(job, MIRROR_STATUS_READY);
    if (copy_mode == MIRROR_COPY_WRITE_BLOCKING) {
        outcome write = {0, 1};
        uint8_t bytes[5000];
        memset(bytes, 0x66, sizeof bytes);
        mirror_iovec iov = {bytes, sizeof bytes};
        ok(mirror_filter_write(filter, 30 * CLUSTER + 777, &iov, 1, 0, tell, &write));
        while (!told(&write))
            step(job);
        eq(write.result, 0);
    }
    eq(a.calls, 0);
    ok(mirror_job_complete(job));
    drive(job, MIRROR_STATUS_NULL);
    eq(info(job).result, 0);
    eq(a.calls, 1);
    eq(a.told.sync, MIRROR_SYNC_TOP);
    eq(a.told.backing_mode, MIRROR_BACKING_SOURCE_CHAIN);

    int allocated = 0;
    for (uint64_t cluster = 0; cluster * CLUSTER < LENGTH; cluster++) {
        /* All of the top layer, and no more than its chunks. */
        check(target->own[cluster] || !source->own[cluster]);
        if (granularity <= CLUSTER && target->own[cluster] != source->own[cluster])
            FAIL("granularity %" PRIu64 ": cluster %" PRIu64 " is of the base", granularity, cluster);
        allocated += target->own[cluster];
    }
    check(allocated >= 4 && allocated < 30);
    for (uint64_t at = 0; at < LENGTH; at++)
        if (overlay_byte(source, at) != overlay_byte(target, at))
            FAIL("they differ at %" PRIu64, at);
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    overlay_free(source), overlay_free(target);
    disk_free(base);
}

int main(void) {
    copy(MIRROR_COPY_BACKGROUND, 4096);
    copy(MIRROR_COPY_BACKGROUND, CLUSTER);
    copy(MIRROR_COPY_BACKGROUND, 4 * CLUSTER);
    copy(MIRROR_COPY_WRITE_BLOCKING, 4096);
    return done();
}
