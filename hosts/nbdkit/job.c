#include "job.h"

#include "disk.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* As many as the library keeps. */
enum { MOST_EVENTS = 256 };

static struct {
    pthread_mutex_t lock; /* of everything here */
    mirror_job *handle;   /* NULL when none runs */
    struct image *target; /* until the disk takes it, or the job ends */
    char *target_path;
    uint32_t sync;
    bool told_of;         /* there is, or was, one; `last` is how it ended */
    mirror_job_info last;
    uint64_t number;
    job_listener *listener;
    pthread_t driver;
    bool has_driver;      /* to be joined; only whoever starts and stops looks */
} job = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int open_target(const struct job_options *options, struct image **out, struct problem *problem) {
    if (!options->target)
        return problem_set(problem, EINVAL, "target=FILE is missing");
    struct image_options image_options = {.direct = options->direct, .threads = options->threads,
                                          .create = options->create, .length = disk_length()};
    struct image *image;
    int result = image_open("target", options->target, &image_options, &image, problem);
    if (result < 0)
        return result;
    if (image->limits.length != disk_length()) {
        result = problem_set(problem, EINVAL, "target %s: it has %" PRIu64 " bytes and the disk %" PRIu64
                             ": they must be equally long", options->target, image->limits.length, disk_length());
        image_close(image);
        return result;
    }
    *out = image;
    return 0;
}

static int make(const struct job_options *options, struct image *target, const char *id, mirror_job **out,
                struct problem *problem) {
    mirror_job_options library = options->library;
    library.id = id;
    /* Not MIRROR_JOB_INLINE: many threads of guests bring news at once, and carry twice as many writes when one thread
     * drives for all than when each drives for a moment. The end of a job is shown until the next one begins. */
    library.flags &= ~(uint32_t)MIRROR_JOB_AUTO_DISMISS;
    int result = mirror_job_new(disk_filter(), target->device, &library, out);
    return result < 0 ? problem_of_library(problem, result, "") : 0;
}

int job_rehearse(const struct job_options *options, struct problem *problem) {
    struct image *target;
    mirror_job *handle;
    int result = open_target(options, &target, problem);
    if (result < 0)
        return result;
    result = make(options, target, NULL, &handle, problem);
    if (result == 0)
        mirror_job_free(handle);
    image_close(target);
    return result;
}

/* If the switch has happened the target is the disk now. Under the lock. */
static void look_for_switch(void) {
    if (job.target && disk_adopt(job.target))
        job.target = NULL;
}

/* Takes what has happened, under the lock or from the only thread that takes any. */
static size_t take_events(mirror_job *handle, mirror_event *events) {
    size_t count = 0;
    while (count < MOST_EVENTS) {
        events[count].struct_size = sizeof *events;
        if (mirror_job_next_event(handle, &events[count]) != 1)
            break;
        count++;
    }
    return count;
}

static void tell(const char *id, const mirror_event *events, size_t count) {
    for (size_t i = 0; i < count; i++)
        job.listener(id, &events[i]);
}

static void wait_for_news(mirror_job *handle, uint64_t wake_at) {
    struct pollfd fd = {.fd = mirror_job_fd(handle), .events = POLLIN};
    uint64_t now = mirror_clock_ns();
    int timeout = -1;
    if (wake_at != MIRROR_NEVER) {
        uint64_t ms = wake_at > now ? (wake_at - now + 999999) / 1000000 : 0;
        timeout = ms < 60000 ? (int)ms : 60000;
    }
    /* Interrupted, or told of nothing: then it is polled for nothing. */
    poll(&fd, 1, timeout);
}

/* The end of a job. Its last events are told when the next one may be started. */
static void conclude(mirror_job *handle, const char *id, mirror_event *events) {
    pthread_mutex_lock(&job.lock);
    look_for_switch();
    job.last = (mirror_job_info){.struct_size = sizeof job.last};
    mirror_job_query(handle, &job.last);
    size_t count = take_events(handle, events);
    mirror_job_free(handle);
    job.handle = NULL;
    image_close(job.target);
    job.target = NULL;
    pthread_mutex_unlock(&job.lock);
    tell(id, events, count);
}

static void *drive(void *opaque) {
    mirror_job *handle = opaque;
    mirror_job_info info = {.struct_size = sizeof info};
    static mirror_event events[MOST_EVENTS];
    mirror_job_query(handle, &info);
    for (;;) {
        uint64_t wake_at = MIRROR_NEVER;
        int state = mirror_job_poll(handle, mirror_clock_ns(), &wake_at);
        if (state == MIRROR_POLL_CONCLUDED || state < 0)
            break;
        tell(info.id, events, take_events(handle, events));
        if (state == MIRROR_POLL_IDLE)
            wait_for_news(handle, wake_at);
    }
    conclude(handle, info.id, events);
    return NULL;
}

/* Signals are for nbdkit's own threads. */
static int start_driver(mirror_job *handle) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int number = pthread_create(&job.driver, NULL, drive, handle);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    job.has_driver = number == 0;
    return number;
}

static void join_driver(void) {
    if (job.has_driver)
        pthread_join(job.driver, NULL);
    job.has_driver = false;
}

/* Whether one runs. One that is over and not yet let go of is waited for: that takes no time. */
static bool is_running(void) {
    mirror_job_info info = {.struct_size = sizeof info};
    pthread_mutex_lock(&job.lock);
    bool running = job.handle && mirror_job_query(job.handle, &info) == 0 && info.status < MIRROR_STATUS_CONCLUDED;
    pthread_mutex_unlock(&job.lock);
    if (!running)
        join_driver();
    return running;
}

int job_start(const struct job_options *options, job_listener *listener, struct problem *problem) {
    if (is_running())
        return problem_set(problem, EBUSY, "job-%" PRIu64 " runs: complete or cancel it first", job.number);
    struct image *target;
    int result = open_target(options, &target, problem);
    if (result < 0)
        return result;
    char id[32], *path = strdup(target->path);
    snprintf(id, sizeof id, "job-%" PRIu64, job.number + 1);
    mirror_job *handle = NULL;
    result = path ? make(options, target, id, &handle, problem) : problem_set(problem, ENOMEM, "no memory");
    if (result == 0 && (result = mirror_job_start(handle)) < 0)
        problem_of_library(problem, result, "");
    if (result < 0) {
        mirror_job_free(handle);
        image_close(target);
        free(path);
        return result;
    }
    pthread_mutex_lock(&job.lock);
    free(job.target_path);
    job.handle = handle;
    job.target = target;
    job.target_path = path;
    job.sync = options->library.sync;
    job.listener = listener;
    job.told_of = true;
    job.number++;
    int number = start_driver(handle);
    pthread_mutex_unlock(&job.lock);
    if (number != 0) {
        static mirror_event events[MOST_EVENTS];
        conclude(handle, id, events);
        return problem_set(problem, number, "no thread for the job: %s", strerror(number));
    }
    return 0;
}

/* Locks, and has the job; NULL, unlocked, if there is none. */
static mirror_job *lock_job(struct problem *problem) {
    pthread_mutex_lock(&job.lock);
    if (job.handle)
        return job.handle;
    pthread_mutex_unlock(&job.lock);
    problem_set(problem, ENOENT, "no job runs");
    return NULL;
}

static int unlock_job(int result, struct problem *problem) {
    pthread_mutex_unlock(&job.lock);
    return result < 0 ? problem_of_library(problem, result, "") : 0;
}

int job_pause(struct problem *problem) {
    mirror_job *handle = lock_job(problem);
    return handle ? unlock_job(mirror_job_pause(handle), problem) : -ENOENT;
}

int job_resume(struct problem *problem) {
    mirror_job *handle = lock_job(problem);
    return handle ? unlock_job(mirror_job_resume(handle), problem) : -ENOENT;
}

int job_complete(struct problem *problem) {
    mirror_job *handle = lock_job(problem);
    return handle ? unlock_job(mirror_job_complete(handle), problem) : -ENOENT;
}

int job_cancel(bool force, struct problem *problem) {
    mirror_job *handle = lock_job(problem);
    return handle ? unlock_job(mirror_job_cancel(handle, force), problem) : -ENOENT;
}

int job_set_speed(uint64_t bytes_per_second, struct problem *problem) {
    mirror_job *handle = lock_job(problem);
    return handle ? unlock_job(mirror_job_set_speed(handle, bytes_per_second), problem) : -ENOENT;
}

int job_change(uint32_t copy_mode, struct problem *problem) {
    mirror_job *handle = lock_job(problem);
    return handle ? unlock_job(mirror_job_change(handle, copy_mode), problem) : -ENOENT;
}

static const char *io_status_name(uint32_t status) {
    return status == MIRROR_IO_OK ? "ok" : status == MIRROR_IO_NOSPACE ? "nospace" : "failed";
}

static void describe(struct json *json, const mirror_job_info *info) {
    json_text(json, "id", info->id);
    json_text(json, "target", job.target_path);
    json_text(json, "status", mirror_status_name(info->status));
    json_text(json, "sync", sync_name(job.sync));
    json_text(json, "copy_mode", copy_mode_name(info->copy_mode));
    json_text(json, "io_status", io_status_name(info->io_status));
    json_bool(json, "busy", info->busy);
    json_bool(json, "paused", info->paused);
    json_bool(json, "ready", info->ready);
    json_bool(json, "actively_synced", info->actively_synced);
    json_integer(json, "result", info->result);
    json_text(json, "message", info->message);
    json_number(json, "speed", info->speed);
    json_number(json, "done", info->done);
    json_number(json, "total", info->total);
    json_number(json, "dirty", info->dirty);
    json_number(json, "prepared", info->prepared);
    json_number(json, "in_flight_bytes", info->in_flight_bytes);
    json_number(json, "in_flight_ops", info->in_flight_ops);
    json_number(json, "passes", info->passes);
    json_number(json, "dirty_rate", info->dirty_rate);
    json_number(json, "copy_rate", info->copy_rate);
    if (info->eta_ns == MIRROR_NEVER)
        json_null(json, "eta_ns");
    else
        json_number(json, "eta_ns", info->eta_ns);
    json_number(json, "guest_writes", info->guest_writes);
    json_number(json, "carried_writes", info->active.ops);
    json_number(json, "errors", info->errors);
    json_number(json, "granularity", info->granularity);
}

void job_describe(struct json *json) {
    pthread_mutex_lock(&job.lock);
    look_for_switch();
    json_open(json, "disk");
    disk_describe(json);
    json_close(json);
    mirror_job_info info = job.last;
    if (job.handle) {
        info = (mirror_job_info){.struct_size = sizeof info};
        mirror_job_query(job.handle, &info);
    }
    if (job.told_of) {
        json_open(json, "job");
        describe(json, &info);
        json_close(json);
    } else {
        json_null(json, "job");
    }
    pthread_mutex_unlock(&job.lock);
}

void job_stop(void) {
    pthread_mutex_lock(&job.lock);
    /* Refused if it is being switched: then it ends by itself. */
    if (job.handle)
        mirror_job_cancel(job.handle, true);
    pthread_mutex_unlock(&job.lock);
    join_driver();
    free(job.target_path);
    job.target_path = NULL;
    job.told_of = false;
}
