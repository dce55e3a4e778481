/* One line of the control socket: taken apart, done, answered. */
#ifndef COMMAND_H
#define COMMAND_H

#include "json.h"

#include <stdbool.h>

/* What the line means for the connection that it came from. */
struct command_effect {
    bool listens; /* it is told of events from now on */
};

/* Does what the line says (it is taken apart in place) and writes the answer, which is not ended. */
void command_run(char *line, size_t length, struct json *answer, struct command_effect *effect);

/* An answer that says what is wrong. */
void command_refuse(struct json *answer, int number, const char *text);

#endif
