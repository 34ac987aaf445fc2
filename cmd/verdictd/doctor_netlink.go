package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// families lists the netlink families of include/uapi/linux/netlink.h. Numbers 1
// and 17 are of none.
func families() []family {
	const off = "not used by verdictd"
	return []family{
		{Number: unix.NETLINK_NETFILTER, Name: "NETFILTER", role: roleUsed, For: "packets and verdicts, rules, connections, log messages", Without: "no packet can be judged: it needs CONFIG_NETFILTER_NETLINK"},
		{Number: unix.NETLINK_ROUTE, Name: "ROUTE", role: roleUsed, For: "names of network interfaces", Without: "verdictd run does not start"},
		{Number: unix.NETLINK_SOCK_DIAG, Name: "SOCK_DIAG", role: roleUsed, For: "the socket of a packet", Without: "receivers are not known: it needs CONFIG_INET_DIAG"},
		{Number: unix.NETLINK_CONNECTOR, Name: "CONNECTOR", role: roleHelps, For: "processes that start and end", Without: "without BPF, only searches through /proc tell whose a socket is"},
		{Number: unix.NETLINK_FIREWALL, Name: "FIREWALL", role: roleGone, For: "ip_queue, gone since Linux 3.5: -j QUEUE is queue 0 of nfnetlink_queue"},
		{Number: netlinkIP6FW, Name: "IP6_FW", role: roleGone, For: "ip6_queue, gone since Linux 3.5: the same queue 0 serves IPv6"},
		{Number: unix.NETLINK_NFLOG, Name: "NFLOG", role: roleGone, For: "ULOG, gone since Linux 3.17: nfnetlink_log (--nflog-group) does its job"},
		{Number: unix.NETLINK_AUDIT, Name: "AUDIT", For: "the kernel's audit log, " + off},
		{Number: unix.NETLINK_SELINUX, Name: "SELINUX", For: "changes of SELinux, " + off},
		{Number: unix.NETLINK_XFRM, Name: "XFRM", For: "IPsec policies, " + off},
		{Number: unix.NETLINK_FIB_LOOKUP, Name: "FIB_LOOKUP", For: "route lookup"},
		{Number: unix.NETLINK_KOBJECT_UEVENT, Name: "KOBJECT_UEVENT", For: "devices"},
		{Number: unix.NETLINK_GENERIC, Name: "GENERIC", For: "families with names"},
		{Number: unix.NETLINK_USERSOCK, Name: "USERSOCK", For: "among programs"},
		{Number: unix.NETLINK_CRYPTO, Name: "CRYPTO", For: "algorithms"},
		{Number: unix.NETLINK_ISCSI, Name: "ISCSI", For: "storage"},
		{Number: unix.NETLINK_SCSITRANSPORT, Name: "SCSITRANSPORT", For: "storage"},
		{Number: unix.NETLINK_ECRYPTFS, Name: "ECRYPTFS", For: "file system"},
		{Number: unix.NETLINK_RDMA, Name: "RDMA", For: "InfiniBand"},
		{Number: netlinkSMC, Name: "SMC", For: "shared memory"},
		{Number: unix.NETLINK_DNRTMSG, Name: "DNRTMSG", For: "DECnet, gone since Linux 6.1"},
	}
}

const (
	netlinkIP6FW = 13 // NETLINK_IP6_FW
	netlinkSMC   = 22 // NETLINK_SMC
)

// probeFamilies opens a socket of each family. That makes the kernel load the
// module of a family, if it has one.
func probeFamilies() []family {
	all := families()
	for i := range all {
		f := &all[i]
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, f.Number)
		switch {
		case err == nil:
			f.State = familyPresent
			unix.Close(fd)
		case errors.Is(err, unix.EPROTONOSUPPORT):
			f.State = familyAbsent
		default:
			f.State = stateUnknown
		}
	}
	return all
}

// answerTimeout bounds the wait for an answer; the kernel gives most of them
// while the question is asked.
const answerTimeout = time.Second

// askKernel sends one request to a netlink family and returns how the kernel
// answers: nil for data or an acknowledgement, else its error number.
func askKernel(family int, typ, flags uint16, payload []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, family)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	answer, err := exchange(fd, typ, unix.NLM_F_REQUEST|flags, payload)
	if err != nil {
		return err
	}
	const errnoAt = unix.SizeofNlMsghdr
	switch kind := binary.NativeEndian.Uint16(answer[4:]); {
	case kind != unix.NLMSG_ERROR && kind != unix.NLMSG_DONE, len(answer) < errnoAt+4:
		return nil
	}
	if errno := -int32(binary.NativeEndian.Uint32(answer[errnoAt:])); errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}

// send sends a message to the kernel.
func send(fd int, typ, flags uint16, payload []byte) error {
	m := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(payload)))
	m = binary.NativeEndian.AppendUint16(m, typ)
	m = binary.NativeEndian.AppendUint16(m, flags)
	m = append(m, make([]byte, 8)...) // sequence number and port
	return unix.Sendto(fd, append(m, payload...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// exchange sends a message and returns the first datagram that comes back.
func exchange(fd int, typ, flags uint16, payload []byte) ([]byte, error) {
	wait := unix.NsecToTimeval(int64(answerTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return nil, err
	}
	if err := send(fd, typ, flags, payload); err != nil {
		return nil, err
	}
	const size = 32 << 10 // of a dump's datagram
	buf := make([]byte, size)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return nil, fmt.Errorf("no answer within %s", answerTimeout)
	case err != nil:
		return nil, err
	case n < unix.SizeofNlMsghdr:
		return nil, fmt.Errorf("an answer of %d bytes", n)
	}
	return buf[:n], nil
}

// Requests that are answered if a part of nfnetlink is there, and change nothing.
const (
	queueConfig    = unix.NFNL_SUBSYS_QUEUE<<8 | 2     // NFQNL_MSG_CONFIG
	logConfig      = unix.NFNL_SUBSYS_ULOG<<8 | 1      // NFULNL_MSG_CONFIG
	conntrackStats = unix.NFNL_SUBSYS_CTNETLINK<<8 | 5 // IPCTNL_MSG_CT_GET_STATS
	queueFamily    = 3                                 // NFQNL_CFG_CMD_PF_BIND: does nothing since Linux 3.8
)

// hasQueue returns nil if nfnetlink_queue answers, hasLog and hasConntrack the
// same of nfnetlink_log and nf_conntrack_netlink. Of a missing part the error is
// EINVAL.
func hasQueue() error {
	const attr, size = 1, 8 // NFQA_CFG_CMD; length of attribute with struct nfqnl_msg_config_cmd
	payload := nfgenmsg(0)
	payload = binary.NativeEndian.AppendUint16(payload, size)
	payload = binary.NativeEndian.AppendUint16(payload, attr)
	payload = append(payload, queueFamily, 0, 0, unix.AF_INET)
	return askKernel(unix.NETLINK_NETFILTER, queueConfig, unix.NLM_F_ACK, payload)
}

func hasLog() error {
	const unlikely = 65535 // a group that nobody reads: the answer is ENODEV
	err := askKernel(unix.NETLINK_NETFILTER, logConfig, unix.NLM_F_ACK, nfgenmsg(unlikely))
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

func hasConntrack() error {
	return askKernel(unix.NETLINK_NETFILTER, conntrackStats, unix.NLM_F_ACK, nfgenmsg(0))
}

// nfgenmsg is struct nfgenmsg: family and version 0, then a number in network
// order.
func nfgenmsg(resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, resource)
}

// hasDiag returns nil if sock_diag can be asked for sockets of the protocol: it
// asks for those in no state. Of a protocol that is missing the error is ENOENT.
func hasDiag(protocol uint8) error {
	const byFamily, size = 20, 56 // SOCK_DIAG_BY_FAMILY, struct inet_diag_req_v2
	payload := make([]byte, size)
	payload[0], payload[1] = unix.AF_INET, protocol
	return askKernel(unix.NETLINK_SOCK_DIAG, byFamily, unix.NLM_F_DUMP, payload)
}

// hasProcessEvents returns nil if the kernel tells of processes that start and
// end: it subscribes, waits for the acknowledgement, and ends the subscription.
//
// Source: struct cn_msg, include/uapi/linux/connector.h; struct proc_event,
// include/uapi/linux/cn_proc.h.
func hasProcessEvents() error {
	const (
		group          = 1 // CN_IDX_PROC
		listen, ignore = 1, 2
		whatAt         = unix.SizeofNlMsghdr + 20
		errAt          = whatAt + 16
	)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_CONNECTOR)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: group}); err != nil {
		return err
	}
	command := func(op uint32) []byte {
		m := binary.NativeEndian.AppendUint32(nil, group)
		m = binary.NativeEndian.AppendUint32(m, 1) // CN_VAL_PROC
		m = append(m, make([]byte, 8)...)          // seq, ack
		m = binary.NativeEndian.AppendUint16(m, 4) // length of what follows
		m = binary.NativeEndian.AppendUint16(m, 0)
		return binary.NativeEndian.AppendUint32(m, op)
	}
	answer, err := exchange(fd, unix.NLMSG_DONE, 0, command(listen))
	// The first message is the acknowledgement, or already an event.
	if err == nil && len(answer) >= errAt+4 && binary.NativeEndian.Uint32(answer[whatAt:]) == 0 {
		if errno := binary.NativeEndian.Uint32(answer[errAt:]); errno != 0 {
			err = unix.Errno(errno)
		}
	}
	return errors.Join(err, send(fd, unix.NLMSG_DONE, 0, command(ignore))) // which is not acknowledged
}
