/* SPEC O-2, O-5, O-6: each option that makes no sense is refused with its name, its value and the rule. */
#include "disk.h"

static mirror_filter *filter;
static mirror_device *target;

#define REFUSED(change, number, text)                                                    \
    do {                                                                                 \
        mirror_job_options o = options();                                                \
        mirror_job *job = NULL;                                                          \
        o.change;                                                                        \
        err(number, "mirror_job_new: " text, mirror_job_new(filter, target, &o, &job));  \
        check(job == NULL);                                                              \
    } while (0)

int main(void) {
    disk *d = disk_new(65536, INLINE, 0), *t = disk_new(65536, INLINE, 0), *longer = disk_new(131072, INLINE, 0);
    mirror_device_limits strict = {.length = 65536, .flags = MIRROR_LIMIT_READ_ONLY};
    disk *fixed = disk_new_with(disk_ops(), strict, INLINE, 0);
    mirror_filter *other;
    mirror_job *job = NULL, *second = NULL;
    ok(mirror_filter_new(d->device, &filter));
    ok(mirror_filter_new(longer->device, &other));
    target = t->device;
    char name[200];
    memset(name, 'a', 199);
    name[199] = 0;

    REFUSED(granularity = 3000, EINVAL, "granularity 3000: must be a power of two from 512 to 67108864");
    REFUSED(granularity = 256, EINVAL, "granularity 256: must be");
    REFUSED(granularity = 1ull << 27, EINVAL, "granularity 134217728: must be");
    REFUSED(buf_size = UINT64_MAX, EINVAL, "buf_size 18446744073709551615: must be at most 4294967296");
    REFUSED(max_in_flight = 1025, EINVAL, "max_in_flight 1025: must be at most 1024");
    REFUSED(max_io = 100, EINVAL, "max_io 100: must be 0 or at least 512");
    REFUSED(guest_first_io = 1, EINVAL, "guest_first_io 1: must be 0 or at least 512");
    REFUSED(guest_first_in_flight = 9999, EINVAL, "guest_first_in_flight 9999: must be at most 1024");
    REFUSED(kind = 2, EINVAL, "kind 2: must be MIRROR_KIND_MIRROR (0), MIRROR_KIND_COMMIT_ACTIVE (1)");
    REFUSED(sync = 77, EINVAL, "sync 77: must be MIRROR_SYNC_FULL (0)");
    REFUSED(copy_mode = 2, EINVAL, "copy_mode 2: must be MIRROR_COPY_BACKGROUND (0)");
    REFUSED(backing_mode = 3, EINVAL, "backing_mode 3: must be MIRROR_BACKING_SOURCE_CHAIN (0)");
    REFUSED(on_source_error = 5, EINVAL, "on_source_error 5: must be MIRROR_ON_ERROR_REPORT (0)");
    REFUSED(on_target_error = UINT32_MAX, EINVAL, "on_target_error 4294967295: must be");
    REFUSED(flags = 0x80000001, EINVAL, "flags 0x80000001: the bits 0x80000000 are unknown");
    REFUSED(reserved = 1, EINVAL, "reserved 1: must be 0");
    REFUSED(id = "", EINVAL, "id '': must be a letter");
    REFUSED(id = "1st", EINVAL, "id '1st': must be a letter");
    REFUSED(id = "a b", EINVAL, "id 'a b': must be a letter");
    REFUSED(id = "a\xff", EINVAL, "id is not UTF-8");
    REFUSED(id = name, ENAMETOOLONG, "id of 199 characters: must be at most 127");
    REFUSED(replaces = other, EINVAL, "replaces: ");
    REFUSED(replaces = (mirror_filter *)target, EINVAL, "replaces: the mirror_filter handle is a mirror_device");

    err(EINVAL, "target: is the source itself", mirror_job_new(filter, d->device, NULL, &job));
    err(EROFS, "target: is read-only", mirror_job_new(filter, fixed->device, NULL, &job));
    check(job == NULL);
    mirror_job_options o = options();
    o.id = "only-one";
    ok(mirror_job_new(filter, target, &o, &job));
    check(strcmp(info(job).id, "only-one") == 0);
    err(EBUSY, "has a job", mirror_job_new(filter, target, NULL, &second));
    err(EEXIST, "id 'only-one'", mirror_job_new(other, target, &o, &second));
    check(second == NULL);
    err(EINVAL, "copy_mode 9: must be", mirror_job_change(job, 9));
    ok(mirror_job_free(job));
    ok(mirror_job_new(filter, target, &o, &job)); /* nothing was left behind */
    ok(mirror_job_free(job));
    mirror_filter_free(filter), mirror_filter_free(other);
    disk_free(d), disk_free(t), disk_free(longer), disk_free(fixed);
    return done();
}
