/* SPEC G-9, F-2, L-5: what a host does from inside the callbacks that a guest's request makes, and what waits for them. */
#include "disk.h"

enum { LENGTH = 1024 * 1024, BLOCK = 4096 };

static mirror_filter *filter;
static mirror_job *job, *second;
static disk *source, *target, *other;
static int held, go_on;
static uint8_t block[BLOCK];
static const mirror_iovec iov = {block, BLOCK};

static void raise_flag(int *flag) { __atomic_store_n(flag, 1, __ATOMIC_RELEASE); }
static bool is_up(int *flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE); }

static mirror_job *started(mirror_device *to, uint32_t sync) {
    mirror_job *made;
    mirror_job_options o = options();
    o.sync = sync, o.flags &= ~MIRROR_JOB_AUTO_DISMISS;
    ok(mirror_job_new(filter, to, &o, &made));
    ok(mirror_job_start(made));
    return made;
}

static void begin(enum answer answer) {
    source = disk_new(LENGTH, answer, 3), target = disk_new(LENGTH, INLINE, 0), other = disk_new(LENGTH, INLINE, 0);
    held = go_on = 0;
    ok(mirror_filter_new(source->device, &filter));
}

static void end(void) {
    mirror_job_free(job), mirror_job_free(second), mirror_filter_free(filter);
    job = second = NULL, filter = NULL;
    disk_free(source), disk_free(target), disk_free(other);
}

/* The device keeps the guest's thread, with its request done or not. */
static int hold_read(void *opaque, uint64_t token, uint64_t offset, uint64_t length, const mirror_iovec *v, size_t n) {
    int answer = disk_read(opaque, token, offset, length, v, n);
    if (pthread_equal(pthread_self(), *(pthread_t *)((disk *)opaque)->user))
        for (raise_flag(&held); !is_up(&go_on);)
            sched_yield();
    return answer;
}

static void *guest_reads(void *opaque) {
    pthread_t self = pthread_self();
    source->user = &self;
    ok(mirror_filter_read(filter, 0, &iov, 1, 0, tell, opaque));
    return NULL;
}

/* A filter is not switched before the old device has let everybody go, and the job is told of it. */
static void switch_waits_for_threads(enum answer answer) {
    outcome first = {0, 1}, waits = {0, 1};
    pthread_t guest;
    begin(answer);
    mirror_filter_free(filter), disk_free(source);
    mirror_device_ops ops = disk_ops();
    ops.read = hold_read;
    source = disk_new_with(ops, (mirror_device_limits){.length = LENGTH}, answer, 3);
    source->user = &(pthread_t){0};
    ok(mirror_filter_new(source->device, &filter));
    job = started(target->device, MIRROR_SYNC_FULL);
    drive(job, MIRROR_STATUS_READY);
    pthread_create(&guest, NULL, guest_reads, &first);
    while (!is_up(&held))
        sched_yield();
    eq(told(&first), answer == EARLY);
    ok(mirror_job_complete(job));
    for (int i = 0; i < 50; i++)
        step(job);
    eq(info(job).status, MIRROR_STATUS_READY);
    ok(mirror_filter_write(filter, 0, &iov, 1, 0, tell, &waits));
    eq(told(&waits), 0);
    while (step(job) != MIRROR_POLL_IDLE) {
    }
    raise_flag(&go_on);
    pthread_join(guest, NULL);
    eq(told(&first), 1);
    struct pollfd fd = {.fd = ok(mirror_job_fd(job)), .events = POLLIN};
    eq(poll(&fd, 1, 10000), 1);
    drive(job, MIRROR_STATUS_CONCLUDED);
    eq(info(job).result, 0);
    eq(told(&waits), 1);
    eq(source->count[MIRROR_OP_WRITE], 0);
    check(memcmp(target->bytes, block, BLOCK) == 0);
    end();
}

/* The write that is under way belongs to the job that is there when it ends. */
static void replace_job(disk *d, const request *r) {
    if (r->op != MIRROR_OP_WRITE)
        return;
    d->on_request = NULL;
    ok(mirror_job_free(job));
    job = started(other->device, MIRROR_SYNC_NONE);
}

static void job_is_replaced_under_a_write(enum answer answer) {
    begin(answer);
    job = started(target->device, MIRROR_SYNC_FULL);
    drive(job, MIRROR_STATUS_READY);
    source->on_request = replace_job;
    guest_write(filter, 8 * BLOCK, 0x5a, BLOCK);
    drive(job, MIRROR_STATUS_READY);
    eq(info(job).dirty, 0);
    check(memcmp(other->bytes + 8 * BLOCK, source->bytes + 8 * BLOCK, BLOCK) == 0);
    eq(other->count[MIRROR_OP_WRITE], 1);
    end();
}

/* The filter's last handle goes in a callback of its device. */
static void free_filter(disk *d, const request *r) {
    (void)r;
    d->on_request = NULL;
    mirror_filter_free(filter);
    filter = NULL;
}

static void filter_goes_under_its_own_request(void) {
    begin(INLINE);
    outcome o = {0, 1};
    source->on_request = free_filter;
    ok(mirror_filter_write(filter, 0, &iov, 1, 0, tell, &o));
    eq(told(&o), 1);
    eq(o.result, 0);
    end();
}

/* A device that asks its own filter, and drives its job, before it answers. */
static outcome nested;

static void submit_again(disk *d, const request *r) {
    if (r->op != MIRROR_OP_WRITE)
        return;
    d->on_request = NULL;
    ok(mirror_filter_write(filter, 4 * BLOCK, &iov, 1, 0, tell, &nested));
    eq(told(&nested), 1);
    for (int i = 0; i < 20; i++)
        step(job);
    eq(info(job).status, MIRROR_STATUS_READY); /* completing, and this thread is inside */
}

static void device_goes_through_its_own_filter(void) {
    begin(INLINE);
    job = started(target->device, MIRROR_SYNC_FULL);
    drive(job, MIRROR_STATUS_READY);
    source->on_request = submit_again;
    ok(mirror_job_complete(job));
    memset(block, 0x77, BLOCK);
    guest_write(filter, 0, 0x66, BLOCK);
    drive(job, MIRROR_STATUS_CONCLUDED);
    eq(info(job).result, 0);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);
    check(source->bytes[0] == 0x66 && source->bytes[4 * BLOCK] == 0x77);
    end();
}

int main(void) {
    switch_waits_for_threads(INLINE);
    switch_waits_for_threads(EARLY);
    job_is_replaced_under_a_write(INLINE);
    job_is_replaced_under_a_write(EARLY);
    filter_goes_under_its_own_request();
    device_goes_through_its_own_filter();
    return done();
}
