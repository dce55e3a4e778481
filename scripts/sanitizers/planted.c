/* A program that is wrong in the way that its argument names, so that a sanitizer that sees nothing is seen to. */
#include <blkmirror.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int shared;

static void *race(void *unused) {
    shared++;
    return unused;
}

static void nothing(void *opaque, int result) { (void)opaque, (void)result; }

int main(int argc, char **argv) {
    mirror_device *device;
    mirror_filter *filter;
    char *memory = malloc(512);
    if (argc != 2 || !memory || mirror_device_new_memory(4096, &device) < 0 || mirror_filter_new(device, &filter) < 0)
        return 2;
    mirror_iovec iov = {memory, 512};
    if (strcmp(argv[1], "race") == 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, race, NULL);
        shared++;
        pthread_join(thread, NULL);
        free(memory);
    } else if (strcmp(argv[1], "use-after-free") == 0) {
        free(memory);
        mirror_filter_read(filter, 0, &iov, 1, 0, nothing, NULL); /* by the library */
    } else if (strcmp(argv[1], "uninitialised") == 0) {
        puts(memory[7] == 1 ? "one" : "not one");
        free(memory);
    } else if (strcmp(argv[1], "leak") == 0) {
        memory = NULL;
        iov.base = NULL;
    } else {
        free(memory);
    }
    mirror_filter_free(filter);
    mirror_device_free(device);
    return 0;
}
