/* What a job is to be like, read from words: `speed=64M`. The server's parameters and `start` take the same. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include "problem.h"

#include <blkmirror.h>
#include <stdbool.h>

struct job_options {
    mirror_job_options library;
    char *target;
    bool create;
    bool direct;
    bool threads;
};

/* For `config_help` and the text of `help`. */
extern const char job_options_help[];

int job_options_init(struct job_options *options, struct problem *problem);
void job_options_clear(struct job_options *options);

/* Whether there is an option of this name. */
bool job_option_exists(const char *name);
/* Sets one. `-ENOENT` if there is none of this name. */
int job_option_set(struct job_options *options, const char *name, const char *value, struct problem *problem);

/* Words that are also asked for elsewhere. */
int parse_copy_mode(const char *value, uint32_t *mode, struct problem *problem);
int parse_size(const char *name, const char *value, uint64_t *size, struct problem *problem);
int parse_switch(const char *name, const char *value, bool *on, struct problem *problem);
const char *copy_mode_name(uint32_t mode);
const char *sync_name(uint32_t sync);

#endif
