// Package connector follows what processes do: fork, exec, exit, and changes of
// user, group and name, as the kernel's process connector tells them.
//
// It owns the NETLINK_CONNECTOR socket and the messages of cn_proc. It must not
// know sockets, packets or what a process is to the rest, and imports nothing of
// this module.
//
// Events come after the fact: when one is read, the process may be gone, and its
// /proc/PID with it. They serve to know when something remembered about a
// process is no longer true, not to learn what a short-lived process was.
//
// The kernel tells only listeners in the initial network, pid and user namespace,
// and names processes by their numbers in the initial pid namespace.
//
// # Losses
//
// A reader that is too slow loses events. The kernel numbers them on each CPU, so
// a gap says how many; it is seen when the next event of that CPU comes.
//
// Source: include/uapi/linux/cn_proc.h, include/uapi/linux/connector.h,
// drivers/connector/cn_proc.c.
package connector
