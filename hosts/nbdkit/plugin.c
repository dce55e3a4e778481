/* nbdkit's side: parameters, the life of the server, and what NBD asks for. */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "control.h"
#include "disk.h"
#include "job.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* Most extents that are asked for at a time. */
enum { EXTENTS = 64 };

static struct {
    char *source;
    char *control;
    struct image_options disk;
    struct job_options job;
    char stray[32]; /* a parameter that says something about a job, if any was given */
    char *help;
} server;

static int complain(const struct problem *problem) {
    nbdkit_error("%s", problem->text);
    return -1;
}

static void forward_log(void *opaque, uint32_t level, const char *message) {
    (void)opaque;
    if (level <= MIRROR_LOG_WARN)
        nbdkit_error("%s", message);
    else
        nbdkit_debug("%s", message);
}

static void plugin_load(void) {
    struct problem problem;
    mirror_set_log(forward_log, NULL, MIRROR_LOG_INFO, NULL);
    if (job_options_init(&server.job, &problem) < 0) {
        complain(&problem);
        exit(EXIT_FAILURE);
    }
}

static void plugin_unload(void) {
    mirror_set_log(NULL, NULL, MIRROR_LOG_OFF, NULL);
    job_options_clear(&server.job);
    free(server.source);
    free(server.control);
}

static void plugin_dump(void) { printf("blkmirror_version=%s\n", mirror_version_string()); }

static int set_path(const char *key, const char *value, char **path) {
    if (*path) {
        nbdkit_error("%s: is given twice", key);
        return -1;
    }
    if (!*value) {
        nbdkit_error("%s=: is empty", key);
        return -1;
    }
    /* The server goes to another folder before it opens the file. */
    *path = nbdkit_absolute_path(value);
    return *path ? 0 : -1;
}

static int set_switch(const char *key, const char *value, bool *on) {
    struct problem problem;
    return parse_switch(key, value, on, &problem) < 0 ? complain(&problem) : 0;
}

static int set_target(const char *value) {
    char *path = NULL;
    struct problem problem;
    if (set_path("target", value, &path) < 0)
        return -1;
    int result = job_option_set(&server.job, "target", path, &problem);
    free(path);
    return result < 0 ? complain(&problem) : 0;
}

static int set_job_option(const char *key, const char *value) {
    struct problem problem;
    if (!job_option_exists(key)) {
        nbdkit_error("%s: there is no such parameter; `nbdkit PLUGIN --help` lists them", key);
        return -1;
    }
    snprintf(server.stray, sizeof server.stray, "%s", key);
    return job_option_set(&server.job, key, value, &problem) < 0 ? complain(&problem) : 0;
}

static int plugin_config(const char *key, const char *value) {
    if (strcmp(key, "source") == 0)
        return set_path(key, value, &server.source);
    if (strcmp(key, "control") == 0)
        return set_path(key, value, &server.control);
    if (strcmp(key, "target") == 0)
        return set_target(value);
    if (strcmp(key, "readonly") == 0)
        return set_switch(key, value, &server.disk.read_only);
    if (strcmp(key, "direct") == 0)
        return set_switch(key, value, &server.disk.direct);
    if (strcmp(key, "threads") == 0)
        return set_switch(key, value, &server.disk.threads);
    return set_job_option(key, value);
}

static int plugin_config_complete(void) {
    if (!server.source) {
        nbdkit_error("source=FILE is missing: the file or block device to serve");
        return -1;
    }
    if (!server.control) {
        nbdkit_error("control=SOCKET is missing: where the server is told what to do");
        return -1;
    }
    if (!server.job.target && server.stray[0]) {
        nbdkit_error("%s=: is about a job, and target=FILE is missing", server.stray);
        return -1;
    }
    server.job.direct = server.disk.direct;
    server.job.threads = server.disk.threads;
    return 0;
}

/* Opens everything once while there is a terminal to complain to. The disk is opened again after nbdkit's fork, which no
 * thread and no ring of the kernel's would survive. */
static int plugin_get_ready(void) {
    struct problem problem;
    if (disk_open(server.source, &server.disk, &problem) < 0)
        return complain(&problem);
    int result = server.job.target ? job_rehearse(&server.job, &problem) : 0;
    disk_close();
    if (result == 0)
        result = control_listen(server.control, &problem);
    return result < 0 ? complain(&problem) : 0;
}

static int plugin_after_fork(void) {
    struct problem problem;
    int result = disk_open(server.source, &server.disk, &problem);
    if (result == 0 && server.job.target)
        result = job_start(&server.job, control_tell, &problem);
    if (result == 0)
        result = control_start(&problem);
    if (result == 0)
        return 0;
    complain(&problem);
    control_stop();
    return -1;
}

/* All connections are closed. */
static void plugin_cleanup(void) {
    /* Nobody starts another job before the last is over. */
    control_stop();
    job_stop();
    control_close();
    disk_close();
}

static void *plugin_open(int readonly) {
    (void)readonly;
    disk_connected(1);
    return NBDKIT_HANDLE_NOT_NEEDED;
}

static void plugin_close(void *handle) {
    (void)handle;
    disk_connected(-1);
}

static int64_t plugin_get_size(void *handle) { return (void)handle, (int64_t)disk_length(); }
static int plugin_can_write(void *handle) { return (void)handle, !disk_read_only(); }
static int plugin_can_fua(void *handle) { return (void)handle, NBDKIT_FUA_NATIVE; }
static int yes(void *handle) { return (void)handle, 1; }

static int plugin_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum) {
    (void)handle;
    *minimum = disk_alignment();
    *preferred = 4096 > *minimum ? 4096 : *minimum;
    *maximum = UINT32_MAX;
    return 0;
}

/* nbdkit wants -1 and the errno. */
static int told(int result, const char *what, uint64_t offset, uint32_t count) {
    if (result >= 0)
        return 0;
    nbdkit_error("%s of %" PRIu32 " bytes at offset %" PRIu64 ": %s", what, count, offset, strerror(-result));
    nbdkit_set_error(-result);
    return -1;
}

static int plugin_pread(void *handle, void *buffer, uint32_t count, uint64_t offset, uint32_t flags) {
    (void)handle, (void)flags;
    return told(disk_read(buffer, offset, count), "read", offset, count);
}

static int plugin_pwrite(void *handle, const void *buffer, uint32_t count, uint64_t offset, uint32_t flags) {
    (void)handle;
    return told(disk_write(buffer, offset, count, flags & NBDKIT_FLAG_FUA), "write", offset, count);
}

static int plugin_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags) {
    (void)handle;
    bool may_unmap = flags & NBDKIT_FLAG_MAY_TRIM;
    /* The client would rather know that it isn't cheap, and then writes as it sees fit: no error to complain of. */
    if (flags & NBDKIT_FLAG_FAST_ZERO && !(may_unmap && disk_zeroes_cheaply())) {
        nbdkit_set_error(EOPNOTSUPP);
        return -1;
    }
    return told(disk_zero(offset, count, may_unmap, flags & NBDKIT_FLAG_FUA), "zero", offset, count);
}

static int plugin_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags) {
    (void)handle;
    return told(disk_trim(offset, count, flags & NBDKIT_FLAG_FUA), "trim", offset, count);
}

static int plugin_flush(void *handle, uint32_t flags) {
    (void)handle, (void)flags;
    return told(disk_flush(), "flush", 0, 0);
}

/* What a client may conclude: of a hole without zeroes it could conclude nothing, so that is told as data. */
static uint32_t nbd_type(uint32_t flags) {
    if (!(flags & MIRROR_EXTENT_ZERO) || flags & MIRROR_EXTENT_DATA)
        return 0;
    return flags & MIRROR_EXTENT_ALLOCATED ? NBDKIT_EXTENT_ZERO : NBDKIT_EXTENT_ZERO | NBDKIT_EXTENT_HOLE;
}

static int plugin_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags, struct nbdkit_extents *extents) {
    (void)handle;
    mirror_extent found[EXTENTS];
    size_t capacity = flags & NBDKIT_FLAG_REQ_ONE ? 1 : EXTENTS, told_of = 0;
    int result = disk_extents(offset, count, found, capacity, &told_of);
    if (result < 0)
        return told(result, "block status", offset, count);
    /* Whatever is left is asked for again by the client. */
    for (size_t i = 0; i < told_of; offset += found[i++].length) {
        if (nbdkit_add_extent(extents, offset, found[i].length, nbd_type(found[i].flags)) < 0)
            return -1;
    }
    return 0;
}

static struct nbdkit_plugin plugin = {
    .name = "blkmirror",
    .longname = "blkmirror: a live disk that can be mirrored",
    .description = "Serves a file or block device, copies it to another while clients write, and switches over.",
    .load = plugin_load,
    .unload = plugin_unload,
    .dump_plugin = plugin_dump,
    .config = plugin_config,
    .config_complete = plugin_config_complete,
    .magic_config_key = "source",
    .get_ready = plugin_get_ready,
    .after_fork = plugin_after_fork,
    .cleanup = plugin_cleanup,
    .open = plugin_open,
    .close = plugin_close,
    .get_size = plugin_get_size,
    .block_size = plugin_block_size,
    .can_write = plugin_can_write,
    .can_flush = yes,
    .can_trim = yes,
    .can_zero = yes,
    .can_fast_zero = yes,
    .can_fua = plugin_can_fua,
    .can_extents = yes,
    /* All connections share one device, so a flush of any makes durable what any was told is done. */
    .can_multi_conn = yes,
    .pread = plugin_pread,
    .pwrite = plugin_pwrite,
    .zero = plugin_zero,
    .trim = plugin_trim,
    .flush = plugin_flush,
    .extents = plugin_extents,
};

/* As NBDKIT_REGISTER_PLUGIN has it, and the help put together. */
NBDKIT_DLL_PUBLIC struct nbdkit_plugin *plugin_init(void);

NBDKIT_DLL_PUBLIC struct nbdkit_plugin *plugin_init(void) {
    static char help[4096];
    snprintf(help, sizeof help,
             "source=FILE              (required) the file or block device to serve\n"
             "control=SOCKET           (required) where the server is told what to do\n"
             "readonly=on              never write to the source\n"
             "direct=on                bypass the page cache\n"
             "threads=on               leave the work to threads, where io_uring is to\n"
             "                         be had too\n"
             "With target=FILE a job begins at once; what follows is about it, and can be\n"
             "told to `start` on the control socket as well:\n%s",
             job_options_help);
    plugin.config_help = help;
    plugin._struct_size = sizeof plugin;
    plugin._api_version = NBDKIT_API_VERSION;
    plugin._thread_model = THREAD_MODEL;
    return &plugin;
}
