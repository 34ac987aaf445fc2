package handover

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Keeper is the service manager's side: it receives what children notify and
// holds the descriptors that they store. It is for one goroutine but for
// Receive and Close.
type Keeper struct {
	conn  *net.UnixConn
	held  map[string]int // not os.File: the poller would be woken by each packet
	names []string       // of held, in order of arrival
}

// NewKeeper returns a Keeper that listens on a socket without a file.
func NewKeeper() (*Keeper, error) {
	// An empty name makes the kernel choose an abstract one (unix(7)).
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for the worker: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		ctlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
		if err == nil {
			err = ctlErr
		}
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("listen for the worker: %w", err)
	}
	return &Keeper{conn: conn, held: map[string]int{}}, nil
}

// Notice is what a process told its keeper.
type Notice struct {
	PID    int // of the sender, as the kernel knows it
	Values map[string]string
	fds    []int
}

// Receive returns the next notice. An error means that Close was called.
func (k *Keeper) Receive() (*Notice, error) {
	buf := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4*maxFiles)+unix.CmsgSpace(unix.SizeofUcred))
	n, oobn, _, _, err := k.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	notice := &Notice{Values: map[string]string{}}
	notice.open(oob[:oobn])
	for line := range strings.Lines(string(buf[:n])) {
		if key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
			notice.Values[key] = value
		}
	}
	return notice, nil
}

// open reads the sender and the descriptors out of control messages. What is
// not understood was sent by somebody who does not know the protocol.
func (n *Notice) open(oob []byte) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range msgs {
		if cred, err := unix.ParseUnixCredentials(&msgs[i]); err == nil {
			n.PID = int(cred.Pid)
		}
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			n.fds = append(n.fds, fds...)
		}
	}
}

// Close closes the descriptors that came with the notice.
func (n *Notice) Close() {
	for _, fd := range n.fds {
		unix.Close(fd)
	}
	n.fds = nil
}

// Take does what a notice says about descriptors: it holds the one that came
// with FDSTORE=1, in place of an older one of its name, and closes what is to
// be forgotten and what nobody asked to hold.
func (k *Keeper) Take(n *Notice) {
	defer n.Close()
	name := n.Values["FDNAME"]
	if n.Values["FDSTOREREMOVE"] == "1" {
		k.forget(name)
	}
	if n.Values["FDSTORE"] != "1" || name == "" || len(n.fds) != 1 {
		return
	}
	k.forget(name)
	if len(k.names) == maxFiles {
		return
	}
	k.held[name], n.fds = n.fds[0], nil
	k.names = append(k.names, name)
}

func (k *Keeper) forget(name string) {
	i := slices.Index(k.names, name)
	if i < 0 {
		return
	}
	unix.Close(k.held[name])
	delete(k.held, name)
	k.names = slices.Delete(k.names, i, i+1)
}

// Child returns what a child that runs under k needs: the variables that it
// finds k by, and the descriptors that it must have from number 3 on.
func (k *Keeper) Child() (env []string, fds []uintptr) {
	for _, name := range k.names {
		fds = append(fds, uintptr(k.held[name]))
	}
	env = []string{
		notifyEnv + "=" + k.conn.LocalAddr().String(),
		KeeperEnv + "=" + strconv.Itoa(os.Getpid()),
		pidEnv + "=", // not yet known
		countEnv + "=" + strconv.Itoa(len(fds)),
		namesEnv + "=" + strings.Join(k.names, ":"),
	}
	return env, fds
}

// Close lets go of everything.
func (k *Keeper) Close() error {
	for _, fd := range k.held {
		unix.Close(fd)
	}
	return k.conn.Close()
}

// Mark makes Receive return a notice with BARRIER=1 from this process, after
// all that was sent before.
func (k *Keeper) Mark() error {
	return Notifier{k.conn.LocalAddr().String()}.Notify("BARRIER=1")
}
