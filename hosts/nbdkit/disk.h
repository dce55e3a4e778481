/* The disk that is served: a filter, the image that it sits on now, and the guest's requests, which wait until done. */
#ifndef DISK_H
#define DISK_H

#include "image.h"
#include "json.h"

/* Opens the source and puts a filter on it. There is one disk in a server. */
int disk_open(const char *path, const struct image_options *options, struct problem *problem);
void disk_close(void);

mirror_filter *disk_filter(void);
uint64_t disk_length(void);
bool disk_read_only(void);
/* What guests keep to: a power of two. */
uint32_t disk_alignment(void);
/* A zero that may deallocate is cheaper than a write. */
bool disk_zeroes_cheaply(void);

/* If the filter sits on this image now it becomes the disk's, which closes the one before. Whether it did. */
bool disk_adopt(struct image *image);

/* Counts a client in or out. */
void disk_connected(int change);

/* Writes what `query` tells of the disk. */
void disk_describe(struct json *json);

/* Guest requests, from any thread: 0 or -errno. */
int disk_read(void *buffer, uint64_t offset, uint32_t length);
int disk_write(const void *buffer, uint64_t offset, uint32_t length, bool fua);
int disk_zero(uint64_t offset, uint32_t length, bool may_unmap, bool fua);
int disk_trim(uint64_t offset, uint32_t length, bool fua);
int disk_flush(void);
int disk_extents(uint64_t offset, uint32_t length, mirror_extent *extents, size_t capacity, size_t *count);

#endif
