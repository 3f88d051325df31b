/* The load client: many streams in one epoll loop, told what to do line by line on stdin.
 *
 * In C so that it does not measure itself: on the same work it is idle for most of the time that a
 * Python client would be busy. A delivery is a tilde in what was read; events have one each and
 * nothing else has any. Latency is from the sending of the request that emits to the reading of
 * the delivery, the same for every server.
 *
 *   open COUNT PARALLEL READY EXPECT PATH   more streams, until there are COUNT; each is open when
 *                                           READY (- for nothing) and EXPECT tildes have come;
 *                                           %d in PATH is the stream's number
 *   websockets COUNT PARALLEL PATH          the same over Engine.IO's WebSocket
 *   round EXPECTED REPEAT QUIET_MS PATH     POST to PATH (REPEAT pipelined), count until EXPECTED
 *                                           deliveries, or until nothing has come for QUIET_MS
 *   latency                                 p50 and p99 of the deliveries since the last time
 *   requests CONNECTIONS SECONDS PATH       GET again and again on kept connections
 *   probe INTERVAL_MS SECONDS PATH          one GET at a time on one kept connection
 *   close                                   all streams
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum state { CONNECTING, WAITING, OPEN, CONTROL };

struct stream {
    int fd, number;
    enum state state;
    int websocket, sent_connect;
    unsigned char last; /* of what a WebSocket has sent */
    char *seen; /* while waiting: what came so far */
    size_t length;
};

static int port, epoll, opened;
static struct stream **streams;
static struct stream control = {.fd = -1, .state = CONTROL};
static char buffer[1 << 18], body[1 << 17];
static double *latencies;
static size_t latency_count, latency_room;

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static void note(double seconds) {
    if (latency_count == latency_room)
        latencies = realloc(latencies, (latency_room = latency_room * 2 + 1024) * sizeof(double));
    latencies[latency_count++] = seconds;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void say_latency(const char *word) {
    qsort(latencies, latency_count, sizeof(double), by_size);
    double p50 = 0, p99 = 0, most = 0;
    if (latency_count) {
        p50 = latencies[latency_count / 2];
        p99 = latencies[(size_t)(latency_count * 0.99)];
        most = latencies[latency_count - 1];
    }
    printf("%s %zu %.6f %.6f %.6f\n", word, latency_count, p50, p99, most);
    latency_count = 0;
}

static size_t tildes(const char *data, size_t length) {
    size_t count = 0;
    const char *end = data + length;
    while ((data = memchr(data, '~', end - data))) count++, data++;
    return count;
}

/* Deliveries. A WebSocket's frame says by 126, which is a tilde, that two bytes of length follow:
   that one comes behind the byte 0x81, which is in no text of ours. */
static size_t marks(struct stream *stream, const char *data, size_t length) {
    size_t count = tildes(data, length);
    for (size_t i = 0; stream->websocket && i < length; i++) {
        if (data[i] == '~' && stream->last == 0x81) count--;
        stream->last = data[i];
    }
    return count;
}

static int dial(int number, int wait) {
    int fd = socket(AF_INET, SOCK_STREAM | (wait ? 0 : SOCK_NONBLOCK), 0), on = 1;
    if (fd < 0) return -1;
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
    /* one address has some 28,000 ports to connect from */
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + number / 20000);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(port);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(fd, (void *)&from, sizeof from) ||
        (connect(fd, (void *)&to, sizeof to) && errno != EINPROGRESS)) {
        close(fd);
        return -1;
    }
    return fd;
}

static void watch(struct stream *stream, uint32_t what, int how) {
    struct epoll_event event = {.events = what, .data.ptr = stream};
    epoll_ctl(epoll, how, stream->fd, &event);
}

static void drop(struct stream *stream) {
    close(stream->fd);
    free(stream->seen);
    free(stream);
}

static void ask(struct stream *stream, const char *path) {
    char target[4096], request[8192];
    snprintf(target, sizeof target, path, stream->number);
    int length = snprintf(request, sizeof request,
                          stream->websocket
                              ? "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                              : "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream,"
                                " application/problem+json\r\n\r\n",
                          target);
    if (write(stream->fd, request, length) != length) perror("write");
    stream->state = WAITING;
    watch(stream, EPOLLIN, EPOLL_CTL_MOD);
}

/* Whether what came makes it open: 1 yes, 0 not yet, -1 refused. */
static int ready(struct stream *stream, const char *mark, size_t expect) {
    ssize_t got = read(stream->fd, buffer, sizeof buffer);
    if (got <= 0) return got < 0 && errno == EAGAIN ? 0 : -1;
    stream->seen = realloc(stream->seen, stream->length + got + 1);
    memcpy(stream->seen + stream->length, buffer, got);
    stream->seen[stream->length += got] = 0;
    if (stream->length < 12) return 0;
    int status = atoi(stream->seen + 9);
    if (status != 200 && status != 101) return -1;
    if (stream->websocket) {
        if (!stream->sent_connect && memmem(stream->seen, stream->length, "0{", 2)) {
            /* a masked frame of Engine.IO's 4 (message) and Socket.IO's 0 (connect) */
            static const char hello[] = {(char)0x81, (char)0x82, 0, 0, 0, 0, '4', '0'};
            stream->sent_connect = write(stream->fd, hello, sizeof hello) > 0;
        }
        return memmem(stream->seen, stream->length, "40{", 3) != NULL;
    }
    return memmem(stream->seen, stream->length, mark, strlen(mark)) != NULL &&
           tildes(stream->seen, stream->length) >= expect;
}

static void open_streams(int count, int parallel, const char *mark, size_t expect, int websocket,
                         const char *path) {
    struct epoll_event events[512];
    int started = opened, under_way = 0, failed = 0;
    int blind = !strcmp(mark, "-");
    double began = now(), moved = began;
    streams = realloc(streams, (count + 1) * sizeof *streams);
    while (opened + failed < count) {
        while (started < count && under_way < parallel) {
            int fd = dial(started, 0);
            struct stream *stream = calloc(1, sizeof *stream);
            stream->fd = fd;
            stream->number = started++;
            stream->websocket = websocket;
            if (fd < 0) {
                failed++;
                free(stream);
                continue;
            }
            watch(stream, EPOLLOUT, EPOLL_CTL_ADD);
            under_way++;
        }
        int n = epoll_wait(epoll, events, 512, 1000);
        if (n > 0) moved = now();
        if (now() - moved > 30) break;
        for (int i = 0; i < n; i++) {
            struct stream *stream = events[i].data.ptr;
            int what = 0;
            if (stream->state == CONTROL) {
                close(control.fd); /* the server keeps no idle connection for so long */
                control.fd = -1;
            } else if (stream->state == OPEN) {
                if (read(stream->fd, buffer, sizeof buffer) == 0)
                    watch(stream, 0, EPOLL_CTL_DEL); /* it counts as missing */
            } else if (stream->state == CONNECTING) {
                ask(stream, path);
                what = blind;
            } else {
                what = ready(stream, mark, expect);
            }
            if (what > 0) {
                free(stream->seen);
                stream->seen = NULL;
                stream->state = OPEN;
                streams[opened++] = stream;
                under_way--;
            } else if (what < 0) {
                if (failed < 3)
                    fprintf(stderr, "refused: %.100s\n", stream->seen ? stream->seen : "closed");
                drop(stream);
                failed++;
                under_way--;
            }
        }
    }
    printf("opened %d %d %.6f\n", opened, failed, now() - began);
}

static void play_round(size_t expected, int repeat, int quiet, const char *path) {
    struct epoll_event events[512];
    if (control.fd < 0) {
        control.fd = dial(0, 1);
        watch(&control, EPOLLIN, EPOLL_CTL_ADD);
    }
    size_t size = strlen(body), room = (size + strlen(path) + 256) * repeat, length = 0;
    char *posts = malloc(room);
    for (int i = 0; i < repeat; i++)
        length += snprintf(posts + length, room - length,
                           "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\n"
                           "Content-Length: %zu\r\n\r\n%s",
                           path, size, body);
    double began = now(), last = began, heard = began, waited = 0;
    size_t seen = 0, bytes = 0;
    int answers = 0, lost = 0;
    for (size_t done = 0; done < length;) {
        ssize_t put = write(control.fd, posts + done, length - done);
        if (put <= 0) break;
        done += put;
    }
    free(posts);
    while ((seen < expected || answers < repeat) && !lost) {
        double asleep = now();
        int n = epoll_wait(epoll, events, 512, 100);
        double awake = now();
        waited += awake - asleep;
        if (n > 0) heard = awake;
        if ((awake - heard) * 1000 > quiet) break;
        for (int i = 0; i < n; i++) {
            struct stream *stream = events[i].data.ptr;
            ssize_t got = read(stream->fd, buffer, sizeof buffer);
            if (stream->state == CONTROL) {
                if (got <= 0) lost = 1;
                for (char *at = buffer; got > 0 && (at = memmem(at, buffer + got - at, "HTTP/1.1 2", 10)); at += 10)
                    answers++;
            } else if (got > 0) {
                size_t count = marks(stream, buffer, got);
                bytes += got;
                if (count) {
                    last = now();
                    seen += count;
                    note(last - began);
                }
            } else if (got == 0) {
                watch(stream, 0, EPOLL_CTL_DEL);
            }
        }
    }
    if (lost || answers < repeat) { /* a server that does not keep connections, or gave up */
        close(control.fd);
        control.fd = -1;
    }
    printf("round %.6f %.6f %zu %zu %d\n", last - began, waited, seen, bytes, answers);
}

static int answered(char *data, size_t length) {
    char *end = memmem(data, length, "\r\n\r\n", 4);
    if (!end) return 0;
    char *size = strcasestr(data, "content-length:");
    return size && size < end ? (size_t)(end + 4 - data) + atoi(size + 15) <= length : 1;
}

static void request_again_and_again(int count, double seconds, const char *path) {
    struct epoll_event events[512];
    char request[4096];
    int length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", path);
    struct stream *all = calloc(count, sizeof *all);
    double *sent = calloc(count, sizeof *sent), began = now(), at;
    int own = epoll_create1(0), done = 0, bad = 0;
    for (int i = 0; i < count; i++) {
        all[i].fd = dial(i, 1);
        all[i].number = i;
        all[i].seen = malloc(1 << 16);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(own, EPOLL_CTL_ADD, all[i].fd, &event);
        sent[i] = now();
        if (write(all[i].fd, request, length) < 0) bad++;
    }
    /* Longer where the machine stood still: a rate of no request is none. */
    while ((at = now()) - began < seconds || (done + bad < count && at - began < seconds + 30)) {
        int n = epoll_wait(own, events, 512, 100);
        for (int i = 0; i < n; i++) {
            struct stream *one = events[i].data.ptr;
            ssize_t got = read(one->fd, one->seen + one->length, (1 << 16) - 1 - one->length);
            if (got <= 0) {
                bad++;
                epoll_ctl(own, EPOLL_CTL_DEL, one->fd, NULL);
                continue;
            }
            one->seen[one->length += got] = 0;
            if (!answered(one->seen, one->length)) continue;
            if (atoi(one->seen + 9) == 200) done++; else bad++;
            note(now() - sent[one->number]);
            one->length = 0;
            sent[one->number] = now();
            if (write(one->fd, request, length) < 0) bad++;
        }
    }
    printf("requests %d %d %.6f ", done, bad, at - began);
    say_latency("");
    for (int i = 0; i < count; i++) close(all[i].fd), free(all[i].seen);
    close(own);
    free(all);
    free(sent);
}

static void probe(double interval, double seconds, const char *path) {
    char request[4096];
    int length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", path);
    int fd = dial(0, 1);
    double began = now();
    while (now() - began < seconds) {
        double sent = now();
        size_t had = 0;
        if (write(fd, request, length) < 0) break;
        do {
            ssize_t got = read(fd, buffer + had, sizeof buffer - 1 - had);
            if (got <= 0) goto out;
            buffer[had += got] = 0;
        } while (!answered(buffer, had));
        note(now() - sent);
        usleep(interval * 1000);
    }
out:
    close(fd);
    say_latency("probe");
}

int main(int argc, char **argv) {
    static char line[8192], mark[256], path[4096];
    struct rlimit limit;
    int a, b;
    size_t c;
    double d, e;
    port = argc > 1 ? atoi(argv[1]) : 0;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    setvbuf(stdout, NULL, _IOLBF, 0);
    epoll = epoll_create1(0);
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "open %d %d %255s %zu %4095s", &a, &b, mark, &c, path) == 5)
            open_streams(a, b, mark, c, 0, path);
        else if (sscanf(line, "websockets %d %d %4095s", &a, &b, path) == 3)
            open_streams(a, b, "", 0, 1, path);
        else if (sscanf(line, "round %zu %d %d %4095s", &c, &a, &b, path) == 4)
            play_round(c, a, b, path);
        else if (sscanf(line, "requests %d %lf %4095s", &a, &d, path) == 3)
            request_again_and_again(a, d, path);
        else if (sscanf(line, "probe %lf %lf %4095s", &d, &e, path) == 3)
            probe(d, e, path);
        else if (!strncmp(line, "body ", 5)) {
            line[strcspn(line, "\n")] = 0;
            snprintf(body, sizeof body, "%s", line + 5);
            printf("body %zu\n", strlen(body));
        } else if (!strncmp(line, "latency", 7))
            say_latency("latency");
        else if (!strncmp(line, "close", 5)) {
            for (int i = 0; i < opened; i++) drop(streams[i]);
            opened = 0;
            printf("closed\n");
        } else
            printf("what? %s", line);
    }
    return 0;
}
