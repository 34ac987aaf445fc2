package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/jsimonetti/rtnetlink/v2"
	"golang.org/x/sys/unix"
)

// Namespace is an anonymous network namespace. It lives until Close and until
// the last process and socket in it is gone. Safe for concurrent use.
type Namespace struct {
	name string
	file *os.File

	mu    sync.Mutex
	peers map[string]net.HardwareAddr // by name of the own interface
}

// NewNamespace makes an empty network namespace with lo up. The name appears
// only in errors. The caller must Close it. Needs CAP_SYS_ADMIN.
func NewNamespace(name string) (*Namespace, error) {
	ns := &Namespace{name: name, peers: make(map[string]net.HardwareAddr)}
	err := onThread(
		func() error { return unix.Unshare(unix.CLONE_NEWNET) },
		func() (err error) {
			ns.file, err = os.Open(threadNetNS)
			return err
		})
	if err == nil {
		err = ns.prepare()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create namespace %s: %w%s", name, err, needs(err, "CAP_SYS_ADMIN")), ns.Close())
	}
	return ns, nil
}

// Name returns the name given to NewNamespace.
func (n *Namespace) Name() string { return n.name }

// FD returns the descriptor that holds the namespace. It stays owned by n and
// is valid until Close.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Path returns a file that other processes can open to enter the namespace,
// for nsenter --net=PATH. It is valid until Close or the end of this process.
func (n *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.FD())
}

// Close releases the namespace. The kernel destroys it, with every link in it,
// shortly after its last process and socket is gone. Closing twice is harmless.
func (n *Namespace) Close() error {
	if n == nil || n.file == nil {
		return nil
	}
	if err := n.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close namespace %s: %w", n.name, err)
	}
	return nil
}

// Do runs fn inside the namespace, on the calling goroutine locked to its
// thread, and takes the thread back afterwards, also if fn panics or ends the
// goroutine. fn must not unlock the thread. The error is that of fn.
func (n *Namespace) Do(fn func() error) error {
	return onThread(func() error {
		err := n.withFD(func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) })
		if err != nil {
			return fmt.Errorf("enter namespace %s: %w%s", n.name, err, needs(err, "CAP_SYS_ADMIN"))
		}
		return nil
	}, fn)
}

// threadNetNS is the network namespace of the calling thread.
const threadNetNS = "/proc/thread-self/ns/net"

// onThread locks the goroutine to its thread, lets move take the thread to
// another network namespace, runs fn there and takes the thread back. The
// thread is not simply left to die: if it is the first of the process it cannot
// die and would hold the namespace for ever.
func onThread(move, fn func() error) (err error) {
	runtime.LockOSThread()
	home, err := os.Open(threadNetNS)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer home.Close()
	if err := move(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			// Keep the thread locked: it ends with this goroutine.
			err = errors.Join(err, fmt.Errorf("return thread to its network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return fn()
}

// prepare brings lo up and switches off what would send packets unasked or
// drop injected ones. Interfaces made later inherit "default".
func (n *Namespace) prepare() error {
	settings := [][2]string{
		{"net/ipv4/ping_group_range", "0 2147483647"},
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/default/dad_transmits", "0"},
		{"net/ipv6/conf/default/accept_ra", "0"},
		{"net/ipv6/conf/default/router_solicitations", "0"},
		{"net/ipv6/conf/default/mldv2_unsolicited_report_interval", "1"}, // ms: over at once
	}
	for _, s := range settings {
		if err := n.Sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return n.route(func(c *rtnetlink.Conn) error {
		lo, err := net.InterfaceByName("lo")
		if err != nil {
			return err
		}
		return setUp(c, uint32(lo.Index))
	})
}

// withFD lends fn the descriptor of the namespace. It cannot be closed, nor its
// number be reused, meanwhile.
func (n *Namespace) withFD(fn func(fd int) error) error {
	raw, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// Sysctl writes a setting of the namespace. The key is the path below
// /proc/sys, as in "net/ipv4/ip_forward".
func (n *Namespace) Sysctl(key, value string) error {
	if !strings.HasPrefix(key, "net/") || filepath.Clean(key) != key {
		return fmt.Errorf("sysctl %s: only settings below net/ belong to a network namespace", key)
	}
	return n.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0)
	})
}

// SetForwarding switches routing between interfaces on or off, for IPv4 and
// IPv6.
func (n *Namespace) SetForwarding(on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	if err := n.Sysctl("net/ipv4/ip_forward", value); err != nil {
		return err
	}
	return n.Sysctl("net/ipv6/conf/all/forwarding", value)
}

// route runs fn inside the namespace with a route netlink connection.
func (n *Namespace) route(fn func(*rtnetlink.Conn) error) error {
	return n.Do(func() error {
		c, err := rtnetlink.Dial(nil)
		if err != nil {
			return fmt.Errorf("open route netlink: %w", err)
		}
		defer c.Close()
		return fn(c)
	})
}

// needs names the capability whose absence explains err.
func needs(err error, capability string) string {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return " (needs " + capability + ")"
	}
	return ""
}

// Poll calls done every millisecond until it holds or the time is over, and
// says which. done is called at least once.
func Poll(timeout time.Duration, done func() bool) bool {
	for stop := time.Now().Add(timeout); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(stop) {
			return false
		}
	}
	return true
}
