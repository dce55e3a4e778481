/* What went wrong, for a person and for a program: filled in where it is known, told where it is asked for. */
#ifndef PROBLEM_H
#define PROBLEM_H

struct problem {
    int number; /* an errno */
    char text[1024];
};

/* Fills it in and answers -number. */
int problem_set(struct problem *problem, int number, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* What the library says of its call that has just failed with `result`, which is answered. */
int problem_of_library(struct problem *problem, int result, const char *what);

/* The word for an errno: "EBUSY". */
const char *problem_name(int number);

#endif
