/* An event loop of poll(2): the job's descriptor is one of those that it waits for.
 *
 *     poll OLD NEW
 *
 * mirrors the image OLD to the new file NEW while a guest writes, and switches the guest over. */
#define _GNU_SOURCE
#include "guest.h"
#include <limits.h>
#include <poll.h>

static void must(int answer, const char *what) {
    if (answer < 0) {
        fprintf(stderr, "%s: %s\n", what, mirror_last_error());
        exit(1);
    }
}

/* What poll(2) takes: milliseconds, rounded up so that it doesn't wake too early, or -1 for ever. */
static int timeout_ms(uint64_t now, uint64_t wake_at) {
    if (wake_at == MIRROR_NEVER)
        return -1;
    uint64_t ms = wake_at > now ? (wake_at - now + 999999) / 1000000 : 0;
    return ms < INT_MAX ? (int)ms : INT_MAX;
}

static void on_event(mirror_job *job, const mirror_event *event) {
    switch (event->type) {
    case MIRROR_EVENT_STATUS:
        fprintf(stderr, "%s\n", mirror_status_name(event->status));
        break;
    case MIRROR_EVENT_READY:
        /* A host would tell its operator, who chooses the moment. */
        must(mirror_job_complete(job), "complete");
        break;
    case MIRROR_EVENT_ERROR:
        fprintf(stderr, "%s at %llu failed: %d\n", mirror_operation_name(event->operation),
                (unsigned long long)event->offset, event->result);
        break;
    default:
        break;
    }
}

/* One turn of the loop for the job: how long the loop may wait, or -2 when the job is over. */
static int drive(mirror_job *job) {
    uint64_t now = mirror_clock_ns(), wake_at;
    int state = mirror_job_poll(job, now, &wake_at);
    must(state, "poll");
    mirror_event event = {.struct_size = sizeof event};
    while (mirror_job_next_event(job, &event) == 1)
        on_event(job, &event);
    if (state == MIRROR_POLL_CONCLUDED)
        return -2;
    return state == MIRROR_POLL_BUSY ? 0 : timeout_ms(now, wake_at);
}

int main(int argc, char **argv) {
    if (argc != 3)
        return fprintf(stderr, "usage: poll OLD NEW\n"), 2;
    mirror_device *old_image, *new_image;
    mirror_filter *disk;
    mirror_job *job;
    mirror_device_limits limits = {.struct_size = sizeof limits};
    must(mirror_device_open_file(argv[1], 0, 0, &old_image), argv[1]);
    must(mirror_device_query(old_image, &limits), argv[1]);
    must(mirror_device_open_file(argv[2], MIRROR_OPEN_CREATE, limits.length, &new_image), argv[2]);
    must(mirror_filter_new(old_image, &disk), "filter");
    must(mirror_job_new(disk, new_image, NULL, &job), "job");

    guest guest = {0};
    guest_start(&guest, disk);
    must(mirror_job_start(job), "start");
    /* A host's loop has its own descriptors beside this one. */
    struct pollfd fds[] = {{.fd = mirror_job_fd(job), .events = POLLIN}};
    must(fds[0].fd, "fd");
    for (int timeout; (timeout = drive(job)) != -2;)
        poll(fds, 1, timeout); /* interrupted by a signal, it polls once too often, which is harmless */

    mirror_job_info info = {.struct_size = sizeof info};
    must(mirror_job_query(job, &info), "query");
    must(mirror_job_free(job), "free");
    guest_stop(&guest);
    if (info.result < 0)
        fprintf(stderr, "not mirrored: %d %s\n", info.result, info.message);
    mirror_filter_free(disk);
    mirror_device_free(old_image);
    mirror_device_free(new_image);
    return info.result != 0;
}
