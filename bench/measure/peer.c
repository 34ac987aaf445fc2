//go:build ignore

// Three NFQUEUE loops in C to compare with. They use the kernel's headers only.
//
//   peer batched|spin|simple QUEUES MAXLEN RCVBUF COPYRANGE SPIN [MARK]
//
// binds queues 0 to QUEUES-1, a thread for each, and accepts every packet. With
// MARK it does so as verdictd does: by sending the packet round again (NF_REPEAT)
// with that mark, by which verdictd's rules let the rest of its flow pass.
//
//   batched  recvmmsg of up to 64 packets, all their verdicts in one send:
//            the fastest C loop known to us that answers packets one by one
//   spin     batched, which after each packet looks for more for SPIN ns before
//            it sleeps
//   simple   recv of one packet, send of one verdict: what most programs do
//
// It prints "ready" once all queues are bound, answers each line on standard
// input with the number of packets answered so far, as JSON, and ends with
// standard input.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum {
	BATCH = 64,
	OVERHEAD = 512, // more than the attributes beside the payload need
	MAX_QUEUES = 64,
};

struct verdict {
	struct nlmsghdr nlh;
	struct nfgenmsg nfg;
	struct nlattr attr;
	struct nfqnl_msg_verdict_hdr hdr;
	struct nlattr mark_attr; // these two only with a mark
	uint32_t mark;
};

struct worker {
	pthread_t thread;
	int fd;
	uint16_t queue;
	int64_t spin;       // ns
	size_t size;        // of one receive buffer
	unsigned char *buf; // BATCH of them
	uint64_t bytes;     // of payload seen
	uint32_t mark;      // in network order
	size_t verdict;     // size of a verdict
	_Alignas(64) uint64_t packets; // answered; read by main
};

_Noreturn static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void put(struct nlmsghdr *nlh, int type, const void *data, int len)
{
	struct nlattr *a = (void *)((char *)nlh + NLMSG_ALIGN(nlh->nlmsg_len));
	a->nla_type = type;
	a->nla_len = NLA_HDRLEN + len;
	memcpy(a + 1, data, len);
	nlh->nlmsg_len = NLMSG_ALIGN(nlh->nlmsg_len) + NLA_ALIGN(a->nla_len);
}

// bind_queue binds and configures the queue with a single message and waits
// for the answer.
static void bind_queue(int fd, uint16_t queue, uint32_t maxlen, uint32_t copy)
{
	union {
		struct nlmsghdr nlh;
		char space[256];
	} m = {0};
	struct nfgenmsg nfg = {.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = htons(queue)};
	struct nfqnl_msg_config_cmd cmd = {.command = NFQNL_CFG_CMD_BIND};
	struct nfqnl_msg_config_params params = {.copy_range = htonl(copy), .copy_mode = NFQNL_COPY_PACKET};
	uint32_t flags = htonl(NFQA_CFG_F_GSO | NFQA_CFG_F_UID_GID), len = htonl(maxlen);

	m.nlh.nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG;
	m.nlh.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	m.nlh.nlmsg_len = NLMSG_LENGTH(sizeof nfg);
	memcpy(NLMSG_DATA(&m.nlh), &nfg, sizeof nfg);
	put(&m.nlh, NFQA_CFG_CMD, &cmd, sizeof cmd);
	put(&m.nlh, NFQA_CFG_PARAMS, &params, sizeof params);
	put(&m.nlh, NFQA_CFG_QUEUE_MAXLEN, &len, sizeof len);
	put(&m.nlh, NFQA_CFG_MASK, &flags, sizeof flags);
	put(&m.nlh, NFQA_CFG_FLAGS, &flags, sizeof flags);
	if (send(fd, &m, m.nlh.nlmsg_len, 0) < 0)
		die("send bind");
	ssize_t n = recv(fd, &m, sizeof m, 0);
	if (n < (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)) || m.nlh.nlmsg_type != NLMSG_ERROR)
		die("receive answer to bind");
	errno = -((struct nlmsgerr *)NLMSG_DATA(&m.nlh))->error;
	if (errno)
		die("bind queue");
}

static void open_worker(struct worker *w, uint32_t maxlen, int rcvbuf, uint32_t copy)
{
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	int on = 1;

	w->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
	if (w->fd < 0 || connect(w->fd, (void *)&kernel, sizeof kernel))
		die("open netlink socket");
	if (setsockopt(w->fd, SOL_SOCKET, SO_RCVBUFFORCE, &rcvbuf, sizeof rcvbuf))
		die("set receive buffer");
	if (setsockopt(w->fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &on, sizeof on))
		die("switch ENOBUFS off");
	w->size = (copy + OVERHEAD + 63) & ~63u;
	w->buf = aligned_alloc(64, BATCH * w->size);
	if (!w->buf)
		die("allocate buffers");
	memset(w->buf, 0, BATCH * w->size);
	bind_queue(w->fd, w->queue, maxlen, copy);
}

// answer looks at all attributes of one message and fills in the verdict. It
// returns 0 if the message is not a packet.
static int answer(struct worker *w, const unsigned char *msg, size_t len, struct verdict *v)
{
	const struct nlmsghdr *nlh = (const void *)msg;
	const struct nfqnl_msg_packet_hdr *ph = NULL;

	if (len < NLMSG_LENGTH(sizeof(struct nfgenmsg)) || nlh->nlmsg_len > len ||
	    nlh->nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET))
		return 0;
	const unsigned char *p = msg + NLMSG_LENGTH(sizeof(struct nfgenmsg)), *end = msg + nlh->nlmsg_len;
	while (p + NLA_HDRLEN <= end) {
		const struct nlattr *a = (const void *)p;
		if (a->nla_len < NLA_HDRLEN || a->nla_len > end - p)
			break;
		switch (a->nla_type & NLA_TYPE_MASK) {
		case NFQA_PACKET_HDR:
			ph = (const void *)(a + 1);
			break;
		case NFQA_PAYLOAD:
			w->bytes += a->nla_len - NLA_HDRLEN;
			break;
		}
		p += NLA_ALIGN(a->nla_len);
	}
	if (!ph)
		return 0;
	*v = (struct verdict){
		.nlh = {.nlmsg_len = w->verdict, .nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_VERDICT, .nlmsg_flags = NLM_F_REQUEST},
		.nfg = {.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = htons(w->queue)},
		.attr = {.nla_len = NLA_HDRLEN + sizeof v->hdr, .nla_type = NFQA_VERDICT_HDR},
		.hdr = {.verdict = htonl(w->mark ? NF_REPEAT : NF_ACCEPT), .id = ph->packet_id},
		.mark_attr = {.nla_len = NLA_HDRLEN + sizeof v->mark, .nla_type = NFQA_MARK},
		.mark = w->mark,
	};
	return 1;
}

static void flush(struct worker *w, const void *verdicts, unsigned n)
{
	if (n == 0)
		return;
	if (send(w->fd, verdicts, n * w->verdict, 0) < 0)
		die("send verdicts");
	__atomic_store_n(&w->packets, w->packets + n, __ATOMIC_RELAXED);
}

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// look looks for packets until some are there or w->spin is over.
static int look(struct worker *w, struct mmsghdr *in)
{
	int64_t end = now() + w->spin;

	do {
		int n = recvmmsg(w->fd, in, BATCH, MSG_DONTWAIT, NULL);
		if (n >= 0 || errno != EAGAIN)
			return n;
	} while (now() < end);
	return 0;
}

static void *batched(void *arg)
{
	struct worker *w = arg;
	struct verdict out[BATCH]; // one after the other, the rest at the end
	struct mmsghdr in[BATCH] = {0};
	struct iovec iov[BATCH];

	for (int i = 0; i < BATCH; i++) {
		iov[i] = (struct iovec){w->buf + i * w->size, w->size};
		in[i].msg_hdr.msg_iov = &iov[i];
		in[i].msg_hdr.msg_iovlen = 1;
	}
	for (int k = 0;;) {
		int n = 0;
		if (k > 0 && w->spin > 0)
			n = look(w, in);
		if (n == 0)
			n = recvmmsg(w->fd, in, BATCH, MSG_WAITFORONE, NULL);
		if (n < 0 && errno != EINTR && errno != ENOBUFS)
			die("receive packets");
		k = 0;
		for (int i = 0; i < n; i++)
			k += answer(w, iov[i].iov_base, in[i].msg_len, (void *)((char *)out + k * w->verdict));
		flush(w, out, k);
	}
	return NULL;
}

static void *simple(void *arg)
{
	struct worker *w = arg;
	struct verdict out;

	for (;;) {
		ssize_t n = recv(w->fd, w->buf, w->size, 0);
		if (n < 0 && errno != EINTR && errno != ENOBUFS)
			die("receive packet");
		if (n > 0)
			flush(w, &out, answer(w, w->buf, n, &out));
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static struct worker workers[MAX_QUEUES];
	char line[64];

	if (argc < 7 || argc > 8 || atoi(argv[2]) < 1 || atoi(argv[2]) > MAX_QUEUES) {
		fprintf(stderr, "usage: peer batched|spin|simple QUEUES MAXLEN RCVBUF COPYRANGE SPIN [MARK]\n");
		return 2;
	}
	int queues = atoi(argv[2]);
	for (int i = 0; i < queues; i++) {
		workers[i].queue = i;
		if (!strcmp(argv[1], "spin"))
			workers[i].spin = atoi(argv[6]);
		workers[i].mark = argc == 8 ? htonl(strtoul(argv[7], NULL, 0)) : 0;
		workers[i].verdict = argc == 8 ? sizeof(struct verdict) : offsetof(struct verdict, mark_attr);
		open_worker(&workers[i], atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
		errno = pthread_create(&workers[i].thread, NULL, strcmp(argv[1], "simple") ? batched : simple, &workers[i]);
		if (errno)
			die("start thread");
	}
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		uint64_t packets = 0;
		for (int i = 0; i < queues; i++)
			packets += __atomic_load_n(&workers[i].packets, __ATOMIC_RELAXED);
		printf("{\"packets\":%llu}\n", (unsigned long long)packets);
		fflush(stdout);
	}
	exit(0);
}
