/* A layer over a disk, in clusters: what isn't allocated in it is read from its backing. It finishes everything inline. */
#ifndef OVERLAY_H
#define OVERLAY_H

#include "disk.h"

enum { CLUSTER = 65536, CLUSTERS = 64 };

typedef struct overlay {
    mirror_device *device;
    disk *backing; /* NULL: none, or not yet */
    uint64_t length;
    uint8_t bytes[CLUSTERS * CLUSTER];
    bool own[CLUSTERS];
    int partial; /* writes of part of a cluster that was not allocated and had no backing to be filled from */
} overlay;

/* What a cluster's byte reads as. */
static inline uint8_t overlay_byte(const overlay *o, uint64_t at) {
    if (o->own[at / CLUSTER])
        return o->bytes[at];
    return o->backing && at < o->backing->length ? o->backing->bytes[at] : 0;
}

static inline void overlay_own(overlay *o, uint64_t cluster, bool whole) {
    if (o->own[cluster])
        return;
    for (uint64_t at = cluster * CLUSTER; at < (cluster + 1) * CLUSTER; at++)
        o->bytes[at] = overlay_byte(o, at);
    o->own[cluster] = true;
    o->partial += !whole && !o->backing;
}

static inline void overlay_touch(overlay *o, uint64_t offset, uint64_t length) {
    for (uint64_t cluster = offset / CLUSTER; cluster * CLUSTER < offset + length; cluster++) {
        uint64_t end = (cluster + 1) * CLUSTER < o->length ? (cluster + 1) * CLUSTER : o->length;
        overlay_own(o, cluster, offset <= cluster * CLUSTER && offset + length >= end);
    }
}

static inline int overlay_read(void *opaque, uint64_t token, uint64_t offset, uint64_t length, const mirror_iovec *iov, size_t n) {
    (void)token, (void)length;
    for (size_t i = 0; i < n; i++)
        for (size_t byte = 0; byte < iov[i].len; byte++)
            ((uint8_t *)iov[i].base)[byte] = overlay_byte(opaque, offset++);
    return MIRROR_DONE;
}

static inline int overlay_write(void *opaque, uint64_t token, uint64_t offset, uint64_t length, const mirror_iovec *iov, size_t n,
                                uint32_t flags) {
    overlay *o = opaque;
    (void)token, (void)flags;
    overlay_touch(o, offset, length);
    for (size_t i = 0; i < n; offset += iov[i++].len)
        memcpy(o->bytes + offset, iov[i].base, iov[i].len);
    return MIRROR_DONE;
}

static inline int overlay_zero(void *opaque, uint64_t token, uint64_t offset, uint64_t length, uint32_t flags) {
    overlay *o = opaque;
    (void)token, (void)flags;
    overlay_touch(o, offset, length);
    memset(o->bytes + offset, 0, length);
    return MIRROR_DONE;
}

/* Whole clusters fall back to the backing. */
static inline int overlay_discard(void *opaque, uint64_t token, uint64_t offset, uint64_t length) {
    overlay *o = opaque;
    (void)token;
    for (uint64_t cluster = (offset + CLUSTER - 1) / CLUSTER; (cluster + 1) * CLUSTER <= offset + length; cluster++)
        o->own[cluster] = false;
    return MIRROR_DONE;
}

static inline int overlay_extents(void *opaque, uint64_t token, uint64_t offset, uint64_t length) {
    overlay *o = opaque;
    for (uint64_t end = offset + length; offset < end;) {
        uint64_t next = offset / CLUSTER * CLUSTER + CLUSTER, stretch = (next < end ? next : end) - offset;
        bool backed = o->backing && offset < o->backing->length;
        uint32_t flags = o->own[offset / CLUSTER] ? MIRROR_EXTENT_DATA | MIRROR_EXTENT_ALLOCATED
                         : backed                 ? MIRROR_EXTENT_DATA
                                                  : MIRROR_EXTENT_ZERO;
        if (ok(mirror_device_extent(o->device, token, stretch, flags)) == 1)
            break;
        offset += stretch;
    }
    return MIRROR_DONE;
}

static inline overlay *overlay_new(disk *backing, uint64_t length, uint32_t flags) {
    overlay *o = calloc(1, sizeof *o);
    mirror_device_ops ops = {.struct_size = sizeof ops, .read = overlay_read, .write = overlay_write, .zero = overlay_zero,
                             .discard = overlay_discard, .extents = overlay_extents};
    mirror_device_limits limits = {.struct_size = sizeof limits, .length = length, .flags = flags, .cluster_size = CLUSTER};
    check(length <= sizeof o->bytes);
    o->backing = backing, o->length = length;
    ok(mirror_device_new(&ops, &limits, o, &o->device));
    return o;
}

static inline void overlay_free(overlay *o) {
    mirror_device_free(o->device);
    free(o);
}

/* Whether the first so many bytes read as these. */
static inline bool overlay_reads(const overlay *o, const uint8_t *bytes, uint64_t length) {
    for (uint64_t at = 0; at < length; at++)
        if (overlay_byte(o, at) != bytes[at])
            return false;
    return true;
}

#endif
