/* A synchronous host: one thread, and storage that answers at once. It mirrors OLD to NEW, goes on writing, and switches. */
#define _GNU_SOURCE
#include <blkmirror.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/uio.h>
#include <unistd.h>
static int disk_read(void *fd, uint64_t token, uint64_t offset, uint64_t length, const mirror_iovec *iov, size_t n) {
    (void)token; /* nobody needs it where nothing is answered with MIRROR_PENDING */
    ssize_t got = preadv(*(int *)fd, (const struct iovec *)iov, (int)n, (off_t)offset);
    return got == (ssize_t)length ? MIRROR_DONE : got < 0 ? -errno : -EIO;
}
static int disk_write(void *fd, uint64_t token, uint64_t offset, uint64_t length, const mirror_iovec *iov, size_t n,
                      uint32_t flags) {
    (void)token;
    ssize_t put = pwritev2(*(int *)fd, (const struct iovec *)iov, (int)n, (off_t)offset, flags & MIRROR_FUA ? RWF_DSYNC : 0);
    return put == (ssize_t)length ? MIRROR_DONE : put < 0 ? -errno : -EIO;
}
static int disk_flush(void *fd, uint64_t token) { return (void)token, fdatasync(*(int *)fd) ? -errno : MIRROR_DONE; }
static void disk_close(void *fd) { close(*(int *)fd); }
static void told(void *outcome, int result) { *(int *)outcome = result; }

int main(int argc, char **argv) {
    static int fds[2];
    if (argc != 3 || (fds[0] = open(argv[1], O_RDWR)) < 0 || (fds[1] = open(argv[2], O_RDWR | O_CREAT, 0644)) < 0)
        return perror("usage: sync OLD NEW"), 2;
    mirror_device_limits limits = {.struct_size = sizeof limits, .length = (uint64_t)lseek(fds[0], 0, SEEK_END)};
    mirror_device_ops ops = {sizeof ops, .read = disk_read, .write = disk_write, .flush = disk_flush, .close = disk_close};
    mirror_device *old_disk, *new_disk;
    mirror_filter *disk;
    mirror_job *job;
    mirror_job_options options;
    mirror_job_options_init(&options, sizeof options);
    options.max_in_flight = 1, options.max_io = 65536; /* a poll copies 32 times that, while the guest waits */
    if (ftruncate(fds[1], (off_t)limits.length) < 0 || mirror_device_new(&ops, &limits, &fds[0], &old_disk) < 0 ||
        mirror_device_new(&ops, &limits, &fds[1], &new_disk) < 0 || mirror_filter_new(old_disk, &disk) < 0 ||
        mirror_job_new(disk, new_disk, &options, &job) < 0 || mirror_job_start(job) < 0)
        return fprintf(stderr, "%s\n", mirror_last_error()), 1;
    static uint64_t block[512], n, rest = 100; /* writes after the switch */
    for (int state = MIRROR_POLL_BUSY; rest > 0; rest -= state == MIRROR_POLL_CONCLUDED) {
        for (size_t i = 0; i < 512; i++) /* what guest.h says that a guest writes */
            block[i] = n + 1;
        int outcome = 1;
        uint64_t at = 7919 * ++n % (limits.length / 4096) * 4096;
        if (mirror_filter_write(disk, at, &(mirror_iovec){block, 4096}, 1, 0, told, &outcome) < 0)
            return fprintf(stderr, "%s\n", mirror_last_error()), 1;
        do { /* a write that is held back for the switch is told by one of the next polls: so poll while it waits */
            if (state != MIRROR_POLL_CONCLUDED && (state = mirror_job_poll(job, mirror_clock_ns(), NULL)) < 0)
                return fprintf(stderr, "%s\n", mirror_last_error()), 1;
            for (mirror_event event = {.struct_size = sizeof event}; mirror_job_next_event(job, &event) == 1;)
                if (event.type == MIRROR_EVENT_READY)
                    mirror_job_complete(job);
        } while (outcome == 1);
    }
    mirror_job_info info = {.struct_size = sizeof info};
    mirror_job_query(job, &info), printf("%llu writes\n", (unsigned long long)n);
    mirror_job_free(job), mirror_filter_free(disk), mirror_device_free(old_disk), mirror_device_free(new_disk);
    return info.result != 0;
}
