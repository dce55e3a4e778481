/* A listening socket in the file system that is nobody else's. */
#ifndef SOCKET_H
#define SOCKET_H

#include "problem.h"

#include <sys/types.h>

struct socket_file {
    int fd;
    char *path;
    dev_t device;
    ino_t inode;
};

int socket_file_make(const char *path, struct socket_file *out, struct problem *problem);
/* Removes it, unless another has taken its place. */
void socket_file_remove(struct socket_file *file);

#endif
