// burst starts many processes, each of which sends one packet and ends, and says
// which was which. The test builds it and compares what it says with what
// verdictd says.
//
//	burst run COUNT PARALLEL FIRSTPORT ADDR4 ADDR6 DIR
//
// starts COUNT processes, PARALLEL at a time, and prints for each a line
//
//	PORT PID UID PATH
//
// Process number i sends to port FIRSTPORT+i, by UDP or TCP, IPv4 or IPv6 (i % 4),
// as user 0 or 1000 (i / 4 % 2), as one of four programs (i / 8 % 4): DIR/plain;
// DIR/renamed, a copy; DIR/plain with the name of another program as its argv[0];
// a copy that is deleted as soon as it runs.
//
//	burst send KIND ADDR PORT
//
// is what they run: u sends a datagram, t begins a connection without waiting.
//
//	burst serve COUNT FIRSTPORT DIR
//
// starts COUNT processes that listen, number i at port FIRSTPORT+i for what number
// i of run sends, prints the same lines, and ends them when its input ends.
//
//	burst listen KIND FAMILY PORT
//
// is what they run.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int die(const char *what) {
	perror(what);
	return 1;
}

static socklen_t address(struct sockaddr_storage *s, const char *text, int port) {
	struct sockaddr_in *in4 = (struct sockaddr_in *)s;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)s;
	memset(s, 0, sizeof *s);
	if (inet_pton(AF_INET, text, &in4->sin_addr) == 1) {
		in4->sin_family = AF_INET;
		in4->sin_port = htons(port);
		return sizeof *in4;
	}
	inet_pton(AF_INET6, text, &in6->sin6_addr);
	in6->sin6_family = AF_INET6;
	in6->sin6_port = htons(port);
	return sizeof *in6;
}

static int send_one(const char *kind, const char *addr, int port) {
	struct sockaddr_storage to;
	socklen_t len = address(&to, addr, port);
	int tcp = kind[0] == 't';
	int fd = socket(to.ss_family, (tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return die("socket");
	if (tcp && connect(fd, (struct sockaddr *)&to, len) < 0 && errno != EINPROGRESS)
		return die("connect");
	if (!tcp && sendto(fd, "x", 1, 0, (struct sockaddr *)&to, len) != 1)
		return die("sendto");
	return 0;
}

static int listen_at(const char *kind, const char *family, int port) {
	struct sockaddr_storage at;
	socklen_t len = address(&at, family[0] == '6' ? "::" : "0.0.0.0", port);
	int tcp = kind[0] == 't';
	int fd = socket(at.ss_family, tcp ? SOCK_STREAM : SOCK_DGRAM, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&at, len) < 0 || (tcp && listen(fd, 4096) < 0))
		return die("listen");
	if (write(1, "", 1) != 1) // tell the parent
		return die("write");
	for (;;)
		pause();
}

static int serve(int count, int first, const char *dir) {
	pid_t pids[4096];
	char path[512], port[16], done;
	int ready[2];
	if (count > 4096 || pipe2(ready, O_CLOEXEC) < 0)
		return die("serve");
	for (int i = 0; i < count; i++) {
		int uid = i / 4 % 2 ? 1000 : 0;
		snprintf(path, sizeof path, "%s/%s", dir, i / 8 % 2 ? "renamed" : "plain");
		snprintf(port, sizeof port, "%d", first + i);
		pids[i] = fork();
		if (pids[i] == 0) {
			if (dup2(ready[1], 1) < 0 || (uid && (setresgid(uid, uid, uid) || setresuid(uid, uid, uid))))
				_exit(2);
			execl(path, path, "listen", i % 2 ? "t" : "u", i / 2 % 2 ? "6" : "4", port, NULL);
			_exit(3);
		}
		if (pids[i] < 0 || read(ready[0], &done, 1) != 1)
			return die("start a server");
		printf("%d %d %d %s\n", first + i, pids[i], uid, path);
	}
	puts("ready");
	fflush(stdout);
	while (read(0, &done, 1) > 0)
		;
	for (int i = 0; i < count; i++)
		kill(pids[i], SIGKILL);
	return 0;
}

static int copy(const char *from, const char *to) {
	char buf[1 << 16];
	ssize_t n;
	int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
	if (in < 0 || out < 0)
		return die(to);
	while ((n = read(in, buf, sizeof buf)) > 0)
		if (write(out, buf, n) != n)
			return die(to);
	close(in);
	return close(out);
}

static int reap(void) {
	int status;
	if (wait(&status) < 0)
		return die("wait");
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		fprintf(stderr, "a process failed: %d\n", status);
		return 1;
	}
	return 0;
}

static int run(int count, int parallel, int first, const char *addr4, const char *addr6, const char *dir) {
	char plain[512], renamed[512], gone[512], port[16];
	snprintf(plain, sizeof plain, "%s/plain", dir);
	snprintf(renamed, sizeof renamed, "%s/renamed", dir);
	for (int i = 0, running = 0; i < count || running > 0; i++) {
		if (running == parallel || i >= count) {
			if (reap())
				return 1;
			running--;
		}
		if (i >= count)
			continue;
		int variant = i / 8 % 4;
		volatile int uid = i / 4 % 2 ? 1000 : 0;
		const char *path = variant == 1 ? renamed : plain, *name = path;
		if (variant == 2)
			name = "/usr/sbin/sshd";
		if (variant == 3) {
			snprintf(gone, sizeof gone, "%s/gone-%d", dir, first + i);
			if (copy(plain, gone))
				return 1;
			path = name = gone;
		}
		snprintf(port, sizeof port, "%d", first + i);
		char *kind = i % 2 ? "t" : "u", *to = (char *)(i / 2 % 2 ? addr6 : addr4);
		char *argv[] = {(char *)name, "send", kind, to, port, NULL};
		pid_t pid = vfork();
		if (pid < 0)
			return die("vfork");
		if (pid == 0) {
			// The system calls themselves: the C library would tell the parent's
			// threads, and the parent shares our memory.
			if (uid && (syscall(SYS_setresgid, uid, uid, uid) || syscall(SYS_setresuid, uid, uid, uid)))
				_exit(2);
			execv(path, argv);
			_exit(3);
		}
		if (variant == 3)
			unlink(gone); // vfork returns when the copy runs
		running++;
		printf("%d %d %d %s\n", first + i, pid, uid, path);
	}
	return 0;
}

int main(int argc, char **argv) {
	if (argc == 5 && !strcmp(argv[1], "send"))
		return send_one(argv[2], argv[3], atoi(argv[4]));
	if (argc == 8 && !strcmp(argv[1], "run"))
		return run(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]), argv[5], argv[6], argv[7]);
	if (argc == 5 && !strcmp(argv[1], "serve"))
		return serve(atoi(argv[2]), atoi(argv[3]), argv[4]);
	if (argc == 5 && !strcmp(argv[1], "listen"))
		return listen_at(argv[2], argv[3], atoi(argv[4]));
	fprintf(stderr, "usage: burst run COUNT PARALLEL FIRSTPORT ADDR4 ADDR6 DIR | send KIND ADDR PORT | serve COUNT FIRSTPORT DIR | listen KIND FAMILY PORT\n");
	return 2;
}
