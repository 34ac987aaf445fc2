// kinds sends one packet by one of many kinds of sockets and says who did:
//
//	kinds KIND ADDR4 ADDR6 PORT
//
// prints "PID PATH" of the process that is to be named. KIND is one of those in
// main.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/icmp6.h>
#include <netinet/ip_icmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static struct sockaddr_in to4;
static struct sockaddr_in6 to6, mapped;

static void die(const char *what) {
	perror(what);
	exit(1);
}

static int open_socket(int family, int type, int proto) {
	int fd = socket(family, type, proto);
	if (fd < 0)
		die("socket");
	return fd;
}

static void say(pid_t pid) {
	char path[512];
	ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
	if (n < 0)
		die("readlink");
	path[n] = 0;
	printf("%d %s\n", pid, path);
	fflush(stdout);
}

static void send_to(int fd, const void *b, size_t n, const void *to, socklen_t len) {
	if (sendto(fd, b, n, 0, to, len) != (ssize_t)n)
		die("sendto");
}

static void connect_to(int fd, const void *to, socklen_t len) {
	if (connect(fd, to, len) < 0 && errno != EINPROGRESS)
		die("connect");
}

static void echo4(int fd) {
	struct icmphdr h = {.type = ICMP_ECHO};
	unsigned sum = 0;
	h.un.echo.id = htons(4711);
	h.un.echo.sequence = htons(1);
	for (unsigned i = 0; i < sizeof h / 2; i++)
		sum += ((unsigned short *)&h)[i];
	h.checksum = ~((sum & 0xffff) + (sum >> 16));
	to4.sin_port = 0;
	send_to(fd, &h, sizeof h, &to4, sizeof to4);
}

static void echo6(int fd) {
	struct icmp6_hdr h = {.icmp6_type = ICMP6_ECHO_REQUEST};
	h.icmp6_id = htons(4711);
	h.icmp6_seq = htons(1);
	to6.sin6_port = 0;
	send_to(fd, &h, sizeof h, &to6, sizeof to6);
}

// in_child calls fn in a child process, which is the one to be named.
static void in_child(void (*fn)(int), int fd) {
	int status;
	pid_t pid = fork();
	if (pid == 0) {
		fn(fd);
		say(getpid());
		exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
		die("child");
}

static void datagram4(int fd) { send_to(fd, "x", 1, &to4, sizeof to4); }
static void fresh4(int fd) {
	(void)fd;
	datagram4(open_socket(AF_INET, SOCK_DGRAM, 0));
}

int main(int argc, char **argv) {
	if (argc != 5)
		return 2;
	const char *kind = argv[1];
	int port = atoi(argv[4]), fd;
	char text[64];
	to4.sin_family = AF_INET;
	to4.sin_port = htons(port);
	inet_pton(AF_INET, argv[2], &to4.sin_addr);
	to6.sin6_family = mapped.sin6_family = AF_INET6;
	to6.sin6_port = mapped.sin6_port = htons(port);
	inet_pton(AF_INET6, argv[3], &to6.sin6_addr);
	snprintf(text, sizeof text, "::ffff:%s", argv[2]);
	inet_pton(AF_INET6, text, &mapped.sin6_addr);

	if (!strcmp(kind, "udp")) {
		datagram4(open_socket(AF_INET, SOCK_DGRAM, 0));
	} else if (!strcmp(kind, "udp-connected")) {
		fd = open_socket(AF_INET, SOCK_DGRAM, 0);
		connect_to(fd, &to4, sizeof to4);
		if (send(fd, "x", 1, 0) != 1)
			die("send");
	} else if (!strcmp(kind, "udp6")) {
		send_to(open_socket(AF_INET6, SOCK_DGRAM, 0), "x", 1, &to6, sizeof to6);
	} else if (!strcmp(kind, "udp-mapped")) {
		send_to(open_socket(AF_INET6, SOCK_DGRAM, 0), "x", 1, &mapped, sizeof mapped);
	} else if (!strcmp(kind, "tcp-mapped")) {
		connect_to(open_socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0), &mapped, sizeof mapped);
	} else if (!strcmp(kind, "mptcp")) {
		connect_to(open_socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, IPPROTO_MPTCP), &to4, sizeof to4);
	} else if (!strcmp(kind, "raw")) {
		echo4(open_socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
	} else if (!strcmp(kind, "raw6")) {
		echo6(open_socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6));
	} else if (!strcmp(kind, "ping")) {
		echo4(open_socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP));
	} else if (!strcmp(kind, "ping6")) {
		echo6(open_socket(AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6));
	} else if (!strcmp(kind, "fork")) {
		in_child(fresh4, -1);
		return 0;
	} else if (!strcmp(kind, "passed")) { // the parent opens, the child sends
		in_child(datagram4, open_socket(AF_INET, SOCK_DGRAM, 0));
		return 0;
	} else if (!strcmp(kind, "exec")) { // one program opens, the next one sends
		snprintf(text, sizeof text, "%d", open_socket(AF_INET, SOCK_DGRAM, 0));
		setenv("KINDS_FD", text, 1);
		snprintf(text, sizeof text, "%s", argv[0]);
		char path[512];
		snprintf(path, sizeof path, "%s-other", argv[0]);
		execl(path, path, "inherited", argv[2], argv[3], argv[4], NULL);
		die(path);
	} else if (!strcmp(kind, "bound")) { // from a port that others can take next
		struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(5555)};
		fd = open_socket(AF_INET, SOCK_DGRAM, 0);
		if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0)
			die("bind");
		datagram4(fd);
	} else if (!strcmp(kind, "then-exec")) { // another program before anybody looks
		datagram4(open_socket(AF_INET, SOCK_DGRAM, 0));
		say(getpid());
		char path[512];
		snprintf(path, sizeof path, "%s-other", argv[0]);
		execl(path, path, "idle", argv[2], argv[3], argv[4], NULL);
		die(path);
	} else if (!strcmp(kind, "idle")) {
		usleep(100000);
		return 0;
	} else if (!strcmp(kind, "inherited")) {
		datagram4(atoi(getenv("KINDS_FD")));
	} else {
		fprintf(stderr, "unknown kind %s\n", kind);
		return 2;
	}
	say(getpid());
	return 0;
}
