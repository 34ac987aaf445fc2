//go:build ignore

// The two ends of the connections that are measured.
//
//   client serve PORT
//
// accepts connections at all addresses and closes them, until standard input
// ends. It prints "ready" once it listens.
//
//   client loop THREADS MS ADDR COUNT PORT
//
// opens connections for MS milliseconds, each thread one after the other, to COUNT
// addresses from ADDR on in turn, and resets each at once, so that none leaves a
// TIME-WAIT behind.
//
//   client spawn PARALLEL MS ADDR COUNT PORT
//
// does the same with a process for each connection, PARALLEL at a time: it starts
// itself as
//
//   client once ADDR PORT
//
// Both print what came of it, as JSON; times are those of connect(2).

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	MAX_THREADS = 64,
	MAX_TIMES = 1 << 20, // kept of each thread
	BACKLOG = 4096,
	PRIORITY = -10, // of the server: it never lags behind
};

struct target {
	in_addr_t first; // in host order
	int count;
	int port;
};

struct worker {
	pthread_t thread;
	struct target to;
	uint64_t end;
	unsigned number;
	uint64_t *times;
	unsigned long connected, failed;
};

_Noreturn static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static int by_time(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

// connect_once returns how long connect(2) took, 0 if it failed.
static uint64_t connect_once(in_addr_t to, int port)
{
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(to)};
	struct linger reset = {.l_onoff = 1};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset))
		die("socket");
	uint64_t begin = now();
	int failed = connect(fd, (void *)&sa, sizeof sa);
	uint64_t took = now() - begin;
	close(fd);
	return failed ? 0 : took;
}

static void note(struct worker *w, uint64_t took)
{
	if (took == 0)
		w->failed++;
	else
		w->times[w->connected++ % MAX_TIMES] = took;
}

static void *loop(void *arg)
{
	struct worker *w = arg;
	for (unsigned i = w->number; now() < w->end; i++)
		note(w, connect_once(w->to.first + i % w->to.count, w->to.port));
	return NULL;
}

// spawn starts the processes. Each writes how long its connect(2) took.
static void spawn(struct worker *w, int parallel)
{
	int answers[2];
	volatile int running = 0; // vfork shares the stack
	char addr[INET_ADDRSTRLEN], port[16];
	char *argv[] = {"client", "once", addr, port, NULL};
	snprintf(port, sizeof port, "%d", w->to.port);
	if (pipe(answers))
		die("pipe");
	for (unsigned i = 0; running > 0 || now() < w->end; i++) {
		if (now() < w->end) {
			struct in_addr to = {.s_addr = htonl(w->to.first + i % w->to.count)};
			inet_ntop(AF_INET, &to, addr, sizeof addr);
			pid_t pid = vfork();
			if (pid < 0)
				die("vfork");
			if (pid == 0) {
				dup2(answers[1], 1);
				execv("/proc/self/exe", argv);
				_exit(2);
			}
			running++;
		}
		if (running == parallel || now() >= w->end) {
			uint64_t took;
			if (wait(NULL) < 0 || read(answers[0], &took, sizeof took) != sizeof took)
				die("a client did not answer");
			note(w, took);
			running--;
		}
	}
}

static void print(struct worker *w, int n, uint64_t took)
{
	uint64_t *all = calloc((size_t)n * MAX_TIMES, sizeof *all);
	unsigned long connected = 0, failed = 0, kept = 0;
	if (!all)
		die("allocate");
	for (int i = 0; i < n; i++) {
		unsigned long k = w[i].connected < MAX_TIMES ? w[i].connected : MAX_TIMES;
		memcpy(all + kept, w[i].times, k * sizeof *all);
		kept += k;
		connected += w[i].connected;
		failed += w[i].failed;
	}
	qsort(all, kept, sizeof *all, by_time);
	printf("{\"connected\":%lu,\"failed\":%lu,\"took\":%llu,\"p50\":%llu,\"p99\":%llu}\n", connected, failed, (unsigned long long)took,
	       kept ? (unsigned long long)all[kept / 2] : 0, kept ? (unsigned long long)all[kept * 99 / 100] : 0);
}

static int run(char **argv)
{
	static struct worker workers[MAX_THREADS];
	int one = !strcmp(argv[1], "spawn"), parallel = atoi(argv[2]), n = one ? 1 : parallel;
	struct target to = {.first = ntohl(inet_addr(argv[4])), .count = atoi(argv[5]), .port = atoi(argv[6])};

	if (parallel < 1 || parallel > MAX_THREADS || to.count < 1)
		return 2;
	uint64_t begin = now();
	for (int i = 0; i < n; i++) {
		workers[i] = (struct worker){.to = to, .end = begin + atoi(argv[3]) * 1000000ull, .number = i, .times = calloc(MAX_TIMES, sizeof(uint64_t))};
		if (!workers[i].times)
			die("allocate");
		if (!one && (errno = pthread_create(&workers[i].thread, NULL, loop, &workers[i])))
			die("start thread");
	}
	if (one)
		spawn(workers, parallel);
	for (int i = 0; i < n && !one; i++)
		pthread_join(workers[i].thread, NULL);
	print(workers, n, now() - begin);
	return 0;
}

static void *accept_all(void *arg)
{
	int fd = *(int *)arg;
	for (;;) {
		int conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
		if (conn >= 0)
			close(conn);
	}
	return NULL;
}

static int serve(int port)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
	pthread_t thread;
	char c;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (void *)&at, sizeof at) || listen(fd, BACKLOG))
		die("listen");
	if (setpriority(PRIO_PROCESS, 0, PRIORITY))
		die("set priority");
	if ((errno = pthread_create(&thread, NULL, accept_all, &fd)))
		die("start thread");
	puts("ready");
	fflush(stdout);
	while (read(0, &c, 1) > 0)
		;
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "serve"))
		return serve(atoi(argv[2]));
	if (argc == 7 && (!strcmp(argv[1], "loop") || !strcmp(argv[1], "spawn")))
		return run(argv);
	if (argc == 4 && !strcmp(argv[1], "once")) {
		uint64_t took = connect_once(ntohl(inet_addr(argv[2])), atoi(argv[3]));
		return write(1, &took, sizeof took) != sizeof took;
	}
	fprintf(stderr, "usage: client serve PORT | loop THREADS MS ADDR COUNT PORT | spawn PARALLEL MS ADDR COUNT PORT | once ADDR PORT\n");
	return 2;
}
