/* SPEC D-1 to D-6: a host's device is judged, and each broken rule is named. */
#include "disk.h"

enum { LENGTH = 512 * 1024 + 77 };

typedef struct judgement {
    int findings;
    char rules[1024], first[512];
    mirror_check_finding last;
} judgement;

static void note(void *opaque, const mirror_check_finding *finding) {
    judgement *j = opaque;
    check(finding->struct_size == sizeof *finding);
    check(finding->spec[0] == 'D' && finding->text[0] && finding->asked[0] && finding->expected[0] && finding->came[0]);
    has(finding->line, finding->rule);
    if (j->findings++ == 0)
        snprintf(j->first, sizeof j->first, "%s", finding->line);
    if (!strstr(j->rules, finding->rule))
        strncat(strncat(j->rules, finding->rule, sizeof j->rules - strlen(j->rules) - 2), " ", 2);
    j->last = *finding;
}

static mirror_check_options scratch(void) {
    return (mirror_check_options){
        .struct_size = sizeof(mirror_check_options), .flags = MIRROR_CHECK_DESTROY, .timeout_ns = 300 * 1000 * 1000};
}

/* The rules that it breaks, each followed by a blank. */
static judgement judge(disk *d) {
    judgement j = {0};
    mirror_check_options o = scratch();
    int findings = ok(mirror_device_check(d->device, &o, note, &j));
    eq(findings, j.findings);
    return j;
}

static void breaks(disk *d, const char *rules) {
    judgement j = judge(d);
    if (strcmp(j.rules, rules))
        FAIL("'%s' instead of '%s': %s", j.rules, rules, j.first);
    disk_free(d);
}

static void honest_devices_conform(void) {
    breaks(disk_new(LENGTH, INLINE, 0), "");
    breaks(disk_new(LENGTH, EARLY, 0), "");
    mirror_device_limits limits = {
        .length = LENGTH, .request_alignment = 512, .memory_alignment = 512, .max_iov = 5, .max_transfer = 8192};
    breaks(disk_new_with(disk_ops(), limits, INLINE, 3), "");
    mirror_device *built_in;
    mirror_check_options o = scratch();
    o.timeout_ns = 0;
    ok(mirror_device_new_memory(LENGTH, &built_in));
    eq(ok(mirror_device_check(built_in, &o, NULL, NULL)), 0);
    mirror_device_free(built_in);
}

static void other_threads_and_again_conform(void) {
    disk *d = disk_new(LENGTH, LATER, 0);
    pthread_t workers[2];
    d->depth = 1;
    for (int i = 0; i < 2; i++)
        pthread_create(&workers[i], NULL, disk_worker, d);
    mirror_check_options o = scratch();
    o.timeout_ns = 0; /* threads take what time they take */
    eq(ok(mirror_device_check(d->device, &o, note, &(judgement){0})), 0);
    check(d->again > 0);
    check(d->cancelled > 0);
    for (int i = 0; i < 2; i++)
        disk_stop(d, workers[i]);
    disk_free(d);
}

static int poll_disk(void *opaque) {
    while (disk_finish(opaque, 0))
        ;
    return 0;
}

static void a_device_without_a_thread_is_polled(void) {
    mirror_device_ops ops = disk_ops();
    ops.poll = poll_disk;
    breaks(disk_new_with(ops, (mirror_device_limits){.length = LENGTH}, LATER, 0), "");
}

static int write_too_little(void *d, uint64_t token, uint64_t offset, uint64_t length, const mirror_iovec *iov, size_t n,
                            uint32_t flags) {
    uint8_t *last = ((disk *)d)->bytes + offset + length - 1, before = *last;
    int answer = disk_write(d, token, offset, length, iov, n, flags);
    *last = before;
    return answer;
}

static int zero_too_much(void *d, uint64_t token, uint64_t offset, uint64_t length, uint32_t flags) {
    if (offset > 0)
        ((disk *)d)->bytes[offset - 1] = 0;
    return disk_zero(d, token, offset, length, flags);
}

static int flush_twice(void *d, uint64_t token) {
    ok(mirror_device_complete(((disk *)d)->device, token, 0));
    check(mirror_device_complete(((disk *)d)->device, token, 0) == -ENOENT);
    return MIRROR_PENDING;
}

static int flush_never(void *d, uint64_t token) {
    (void)d, (void)token;
    return MIRROR_PENDING;
}

static int flush_nonsense(void *d, uint64_t token) {
    (void)d, (void)token;
    return 7;
}

static int flush_again(void *d, uint64_t token) {
    (void)d, (void)token;
    return MIRROR_AGAIN;
}

static int extents_of_nothing(void *d, uint64_t token, uint64_t offset, uint64_t length) {
    (void)offset;
    check(mirror_device_extent(((disk *)d)->device, token, 0, MIRROR_EXTENT_DATA) == -EINVAL);
    mirror_device_extent(((disk *)d)->device, token, length, MIRROR_EXTENT_DATA | MIRROR_EXTENT_ALLOCATED);
    return MIRROR_DONE;
}

static int extents_that_lie(void *d, uint64_t token, uint64_t offset, uint64_t length) {
    (void)offset;
    ok(mirror_device_extent(((disk *)d)->device, token, length, MIRROR_EXTENT_ZERO));
    return MIRROR_DONE;
}

static disk *with(mirror_device_ops ops) { return disk_new_with(ops, (mirror_device_limits){.length = LENGTH}, INLINE, 0); }

static void broken_devices_are_told_what_they_break(void) {
    mirror_device_ops ops = disk_ops();
    ops.write = write_too_little;
    breaks(with(ops), "write-stores ");
    ops = disk_ops(), ops.zero = zero_too_much;
    breaks(with(ops), "zero-keeps-to-range ");
    ops = disk_ops(), ops.flush = flush_twice;
    breaks(with(ops), "completes-once ");
    ops = disk_ops(), ops.flush = flush_never;
    breaks(with(ops), "answers ");
    ops = disk_ops(), ops.flush = flush_nonsense;
    breaks(with(ops), "flush-keeps ");
    ops = disk_ops(), ops.flush = flush_again;
    breaks(with(ops), "again-is-taken ");
    ops = disk_ops(), ops.extents = extents_of_nothing;
    breaks(with(ops), "extents-length ");
    ops = disk_ops(), ops.extents = extents_that_lie;
    breaks(with(ops), "extents-truthful ");
    mirror_device_limits limits = {.length = LENGTH, .flags = MIRROR_LIMIT_READS_ZERO};
    breaks(disk_new_with(disk_ops(), limits, INLINE, 1), "reads-zero ");
}

static void a_finding_has_its_request(void) {
    mirror_device_ops ops = disk_ops();
    ops.zero = zero_too_much;
    disk *d = with(ops);
    judgement j = judge(d);
    eq(j.last.operation, MIRROR_OP_ZERO);
    check(j.last.length > 0 && j.last.offset + j.last.length <= LENGTH);
    has(j.first, "D-1 zero-keeps-to-range: zero of ");
    disk_free(d);
}

static void what_makes_no_sense_is_refused(void) {
    disk *d = disk_new(LENGTH, INLINE, 5);
    uint8_t first = d->bytes[0];
    mirror_check_options o = scratch();
    err(EINVAL, "handle is NULL", mirror_device_check(NULL, &o, NULL, NULL));
    err(EINVAL, "mirror_check_options is NULL", mirror_device_check(d->device, NULL, NULL, NULL));
    o.flags = 0;
    err(EINVAL, "MIRROR_CHECK_DESTROY must be set", mirror_device_check(d->device, &o, NULL, NULL));
    o.flags = MIRROR_CHECK_DESTROY | 2;
    err(EINVAL, "the bits 0x2 are unknown", mirror_device_check(d->device, &o, NULL, NULL));
    o = scratch(), o.reserved = 1;
    err(EINVAL, "reserved 1: must be 0", mirror_device_check(d->device, &o, NULL, NULL));
    o = scratch(), o.max_bytes = 4096;
    err(EINVAL, "max_bytes 4096: must be 0 or at least", mirror_device_check(d->device, &o, NULL, NULL));
    mirror_filter *filter;
    o = scratch();
    ok(mirror_filter_new(d->device, &filter));
    err(EBUSY, "used by a filter or a job", mirror_device_check(d->device, &o, NULL, NULL));
    mirror_filter_free(filter);
    eq(d->bytes[0], first);
    eq(ok(mirror_device_check(d->device, &o, NULL, NULL)), 0);
    check(d->bytes[0] != first || d->bytes[1] != (uint8_t)(31 + 5));
    disk_free(d);
}

int main(void) {
    honest_devices_conform();
    other_threads_and_again_conform();
    a_device_without_a_thread_is_polled();
    broken_devices_are_told_what_they_break();
    a_finding_has_its_request();
    what_makes_no_sense_is_refused();
    return done();
}
