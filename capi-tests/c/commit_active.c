/* SPEC F-7, I-2, F-6: what an overlay holds is merged down into its base, which grows if it is shorter; the guest then sits
 * on the base. */
#include "overlay.h"

enum { LENGTH = 20 * CLUSTER, SHORT = 12 * CLUSTER + 512 };

static int truncations, refusals;

static int grow(void *opaque, uint64_t token, uint64_t length) {
    disk *base = opaque;
    (void)token;
    truncations++;
    if (refusals > 0)
        return refusals--, -ENOSPC;
    base->bytes = realloc(base->bytes, length);
    memset(base->bytes + base->length, 0, length - base->length);
    base->length = length;
    return MIRROR_DONE;
}

static int discard(void *opaque, uint64_t token, uint64_t offset, uint64_t length) {
    return disk_submit(opaque, (request){token, offset, length, MIRROR_OP_DISCARD, 0, 0, NULL});
}

static disk *base_of(uint64_t length, bool grows) {
    mirror_device_ops ops = disk_ops();
    ops.truncate = grows ? grow : NULL;
    ops.discard = discard;
    /* That zeroing is cheap must not lead to the base being zeroed first: the overlay shows what it holds. */
    return disk_new_with(ops, (mirror_device_limits){.length = length, .flags = MIRROR_LIMIT_CHEAP_ZERO}, INLINE, 5);
}

static mirror_job_options commit(void) {
    mirror_job_options o = options();
    o.kind = MIRROR_KIND_COMMIT_ACTIVE;
    o.id = "commit";
    return o;
}

static void merge(uint64_t base_length, uint64_t granularity) {
    disk *base = base_of(base_length, true);
    overlay *top = overlay_new(base, LENGTH, 0);
    mirror_filter *filter;
    mirror_job *job;
    ok(mirror_filter_new(top->device, &filter));
    guest_write(filter, 2 * CLUSTER + 5000, 0x22, 100);
    guest_write(filter, 15 * CLUSTER, 0x77, CLUSTER);
    uint8_t *before = malloc(LENGTH);
    for (uint64_t at = 0; at < LENGTH; at++)
        before[at] = overlay_byte(top, at);

    truncations = 0;
    mirror_job_options o = commit();
    o.granularity = granularity;
    o.on_target_error = MIRROR_ON_ERROR_STOP;
    ok(mirror_job_new(filter, base->device, &o, &job));
    eq(info(job).kind, MIRROR_KIND_COMMIT_ACTIVE);
    ok(mirror_job_start(job));
    if (refusals > 0) {
        drive(job, MIRROR_STATUS_PAUSED);
        eq(info(job).io_status, MIRROR_IO_NOSPACE);
        ok(mirror_job_resume(job));
    }
    drive(job, MIRROR_STATUS_READY);
    err(EOPNOTSUPP, "Job 'commit' commits an active layer: its copy mode can't be changed",
        mirror_job_change(job, MIRROR_COPY_WRITE_BLOCKING));
    guest_write(filter, 19 * CLUSTER + 100, 0x99, 200), memset(before + 19 * CLUSTER + 100, 0x99, 200);
    ok(mirror_filter_mark_dirty(filter, 7 * CLUSTER, 100)); /* of which the overlay holds nothing */
    ok(mirror_job_complete(job));
    drive(job, MIRROR_STATUS_NULL);
    eq(info(job).result, 0);
    eq(truncations > 0, base_length < LENGTH);
    check(base->length >= LENGTH);
    for (uint64_t at = 0; at < LENGTH; at++)
        if (base->bytes[at] != before[at])
            FAIL("granularity %" PRIu64 ": the base has %x at %" PRIu64 ", not %x", granularity, base->bytes[at], at, before[at]);

    guest_write(filter, 0, 0xab, 512); /* the guest sits on the base */
    eq(base->bytes[0], 0xab);
    check(!top->own[0]);
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    overlay_free(top);
    disk_free(base);
    free(before);
}

static void refused(void) {
    disk *base = base_of(SHORT, false);
    overlay *top = overlay_new(base, LENGTH, 0);
    mirror_filter *filter;
    mirror_job *job = NULL;
    mirror_job_options o = commit();
    ok(mirror_filter_new(top->device, &filter));
    o.sync = MIRROR_SYNC_NONE;
    err(EINVAL, "sync NONE: must be TOP for a commit", mirror_job_new(filter, base->device, &o, &job));
    o.sync = MIRROR_SYNC_TOP;
    ok(mirror_job_new(filter, base->device, &o, &job));
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_NULL);
    eq(info(job).result, -EINVAL);
    has(info(job).message, "the base can't be grown");
    ok(mirror_job_free(job));

    o.kind = MIRROR_KIND_MIRROR; /* which has no use for another length */
    ok(mirror_job_new(filter, base->device, &o, &job));
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_NULL);
    eq(info(job).result, -EINVAL);
    has(info(job).message, "Source and target have different sizes");
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    overlay_free(top);
    disk_free(base);
}

int main(void) {
    merge(LENGTH, 0);
    merge(LENGTH, 4 * CLUSTER);
    merge(SHORT, 0);
    merge(LENGTH + CLUSTER, 0); /* a longer base is not shrunk */
    refusals = 1;
    merge(SHORT, 512);
    refused();
    return done();
}
