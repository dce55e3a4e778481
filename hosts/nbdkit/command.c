#include "command.h"

#include "control.h"
#include "job.h"

#include <errno.h>
#include <string.h>

/* More than there are options. */
enum { MOST_WORDS = 32 };

struct words {
    char *word[MOST_WORDS];
    size_t count;
};

/* Takes a line apart at its spaces. A backslash takes what follows it as it is, so that paths can have spaces; `\n` is a
 * line feed. */
static int split(char *line, struct words *words, struct problem *problem) {
    char *to = line;
    words->count = 0;
    for (const char *at = line; *at;) {
        while (*at == ' ')
            at++;
        if (!*at)
            break;
        if (words->count == MOST_WORDS)
            return problem_set(problem, E2BIG, "more than %d words", MOST_WORDS);
        char *word = to;
        while (*at && *at != ' ') {
            bool escaped = *at == '\\';
            at += escaped;
            if (!*at)
                return problem_set(problem, EINVAL, "the line ends with a backslash");
            *to++ = escaped && *at == 'n' ? '\n' : *at;
            at++;
        }
        /* What separated the words has room for the end of this one; `at` is past it before it is overwritten. */
        at += *at == ' ';
        *to++ = 0;
        words->word[words->count++] = word;
    }
    return 0;
}

static int start(const struct words *words, struct problem *problem) {
    struct job_options options;
    int result = job_options_init(&options, problem);
    for (size_t i = 1; result == 0 && i < words->count; i++) {
        char *value = strchr(words->word[i], '=');
        if (!value) {
            result = problem_set(problem, EINVAL, "%.64s: must be NAME=VALUE", words->word[i]);
            break;
        }
        *value++ = 0;
        result = job_option_set(&options, words->word[i], value, problem);
    }
    if (result == 0 && options.target && options.target[0] != '/')
        result = problem_set(problem, EINVAL, "target=%s: must be an absolute path", options.target);
    if (result == 0)
        result = job_start(&options, control_tell, problem);
    job_options_clear(&options);
    return result;
}

static int set_speed(const struct words *words, struct problem *problem) {
    uint64_t speed;
    int result = parse_size("speed", words->word[1], &speed, problem);
    return result < 0 ? result : job_set_speed(speed, problem);
}

static int change(const struct words *words, struct problem *problem) {
    uint32_t mode;
    int result = parse_copy_mode(words->word[1], &mode, problem);
    return result < 0 ? result : job_change(mode, problem);
}

static int cancel(const struct words *words, struct problem *problem) {
    bool force = words->count > 1;
    if (force && strcmp(words->word[1], "force") != 0)
        return problem_set(problem, EINVAL, "cancel %.64s: must be `cancel` or `cancel force`", words->word[1]);
    return job_cancel(force, problem);
}

static int do_pause(const struct words *words, struct problem *problem) { return (void)words, job_pause(problem); }
static int do_resume(const struct words *words, struct problem *problem) { return (void)words, job_resume(problem); }
static int complete(const struct words *words, struct problem *problem) { return (void)words, job_complete(problem); }
static int nothing(const struct words *words, struct problem *problem) { return (void)words, (void)problem, 0; }

static const struct command {
    const char *word, *usage;
    size_t least, most; /* arguments */
    int (*run)(const struct words *words, struct problem *problem);
} commands[] = {
    {"query", "query", 0, 0, nothing},
    {"start", "start target=FILE [NAME=VALUE ...]", 1, MOST_WORDS, start},
    {"pause", "pause", 0, 0, do_pause},
    {"resume", "resume", 0, 0, do_resume},
    {"set-speed", "set-speed SIZE", 1, 1, set_speed},
    {"change", "change background|write-blocking", 1, 1, change},
    {"complete", "complete", 0, 0, complete},
    {"cancel", "cancel [force]", 0, 1, cancel},
    {"events", "events", 0, 0, nothing},
};

enum { COMMANDS = sizeof commands / sizeof *commands };

static const struct command *find(const struct words *words, struct problem *problem) {
    char known[128] = "";
    for (size_t i = 0; i < COMMANDS; i++) {
        const struct command *command = &commands[i];
        if (strcmp(command->word, words->word[0]) != 0) {
            strncat(known, i == 0 ? "" : i + 1 < COMMANDS ? ", " : " or ", sizeof known - strlen(known) - 1);
            strncat(known, command->word, sizeof known - strlen(known) - 1);
            continue;
        }
        if (words->count - 1 >= command->least && words->count - 1 <= command->most)
            return command;
        problem_set(problem, EINVAL, "it is: %s", command->usage);
        return NULL;
    }
    problem_set(problem, EINVAL, "'%.64s' is no command: it must be %s", words->word[0], known);
    return NULL;
}

void command_refuse(struct json *answer, int number, const char *text) {
    json_bool(answer, "ok", false);
    json_text(answer, "errno", problem_name(number));
    json_text(answer, "error", text);
}

void command_run(char *line, size_t length, struct json *answer, struct command_effect *effect) {
    struct problem problem;
    struct words words;
    const struct command *command = NULL;
    int result = 0;
    if (memchr(line, 0, length))
        result = problem_set(&problem, EINVAL, "the line has a zero byte");
    if (result == 0)
        result = split(line, &words, &problem);
    if (result == 0 && words.count == 0)
        result = problem_set(&problem, EINVAL, "the line is empty");
    if (result == 0) {
        command = find(&words, &problem);
        result = command ? command->run(&words, &problem) : -problem.number;
    }
    if (result < 0) {
        command_refuse(answer, problem.number, problem.text);
        return;
    }
    json_bool(answer, "ok", true);
    effect->listens = strcmp(command->word, "events") == 0;
    if (strcmp(command->word, "query") == 0) {
        json_text(answer, "version", mirror_version_string());
        job_describe(answer);
    }
}
