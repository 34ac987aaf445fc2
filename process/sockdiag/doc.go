// Package sockdiag asks the kernel about sockets: which one sends or receives a
// packet, whose it is, and which there are.
//
// It owns the NETLINK_SOCK_DIAG socket, its messages, and the tables of raw and
// ping sockets in /proc, which that does not show. It must not know processes,
// queues or policy: a socket's inode, cookie and cgroup are all it says about an
// owner. It imports only packet.
//
// # What is found
//
// The kernel looks a socket up in its hash tables, as for a packet that arrives:
// the cost does not grow with the number of sockets. So a packet that is sent
// is looked up as the answer to it would be. For TCP that is exact while the
// socket lives. UDP sockets that share an address (SO_REUSEPORT, or a wildcard
// and a connected one) answer as the best match, which need not be the sender.
//
// A socket that is gone is not found, though its packet still waits: a program
// that sends one datagram and exits is mostly missed. A closed TCP connection
// stays for a while without owner (TIME-WAIT, inode and user 0).
//
// Sockets bound to an interface (SO_BINDTODEVICE, and those connected to an IPv6
// link-local address) are found only if that interface is named: see Conn.FindOn.
//
// Asking makes the kernel give a socket its cookie, if it has none yet; a dump
// does so for all. Cookies are never used twice and equal SO_COOKIE and what
// bpf_get_socket_cookie returns.
//
// Source: include/uapi/linux/sock_diag.h, include/uapi/linux/inet_diag.h,
// net/ipv4/inet_diag.c, net/ipv4/udp_diag.c.
package sockdiag
