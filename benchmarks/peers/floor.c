/* The floor: what a server costs that does nothing but send(), once per event and stream. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                           "Cache-Control: no-cache\r\nConnection: close\r\n\r\n: hello\n\n";
static const char DONE[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

int main(int argc, char **argv) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1, count = 0, room = 0, *streams = NULL;
    int size = argc > 2 ? atoi(argv[2]) : 230;
    char *frame = malloc(size + 64), buffer[65536];
    int length = snprintf(frame, size + 64, "event: tick\ndata: {\"mark\":\"~\",\"pad\":\"");
    while (length < size - 4) frame[length++] = 'x';
    length += snprintf(frame + length, 8, "\"}\n\n");
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (void *)&at, sizeof at) || listen(listener, 4096)) return 1;
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0) continue;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
                continue;
            }
            ssize_t got = read(fd, buffer, sizeof buffer - 1);
            if (got <= 0) {
                for (int s = 0; s < count; s++)
                    if (streams[s] == fd) streams[s] = streams[--count];
                close(fd);
                continue;
            }
            buffer[got] = 0;
            if (!strncmp(buffer, "POST /emit?n=", 13)) {
                for (int times = atoi(buffer + 13); times > 0; times--)
                    for (int s = 0; s < count; s++)
                        send(streams[s], frame, length, MSG_DONTWAIT | MSG_NOSIGNAL);
                send(fd, DONE, sizeof DONE - 1, MSG_NOSIGNAL);
            } else if (!strncmp(buffer, "GET /health", 11)) {
                send(fd, DONE, sizeof DONE - 1, MSG_NOSIGNAL);
            } else {
                if (count == room) streams = realloc(streams, (room = room * 2 + 1024) * sizeof(int));
                streams[count++] = fd;
                send(fd, HEAD, sizeof HEAD - 1, MSG_NOSIGNAL);
            }
        }
    }
}
