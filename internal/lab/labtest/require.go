package labtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
)

// Cap is something a test needs from the machine. Its text is what a skip
// names.
type Cap string

// What a test can need. Each but the binaries is probed for real, in a
// namespace of its own.
const (
	Root           Cap = "root (CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW)"
	NFQueue        Cap = "nfnetlink_queue"
	NFLog          Cap = "nfnetlink_log"
	NFTables       Cap = "nf_tables over netlink"
	Conntrack      Cap = "nf_conntrack_netlink"
	BPF            Cap = "BPF programs at control groups (CAP_BPF, CONFIG_CGROUP_BPF, BTF)"
	IPTablesBinary Cap = "iptables-legacy and ip6tables-legacy with NFQUEUE and NFLOG targets"
	NFTBinary      Cap = "nft binary"
	NFTQueue       Cap = "queue expression of nf_tables (CONFIG_NFT_QUEUE), with nft"
	Tshark         Cap = "tshark binary"
	Dnsmasq        Cap = "dnsmasq binary"
	Busybox        Cap = "busybox binary with udhcpc"
	GCC            Cap = "gcc binary (with libc6-dev)"
	FUSE           Cap = "file systems in user space (/dev/fuse)"
	Btrfs          Cap = "btrfs, with mkfs.btrfs (btrfs-progs) and loop devices"

	// For Lacks only.
	Connector   Cap = "process connector (CONFIG_PROC_EVENTS)"
	Cgroup2     Cap = "control groups version 2, writable"
	InitialPIDs Cap = "initial pid namespace"

	BridgeNetfilter Cap = "netfilter at bridges (br_netfilter)"
)

// env is the environment variable, required its value, that forbids skips.
const (
	env      = "VERDICTD_LAB"
	required = "require"
)

// Require skips the test when the machine lacks one of caps, naming it and
// why. With VERDICTD_LAB=require it fails the test instead.
func Require(t testing.TB, caps ...Cap) {
	t.Helper()
	for _, c := range caps {
		if err := probe(c); err != nil {
			Lacks(t, c, err)
		}
	}
}

// Has returns whether the machine has c, and logs why if not. It is for tests that
// check something else where a kernel lacks what others have, and never skip.
func Has(t testing.TB, c Cap) bool {
	t.Helper()
	err := probe(c)
	if err != nil {
		t.Logf("without %s: %v", c, err)
	}
	return err == nil
}

// Lacks skips the test because the machine lacks c, as err shows; with
// VERDICTD_LAB=require it fails the test instead. It is for what only the test
// itself can find out; Require is for the rest.
func Lacks(t testing.TB, c Cap, err error) {
	t.Helper()
	if os.Getenv(env) == required {
		t.Fatalf("needs %s: %v (%s=%s forbids to skip)", c, err, env, required)
	}
	t.Skipf("needs %s: %v", c, err)
}

func probe(c Cap) error {
	switch c {
	case NFTBinary:
		return onPath("nft")
	case Tshark:
		return onPath("tshark")
	case FUSE:
		_, err := os.Stat("/dev/fuse")
		return err
	case Btrfs:
		return onPath("mkfs.btrfs")
	case Dnsmasq:
		return onPath("dnsmasq")
	case Busybox:
		return onPath("busybox")
	case GCC:
		return onPath("gcc")
	case BPF:
		return probeBPF()
	}
	ns, err := lab.NewNamespace("probe")
	if err != nil {
		return err
	}
	return errors.Join(probeIn(ns, c), ns.Close())
}

// Message types and commands of nfnetlink that show a subsystem works:
// linux/netfilter/nfnetlink.h, nfnetlink_queue.h, nfnetlink_log.h, nf_tables.h,
// nfnetlink_conntrack.h. Asking loads the module where it is one.
const (
	queueConfig    = unix.NFNL_SUBSYS_QUEUE<<8 | 2     // NFQNL_MSG_CONFIG
	logConfig      = unix.NFNL_SUBSYS_ULOG<<8 | 1      // NFULNL_MSG_CONFIG
	tablesGetGen   = unix.NFNL_SUBSYS_NFTABLES<<8 | 16 // NFT_MSG_GETGEN
	conntrackStats = unix.NFNL_SUBSYS_CTNETLINK<<8 | 4 // IPCTNL_MSG_CT_GET_STATS_CPU
	configCmd      = 1                                 // NFQA_CFG_CMD and NFULA_CFG_CMD
	cmdBind        = 1                                 // NFQNL_CFG_CMD_BIND and NFULNL_CFG_CMD_BIND
)

func probeIn(ns *lab.Namespace, c Cap) error {
	switch c {
	case Root:
		return probeRoot(ns)
	case NFQueue:
		return nfnetlink(ns, queueConfig, netlink.Acknowledge, []byte{cmdBind, 0, 0, 0})
	case NFLog:
		return nfnetlink(ns, logConfig, netlink.Acknowledge, []byte{cmdBind})
	case NFTables:
		return nfnetlink(ns, tablesGetGen, 0, nil)
	case Conntrack:
		return nfnetlink(ns, conntrackStats, netlink.Dump, nil)
	case IPTablesBinary:
		return probeIPTables(ns)
	case NFTQueue:
		_, err := run(ns, "nft", "add table inet probe; add chain inet probe c; add rule inet probe c queue num 0")
		return err
	}
	return errors.New("unknown capability")
}

// probeBPF asks for the first BPF program in the kernel, and looks for what the
// programs of package record are made from.
func probeBPF() error {
	const progGetNextID = 11 // BPF_PROG_GET_NEXT_ID, linux/bpf.h
	attr := [4]uint32{}
	_, _, errno := unix.Syscall(unix.SYS_BPF, progGetNextID, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 && errno != unix.ENOENT {
		return fmt.Errorf("bpf(2): %w", errno)
	}
	for _, file := range []string{"/sys/kernel/btf/vmlinux", "/proc/self/cgroup"} {
		if _, err := os.Stat(file); err != nil {
			return err
		}
	}
	return nil
}

// probeRoot makes a second namespace, a link and a raw socket.
func probeRoot(ns *lab.Namespace) error {
	other, err := lab.NewNamespace("probe peer")
	if err != nil {
		return err
	}
	defer other.Close()
	if err := lab.Link(ns, other, lab.LinkConfig{}); err != nil {
		return err
	}
	return ns.Inject("eth0", make([]byte, 20))
}

// nfnetlink sends one request, with configCmd when command is given.
func nfnetlink(ns *lab.Namespace, typ uint16, flags netlink.HeaderFlags, command []byte) error {
	data := make([]byte, 4) // struct nfgenmsg: family, version, res_id
	if command != nil {
		attr, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: configCmd, Data: command}})
		if err != nil {
			return err
		}
		data = append(data, attr...)
	}
	return ns.Do(func() error {
		c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Execute(netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request | flags},
			Data:   data,
		})
		return err
	})
}

func probeIPTables(ns *lab.Namespace) error {
	for _, name := range []string{iptables, ip6tables} {
		if err := onPath(name); err != nil {
			return err
		}
		for _, rule := range [][]string{
			{"-A", "INPUT", "-j", "NFQUEUE", "--queue-num", "0"},
			{"-A", "INPUT", "-j", "NFLOG", "--nflog-group", "1"},
		} {
			if _, err := run(ns, name, rule...); err != nil {
				return err
			}
		}
	}
	return nil
}

func onPath(name string) error {
	if _, err := exec.LookPath(name); err != nil {
		return fmt.Errorf("%s is not on the path: install it", name)
	}
	return nil
}

// Corpus returns the path of the capture corpus, joined with sub:
// $VERDICTD_CORPUS, or else ../shared/corpus beside the repository. It skips
// the test when that is absent.
func Corpus(t testing.TB, sub ...string) string {
	t.Helper()
	dir := os.Getenv("VERDICTD_CORPUS")
	if dir == "" {
		dir = filepath.Join(Repository(t), "..", "shared", "corpus")
	}
	path := filepath.Join(append([]string{dir}, sub...)...)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs the corpus: %v (set VERDICTD_CORPUS to its directory)", err)
	}
	return path
}

// Pair returns lab.Pair, closed at the end of the test. It requires Root.
func Pair(t testing.TB) *lab.Network {
	t.Helper()
	return network(t, lab.Pair)
}

// Router returns lab.Router, closed at the end of the test. It requires Root.
func Router(t testing.TB) *lab.Network {
	t.Helper()
	return network(t, lab.Router)
}

func network(t testing.TB, build func() (*lab.Network, error)) *lab.Network {
	t.Helper()
	Require(t, Root)
	n, err := build()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}
