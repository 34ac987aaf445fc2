package handover

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Version is the version of the messages. Both sides send theirs first and
	// refuse another one.
	Version = 2

	maxPayload = 64 << 20 // bytes of one message
	maxFiles   = 253      // descriptors in one message, SCM_MAX_FD
	headerSize = 8
)

// Kind says what a message is. The numbers belong to the users of Conn; 0 is
// the package's.
type Kind uint16

const kindVersion Kind = 0

// Message is a received message. The files are the receiver's to close.
type Message struct {
	Kind    Kind
	Payload []byte
	Files   []*os.File
}

// Decode reads the payload as JSON into v.
func (m *Message) Decode(v any) error {
	if err := json.Unmarshal(m.Payload, v); err != nil {
		return fmt.Errorf("message %d: %w", m.Kind, err)
	}
	return nil
}

// Close closes the files.
func (m *Message) Close() {
	for _, f := range m.Files {
		f.Close()
	}
}

// Conn connects a process with its successor. Send is for one goroutine,
// Receive for one, Close and SetDeadline for any.
//
// A message is a header, the length of the payload and the kind as big-endian
// 32 and 16-bit numbers and the number of files as another 16 bits, and then
// the payload. The files travel with the header (SCM_RIGHTS).
type Conn struct{ unix *net.UnixConn }

// Pair returns a Conn and the file that a child process is to inherit and make
// its own Conn of, with Join.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	child := os.NewFile(uintptr(fds[1]), "handover")
	c, err := Join(os.NewFile(uintptr(fds[0]), "handover"))
	if err != nil {
		return nil, nil, errors.Join(err, child.Close())
	}
	return c, child, nil
}

// Join returns the Conn on a file that Pair made. It owns f, also after an
// error.
func Join(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("handover socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("handover socket: is a %s socket", c.LocalAddr().Network()), c.Close())
	}
	return &Conn{u}, nil
}

// Close closes the connection: the other side's Receive ends with io.EOF.
func (c *Conn) Close() error { return c.unix.Close() }

// SetDeadline sets when Send and Receive give up with os.ErrDeadlineExceeded;
// the zero time means never.
func (c *Conn) SetDeadline(t time.Time) error { return c.unix.SetDeadline(t) }

// Greet sends the version and checks that of the other side.
func (c *Conn) Greet() error {
	if err := c.Send(kindVersion, []byte{Version}); err != nil {
		return err
	}
	m, err := c.Receive()
	if err != nil {
		return err
	}
	defer m.Close()
	if m.Kind != kindVersion || len(m.Payload) != 1 || m.Payload[0] != Version {
		return fmt.Errorf("handover: the other program speaks version %v, this one %d (stop the old one and start the new one)", m.Payload, Version)
	}
	return nil
}

// SendJSON sends v as JSON.
func (c *Conn) SendJSON(k Kind, v any, files ...*os.File) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("message %d: %w", k, err)
	}
	return c.Send(k, b, files...)
}

// Send sends a message. The files stay the caller's.
func (c *Conn) Send(k Kind, payload []byte, files ...*os.File) error {
	if len(payload) > maxPayload || len(files) > maxFiles {
		return fmt.Errorf("send message %d: %d bytes and %d descriptors are more than %d and %d", k, len(payload), len(files), maxPayload, maxFiles)
	}
	head := binary.BigEndian.AppendUint32(make([]byte, 0, headerSize), uint32(len(payload)))
	head = binary.BigEndian.AppendUint16(head, uint16(k))
	head = binary.BigEndian.AppendUint16(head, uint16(len(files)))
	oob, err := rights(files)
	if err == nil {
		_, _, err = c.unix.WriteMsgUnix(head, oob, nil) // 8 bytes: whole or not at all
	}
	runtime.KeepAlive(files)
	if err == nil && len(payload) > 0 {
		_, err = c.unix.Write(payload)
	}
	if err != nil {
		return fmt.Errorf("send message %d: %w", k, err)
	}
	return nil
}

// rights returns the control message that carries the files.
func rights(files []*os.File) ([]byte, error) {
	if len(files) == 0 {
		return nil, nil
	}
	var fds []int
	for _, f := range files {
		raw, err := f.SyscallConn() // Fd would make the socket block, here and there
		if err != nil {
			return nil, err
		}
		if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return nil, err
		}
	}
	return unix.UnixRights(fds...), nil
}

// Receive returns the next message. The error is io.EOF if the other side is
// gone.
func (c *Conn) Receive() (*Message, error) {
	var head [headerSize]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := c.unix.ReadMsgUnix(head[:], oob)
	if errors.Is(err, syscall.ECONNRESET) { // closed with something unread
		err = io.EOF
	}
	if err != nil {
		return nil, fmt.Errorf("receive message: %w", err)
	}
	m := &Message{}
	if m.Files, err = filesOf(oob[:oobn], "handed over"); err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errors.New("descriptors were cut off (raise the limit of open files)")
	}
	if err == nil {
		err = c.readAll(head[n:])
	}
	size := binary.BigEndian.Uint32(head[:])
	m.Kind = Kind(binary.BigEndian.Uint16(head[4:]))
	if count := int(binary.BigEndian.Uint16(head[6:])); err == nil && (size > maxPayload || count != len(m.Files)) {
		err = fmt.Errorf("%d bytes and %d descriptors, of which %d came", size, count, len(m.Files))
	}
	if err == nil {
		m.Payload = make([]byte, size)
		err = c.readAll(m.Payload)
	}
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("receive message %d: %w", m.Kind, err)
	}
	return m, nil
}

// readAll reads the rest of a message: an end within it is no proper end.
func (c *Conn) readAll(b []byte) error {
	_, err := io.ReadFull(c.unix, b)
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// filesOf returns the descriptors in control messages as files of that name.
// Sockets among them do not block.
func filesOf(oob []byte, name string) ([]*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range msgs {
		if msgs[i].Header.Level != unix.SOL_SOCKET || msgs[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, newFile(fd, name))
		}
	}
	return files, nil
}

// newFile makes a file of a descriptor. It is made non-blocking, so that the
// poller takes it: whoever had it before may have changed that.
func newFile(fd int, name string) *os.File {
	_ = syscall.SetNonblock(fd, true) // else reads block, which costs a thread and nothing more
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}
