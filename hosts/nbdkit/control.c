/* One thread serves all clients and waits for none: what they are to be sent is kept up to a bound. A client that doesn't
 * read is not read from either, and loses events, which it is told. */
#include "control.h"

#include "command.h"
#include "socket.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MOST_CLIENTS = 32,
    LONGEST_LINE = 8192,   /* a path of 4096 bytes, all of them escaped, has room */
    MOST_UNSENT = 65536,   /* bytes that wait for a client; then it is told no more events */
    MOST_EVENTS = 256,     /* that wait for the thread */
};

struct client {
    int fd;
    char in[LONGEST_LINE];
    size_t in_used;
    char *out;
    size_t out_used, out_room;
    bool listens;
    bool ended;   /* it sends nothing more; it may still listen */
    bool closing; /* it is to go, with what its socket takes */
    uint64_t lost; /* events */
};

struct notice {
    char job[32];
    mirror_event event;
};

static struct {
    struct socket_file file;
    pthread_t thread;
    bool runs;
    int wake;
    bool stop;
    struct client *clients[MOST_CLIENTS];
    size_t count;
    pthread_mutex_t lock; /* of what follows */
    struct notice notices[MOST_EVENTS];
    size_t noticed;
    uint64_t lost;
} control = {.file = {.fd = -1}, .wake = -1, .lock = PTHREAD_MUTEX_INITIALIZER};

static void wake(void) {
    uint64_t one = 1;
    /* It fails if it is full, and then the thread is awake. */
    if (write(control.wake, &one, sizeof one) < 0)
        return;
}

void control_tell(const char *job, const mirror_event *event) {
    pthread_mutex_lock(&control.lock);
    if (control.noticed == MOST_EVENTS) {
        control.lost++;
    } else {
        struct notice *notice = &control.notices[control.noticed++];
        strncpy(notice->job, job, sizeof notice->job - 1);
        notice->event = *event;
    }
    pthread_mutex_unlock(&control.lock);
    wake();
}

/* Puts bytes behind those that wait to be sent; without memory the client is let go of. */
static void put(struct client *client, const char *bytes, size_t length) {
    if (client->out_used + length > client->out_room) {
        size_t room = (client->out_used + length) * 2;
        char *out = realloc(client->out, room);
        if (!out) {
            client->closing = true;
            return;
        }
        client->out = out;
        client->out_room = room;
    }
    memcpy(client->out + client->out_used, bytes, length);
    client->out_used += length;
}

static void put_line(struct client *client, struct json *json) {
    size_t length;
    const char *line = json_line(json, &length);
    if (line)
        put(client, line, length);
    else
        client->closing = true;
    json_free(json);
}

static void put_refusal(struct client *client, int number, const char *text) {
    struct json json;
    json_begin(&json);
    command_refuse(&json, number, text);
    put_line(client, &json);
}

static const char *side_name(uint32_t side) { return side == MIRROR_SIDE_SOURCE ? "source" : "target"; }

static const char *action_name(uint32_t action) {
    return action == MIRROR_ACTION_REPORT ? "report" : action == MIRROR_ACTION_IGNORE ? "ignore" : "stop";
}

static void put_event(struct client *client, const struct notice *notice) {
    const mirror_event *event = &notice->event;
    struct json json;
    json_begin(&json);
    json_text(&json, "event", mirror_event_name(event->type));
    json_text(&json, "job", notice->job);
    switch (event->type) {
    case MIRROR_EVENT_STATUS:
        json_text(&json, "status", mirror_status_name(event->status));
        break;
    case MIRROR_EVENT_COMPLETED:
    case MIRROR_EVENT_CANCELLED:
        json_integer(&json, "result", event->result);
        break;
    case MIRROR_EVENT_ERROR:
        json_integer(&json, "result", event->result);
        json_text(&json, "errno", problem_name(-event->result));
        json_text(&json, "operation", mirror_operation_name(event->operation));
        json_text(&json, "side", side_name(event->side));
        json_text(&json, "action", action_name(event->action));
        json_number(&json, "offset", event->offset);
        json_number(&json, "length", event->length);
        break;
    }
    put_line(client, &json);
}

static void put_lost(struct client *client) {
    struct json json;
    json_begin(&json);
    json_text(&json, "event", "lost");
    json_number(&json, "count", client->lost);
    put_line(client, &json);
    client->lost = 0;
}

/* Gives a client the events that have come, as far as there is room for them. */
static void give_events(struct client *client, const struct notice *notices, size_t count, uint64_t lost) {
    if (!client->listens)
        return;
    client->lost += lost;
    for (size_t i = 0; i < count; i++) {
        if (client->out_used > MOST_UNSENT) {
            client->lost++;
            continue;
        }
        if (client->lost)
            put_lost(client);
        put_event(client, &notices[i]);
    }
    if (client->lost && client->out_used <= MOST_UNSENT)
        put_lost(client);
}

static void spread_events(void) {
    static struct notice notices[MOST_EVENTS];
    pthread_mutex_lock(&control.lock);
    size_t count = control.noticed;
    uint64_t lost = control.lost;
    memcpy(notices, control.notices, count * sizeof *notices);
    control.noticed = 0;
    control.lost = 0;
    pthread_mutex_unlock(&control.lock);
    for (size_t i = 0; i < control.count; i++)
        give_events(control.clients[i], notices, count, lost);
}

static void answer(struct client *client, char *line, size_t length) {
    struct command_effect effect = {false};
    struct json json;
    if (length > 0 && line[length - 1] == '\r')
        length--;
    line[length] = 0;
    json_begin(&json);
    command_run(line, length, &json, &effect);
    put_line(client, &json);
    client->listens |= effect.listens;
}

static bool has_room(const struct client *client) { return client->out_used <= MOST_UNSENT; }

/* Answers the lines that have come, for as long as the answers are taken. */
static void answer_lines(struct client *client) {
    char *begin = client->in;
    char *limit = client->in + client->in_used;
    for (char *end; has_room(client) && (end = memchr(begin, '\n', limit - begin)); begin = end + 1)
        answer(client, begin, end - begin);
    client->in_used = limit - begin;
    memmove(client->in, begin, client->in_used);
    if (client->in_used == LONGEST_LINE && !memchr(client->in, '\n', client->in_used)) {
        put_refusal(client, E2BIG, "a line has at most 8191 bytes; goodbye");
        client->in_used = 0;
        client->closing = true;
    }
}

static bool has_line(const struct client *client) { return memchr(client->in, '\n', client->in_used) != NULL; }

/* Whether the client is still there. */
static bool take(struct client *client) {
    ssize_t length = recv(client->fd, client->in + client->in_used, LONGEST_LINE - client->in_used, 0);
    if (length < 0)
        return errno == EAGAIN || errno == EINTR;
    client->ended = length == 0;
    client->in_used += length;
    return true;
}

static bool give(struct client *client) {
    if (client->out_used == 0)
        return true;
    ssize_t length = send(client->fd, client->out, client->out_used, MSG_NOSIGNAL);
    if (length < 0)
        return errno == EAGAIN || errno == EINTR;
    client->out_used -= length;
    memmove(client->out, client->out + length, client->out_used);
    return true;
}

/* Does what there is to do for a client; whether it stays. One that is to go is given what fits into its socket. */
static bool serve(struct client *client, short events) {
    bool reads = events & (POLLIN | POLLHUP | POLLERR) && !client->ended && client->in_used < LONGEST_LINE;
    if (reads && !take(client))
        return false;
    /* What was sent makes room for more answers. */
    do {
        answer_lines(client);
        size_t before = client->out_used;
        if (!give(client) || client->closing)
            return false;
        if (client->out_used == before)
            break;
    } while (has_line(client));
    if (client->lost && has_room(client)) {
        put_lost(client);
        if (!give(client))
            return false;
    }
    bool gone = events & POLLHUP && client->ended;
    bool done = client->ended && !client->listens && client->out_used == 0 && !has_line(client);
    return !gone && !done;
}

static void drop_client(size_t index) {
    struct client *client = control.clients[index];
    close(client->fd);
    free(client->out);
    free(client);
    control.clients[index] = control.clients[--control.count];
}

static void welcome(void) {
    int fd = accept4(control.file.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        /* Without descriptors the next try would fail at once too. */
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM)
            usleep(10000);
        return;
    }
    struct client *client = calloc(1, sizeof *client);
    if (!client) {
        close(fd);
        return;
    }
    client->fd = fd;
    if (control.count < MOST_CLIENTS) {
        control.clients[control.count++] = client;
        return;
    }
    put_refusal(client, EBUSY, "32 clients are connected: try again later");
    give(client);
    close(fd);
    free(client->out);
    free(client);
}

static short wants(const struct client *client) {
    short events = client->out_used > 0 ? POLLOUT : 0;
    return has_room(client) && !client->ended && client->in_used < LONGEST_LINE ? events | POLLIN : events;
}

static void *serve_all(void *unused) {
    struct pollfd fds[2 + MOST_CLIENTS];
    while (!__atomic_load_n(&control.stop, __ATOMIC_ACQUIRE)) {
        size_t count = control.count;
        fds[0] = (struct pollfd){.fd = control.wake, .events = POLLIN};
        fds[1] = (struct pollfd){.fd = control.file.fd, .events = POLLIN};
        for (size_t i = 0; i < count; i++)
            fds[2 + i] = (struct pollfd){.fd = control.clients[i]->fd, .events = wants(control.clients[i])};
        if (poll(fds, 2 + count, -1) < 0)
            continue;
        uint64_t news;
        if (fds[0].revents && read(control.wake, &news, sizeof news) > 0)
            spread_events();
        /* From the last to the first, as the last takes the place of one that goes. */
        for (size_t i = count; i-- > 0;) {
            if (!serve(control.clients[i], fds[2 + i].revents))
                drop_client(i);
        }
        if (fds[1].revents)
            welcome();
    }
    return unused;
}

int control_listen(const char *path, struct problem *problem) {
    control.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (control.wake < 0)
        return problem_set(problem, errno, "control: %s", strerror(errno));
    return socket_file_make(path, &control.file, problem);
}

int control_start(struct problem *problem) {
    sigset_t all, before;
    /* Signals are for nbdkit's own threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int number = pthread_create(&control.thread, NULL, serve_all, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    control.runs = number == 0;
    return number ? problem_set(problem, number, "control: no thread: %s", strerror(number)) : 0;
}

void control_stop(void) {
    if (control.runs) {
        __atomic_store_n(&control.stop, true, __ATOMIC_RELEASE);
        wake();
        pthread_join(control.thread, NULL);
        control.runs = false;
    }
    while (control.count > 0)
        drop_client(control.count - 1);
    socket_file_remove(&control.file);
}

void control_close(void) {
    if (control.wake >= 0)
        close(control.wake);
    control.wake = -1;
}
