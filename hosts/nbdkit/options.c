#include "options.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

const char job_options_help[] =
    "target=FILE              copy the disk to this file, and switch to it on `complete`\n"
    "create=on                make the target if it is missing, as long as the disk\n"
    "sync=full|top|none       what is copied [full]\n"
    "copy-mode=background|write-blocking\n"
    "                         how guest writes reach the target: later, or before\n"
    "                         the guest is told [background]\n"
    "speed=SIZE               most bytes per second, 0 for no limit [0]\n"
    "auto-complete=on         switch to the target as soon as it is equal\n"
    "on-source-error=report|ignore|stop|enospc\n"
    "on-target-error=report|ignore|stop|enospc\n"
    "                         give up; try again; pause until `resume`; pause if\n"
    "                         the device is full, else give up [report]\n"
    "unmap=off                write zeroes instead of making holes\n"
    "detect-zeroes=off        copy zeroes as data\n"
    "target-is-zero=on        the target reads as zero, on your word\n"
    "granularity=SIZE         bytes in a chunk, a power of two [4K]\n"
    "buf-size=SIZE            memory for what is on its way [16M]\n"
    "max-io=SIZE              most bytes in one copy [1M]\n"
    "max-in-flight=N          most copies at a time [16]\n"
    "direct=on, threads=on    for the target, as for the source\n";

struct word {
    const char *word;
    uint32_t value;
};

static const struct word syncs[] = {
    {"full", MIRROR_SYNC_FULL}, {"top", MIRROR_SYNC_TOP}, {"none", MIRROR_SYNC_NONE}, {NULL, 0}};
static const struct word copy_modes[] = {
    {"background", MIRROR_COPY_BACKGROUND}, {"write-blocking", MIRROR_COPY_WRITE_BLOCKING}, {NULL, 0}};
static const struct word policies[] = {
    {"report", MIRROR_ON_ERROR_REPORT}, {"ignore", MIRROR_ON_ERROR_IGNORE}, {"stop", MIRROR_ON_ERROR_STOP},
    {"enospc", MIRROR_ON_ERROR_ENOSPC}, {NULL, 0}};

enum type { TEXT, SWITCH, FLAG, SIZE, NUMBER, SYNC, MODE, POLICY };

#define OPTION(field) offsetof(struct job_options, field)

static const struct option {
    const char *name;
    enum type type;
    size_t at;
    uint32_t flag;
} table[] = {
    {"target", TEXT, OPTION(target), 0},
    {"create", SWITCH, OPTION(create), 0},
    {"direct", SWITCH, OPTION(direct), 0},
    {"threads", SWITCH, OPTION(threads), 0},
    {"sync", SYNC, OPTION(library.sync), 0},
    {"copy-mode", MODE, OPTION(library.copy_mode), 0},
    {"speed", SIZE, OPTION(library.speed), 0},
    {"auto-complete", FLAG, OPTION(library.flags), MIRROR_JOB_AUTO_COMPLETE},
    {"on-source-error", POLICY, OPTION(library.on_source_error), 0},
    {"on-target-error", POLICY, OPTION(library.on_target_error), 0},
    {"unmap", FLAG, OPTION(library.flags), MIRROR_JOB_UNMAP},
    {"detect-zeroes", FLAG, OPTION(library.flags), MIRROR_JOB_DETECT_ZEROES},
    {"target-is-zero", FLAG, OPTION(library.flags), MIRROR_JOB_TARGET_IS_ZERO},
    {"granularity", SIZE, OPTION(library.granularity), 0},
    {"buf-size", SIZE, OPTION(library.buf_size), 0},
    {"max-io", SIZE, OPTION(library.max_io), 0},
    {"max-in-flight", NUMBER, OPTION(library.max_in_flight), 0},
};

static const struct option *find(const char *name) {
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (strcmp(table[i].name, name) == 0)
            return &table[i];
    }
    return NULL;
}

bool job_option_exists(const char *name) { return find(name) != NULL; }

int job_options_init(struct job_options *options, struct problem *problem) {
    memset(options, 0, sizeof *options);
    int result = mirror_job_options_init(&options->library, sizeof options->library);
    if (result < 0)
        return problem_of_library(problem, result, "");
    options->library.on_source_error = MIRROR_ON_ERROR_REPORT;
    options->library.on_target_error = MIRROR_ON_ERROR_REPORT;
    return 0;
}

void job_options_clear(struct job_options *options) {
    free(options->target);
    options->target = NULL;
}

static int parse_word(const char *name, const struct word *words, const char *value, uint32_t *out, struct problem *problem) {
    char known[128] = "";
    for (const struct word *word = words; word->word; word++) {
        if (strcmp(word->word, value) == 0) {
            *out = word->value;
            return 0;
        }
        strncat(known, word == words ? "" : word[1].word ? ", " : " or ", sizeof known - strlen(known) - 1);
        strncat(known, word->word, sizeof known - strlen(known) - 1);
    }
    return problem_set(problem, EINVAL, "%s=%.64s: must be %s", name, value, known);
}

static const char *name_of(const struct word *words, uint32_t value) {
    while (words->word && words->value != value)
        words++;
    return words->word ? words->word : "unknown";
}

int parse_copy_mode(const char *value, uint32_t *mode, struct problem *problem) {
    return parse_word("copy-mode", copy_modes, value, mode, problem);
}

const char *copy_mode_name(uint32_t mode) { return name_of(copy_modes, mode); }
const char *sync_name(uint32_t sync) { return name_of(syncs, sync); }

int parse_size(const char *name, const char *value, uint64_t *size, struct problem *problem) {
    static const char units[] = "KMGTP";
    uint64_t number = 0;
    const char *at = value;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (__builtin_mul_overflow(number, 10, &number) || __builtin_add_overflow(number, *at - '0', &number))
            return problem_set(problem, EINVAL, "%s=%.64s: does not fit in 64 bits", name, value);
    }
    const char *unit = *at ? strchr(units, *at >= 'a' ? *at - 'a' + 'A' : *at) : NULL;
    if (at == value || (*at && (!unit || at[1])))
        return problem_set(problem, EINVAL, "%s=%.64s: must be a whole number, alone or with K, M, G, T or P", name, value);
    if (unit && __builtin_mul_overflow(number, UINT64_C(1) << (10 * (unit - units + 1)), &number))
        return problem_set(problem, EINVAL, "%s=%.64s: does not fit in 64 bits", name, value);
    *size = number;
    return 0;
}

int parse_switch(const char *name, const char *value, bool *on, struct problem *problem) {
    static const struct word words[] = {{"on", 1}, {"off", 0}, {NULL, 0}};
    /* nbdkit's own parameters are written so. */
    if (strcmp(value, "true") == 0 || strcmp(value, "1") == 0)
        value = "on";
    if (strcmp(value, "false") == 0 || strcmp(value, "0") == 0)
        value = "off";
    uint32_t parsed = 0;
    int result = parse_word(name, words, value, &parsed, problem);
    if (result == 0)
        *on = parsed;
    return result;
}

static int set_text(const char *name, const char *value, char **out, struct problem *problem) {
    if (!*value)
        return problem_set(problem, EINVAL, "%s=: is empty", name);
    char *copy = strdup(value);
    if (!copy)
        return problem_set(problem, ENOMEM, "%s: no memory", name);
    free(*out);
    *out = copy;
    return 0;
}

static int set_number(const char *name, const char *value, uint32_t *out, struct problem *problem) {
    uint64_t number;
    int result = parse_size(name, value, &number, problem);
    if (result == 0 && number > UINT32_MAX)
        return problem_set(problem, EINVAL, "%s=%.64s: does not fit in 32 bits", name, value);
    if (result == 0)
        *out = (uint32_t)number;
    return result;
}

int job_option_set(struct job_options *options, const char *name, const char *value, struct problem *problem) {
    const struct option *option = find(name);
    if (!option)
        return problem_set(problem, ENOENT, "%.64s: there is no such option", name);
    void *field = (char *)options + option->at;
    bool on;
    switch (option->type) {
    case TEXT:
        return set_text(name, value, field, problem);
    case SWITCH:
        return parse_switch(name, value, field, problem);
    case FLAG: {
        int result = parse_switch(name, value, &on, problem);
        uint32_t *flags = field;
        if (result == 0)
            *flags = on ? *flags | option->flag : *flags & ~option->flag;
        return result;
    }
    case SIZE:
        return parse_size(name, value, field, problem);
    case NUMBER:
        return set_number(name, value, field, problem);
    case SYNC:
        return parse_word(name, syncs, value, field, problem);
    case MODE:
        return parse_word(name, copy_modes, value, field, problem);
    case POLICY:
        return parse_word(name, policies, value, field, problem);
    }
    return problem_set(problem, EINVAL, "%s: has no type", name);
}
