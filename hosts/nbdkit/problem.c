#include "problem.h"

#include <blkmirror.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int problem_set(struct problem *problem, int number, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(problem->text, sizeof problem->text, format, arguments);
    va_end(arguments);
    problem->number = number;
    return -number;
}

int problem_of_library(struct problem *problem, int result, const char *what) {
    const char *said = mirror_last_error();
    /* Who reads this doesn't know the functions of a C library. */
    const char *colon = strncmp(said, "mirror_", 7) == 0 ? strstr(said, ": ") : NULL;
    if (colon)
        said = colon + 2;
    return problem_set(problem, -result, "%s%s%s", what, *what ? ": " : "", *said ? said : strerror(-result));
}

const char *problem_name(int number) {
    const char *name = strerrorname_np(number);
    return name ? name : "UNKNOWN";
}
