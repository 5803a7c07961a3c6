/* The bare disk: how many files of one message's size a second can be made durable, by the system
 * calls of a Maildir and nothing else. What a mail server can reach at most.
 *
 *   disk -d DIRECTORY -t THREADS -s SECONDS -b OCTETS [-n]
 *
 * Each thread creates a file in tmp/, writes, fsyncs, renames it into new/; -n fsyncs new/ as well.
 * Prints one JSON object.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int threads = 20, sync_directory;
static double seconds = 5;
static size_t octets = 5300;
static char *content;
static double end;
static atomic_long files;

static double now(void)
{
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return moment.tv_sec + moment.tv_nsec / 1e9;
}

static void die(const char *what)
{
    perror(what);
    exit(2);
}

static void *work(void *number)
{
    char temporary[64], final[64];
    int directory = open("new", O_RDONLY | O_DIRECTORY);
    for (long count = 0; now() < end; count++) {
        snprintf(temporary, sizeof temporary, "tmp/%ld.%ld", (long)number, count);
        snprintf(final, sizeof final, "new/%ld.%ld", (long)number, count);
        int file = open(temporary, O_WRONLY | O_CREAT | O_EXCL, 0600);
        if (file < 0)
            die("open");
        if (write(file, content, octets) != (ssize_t)octets)
            die("write");
        if (fsync(file) < 0)
            die("fsync");
        close(file);
        if (rename(temporary, final) < 0)
            die("rename");
        if (sync_directory && fsync(directory) < 0)
            die("fsync of new/");
        files++;
    }
    close(directory);
    return NULL;
}

int main(int count, char **values)
{
    const char *directory = ".";
    int option;
    while ((option = getopt(count, values, "d:t:s:b:n")) > 0)
        switch (option) {
        case 'd': directory = optarg; break;
        case 't': threads = atoi(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 'b': octets = atol(optarg); break;
        case 'n': sync_directory = 1; break;
        default: return 2;
        }
    if (chdir(directory) < 0)
        die(directory);
    mkdir("tmp", 0700);
    mkdir("new", 0700);
    content = malloc(octets);
    memset(content, 'x', octets);
    pthread_t *all = calloc(threads, sizeof *all);
    double start = now();
    end = start + seconds;
    for (long i = 0; i < threads; i++)
        if (pthread_create(&all[i], NULL, work, (void *)i))
            die("pthread_create");
    for (int i = 0; i < threads; i++)
        pthread_join(all[i], NULL);
    double took = now() - start;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec
               + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"files\": %ld, \"seconds\": %.3f, \"rate\": %.1f, \"cpu_us\": %.1f}\n",
           (long)files, took, files / took, files ? cpu * 1e6 / files : 0.0);
    return 0;
}
