/* A file or block device that is, or may become, the disk: locked against others, and open as a device of blkmirror. */
#ifndef IMAGE_H
#define IMAGE_H

#include "problem.h"

#include <blkmirror.h>
#include <stdbool.h>

struct image_options {
    bool read_only;
    bool direct;  /* bypass the page cache */
    bool threads; /* leave io_uring alone */
    bool create;  /* make it, `length` long, if it is missing or empty */
    uint64_t length;
};

struct image {
    char *path;
    mirror_device *device;
    mirror_device_limits limits;
    int lock;
};

/* Opens it. Two servers, or a server and QEMU, don't both write to one file; `qemu-img -U` may read it all the same. */
int image_open(const char *what, const char *path, const struct image_options *options, struct image **out,
               struct problem *problem);

/* NULL is allowed. What a filter or a job still uses goes on. */
void image_close(struct image *image);

#endif
