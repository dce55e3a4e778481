#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The locks that QEMU's programs take: a shared lock on one byte for each thing that is done to the file, and on one
 * hundred bytes further for each thing that nobody else may do; whoever comes takes his own and then looks whether they get
 * along with those of others. They belong to the open file, whichever thread or, after nbdkit's fork, process has it. */
enum { DOES = 100, FORBIDS = 200, READING = 0, WRITING = 1, RESIZING = 3 };

static int lock_byte(int fd, int byte) {
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock) == 0 ? 0 : errno;
}

static int see_byte(int fd, int byte) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        return errno;
    return lock.l_type == F_UNLCK ? 0 : EAGAIN;
}

/* 0, EAGAIN if somebody is in the way, or another errno. */
static int take_locks(int fd, bool read_only) {
    const int takes[] = {DOES + READING, FORBIDS + WRITING, FORBIDS + RESIZING, DOES + WRITING};
    const int sees[] = {FORBIDS + READING, DOES + WRITING, DOES + RESIZING, FORBIDS + WRITING};
    const size_t count = read_only ? 3 : 4;
    int number = 0;
    for (size_t i = 0; i < count && number == 0; i++)
        number = lock_byte(fd, takes[i]);
    for (size_t i = 0; i < count && number == 0; i++)
        number = see_byte(fd, sees[i]);
    return number;
}

static int open_and_lock(const char *what, const char *path, const struct image_options *options, bool *made,
                         struct problem *problem) {
    int flags = (options->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    *made = false;
    int fd = open(path, flags);
    if (fd < 0 && errno == ENOENT && options->create) {
        fd = open(path, flags | O_CREAT | O_EXCL, 0666);
        *made = fd >= 0;
    }
    if (fd < 0) {
        const char *hint = errno == EROFS || errno == EACCES ? " (it is to be read and written)" : "";
        return problem_set(problem, errno, "%s %s: %s%s", what, path, strerror(errno), options->read_only ? "" : hint);
    }
    int number = take_locks(fd, options->read_only);
    if (number == 0)
        return fd;
    close(fd);
    if (number == EAGAIN || number == EACCES)
        return problem_set(problem, EBUSY, "%s %s: another program uses it", what, path);
    return problem_set(problem, number, "%s %s: it can't be locked: %s", what, path, strerror(number));
}

static int open_device(const char *what, const struct image_options *options, struct image *image, struct problem *problem) {
    uint32_t flags = (options->read_only ? MIRROR_OPEN_READ_ONLY : 0) | (options->direct ? MIRROR_OPEN_DIRECT : 0) |
                     (options->threads ? MIRROR_OPEN_THREADS : 0) | (options->create ? MIRROR_OPEN_CREATE : 0);
    int result = mirror_device_open_file(image->path, flags, options->create ? options->length : 0, &image->device);
    if (result == 0) {
        image->limits.struct_size = sizeof image->limits;
        result = mirror_device_query(image->device, &image->limits);
    }
    return result < 0 ? problem_of_library(problem, result, what) : 0;
}

int image_open(const char *what, const char *path, const struct image_options *options, struct image **out,
               struct problem *problem) {
    struct image *image = calloc(1, sizeof *image);
    char *copy = strdup(path);
    if (!image || !copy) {
        free(image);
        free(copy);
        return problem_set(problem, ENOMEM, "%s %s: no memory", what, path);
    }
    bool made;
    image->path = copy;
    image->lock = open_and_lock(what, path, options, &made, problem);
    int result = image->lock < 0 ? image->lock : open_device(what, options, image, problem);
    if (result < 0) {
        if (made)
            unlink(path);
        image_close(image);
        return result;
    }
    *out = image;
    return 0;
}

void image_close(struct image *image) {
    if (!image)
        return;
    mirror_device_free(image->device);
    if (image->lock >= 0)
        close(image->lock);
    free(image->path);
    free(image);
}
