/* A load generator for SMTP: many sessions from one thread, so that the client costs little of the
 * machine that it shares with the server. Compiled on first use by bench.py.
 *
 *   load -a 127.0.0.1 -p 25 -s SESSIONS -m MESSAGES -d SECONDS -k PER_CONNECTION -b OCTETS -u USERS
 *        -t DOMAIN -n -i INTERVAL -f FILE
 *
 * With -s 1, -i waits INTERVAL seconds from connection to connection.
 * Begins no message after -m of them or -d seconds. -k 0 keeps each connection for all its messages;
 * -f sends the message that stands in a file, as it is; no line of it may begin with a dot.
 * -n waits for every reply instead of pipelining MAIL, RCPT and DATA. Prints one JSON object: messages accepted, seconds, percentiles of the time
 * from MAIL to the last 250 in milliseconds, and what failed. Exits 1 when anything failed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 2000000 }; /* latencies that are kept */
enum stage { BANNER, HELLO, MAIL, RCPT, DATA, CONTENT, LEAVING };

struct session {
    int fd;
    enum stage stage;
    int sent_here;      /* messages over this connection */
    long message;       /* number of the one under way */
    double begun;
    char input[4096];
    size_t filled;
    char head[512];     /* what is to be sent: head, then the body */
    size_t head_size, head_at, body_at;
    int body_wanted, blocked;
};

static struct sockaddr_in target;
static long messages = 1000, next_message, accepted, failed, lost;
static int sessions = 20, per_connection, users = 100, pipelining = 1, poller, alive;
static size_t octets = 5000;
static const char *domain = "example.org", *file;
static char *body;
static size_t body_size;
static double *latency, start, last_start, interval;

static double now(void)
{
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return moment.tv_sec + moment.tv_nsec / 1e9;
}

/* No further message is to begin. */
static int finished(void)
{
    return next_message >= messages || next_message >= MOST || now() >= last_start;
}

static void die(const char *what)
{
    perror(what);
    exit(2);
}

static void watch(struct session *s, int how, unsigned events)
{
    struct epoll_event event = {.events = events, .data.ptr = s};
    if (epoll_ctl(poller, how, s->fd, &event) < 0)
        die("epoll_ctl");
}

static void dial(struct session *s)
{
    int one = 1;
    double early = start + interval * next_message - now();
    if (interval && early > 0)
        usleep(early * 1e6);
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (s->fd < 0)
        die("socket");
    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(s->fd, (struct sockaddr *)&target, sizeof target) < 0 && errno != EINPROGRESS)
        die("connect");
    s->stage = BANNER;
    s->sent_here = 0;
    s->filled = s->head_size = s->head_at = 0;
    s->body_wanted = s->blocked = 0;
    watch(s, EPOLL_CTL_ADD, EPOLLIN);
    alive++;
}

/* Send what waits; watch for room when the socket takes no more. */
static int push(struct session *s)
{
    while (s->head_at < s->head_size) {
        ssize_t sent = send(s->fd, s->head + s->head_at, s->head_size - s->head_at,
                            MSG_NOSIGNAL | (s->body_wanted ? MSG_MORE : 0));
        if (sent < 0)
            goto blocked;
        s->head_at += sent;
    }
    while (s->body_wanted && s->body_at < body_size) {
        ssize_t sent = send(s->fd, body + s->body_at, body_size - s->body_at, MSG_NOSIGNAL);
        if (sent < 0)
            goto blocked;
        s->body_at += sent;
    }
    s->body_wanted = 0;
    if (s->blocked)
        watch(s, EPOLL_CTL_MOD, EPOLLIN);
    s->blocked = 0;
    return 1;
blocked:
    if (errno != EAGAIN)
        return 0;
    if (!s->blocked)
        watch(s, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    s->blocked = 1;
    return 1;
}

static int say(struct session *s, const char *text, int with_body)
{
    s->head_size = strlen(text);
    memcpy(s->head, text, s->head_size);
    s->head_at = s->body_at = 0;
    s->body_wanted = with_body;
    return push(s);
}

static int begin(struct session *s)
{
    char text[512];
    if (finished() || (per_connection && s->sent_here >= per_connection)) {
        s->stage = LEAVING;
        return say(s, "QUIT\r\n", 0);
    }
    s->message = next_message++;
    s->begun = now();
    s->stage = MAIL;
    if (pipelining)
        snprintf(text, sizeof text,
                 "MAIL FROM:<sender@client.example>\r\nRCPT TO:<user%ld@%s>\r\nDATA\r\n",
                 s->message % users, domain);
    else
        snprintf(text, sizeof text, "MAIL FROM:<sender@client.example>\r\n");
    return say(s, text, 0);
}

static int answer(struct session *s, int code)
{
    char text[512];
    switch (s->stage) {
    case BANNER:
        s->stage = HELLO;
        return code == 220 && say(s, "EHLO client.example\r\n", 0);
    case HELLO:
        return code == 250 && begin(s);
    case MAIL:
        s->stage = RCPT;
        if (pipelining)
            return code == 250;
        snprintf(text, sizeof text, "RCPT TO:<user%ld@%s>\r\n", s->message % users, domain);
        return code == 250 && say(s, text, 0);
    case RCPT:
        s->stage = DATA;
        return code == 250 && (pipelining || say(s, "DATA\r\n", 0));
    case DATA:
        s->stage = CONTENT;
        snprintf(text, sizeof text,
                 "From: sender@client.example\r\nTo: user%ld@%s\r\nSubject: %ld\r\n\r\n",
                 s->message % users, domain, s->message);
        return code == 354 && say(s, file ? "" : text, 1);
    case CONTENT:
        if (code != 250)
            return 0;
        latency[accepted++] = now() - s->begun;
        s->sent_here++;
        return begin(s);
    case LEAVING:
        return 1;
    }
    return 0;
}

/* Read replies; 0 when the session went wrong, -1 when it is over. */
static int listen_to(struct session *s)
{
    for (;;) {
        ssize_t got = recv(s->fd, s->input + s->filled, sizeof s->input - s->filled, 0);
        if (got < 0)
            return errno == EAGAIN;
        if (got == 0)
            return s->stage == LEAVING ? -1 : 0;
        s->filled += got;
        char *start = s->input, *end;
        while ((end = memmem(start, s->input + s->filled - start, "\r\n", 2))) {
            if (end - start >= 4 && start[3] == ' ') {
                int code = atoi(start);
                if (s->stage == LEAVING)
                    return -1;
                if (!answer(s, code)) {
                    fprintf(stderr, "stage %d: %.*s\n", s->stage, (int)(end - start), start);
                    return 0;
                }
            }
            start = end + 2;
        }
        s->filled -= start - s->input;
        memmove(s->input, start, s->filled);
    }
}

static void hang_up(struct session *s, int well)
{
    if (!well) {
        if (s->stage == BANNER || s->stage == HELLO)
            lost++;
        else
            failed++;
    }
    close(s->fd);
    alive--;
    if (!finished() && lost + failed < messages)
        dial(s);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void make_body(void)
{
    FILE *from = file ? fopen(file, "r") : NULL;
    if (file && !from)
        die(file);
    if (from)
        octets = 1 << 20; /* at most */
    body = malloc(octets + 200);
    if (from) {
        body_size = fread(body, 1, octets, from);
        fclose(from);
        octets = 0;
    }
    while (body_size < octets) {
        memset(body + body_size, 'a' + body_size / 78 % 26, 76);
        memcpy(body + body_size + 76, "\r\n", 2);
        body_size += 78;
    }
    memcpy(body + body_size, ".\r\n", 3);
    body_size += 3;
}

int main(int count, char **values)
{
    const char *address = "127.0.0.1";
    int port = 2525, option;
    double duration = 1e9;
    while ((option = getopt(count, values, "a:p:s:m:d:k:b:u:t:i:f:n")) > 0)
        switch (option) {
        case 'a': address = optarg; break;
        case 'p': port = atoi(optarg); break;
        case 's': sessions = atoi(optarg); break;
        case 'm': messages = atol(optarg); break;
        case 'd': duration = atof(optarg); break;
        case 'i': interval = atof(optarg); break;
        case 'k': per_connection = atoi(optarg); break;
        case 'b': octets = atol(optarg); break;
        case 'u': users = atoi(optarg); break;
        case 't': domain = optarg; break;
        case 'f': file = optarg; break;
        case 'n': pipelining = 0; break;
        default: return 2;
        }
    target.sin_family = AF_INET;
    target.sin_port = htons(port);
    inet_pton(AF_INET, address, &target.sin_addr);
    make_body();
    latency = calloc((messages < MOST ? messages : MOST) + 1, sizeof *latency);
    poller = epoll_create1(0);
    struct session *all = calloc(sessions, sizeof *all);
    start = now();
    last_start = start + duration;
    for (int i = 0; i < sessions; i++)
        dial(&all[i]);
    struct epoll_event events[256];
    while (alive) {
        int ready = epoll_wait(poller, events, 256, 60000);
        if (ready <= 0) {
            fprintf(stderr, "nothing came for a minute\n");
            failed += alive;
            break;
        }
        for (int i = 0; i < ready; i++) {
            struct session *s = events[i].data.ptr;
            int state = 1;
            if (events[i].events & EPOLLOUT)
                state = push(s);
            if (state == 1)
                state = listen_to(s);
            if (state != 1)
                hang_up(s, state == -1);
        }
    }
    double seconds = now() - start;
    qsort(latency, accepted, sizeof *latency, ascending);
    printf("{\"messages\": %ld, \"seconds\": %.4f, \"rate\": %.1f, \"p50_ms\": %.3f, "
           "\"p99_ms\": %.3f, \"failed\": %ld, \"lost\": %ld}\n",
           accepted, seconds, accepted / seconds, accepted ? latency[accepted / 2] * 1e3 : 0.0,
           accepted ? latency[accepted * 99 / 100] * 1e3 : 0.0, failed, lost);
    return failed + lost > 0;
}
