#include "socket.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 128 };

/* Two servers that start at once must not both find a stale socket, and the second remove what the first has made: so
 * whoever looks and replaces holds a lock on the folder. */
static int lock_folder(const char *path, struct problem *problem) {
    char copy[PATH_MAX];
    strncpy(copy, path, sizeof copy - 1);
    copy[sizeof copy - 1] = 0;
    const char *folder = dirname(copy);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || flock(fd, LOCK_EX) < 0) {
        problem_set(problem, errno, "control %s: folder %s: %s", path, folder, strerror(errno));
        if (fd >= 0)
            close(fd);
        return -problem->number;
    }
    return fd;
}

/* Removes what is in the way if it is a socket that nobody answers on. */
static int remove_stale(const struct sockaddr_un *address, struct problem *problem) {
    const char *path = address->sun_path;
    struct stat seen;
    if (lstat(path, &seen) < 0)
        return errno == ENOENT ? 0 : problem_set(problem, errno, "control %s: %s", path, strerror(errno));
    if (!S_ISSOCK(seen.st_mode))
        return problem_set(problem, EEXIST, "control %s: exists and is no socket", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return problem_set(problem, errno, "control: %s", strerror(errno));
    int number = connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 ? 0 : errno;
    close(fd);
    /* EAGAIN: somebody listens and has no time. */
    if (number == 0 || number == EAGAIN)
        return problem_set(problem, EADDRINUSE, "control %s: another server answers there", path);
    if (number != ECONNREFUSED)
        return problem_set(problem, number, "control %s: exists, and it can't be told whether it is in use: %s", path,
                           strerror(number));
    if (unlink(path) < 0)
        return problem_set(problem, errno, "control %s: nobody answers there, but it can't be removed: %s", path,
                           strerror(errno));
    return 0;
}

static int listen_at(int fd, const struct sockaddr_un *address, struct socket_file *out, struct problem *problem) {
    mode_t before = umask(0177);
    int result = bind(fd, (const struct sockaddr *)address, sizeof *address);
    int number = errno;
    umask(before);
    struct stat made;
    if (result < 0)
        return problem_set(problem, number, "control %s: %s", address->sun_path, strerror(number));
    if (lstat(address->sun_path, &made) < 0 || listen(fd, BACKLOG) < 0)
        return problem_set(problem, errno, "control %s: %s", address->sun_path, strerror(errno));
    out->device = made.st_dev;
    out->inode = made.st_ino;
    return 0;
}

int socket_file_make(const char *path, struct socket_file *out, struct problem *problem) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return problem_set(problem, ENAMETOOLONG, "control %s: the path of a socket has at most %zu bytes", path,
                           sizeof address.sun_path - 1);
    strcpy(address.sun_path, path);
    int folder = lock_folder(path, problem);
    if (folder < 0)
        return folder;
    out->path = strdup(path);
    out->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int result = 0;
    if (!out->path || out->fd < 0)
        result = problem_set(problem, out->path ? errno : ENOMEM, "control %s: no socket", path);
    if (result == 0)
        result = remove_stale(&address, problem);
    if (result == 0)
        result = listen_at(out->fd, &address, out, problem);
    close(folder);
    if (result < 0) {
        if (out->fd >= 0)
            close(out->fd);
        free(out->path);
        *out = (struct socket_file){.fd = -1};
    }
    return result;
}

void socket_file_remove(struct socket_file *file) {
    struct stat seen;
    if (file->fd < 0)
        return;
    if (lstat(file->path, &seen) == 0 && seen.st_dev == file->device && seen.st_ino == file->inode)
        unlink(file->path);
    close(file->fd);
    free(file->path);
    *file = (struct socket_file){.fd = -1};
}
