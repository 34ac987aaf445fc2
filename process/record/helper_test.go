package record_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// helperEnv makes the test binary one of the programs below instead of a test.
const helperEnv = "RECORD_TEST_HELPER"

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
	if what == "exec" { // exec again, as the file words[0], with the rest as helper
		env := append(os.Environ(), helperEnv+"="+strings.Join(words[1:], " "))
		return syscall.Exec(words[0], []string{words[0], "second"}, env)
	}
	if what == "fork" {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), helperEnv+"="+strings.Join(words, " "))
		out, err := cmd.CombinedOutput()
		fmt.Print(string(out))
		return err
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
