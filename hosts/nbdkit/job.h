/* The job, one at a time, and the thread that drives it. */
#ifndef JOB_H
#define JOB_H

#include "json.h"
#include "options.h"

/* Told of each event, from the thread that drives: `id` is the job's. It must not block. */
typedef void job_listener(const char *id, const mirror_event *event);

/* Opens the target and makes the job and lets all go again: what is wrong is said before nbdkit leaves the terminal. */
int job_rehearse(const struct job_options *options, struct problem *problem);

/* Starts a job. `-EBUSY` while there is one. From one thread at a time. */
int job_start(const struct job_options *options, job_listener *listener, struct problem *problem);

/* Verbs, from any thread; `-ENOENT` without a job. */
int job_pause(struct problem *problem);
int job_resume(struct problem *problem);
int job_complete(struct problem *problem);
int job_cancel(bool force, struct problem *problem);
int job_set_speed(uint64_t bytes_per_second, struct problem *problem);
int job_change(uint32_t copy_mode, struct problem *problem);

/* Writes what `query` tells: of the disk, and of the job that runs or ran last. */
void job_describe(struct json *json);

/* Cancels what runs and waits for its end. */
void job_stop(void);

#endif
