/*
 * hang DIRECTORY [ARGUMENT]...: keeps the lock of its own memory map, so that whoever
 * reads /proc/PID/cmdline waits until its standard input ends, or half a minute is over.
 *
 * A child serves a file system (FUSE) at DIRECTORY, in a mount namespace of their own,
 * and fails the first read of its only file and never answers the next one. A thread
 * touches a page of that file: the kernel drops the lock for the first try and keeps
 * it, for reading, in the second. Another thread asks for the lock to write, and so
 * all later readers queue behind it. It sends a datagram to ADDRESS:PORT, if those
 * are in the environment, and then writes "hangs". It is of the user OWNER, if that is.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void must(int ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	_exit(1);
}

static void reply(int dev, const struct fuse_in_header *to, int error, const void *body, size_t size)
{
	struct { struct fuse_out_header head; char body[256]; } out;
	out.head.len = sizeof out.head + size;
	out.head.error = error;
	out.head.unique = to->unique;
	memcpy(out.body, body, size);
	must(write(dev, &out, out.head.len) >= 0 || errno == ENOENT, "answer");
}

/* The root directory is node 1, the file node 2. */
static struct fuse_attr attr(uint64_t node)
{
	struct fuse_attr a = { .ino = node, .nlink = 1, .mode = node == 1 ? S_IFDIR | 0755 : S_IFREG | 0644, .size = node == 1 ? 0 : 4096 };
	return a;
}

static void drop(void)
{
	const char *owner = getenv("OWNER");
	int id = owner ? atoi(owner) : 0;
	must(!setresgid(id, id, id) && !setresuid(id, id, id), "drop");
}

static void serve(int dev)
{
	static char in[1 << 18];
	const struct fuse_in_header *ask = (void *)in;
	int reads = 0;
	drop();
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(30); /* whatever happens: the whole machine's ps waits for us */
	while (read(dev, in, sizeof in) > 0) {
		struct fuse_init_out init = { .major = FUSE_KERNEL_VERSION, .minor = 31, .max_write = 4096 };
		struct fuse_entry_out entry = { .nodeid = 2, .attr = attr(2), .entry_valid = 3600, .attr_valid = 3600 };
		struct fuse_attr_out got = { .attr = attr(ask->nodeid), .attr_valid = 3600 };
		struct fuse_open_out opened = { .fh = 1 };
		switch (ask->opcode) {
		case FUSE_INIT: reply(dev, ask, 0, &init, sizeof init); break;
		case FUSE_LOOKUP: reply(dev, ask, 0, &entry, sizeof entry); break;
		case FUSE_GETATTR: reply(dev, ask, 0, &got, sizeof got); break;
		case FUSE_OPEN: reply(dev, ask, 0, &opened, sizeof opened); break;
		case FUSE_READ:
			if (reads++ == 0)
				reply(dev, ask, -EIO, "", 0);
			break;
		case FUSE_FORGET: case FUSE_BATCH_FORGET: break;
		default: reply(dev, ask, -ENOSYS, "", 0);
		}
	}
	_exit(0);
}

static volatile char *page;

static void *touch(void *unused)
{
	return (void *)(long)*page;
}

static volatile int go;

static void *lock(void *unused)
{
	while (!go)
		usleep(1000);
	return mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void send_one(const char *address, const char *port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	inet_pton(AF_INET, address, &to.sin_addr);
	must(sendto(socket(AF_INET, SOCK_DGRAM, 0), "x", 1, 0, (void *)&to, sizeof to) == 1, "send");
}

int main(int argc, char **argv)
{
	char options[64], path[4096], c;
	const char *address = getenv("ADDRESS"), *port = getenv("PORT");
	pthread_t thread;
	int dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	must(argc > 1 && dev >= 0, "/dev/fuse");
	must(!unshare(CLONE_NEWNS) && !mount("", "/", 0, MS_REC | MS_PRIVATE, 0), "unshare");
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", dev);
	must(!mount("hang", argv[1], "fuse", MS_NOSUID | MS_NODEV, options), "mount");
	pid_t server = fork();
	if (server == 0)
		serve(dev);
	close(dev);
	snprintf(path, sizeof path, "%s/file", argv[1]);
	int file = open(path, O_RDONLY);
	must(file >= 0, path);
	drop();
	page = mmap(0, 4096, PROT_READ, MAP_SHARED, file, 0);
	madvise((void *)page, 4096, MADV_RANDOM);
	pthread_create(&thread, 0, lock, 0); /* first: to make a thread takes the lock too */
	pthread_create(&thread, 0, touch, 0);
	usleep(300000);
	go = 1;
	usleep(200000);
	if (address && port)
		send_one(address, port);
	must(write(1, "hangs\n", 6) == 6, "write");
	while (read(0, &c, 1) > 0)
		;
	kill(server, SIGKILL); /* the mount ends with it, and the fault with the mount */
	_exit(0);
}
