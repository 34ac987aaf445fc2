package feed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/nfnl"
)

// Attributes, from include/uapi/linux/netfilter/nf_tables.h and nf_tables_compat.h.
const (
	getRule = unix.NFNL_SUBSYS_NFTABLES<<8 | 7 // NFT_MSG_GETRULE

	ruleTable, ruleChain, ruleExpressions  = 1, 2, 4
	exprName, exprData                     = 1, 2
	queueNumber, queueTotal, queueRegister = 1, 2, 4
	targetName, targetInfo                 = 1, 3
	immediateData, dataVerdict             = 2, 2
	verdictCode                            = 1

	verdictQueue = 3 // NF_QUEUE; the number is in the upper 16 bits
	generalSize  = 4 // struct nfgenmsg
	recvSize     = 1 << 16
	answerSecs   = 10
	tries        = 3 // while others change the rules
)

var errChanging = errors.New("the rules change while they are read")

// readTables returns all rules of nf_tables that queue.
func readTables() (rules []Rule, err error) {
	err = eachRule(func(attrs []byte, again bool) {
		if again {
			rules = nil
		}
		rules = appendRule(rules, attrs)
	})
	return rules, err
}

// eachRule calls yield with the attributes of each rule of nf_tables. If the rules
// change meanwhile it begins again, and says so with the first one.
func eachRule(yield func(attrs []byte, again bool)) (err error) {
	for range tries {
		again := true
		err = dumpRules(func(attrs []byte) {
			yield(attrs, again)
			again = false
		})
		if !errors.Is(err, errChanging) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return nil // a kernel without nf_tables has no rules
	case err != nil:
		return fmt.Errorf("read the rules of nf_tables: %w", err)
	}
	return nil
}

func dumpRules(yield func(attrs []byte)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: answerSecs}); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	msg := make([]byte, unix.SizeofNlMsghdr+generalSize) // family 0: all
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	binary.NativeEndian.PutUint16(msg[4:], getRule)
	binary.NativeEndian.PutUint16(msg[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, recvSize)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return err
		}
		for i := range messages {
			m := &messages[i]
			switch {
			case m.Header.Flags&unix.NLM_F_DUMP_INTR != 0:
				return errChanging
			case m.Header.Type == unix.NLMSG_DONE:
				return nil
			case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
				return syscall.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
			case len(m.Data) > generalSize:
				yield(m.Data[generalSize:])
			}
		}
	}
}

// appendRule appends the rule for each expression of it that queues.
func appendRule(rules []Rule, attrs []byte) []Rule {
	r := Rule{Tables: "nf_tables"}
	for a := nfnl.NewAttrs(attrs); a.Next(); {
		switch a.Type() {
		case ruleTable:
			r.Table = unix.ByteSliceToString(a.Bytes())
		case ruleChain:
			r.Chain = unix.ByteSliceToString(a.Bytes())
		case ruleExpressions:
			for e := nfnl.NewAttrs(a.Bytes()); e.Next(); {
				if r.read(e.Bytes()) {
					rules = append(rules, r)
				}
			}
		}
	}
	return rules
}

// read reads one expression and returns whether it queues.
func (r *Rule) read(expression []byte) bool {
	name, data := nameAndData(expression)
	r.First, r.Count = 0, 0
	switch name {
	case "queue":
		return r.readQueue(data)
	case "target":
		return r.readTarget(data)
	case "immediate":
		return r.readVerdict(data)
	}
	return false
}

// nameAndData returns the name of an expression and its attributes.
func nameAndData(expression []byte) (name string, data []byte) {
	for a := nfnl.NewAttrs(expression); a.Next(); {
		switch a.Type() {
		case exprName:
			name = unix.ByteSliceToString(a.Bytes())
		case exprData:
			data = a.Bytes()
		}
	}
	return name, data
}

func (r *Rule) readQueue(data []byte) bool {
	byRegister := false
	r.Count = 1
	for a := nfnl.NewAttrs(data); a.Next(); {
		switch a.Type() {
		case queueNumber:
			r.First = a.Uint16()
		case queueTotal:
			r.Count = max(1, uint32(a.Uint16()))
		case queueRegister:
			byRegister = true
		}
	}
	if byRegister {
		r.First, r.Count = 0, 0
	}
	return true
}

// readTarget reads a target of xtables, as iptables-nft writes it.
func (r *Rule) readTarget(data []byte) bool {
	var name string
	var info []byte
	for a := nfnl.NewAttrs(data); a.Next(); {
		switch a.Type() {
		case targetName:
			name = unix.ByteSliceToString(a.Bytes())
		case targetInfo:
			info = a.Bytes()
		}
	}
	return r.readNFQUEUE(name, info)
}

// readNFQUEUE reads what all revisions of the target begin with.
//
// Source: struct xt_NFQ_info and the like, include/uapi/linux/netfilter/xt_NFQUEUE.h:
// the number and, from revision 1 on, how many, 16 bits each in host byte order.
func (r *Rule) readNFQUEUE(name string, info []byte) bool {
	if name != "NFQUEUE" || len(info) < 2 {
		return false
	}
	r.First, r.Count = binary.NativeEndian.Uint16(info), 1
	if len(info) >= 4 {
		r.Count = max(1, uint32(binary.NativeEndian.Uint16(info[2:])))
	}
	return true
}

// readVerdict reads a verdict: -j QUEUE of iptables-nft.
func (r *Rule) readVerdict(data []byte) bool {
	for a := nfnl.NewAttrs(data); a.Next(); {
		if a.Type() != immediateData {
			continue
		}
		for d := nfnl.NewAttrs(a.Bytes()); d.Next(); {
			if d.Type() != dataVerdict {
				continue
			}
			for v := nfnl.NewAttrs(d.Bytes()); v.Next(); {
				if v.Type() == verdictCode {
					return r.readCode(int32(v.Uint32()))
				}
			}
		}
	}
	return false
}

// readCode reads a verdict of the kernel. Those below 0 are jumps.
func (r *Rule) readCode(code int32) bool {
	if code < 0 || code&0xff != verdictQueue {
		return false
	}
	r.First, r.Count = uint16(code>>16), 1
	return true
}
