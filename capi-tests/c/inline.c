/* MIRROR_JOB_INLINE: while whoever has news drives the job, a poll is idle and a free is no mistake. */
#include "disk.h"

enum { LENGTH = 1024 * 1024, WRITERS = 2 };

typedef struct { mirror_filter *filter; int number, *stop; long writes; } writer;

static void *write_on(void *opaque) {
    writer *w = opaque;
    uint8_t bytes[4096] = {1};
    mirror_iovec iov = {bytes, sizeof bytes};
    for (; !__atomic_load_n(w->stop, __ATOMIC_ACQUIRE); w->writes++) {
        outcome o = {0, 1};
        memset(bytes, (int)w->writes, sizeof bytes);
        uint64_t offset = ((uint64_t)w->writes % 64 * WRITERS + (uint64_t)w->number) * sizeof bytes;
        ok(mirror_filter_write(w->filter, offset, &iov, 1, 0, tell, &o));
        while (!told(&o))
            sched_yield();
        eq(o.result, 0);
    }
    return NULL;
}

int main(void) {
    disk *source = disk_new(LENGTH, LATER, 2), *target = disk_new(LENGTH, LATER, 0);
    pthread_t workers[2], writers[WRITERS];
    pthread_create(&workers[0], NULL, disk_worker, source);
    pthread_create(&workers[1], NULL, disk_worker, target);
    mirror_filter *filter;
    ok(mirror_filter_new(source->device, &filter));
    writer w[WRITERS];
    int stop = 0;
    for (int i = 0; i < WRITERS; i++) {
        w[i] = (writer){filter, i, &stop, 0};
        pthread_create(&writers[i], NULL, write_on, &w[i]);
    }
    mirror_job_options o = options();
    o.copy_mode = MIRROR_COPY_WRITE_BLOCKING;
    o.max_io = 65536;
    o.flags |= MIRROR_JOB_INLINE;
    for (int round = 0; round < 50; round++) {
        mirror_job *job;
        int made;
        /* A thread that drove the last one when it was freed leaves the filter when it comes round. */
        while ((made = mirror_job_new(filter, target->device, &o, &job)) == -EBUSY)
            sched_yield();
        eq(made, 0);
        ok(mirror_job_start(job));
        for (int i = 0; i < 200000 && (info(job).active.ops < 20 || round % 2); i++) {
            step(job); /* none of these is refused */
            if (i > round * 10)
                break;
        }
        ok(mirror_job_free(job));
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
    for (int i = 0; i < WRITERS; i++) {
        pthread_join(writers[i], NULL);
        check(w[i].writes > 0);
    }
    mirror_filter_free(filter);
    disk_stop(source, workers[0]), disk_stop(target, workers[1]);
    disk_free(source), disk_free(target);
    return done();
}
