#include "disk.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

static struct {
    mirror_filter *filter;
    uint64_t length;
    uint32_t alignment;
    struct image *image;  /* under the lock: it changes when a job completes */
    pthread_mutex_t lock;
    atomic_int connections;
} disk = {.lock = PTHREAD_MUTEX_INITIALIZER};

int disk_open(const char *path, const struct image_options *options, struct problem *problem) {
    struct image *image;
    int result = image_open("source", path, options, &image, problem);
    if (result < 0)
        return result;
    disk.alignment = image->limits.request_alignment;
    /* A target that is opened directly later asks for as much. */
    if (options->direct && disk.alignment < 4096)
        disk.alignment = 4096;
    if (disk.alignment == 0)
        disk.alignment = 1;
    result = mirror_filter_new_aligned(image->device, disk.alignment, &disk.filter);
    if (result < 0) {
        problem_of_library(problem, result, "source");
        image_close(image);
        return result;
    }
    disk.length = image->limits.length;
    disk.image = image;
    return 0;
}

void disk_close(void) {
    mirror_filter_free(disk.filter);
    image_close(disk.image);
    disk.filter = NULL;
    disk.image = NULL;
}

mirror_filter *disk_filter(void) { return disk.filter; }
uint64_t disk_length(void) { return disk.length; }
uint32_t disk_alignment(void) { return disk.alignment; }

static bool has_limit(uint32_t flag) {
    pthread_mutex_lock(&disk.lock);
    bool has = disk.image->limits.flags & flag;
    pthread_mutex_unlock(&disk.lock);
    return has;
}

bool disk_read_only(void) { return has_limit(MIRROR_LIMIT_READ_ONLY); }
bool disk_zeroes_cheaply(void) { return has_limit(MIRROR_LIMIT_CHEAP_ZERO); }

bool disk_adopt(struct image *image) {
    mirror_device *now;
    if (mirror_filter_device(disk.filter, &now) < 0)
        return false;
    bool is_on = mirror_device_same(now, image->device) == 1;
    mirror_device_free(now);
    if (!is_on)
        return false;
    pthread_mutex_lock(&disk.lock);
    struct image *before = disk.image;
    disk.image = image;
    pthread_mutex_unlock(&disk.lock);
    image_close(before);
    return true;
}

void disk_connected(int change) { atomic_fetch_add(&disk.connections, change); }

void disk_describe(struct json *json) {
    pthread_mutex_lock(&disk.lock);
    const char *engine = NULL;
    json_text(json, "file", disk.image->path);
    json_number(json, "length", disk.length);
    json_bool(json, "read_only", disk.image->limits.flags & MIRROR_LIMIT_READ_ONLY);
    if (mirror_device_engine(disk.image->device, &engine) == 0 && engine)
        json_text(json, "engine", engine);
    pthread_mutex_unlock(&disk.lock);
    json_integer(json, "connections", atomic_load(&disk.connections));
}

/* A thread that waits for its request. */
struct waiter {
    pthread_mutex_t lock;
    pthread_cond_t news;
    bool done;
    int result;
};

/* Each thread has its own, and one request at a time. */
static _Thread_local struct waiter waiter = {.lock = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER};

static struct waiter *begin(void) {
    waiter.done = false;
    return &waiter;
}

static void tell(void *opaque, int result) {
    struct waiter *who = opaque;
    pthread_mutex_lock(&who->lock);
    who->result = result;
    who->done = true;
    /* Under the lock: once it is let go of the thread may be gone, and its waiter with it. */
    pthread_cond_signal(&who->news);
    pthread_mutex_unlock(&who->lock);
}

/* The outcome of a request that the filter has answered with `accepted`. */
static int outcome(struct waiter *who, int accepted) {
    if (accepted < 0)
        return accepted;
    pthread_mutex_lock(&who->lock);
    while (!who->done)
        pthread_cond_wait(&who->news, &who->lock);
    pthread_mutex_unlock(&who->lock);
    return who->result;
}

int disk_read(void *buffer, uint64_t offset, uint32_t length) {
    mirror_iovec iov = {buffer, length};
    struct waiter *who = begin();
    return outcome(who, mirror_filter_read(disk.filter, offset, &iov, 1, 0, tell, who));
}

int disk_write(const void *buffer, uint64_t offset, uint32_t length, bool fua) {
    mirror_iovec iov = {(void *)buffer, length};
    /* The buffer is nbdkit's own, filled from the socket: nobody changes it meanwhile. */
    uint32_t flags = MIRROR_WRITE_STABLE | (fua ? MIRROR_FUA : 0);
    struct waiter *who = begin();
    return outcome(who, mirror_filter_write(disk.filter, offset, &iov, 1, flags, tell, who));
}

int disk_zero(uint64_t offset, uint32_t length, bool may_unmap, bool fua) {
    uint32_t flags = (may_unmap ? MIRROR_MAY_UNMAP : 0) | (fua ? MIRROR_FUA : 0);
    struct waiter *who = begin();
    return outcome(who, mirror_filter_zero(disk.filter, offset, length, flags, tell, who));
}

int disk_trim(uint64_t offset, uint32_t length, bool fua) {
    struct waiter *who = begin();
    int result = outcome(who, mirror_filter_discard(disk.filter, offset, length, tell, who));
    return result == 0 && fua ? disk_flush() : result;
}

int disk_flush(void) {
    struct waiter *who = begin();
    return outcome(who, mirror_filter_flush(disk.filter, tell, who));
}

int disk_extents(uint64_t offset, uint32_t length, mirror_extent *extents, size_t capacity, size_t *count) {
    struct waiter *who = begin();
    return outcome(who, mirror_filter_extents(disk.filter, offset, length, extents, capacity, count, tell, who));
}
