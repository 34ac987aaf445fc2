package record_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
)

// helperEnv makes the test binary one of the programs below instead of a test.
const helperEnv = "RECORD_TEST_HELPER"

// environment is that of a helper. The race detector would wait a second at its
// end.
func environment(words string) []string {
	return []string{helperEnv + "=" + words, "GORACE=atexit_sleep_ms=0"}
}

func TestMain(m *testing.M) {
	words := strings.Fields(os.Getenv(helperEnv))
	if len(words) == 0 {
		os.Exit(m.Run())
	}
	if err := helper(words[0], words[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "helper:", err)
		os.Exit(1)
	}
}

// helper does one thing with a socket and returns; the process ends at once.
// Words: what to do, where to send to, and which local port to use (0: any).
func helper(what string, words []string) error {
	if what == "exec" { // use a socket, and exec again, as the file words[0], with the rest as helper
		if _, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("socket", err)
		}
		return syscall.Exec(words[0], []string{words[0], "second"}, environment(strings.Join(words[1:], " ")))
	}
	if what == "fork" {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = environment(strings.Join(words, " "))
		out, err := cmd.CombinedOutput()
		fmt.Print(string(out))
		return err
	}
	switch what {
	case "clone":
		return clone(words)
	case "sender":
		return sender()
	case "connect":
		return connect(netip.MustParseAddrPort(words[0]))
	case "listen":
		return listen(words[0], netip.MustParseAddrPort(words[1]))
	}
	to, err := netip.ParseAddrPort(words[0])
	if err != nil {
		return err
	}
	var local int
	if len(words) > 1 {
		if local, err = strconv.Atoi(words[1]); err != nil {
			return err
		}
	}
	fmt.Println(os.Getpid())
	return act(what, to, local)
}

// act opens a socket and sends one packet.
func act(what string, to netip.AddrPort, local int) error {
	domain := unix.AF_INET
	if to.Addr().Is6() || strings.HasSuffix(what, "-mapped") {
		domain = unix.AF_INET6
	}
	what = strings.TrimSuffix(what, "-mapped")
	typ, proto := unix.SOCK_DGRAM, 0
	switch what {
	case "tcp":
		typ = unix.SOCK_STREAM | unix.SOCK_NONBLOCK
	case "mptcp":
		typ, proto = unix.SOCK_STREAM|unix.SOCK_NONBLOCK, unix.IPPROTO_MPTCP
	case "ping":
		proto = unix.IPPROTO_ICMP
	case "raw":
		typ, proto = unix.SOCK_RAW, unix.IPPROTO_ICMP
	}
	if proto == unix.IPPROTO_ICMP && domain == unix.AF_INET6 {
		proto = unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(domain, typ, proto)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if local != 0 {
		if err := unix.Bind(fd, address(domain, netip.AddrPortFrom(any(to), uint16(local)))); err != nil {
			return os.NewSyscallError("bind", err)
		}
	}
	return send(fd, what, domain, to, local)
}

func send(fd int, what string, domain int, to netip.AddrPort, id int) error {
	payload := []byte("x")
	if what == "raw" || what == "ping" {
		payload = echoRequest(to.Addr().Is6(), id)
		to = netip.AddrPortFrom(to.Addr(), 0)
	}
	switch what {
	case "udp", "raw", "ping":
		return os.NewSyscallError("sendto", unix.Sendto(fd, payload, 0, address(domain, to)))
	}
	err := unix.Connect(fd, address(domain, to))
	if err != nil && err != unix.EINPROGRESS {
		return os.NewSyscallError("connect", err)
	}
	if what == "udp-connected" {
		_, err = unix.Write(fd, payload)
		return os.NewSyscallError("write", err)
	}
	return nil
}

func echoRequest(six bool, id int) []byte {
	if six {
		return []byte{128, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}
	}
	sum := ^uint16(0x0800 + uint16(id) + 1) // no carry for the ids in use
	return []byte{8, 0, byte(sum >> 8), byte(sum), byte(id >> 8), byte(id), 0, 1}
}

func any(to netip.AddrPort) netip.Addr {
	if to.Addr().Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func address(domain int, a netip.AddrPort) unix.Sockaddr {
	if domain == unix.AF_INET6 {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// clone makes a child that sends without exec and returns when it has ended. The
// child of a program with threads may do nothing but raw system calls.
func clone(words []string) error {
	to, err := netip.ParseAddrPort(words[1])
	if err != nil {
		return err
	}
	local, err := strconv.Atoi(words[2])
	if err != nil {
		return err
	}
	source := &unix.RawSockaddrInet4{Family: unix.AF_INET, Port: order(uint16(local))}
	target := &unix.RawSockaddrInet4{Family: unix.AF_INET, Port: order(to.Port()), Addr: to.Addr().As4()}
	pid := forkAndSend(source, target)
	if pid < 0 {
		return syscall.Errno(-pid)
	}
	fmt.Println(pid)
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil {
		return err
	}
	if status.ExitStatus() != 0 {
		return fmt.Errorf("child: %v", syscall.Errno(status.ExitStatus()))
	}
	return nil
}

func order(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

//go:norace
//go:nosplit
func forkAndSend(source, target *unix.RawSockaddrInet4) int {
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return -int(errno)
	}
	if pid != 0 {
		return int(pid)
	}
	var payload byte
	fd, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM, 0)
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_BIND, fd, uintptr(unsafe.Pointer(source)), unix.SizeofSockaddrInet4)
	}
	if errno == 0 {
		_, _, errno = syscall.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&payload)), 1, 0,
			uintptr(unsafe.Pointer(target)), unix.SizeofSockaddrInet4)
	}
	syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
	return 0
}

// procFD returns a path of this process's open file that other processes can
// use.
func procFD(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

func uintText(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func credential(uid, gid uint32) *syscall.Credential { return &syscall.Credential{Uid: uid, Gid: gid} }

// sender sends a datagram by descriptor 3 to each address that it reads.
func sender() error {
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); fmt.Println("sent") {
		to, err := netip.ParseAddrPort(lines.Text())
		if err != nil {
			return err
		}
		if err := unix.Sendto(3, []byte("x"), 0, address(unix.AF_INET, to)); err != nil {
			return os.NewSyscallError("sendto", err)
		}
	}
	return nil
}

// listen accepts a connection for each line that it reads, writes to it, and
// prints the cookie of the socket.
func listen(proto string, at netip.AddrPort) error {
	domain, number := unix.AF_INET, unix.IPPROTO_TCP
	if at.Addr().Is6() {
		domain = unix.AF_INET6
	}
	if proto == "mptcp" {
		number = unix.IPPROTO_MPTCP
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM, number)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, address(domain, at)); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, 8); err != nil {
		return os.NewSyscallError("listen", err)
	}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		conn, _, err := unix.Accept(fd)
		if err != nil {
			return os.NewSyscallError("accept", err)
		}
		// The peer may have gone: what counts is that the kernel sends.
		if err := unix.Sendto(conn, []byte("x"), unix.MSG_NOSIGNAL, nil); err != nil && err != unix.EPIPE && err != unix.ECONNRESET {
			return os.NewSyscallError("send", err)
		}
		cookie, err := unix.GetsockoptUint64(conn, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			return os.NewSyscallError("getsockopt", err)
		}
		fmt.Println(cookie)
	}
	return nil
}

// connect opens an MPTCP connection and writes to it for each line that it reads.
func connect(to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, address(unix.AF_INET, to)); err != nil {
		return os.NewSyscallError("connect", err)
	}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); fmt.Println("written") {
		if _, err := unix.Write(fd, []byte("x")); err != nil {
			return os.NewSyscallError("write", err)
		}
	}
	return nil
}

// boundUDP opens a socket in a namespace.
func boundUDP(t testing.TB, ns *lab.Namespace, local netip.AddrPort) *os.File {
	t.Helper()
	var fd int
	err := ns.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, address(unix.AF_INET, local))
	})
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "udp")
	t.Cleanup(func() { f.Close() })
	return f
}

func connectUDP(t *testing.T, socket *os.File, to netip.AddrPort) {
	t.Helper()
	if err := unix.Connect(int(socket.Fd()), address(unix.AF_INET, to)); err != nil {
		t.Fatal(err)
	}
}

// write sends a datagram. An error that came for the one before is passed over.
func write(t *testing.T, socket *os.File) {
	t.Helper()
	_, err := unix.Write(int(socket.Fd()), []byte("x"))
	if err == unix.ECONNREFUSED {
		_, err = unix.Write(int(socket.Fd()), []byte("x"))
	}
	if err != nil {
		t.Fatal(err)
	}
}
