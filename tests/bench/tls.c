/* Clients that submit: connect, STARTTLS, AUTH PLAIN, one message, QUIT; a blocking thread for each
 * session. Compiled on first use by clients.py with OpenSSL; certificates are not verified.
 *
 *   tls -p PORT -s SESSIONS -d SECONDS -b OCTETS -w BASE64
 *
 * -w is the initial response of AUTH PLAIN. Prints what load.c prints, where a latency is that of
 * the whole session.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1000000 };

static struct sockaddr_in target;
static double end;
static const char *response = "";
static char *content;
static size_t content_size;
static SSL_CTX *context;
static double *latency;
static atomic_long accepted, failed;

static double now(void)
{
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return moment.tv_sec + moment.tv_nsec / 1e9;
}

/* Read up to the last line of `count` replies; 0 unless all have `code`. */
static int expect(int fd, SSL *ssl, int code, int count)
{
    char input[8192];
    size_t filled = 0;
    while (count) {
        size_t room = sizeof input - filled;
        int got = ssl ? SSL_read(ssl, input + filled, room) : recv(fd, input + filled, room, 0);
        if (got <= 0)
            return 0;
        filled += got;
        char *start = input, *stop;
        while ((stop = memmem(start, input + filled - start, "\r\n", 2))) {
            if (stop - start >= 4 && start[3] == ' ') {
                if (atoi(start) != code)
                    return 0;
                count--;
            }
            start = stop + 2;
        }
        filled -= start - input;
        memmove(input, start, filled);
    }
    return 1;
}

static int say(SSL *ssl, const char *text, size_t size)
{
    return SSL_write(ssl, text, size) == (int)size;
}

static int submit(int fd, SSL *ssl, long number)
{
    static const char hello[] = "EHLO client.example\r\n", starttls[] = "STARTTLS\r\n";
    char text[512];
    if (!expect(fd, NULL, 220, 1) || send(fd, hello, sizeof hello - 1, MSG_NOSIGNAL) < 0
        || !expect(fd, NULL, 250, 1) || send(fd, starttls, sizeof starttls - 1, MSG_NOSIGNAL) < 0
        || !expect(fd, NULL, 220, 1))
        return 0;
    SSL_set_fd(ssl, fd);
    if (SSL_connect(ssl) != 1 || !say(ssl, hello, sizeof hello - 1) || !expect(fd, ssl, 250, 1))
        return 0;
    int size = snprintf(text, sizeof text, "AUTH PLAIN %s\r\n", response);
    if (!say(ssl, text, size) || !expect(fd, ssl, 235, 1))
        return 0;
    size = snprintf(text, sizeof text,
                    "MAIL FROM:<user0@example.org>\r\nRCPT TO:<user%ld@example.org>\r\n",
                    number % 100);
    if (!say(ssl, text, size) || !expect(fd, ssl, 250, 2) || !say(ssl, "DATA\r\n", 6)
        || !expect(fd, ssl, 354, 1) || !say(ssl, content, content_size)
        || !expect(fd, ssl, 250, 1) || !say(ssl, "QUIT\r\n", 6))
        return 0;
    return expect(fd, ssl, 221, 1);
}

static void *work(void *unused)
{
    (void)unused;
    for (long number = 0; now() < end && accepted < MOST && failed < 100; number++) {
        int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
        SSL *ssl = SSL_new(context);
        double start = now();
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (connect(fd, (struct sockaddr *)&target, sizeof target) == 0 && submit(fd, ssl, number))
            latency[accepted++] = now() - start;
        else
            failed++;
        SSL_free(ssl);
        close(fd);
    }
    return NULL;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void make_content(size_t octets)
{
    static const char head[] = "From: user0@example.org\r\nTo: user@example.org\r\n\r\n";
    content = malloc(octets + 400);
    content_size = sizeof head - 1;
    memcpy(content, head, content_size);
    while (content_size < octets) {
        memset(content + content_size, 'a', 76);
        memcpy(content + content_size + 76, "\r\n", 2);
        content_size += 78;
    }
    memcpy(content + content_size, ".\r\n", 3);
    content_size += 3;
}

int main(int count, char **values)
{
    int port = 2587, sessions = 20, option;
    double duration = 5;
    size_t octets = 5000;
    while ((option = getopt(count, values, "p:s:d:b:w:")) > 0)
        switch (option) {
        case 'p': port = atoi(optarg); break;
        case 's': sessions = atoi(optarg); break;
        case 'd': duration = atof(optarg); break;
        case 'b': octets = atol(optarg); break;
        case 'w': response = optarg; break;
        default: return 2;
        }
    target.sin_family = AF_INET;
    target.sin_port = htons(port);
    target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    make_content(octets);
    latency = calloc(MOST + sessions, sizeof *latency);
    pthread_t *all = calloc(sessions, sizeof *all);
    double start = now();
    end = start + duration;
    for (int i = 0; i < sessions; i++)
        if (pthread_create(&all[i], NULL, work, NULL))
            return 2;
    for (int i = 0; i < sessions; i++)
        pthread_join(all[i], NULL);
    double seconds = now() - start;
    qsort(latency, accepted, sizeof *latency, ascending);
    printf("{\"messages\": %ld, \"seconds\": %.4f, \"rate\": %.1f, \"p50_ms\": %.3f, "
           "\"p99_ms\": %.3f, \"failed\": %ld, \"lost\": 0}\n",
           (long)accepted, seconds, accepted / seconds, accepted ? latency[accepted / 2] * 1e3 : 0.0,
           accepted ? latency[accepted * 99 / 100] * 1e3 : 0.0, (long)failed);
    return failed > 0;
}
