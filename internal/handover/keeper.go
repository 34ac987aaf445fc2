package handover

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Keeper is the service manager's side: it receives what children notify and
// holds the descriptors that they store. Its socket is one end of a pair; the
// other end only those have whom it was given to, so a stranger can neither
// send to it nor fill it. It is for one goroutine but for Wait and Close.
type Keeper struct {
	own   *os.File       // our end
	child *os.File       // that of every child
	held  map[string]int // not os.File: the poller would be woken by each packet
	names []string       // of held, in order of arrival
}

// NewKeeper returns a Keeper that nobody knows yet.
func NewKeeper() (*Keeper, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("listen for the worker: %w", os.NewSyscallError("socketpair", err))
	}
	child := os.NewFile(uintptr(fds[1]), "keeper of a child") // blocks, for at most notifyLimit
	err = errors.Join(unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1), limitSends(fds[1]))
	own := newFile(fds[0], "keeper")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for the worker: %w", err), own.Close(), child.Close())
	}
	return &Keeper{own: own, child: child, held: map[string]int{}}, nil
}

// Notice is what a process told its keeper.
type Notice struct {
	PID    int // of the sender, as the kernel knows it
	Values map[string]string
	fds    []int
}

// Wait waits until there may be something to receive. An error means that Close
// was called.
func (k *Keeper) Wait() error {
	raw, err := k.own.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

// Receive returns the next notice, nil if there is none now. It never waits.
func (k *Keeper) Receive() *Notice {
	raw, err := k.own.SyscallConn()
	if err != nil {
		return nil
	}
	buf := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4*maxFiles)+unix.CmsgSpace(unix.SizeofUcred))
	var n, oobn int
	ctlErr := raw.Control(func(fd uintptr) {
		for err = unix.EINTR; err == unix.EINTR; {
			n, oobn, _, _, err = unix.Recvmsg(int(fd), buf, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		}
	})
	if ctlErr != nil || err != nil {
		return nil
	}
	notice := &Notice{Values: map[string]string{}}
	notice.open(oob[:oobn])
	for line := range strings.Lines(string(buf[:n])) {
		if key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
			notice.Values[key] = value
		}
	}
	return notice
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
		notifyEnv + "=", // that of who is above k
		KeeperEnv + "=" + strconv.Itoa(os.Getpid()),
		keeperFDEnv + "=" + strconv.Itoa(firstFD+len(fds)),
		pidEnv + "=", // not yet known
		countEnv + "=" + strconv.Itoa(len(fds)),
		namesEnv + "=" + strings.Join(k.names, ":"),
	}
	return env, append(fds, k.child.Fd())
}

// Close lets go of everything.
func (k *Keeper) Close() error {
	for _, fd := range k.held {
		unix.Close(fd)
	}
	return errors.Join(k.own.Close(), k.child.Close())
}
