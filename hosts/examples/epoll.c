/* One epoll loop for several disks, each with a job of its own.
 *
 *     epoll OLD NEW [OLD NEW]...
 *
 * mirrors each image OLD to the new file beside it while its guest writes, and switches each guest over. */
#define _GNU_SOURCE
#include "guest.h"
#include <limits.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

typedef struct {
    char id[16];
    mirror_device *old_image, *new_image;
    mirror_filter *disk;
    mirror_job *job;  /* NULL once it is over */
    uint64_t wake_at; /* when it wants to be polled, if nothing happens before; 0: at once */
    guest guest;
    int result;
} disk;

static int epoll;

static void must(int answer, const char *what) {
    if (answer < 0) {
        fprintf(stderr, "%s: %s\n", what, mirror_last_error());
        exit(1);
    }
}

static void begin(disk *d, const char *old_path, const char *new_path) {
    mirror_device_limits limits = {.struct_size = sizeof limits};
    must(mirror_device_open_file(old_path, 0, 0, &d->old_image), old_path);
    must(mirror_device_query(d->old_image, &limits), old_path);
    must(mirror_device_open_file(new_path, MIRROR_OPEN_CREATE, limits.length, &d->new_image), new_path);
    must(mirror_filter_new(d->old_image, &d->disk), "filter");

    mirror_job_options options;
    must(mirror_job_options_init(&options, sizeof options), "options");
    options.id = d->id;
    options.flags |= MIRROR_JOB_AUTO_COMPLETE;
    /* A full disk can be made larger: the job waits for mirror_job_resume then, and the guest doesn't notice. */
    options.on_target_error = MIRROR_ON_ERROR_ENOSPC;
    must(mirror_job_new(d->disk, d->new_image, &options, &d->job), d->id);
    guest_start(&d->guest, d->disk);

    int fd = mirror_job_fd(d->job);
    must(fd, d->id);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = d};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
        perror("epoll_ctl");
        exit(1);
    }
    must(mirror_job_start(d->job), d->id);
}

/* The job is over: its descriptor leaves the loop before it is freed. */
static void end(disk *d) {
    mirror_job_info info = {.struct_size = sizeof info};
    must(mirror_job_query(d->job, &info), d->id);
    fprintf(stderr, "%s: %d %s\n", d->id, info.result, info.message);
    d->result = info.result;
    epoll_ctl(epoll, EPOLL_CTL_DEL, mirror_job_fd(d->job), NULL);
    must(mirror_job_free(d->job), d->id);
    d->job = NULL;
}

static void drive(disk *d, uint64_t now) {
    int state = mirror_job_poll(d->job, now, &d->wake_at);
    must(state, d->id);
    mirror_event event = {.struct_size = sizeof event};
    while (mirror_job_next_event(d->job, &event) == 1)
        fprintf(stderr, "%s: %s %s\n", d->id, mirror_event_name(event.type),
                event.type == MIRROR_EVENT_STATUS ? mirror_status_name(event.status) : "");
    if (state == MIRROR_POLL_BUSY)
        d->wake_at = 0; /* after the others had their turn */
    if (state == MIRROR_POLL_CONCLUDED)
        end(d);
}

/* Drives those whose time has come; when the next one's comes. */
static uint64_t drive_due(disk *disks, int count, uint64_t now) {
    uint64_t next = MIRROR_NEVER;
    for (int i = 0; i < count; i++) {
        if (disks[i].job && disks[i].wake_at <= now)
            drive(&disks[i], now);
        if (disks[i].job && disks[i].wake_at < next)
            next = disks[i].wake_at;
    }
    return next;
}

static int timeout_ms(uint64_t now, uint64_t wake_at) {
    if (wake_at == MIRROR_NEVER)
        return -1;
    uint64_t ms = wake_at > now ? (wake_at - now + 999999) / 1000000 : 0;
    return ms < INT_MAX ? (int)ms : INT_MAX;
}

static int running(const disk *disks, int count) {
    int jobs = 0;
    for (int i = 0; i < count; i++)
        jobs += disks[i].job != NULL;
    return jobs;
}

int main(int argc, char **argv) {
    int count = (argc - 1) / 2, failed = 0;
    if (argc < 3 || argc % 2 != 1)
        return fprintf(stderr, "usage: epoll OLD NEW [OLD NEW]...\n"), 2;
    disk *disks = calloc((size_t)count, sizeof *disks);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < count; i++) {
        snprintf(disks[i].id, sizeof disks[i].id, "disk%d", i);
        begin(&disks[i], argv[1 + 2 * i], argv[2 + 2 * i]);
    }
    while (running(disks, count) > 0) {
        uint64_t now = mirror_clock_ns(), next = drive_due(disks, count, now);
        if (running(disks, count) == 0)
            break;
        struct epoll_event events[16];
        int ready = epoll_wait(epoll, events, 16, timeout_ms(now, next));
        for (int i = 0; i < ready; i++)
            ((disk *)events[i].data.ptr)->wake_at = 0;
    }
    for (int i = 0; i < count; i++) {
        guest_stop(&disks[i].guest);
        failed += disks[i].result != 0;
        mirror_filter_free(disks[i].disk);
        mirror_device_free(disks[i].old_image);
        mirror_device_free(disks[i].new_image);
    }
    free(disks);
    close(epoll);
    return failed != 0;
}
