/* Writes one JSON object on one line. What can't be allocated shows in `json_line`, and only there. */
#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json {
    char *text;
    size_t used, room;
    bool failed;
};

/* Begins the object. */
void json_begin(struct json *json);

/* Members. A text is made valid UTF-8: what isn't becomes U+FFFD. */
void json_text(struct json *json, const char *key, const char *value);
void json_number(struct json *json, const char *key, uint64_t value);
void json_integer(struct json *json, const char *key, int64_t value);
void json_bool(struct json *json, const char *key, bool value);
void json_null(struct json *json, const char *key);

/* An object as a member, up to `json_close`. */
void json_open(struct json *json, const char *key);
void json_close(struct json *json);

/* Ends the object with its line feed. NULL if there was no memory. The text is the writer's until `json_free`. */
const char *json_line(struct json *json, size_t *length);
void json_free(struct json *json);

#endif
