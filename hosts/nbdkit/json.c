#include "json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void append(struct json *json, const char *bytes, size_t length) {
    if (json->used + length > json->room) {
        size_t room = (json->used + length) * 2;
        char *text = realloc(json->text, room);
        if (!text) {
            json->failed = true;
            return;
        }
        json->text = text;
        json->room = room;
    }
    memcpy(json->text + json->used, bytes, length);
    json->used += length;
}

static void append_text(struct json *json, const char *text) { append(json, text, strlen(text)); }

/* How many bytes the character at `at` has, of valid UTF-8 as RFC 3629 has it; 0 if it is none. */
static size_t character(const unsigned char *at) {
    static const struct {
        unsigned char first, last, least, most; /* of the first byte; of the second */
        size_t length;
    } rows[] = {{0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3}, {0xe1, 0xec, 0x80, 0xbf, 3},
                {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3}, {0xf0, 0xf0, 0x90, 0xbf, 4},
                {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};
    if (*at < 0x80)
        return 1;
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++) {
        if (*at < rows[row].first || *at > rows[row].last)
            continue;
        if (at[1] < rows[row].least || at[1] > rows[row].most)
            return 0;
        /* The terminating zero is no continuation, so nothing beyond it is read. */
        for (size_t i = 2; i < rows[row].length; i++) {
            if ((at[i] & 0xc0) != 0x80)
                return 0;
        }
        return rows[row].length;
    }
    return 0;
}

static void append_string(struct json *json, const char *value) {
    append_text(json, "\"");
    for (const unsigned char *at = (const unsigned char *)value; *at;) {
        size_t length = character(at);
        char escape[8];
        if (length == 0) {
            append_text(json, "\\ufffd");
            length = 1;
        } else if (*at < 0x20) {
            snprintf(escape, sizeof escape, "\\u%04x", (unsigned)*at);
            append_text(json, escape);
        } else {
            if (*at == '"' || *at == '\\')
                append_text(json, "\\");
            append(json, (const char *)at, length);
        }
        at += length;
    }
    append_text(json, "\"");
}

static void key_of(struct json *json, const char *key) {
    if (json->used > 0 && json->text[json->used - 1] != '{')
        append_text(json, ",");
    append_string(json, key);
    append_text(json, ":");
}

void json_begin(struct json *json) {
    *json = (struct json){0};
    append_text(json, "{");
}

void json_text(struct json *json, const char *key, const char *value) {
    key_of(json, key);
    append_string(json, value);
}

void json_number(struct json *json, const char *key, uint64_t value) {
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, value);
    key_of(json, key);
    append_text(json, text);
}

void json_integer(struct json *json, const char *key, int64_t value) {
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, value);
    key_of(json, key);
    append_text(json, text);
}

void json_bool(struct json *json, const char *key, bool value) {
    key_of(json, key);
    append_text(json, value ? "true" : "false");
}

void json_null(struct json *json, const char *key) {
    key_of(json, key);
    append_text(json, "null");
}

void json_open(struct json *json, const char *key) {
    key_of(json, key);
    append_text(json, "{");
}

void json_close(struct json *json) { append_text(json, "}"); }

const char *json_line(struct json *json, size_t *length) {
    append_text(json, "}\n");
    *length = json->used;
    return json->failed ? NULL : json->text;
}

void json_free(struct json *json) { free(json->text); }
