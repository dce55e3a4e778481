/* The control socket: a word and arguments in, one JSON line out. README.md has the protocol. */
#ifndef CONTROL_H
#define CONTROL_H

#include "problem.h"

#include <blkmirror.h>

/* Makes the socket, mode 0600. What is in its way is replaced only if it is a socket that nobody answers on. */
int control_listen(const char *path, struct problem *problem);

/* Serves it, from a thread of its own. */
int control_start(struct problem *problem);

/* Ends the thread and its clients, and removes the socket if it is still this one. */
void control_stop(void);

/* Lets go of what `control_tell` uses: once no job is left that could call it. */
void control_close(void);

/* Tells those who listen of an event. It doesn't wait for them. */
void control_tell(const char *job, const mirror_event *event);

#endif
