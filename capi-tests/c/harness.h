/* What the programs check with. A failed check says what it saw and ends the program. */
#ifndef HARNESS_H
#define HARNESS_H

#include <blkmirror.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int checks;

/* Also from threads. */
static inline void count_check(void) { __atomic_fetch_add(&checks, 1, __ATOMIC_RELAXED); }

#define FAIL(...) \
    (fprintf(stderr, "%s:%d: ", __FILE__, __LINE__), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))

/* It is true. */
#define check(condition) (count_check(), (condition) ? (void)0 : FAIL("not so: %s", #condition))

/* Two integers are equal. */
#define eq(seen, expected) check_eq(__FILE__, __LINE__, #seen, (long long)(seen), (long long)(expected))

/* A call succeeds: 0 or a positive value, which it is. */
#define ok(call) check_ok(__FILE__, __LINE__, #call, (call))

/* A call is refused with this errno, and the last error contains this text. */
#define err(number, text, call) check_err(__FILE__, __LINE__, #call, (call), (number), (text))

/* A text contains another. */
#define has(text, part) (count_check(), strstr((text), (part)) ? (void)0 : FAIL("'%s' has no '%s'", (text), (part)))

static inline void check_eq(const char *file, int line, const char *what, long long seen, long long expected) {
    count_check();
    if (seen != expected) {
        fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", file, line, what, seen, expected);
        exit(1);
    }
}

static inline int check_ok(const char *file, int line, const char *what, int result) {
    count_check();
    if (result < 0) {
        fprintf(stderr, "%s:%d: %s: %d, %s\n", file, line, what, result, mirror_last_error());
        exit(1);
    }
    return result;
}

static inline void check_err(const char *file, int line, const char *what, int result, int number, const char *text) {
    count_check();
    if (result != -number || !strstr(mirror_last_error(), text)) {
        fprintf(stderr, "%s:%d: %s: %d '%s', not %d '%s'\n", file, line, what, result, mirror_last_error(), -number, text);
        exit(1);
    }
}

/* A program without a check has shown nothing. */
static inline int done(void) {
    check(checks > 0);
    printf("%d checks\n", checks);
    return 0;
}

#endif
