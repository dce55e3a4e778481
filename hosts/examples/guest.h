/* A stand-in for the guest: a thread that writes to its disk, one block at a time, until it is told to stop.
 *
 * Its n-th write fills block 7919 * n, modulo the disk's, with the number n: so whoever knows how many writes there were
 * knows what the disk must hold (hosts/tests/replay.py). */
#ifndef GUEST_H
#define GUEST_H

#include <blkmirror.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { GUEST_BLOCK = 4096 };

typedef struct {
    mirror_filter *disk;
    uint64_t blocks, last; /* the last write that it is to make, once `stop` is set */
    uint64_t buffer[GUEST_BLOCK / 8];
    int result;
    sem_t told;
    atomic_ulong writes;
    atomic_bool stop;
    pthread_t thread;
} guest;

/* Called by whichever thread finishes the write: it only wakes the one that waits. */
static void guest_told(void *opaque, int result) {
    guest *g = opaque;
    g->result = result;
    sem_post(&g->told);
}

static void *guest_main(void *opaque) {
    guest *g = opaque;
    for (uint64_t n = 1; !atomic_load(&g->stop) || n <= g->last; n++) {
        for (size_t i = 0; i < GUEST_BLOCK / 8; i++)
            g->buffer[i] = n;
        mirror_iovec iov = {g->buffer, sizeof g->buffer};
        if (mirror_filter_write(g->disk, 7919 * n % g->blocks * GUEST_BLOCK, &iov, 1, 0, guest_told, g) < 0) {
            fprintf(stderr, "guest: %s\n", mirror_last_error());
            exit(1);
        }
        while (sem_wait(&g->told) < 0)
            ;
        if (g->result < 0) {
            fprintf(stderr, "guest: a write failed: %d\n", g->result);
            exit(1);
        }
        atomic_store(&g->writes, n);
    }
    return NULL;
}

/* Begins to write, and waits for the first hundred writes. */
static void guest_start(guest *g, mirror_filter *disk) {
    uint64_t length = 0;
    mirror_filter_length(disk, &length);
    g->disk = disk;
    g->blocks = length / GUEST_BLOCK;
    sem_init(&g->told, 0, 0);
    pthread_create(&g->thread, NULL, guest_main, g);
    while (atomic_load(&g->writes) < 100)
        sched_yield();
}

/* Lets it make a hundred writes more, and says how many it made. */
static void guest_stop(guest *g) {
    g->last = atomic_load(&g->writes) + 100;
    atomic_store(&g->stop, true);
    pthread_join(g->thread, NULL);
    printf("%lu writes\n", atomic_load(&g->writes));
    sem_destroy(&g->told);
}

#endif
