/* A host's device in memory, in every way of answering, and the loop that drives a job. */
#ifndef DISK_H
#define DISK_H

#include "harness.h"
#include <poll.h>
#include <pthread.h>

enum answer {
    INLINE, /* done in the callback */
    EARLY,  /* completed in the callback, which answers PENDING then */
    LATER,  /* PENDING; the test or a worker finishes what is in the queue */
};

typedef struct request {
    uint64_t token, offset, length;
    uint32_t op, flags;
    size_t iovcnt;
    mirror_iovec *iov;
} request;

typedef struct disk {
    mirror_device *device;
    uint8_t *bytes;
    uint64_t length;
    enum answer answer;
    size_t depth;                /* AGAIN beyond so many requests in the queue; 0: never */
    int fail_op, fail, failures; /* what operation `fail_op` answers, so many times */
    int closed, cancelled, count[8];
    int again;
    uint64_t longest;
    pthread_mutex_t lock;
    pthread_cond_t news;
    request queue[4096];
    size_t queued;
    bool stop;
    void (*on_request)(struct disk *, const request *);
    void *user;
} disk;

static inline void carry_out(disk *d, const request *r) {
    uint8_t *at = d->bytes + r->offset;
    if (r->op == MIRROR_OP_ZERO)
        memset(at, 0, r->length);
    for (size_t i = 0; i < r->iovcnt; at += r->iov[i++].len) {
        if (r->op == MIRROR_OP_READ)
            memcpy(r->iov[i].base, at, r->iov[i].len);
        else
            memcpy(at, r->iov[i].base, r->iov[i].len);
    }
}

static inline int disk_failure(disk *d, uint32_t op) {
    if (d->failures == 0 || d->fail_op != (int)op)
        return 0;
    d->failures--;
    return d->fail;
}

static inline int disk_submit(disk *d, request r) {
    if (d->on_request)
        d->on_request(d, &r);
    pthread_mutex_lock(&d->lock);
    if (d->depth && d->queued >= d->depth) {
        d->again++;
        pthread_mutex_unlock(&d->lock);
        return MIRROR_AGAIN;
    }
    d->count[r.op]++;
    if (r.op <= MIRROR_OP_WRITE && r.length > d->longest)
        d->longest = r.length;
    int failure = disk_failure(d, r.op);
    if (failure == 0 && d->answer == LATER) {
        size_t size = r.iovcnt * sizeof *r.iov;
        const mirror_iovec *list = r.iov;
        r.iov = size ? memcpy(malloc(size), list, size) : NULL; /* the list is good during the callback only */
        check(d->queued < sizeof d->queue / sizeof *d->queue);
        d->queue[d->queued++] = r;
        pthread_cond_signal(&d->news);
    } else if (failure == 0) {
        carry_out(d, &r);
    }
    pthread_mutex_unlock(&d->lock);
    if (failure == 0 && d->answer == EARLY)
        ok(mirror_device_complete(d->device, r.token, 0));
    return failure ? failure : d->answer == INLINE ? MIRROR_DONE : MIRROR_PENDING;
}

/* Finishes the oldest request in the queue; false if there is none. */
static inline bool disk_finish(disk *d, int result) {
    pthread_mutex_lock(&d->lock);
    if (d->queued == 0)
        return pthread_mutex_unlock(&d->lock), false;
    request r = d->queue[0];
    memmove(d->queue, d->queue + 1, --d->queued * sizeof r);
    if (result == 0)
        carry_out(d, &r);
    free(r.iov);
    pthread_mutex_unlock(&d->lock);
    ok(mirror_device_complete(d->device, r.token, result));
    return true;
}

static inline int disk_read(void *d, uint64_t token, uint64_t offset, uint64_t length, const mirror_iovec *iov, size_t n) {
    return disk_submit(d, (request){token, offset, length, MIRROR_OP_READ, 0, n, (mirror_iovec *)iov});
}
static inline int disk_write(void *d, uint64_t token, uint64_t offset, uint64_t length, const mirror_iovec *iov, size_t n,
                             uint32_t flags) {
    return disk_submit(d, (request){token, offset, length, MIRROR_OP_WRITE, flags, n, (mirror_iovec *)iov});
}
static inline int disk_zero(void *d, uint64_t token, uint64_t offset, uint64_t length, uint32_t flags) {
    return disk_submit(d, (request){token, offset, length, MIRROR_OP_ZERO, flags, 0, NULL});
}
static inline int disk_flush(void *d, uint64_t token) {
    return disk_submit(d, (request){token, 0, 0, MIRROR_OP_FLUSH, 0, 0, NULL});
}
static inline void disk_cancel(void *d) { ((disk *)d)->cancelled++; }
static inline void disk_close(void *d) { ((disk *)d)->closed++; }

static inline mirror_device_ops disk_ops(void) {
    return (mirror_device_ops){.struct_size = sizeof(mirror_device_ops), .read = disk_read, .write = disk_write,
                               .zero = disk_zero, .flush = disk_flush, .cancel = disk_cancel, .close = disk_close};
}

/* A disk full of zeroes, or of a pattern without two equal blocks. */
static inline disk *disk_new_with(mirror_device_ops ops, mirror_device_limits limits, enum answer answer, unsigned seed) {
    disk *d = calloc(1, sizeof *d);
    d->bytes = calloc(1, limits.length + 1);
    d->length = limits.length;
    d->answer = answer;
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->news, NULL);
    for (uint64_t i = 0; seed && i < d->length; i++)
        d->bytes[i] = (uint8_t)((i * 31 + i / 512 * 7 + seed) | 1);
    limits.struct_size = sizeof limits;
    ok(mirror_device_new(&ops, &limits, d, &d->device));
    return d;
}

static inline disk *disk_new(uint64_t length, enum answer answer, unsigned seed) {
    return disk_new_with(disk_ops(), (mirror_device_limits){.length = length}, answer, seed);
}

/* Frees the handle and sees that the library has let go. */
static inline void disk_free(disk *d) {
    mirror_device_free(d->device);
    eq(d->closed, 1);
    /* What the test completed by itself is still in the queue. */
    for (size_t i = 0; i < d->queued; i++)
        free(d->queue[i].iov);
    free(d->bytes);
    free(d);
}

static inline void *disk_worker(void *arg) {
    disk *d = arg;
    for (;;) {
        pthread_mutex_lock(&d->lock);
        while (d->queued == 0 && !d->stop)
            pthread_cond_wait(&d->news, &d->lock);
        bool over = d->queued == 0;
        pthread_mutex_unlock(&d->lock);
        if (over)
            return NULL;
        disk_finish(d, 0);
    }
}

static inline void disk_stop(disk *d, pthread_t worker) {
    pthread_mutex_lock(&d->lock);
    d->stop = true;
    pthread_cond_broadcast(&d->news);
    pthread_mutex_unlock(&d->lock);
    pthread_join(worker, NULL);
}

static inline mirror_job_info info(mirror_job *job) {
    mirror_job_info info = {.struct_size = sizeof info};
    ok(mirror_job_query(job, &info));
    return info;
}

static inline mirror_job_options options(void) {
    mirror_job_options options;
    ok(mirror_job_options_init(&options, sizeof options));
    return options;
}

/* Polls once; an idle job's time is moved to where it wants it, after a moment for the threads. */
static inline int step(mirror_job *job) {
    static uint64_t now = 1;
    uint64_t wake_at = 0;
    int state = ok(mirror_job_poll(job, now, &wake_at));
    if (state != MIRROR_POLL_IDLE)
        return state;
    struct pollfd fd = {.fd = ok(mirror_job_fd(job)), .events = POLLIN};
    if (poll(&fd, 1, 1) == 0 && wake_at != MIRROR_NEVER && wake_at > now)
        now = wake_at;
    return state;
}

/* Polls until the job has this status; of a job that does not get there the last status is told. */
static inline void drive(mirror_job *job, uint32_t status) {
    for (int i = 0; i < 20000; i++) {
        if (info(job).status == status)
            return;
        step(job);
    }
    FAIL("the job is %s, not %s", mirror_status_name(info(job).status), mirror_status_name(status));
}

/* A guest's request: how often it was told, and what. */
typedef struct outcome {
    int calls, result;
} outcome;

static inline void tell(void *opaque, int result) {
    outcome *o = opaque;
    o->result = result;
    __atomic_fetch_add(&o->calls, 1, __ATOMIC_RELEASE);
}

static inline int told(outcome *o) { return __atomic_load_n(&o->calls, __ATOMIC_ACQUIRE); }

/* A write of `length` bytes `value` that is done when the call returns. */
static inline void guest_write(mirror_filter *filter, uint64_t offset, uint8_t value, size_t length) {
    void *bytes = memset(malloc(length), value, length);
    mirror_iovec iov = {bytes, length};
    outcome o = {0, 1};
    ok(mirror_filter_write(filter, offset, &iov, 1, 0, tell, &o));
    eq(told(&o), 1);
    eq(o.result, 0);
    free(bytes);
}

#endif
