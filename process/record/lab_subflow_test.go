package record_test

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process/record"
)

// TestLabSubflow: a path that the kernel adds to an MPTCP connection belongs to the
// owner of the connection, at both ends, also where it came in by another program's
// listener.
func TestLabSubflow(t *testing.T) {
	requireBPF(t)
	labtest.Require(t, labtest.IPTablesBinary)
	net := labtest.Pair(t)
	r := open(t, record.Config{})
	rule(t, r, net.Client, net.Server)
	for ns, last := range map[*lab.Namespace]string{net.Client: "11", net.Server: "3"} {
		labtest.Output(t, ns, "ip", "address", "add", "10.99.0."+last+"/24", "dev", "eth0")
		labtest.Output(t, ns, "ip", "mptcp", "limits", "set", "subflow", "4", "add_addr_accepted", "4")
	}
	labtest.Output(t, net.Server, "ip", "mptcp", "endpoint", "add", "10.99.0.3", "dev", "eth0", "signal")
	server := talk(t, net.Server, nil, "listen mptcp 10.99.0.2:81")
	talk(t, net.Server, nil, "listen mptcp 10.99.0.3:81") // gets nothing
	client := talk(t, net.Client, nil, "connect 10.99.0.2:81")
	server.tell("accept")
	var local string
	opened := lab.Poll(settle, func() bool {
		client.tell("go on")
		out := labtest.Output(t, net.Client, "ss", "-Htn", "state", "established", "dst", "10.99.0.3")
		if f := strings.Fields(out); len(f) >= 3 {
			local = f[2]
		}
		return local != ""
	})
	if !opened {
		t.Fatal("the kernel opened no second path")
	}
	for _, test := range []struct {
		from, to string
		pid      uint32
	}{{local, "10.99.0.3:81", client.pid()}, {"10.99.0.3:81", local, server.pid()}} {
		var f record.Flow
		if !sentBy(r, key(6, test.from, test.to), &f) || !f.HasOwner || f.Owner.PID != test.pid || f.Owner.Cookie != f.Cookie {
			t.Errorf("%s to %s: got %+v, want pid %d", test.from, test.to, f, test.pid)
		}
	}
	// Who configures paths is not who sends by them.
	labtest.Output(t, net.Client, "ip", "mptcp", "endpoint", "add", "10.99.0.11", "dev", "eth0", "subflow")
	var f record.Flow
	opened = lab.Poll(settle, func() bool {
		client.tell("go on")
		out := labtest.Output(t, net.Client, "ss", "-Htn", "state", "established", "src", "10.99.0.11")
		fields := strings.Fields(strings.ReplaceAll(out, "%eth0", ""))
		return len(fields) >= 4 && sentBy(r, key(6, fields[2], fields[3]), &f)
	})
	if !opened || !f.HasOwner || f.Owner.PID != client.pid() {
		t.Errorf("a path that was configured later: got %+v, want pid %d", f, client.pid())
	}
}

// TestLabSubflowsEnd: the kernel does not tell of the end of sockets that it has made
// itself by the hook for others. Their records go all the same.
func TestLabSubflowsEnd(t *testing.T) {
	requireBPF(t)
	net := labtest.Pair(t)
	r := open(t, record.Config{})
	const sockets = 100
	before := r.Owners()
	for i := range sockets {
		fd := -1
		err := net.Client.Do(func() (err error) {
			if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_MPTCP); err != nil {
				return err
			}
			if i%2 == 0 {
				return unix.Bind(fd, &unix.SockaddrInet4{})
			}
			if err = unix.Connect(fd, address(unix.AF_INET, netip.MustParseAddrPort("10.99.0.2:9"))); err == unix.EINPROGRESS {
				err = nil
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	after := 0
	if !lab.Poll(settle, func() bool { after = r.Owners(); return after < before+sockets/2 }) {
		t.Errorf("%d records before %d sockets came and went, %d after", before, sockets, after)
	}
}

// sentBy looks up the flow of a path, of which the kernel names the user once the path
// belongs to the connection's socket.
func sentBy(r *record.Recorder, k *packet.Key, f *record.Flow) bool {
	return r.Flow(k, 0, ownUser(), f) || r.Flow(k, 0, record.NoUser, f)
}
