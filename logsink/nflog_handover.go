package logsink

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/nfnl"
)

// NFLogPosition is what a reader leaves to the next one, by group: the
// sequence number that comes next.
type NFLogPosition map[uint16]uint32

// Position returns where Run stopped.
func (n *NFLogReader) Position() NFLogPosition {
	p := NFLogPosition{}
	for _, g := range n.groups {
		p[g.number] = g.next
	}
	return p
}

// File returns a descriptor of the reader's socket for another process, which
// goes on with AttachNFLog. The groups stay bound until the last descriptor is
// closed. Only one process may read at a time.
func (n *NFLogReader) File() (*os.File, error) {
	raw, err := n.conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("hand over nflog groups: %w", err)
	}
	return nfnl.Dup(raw, "nflog")
}

// AttachNFLog is OpenNFLog with the socket of another process, which may have
// bound some of the groups. It owns f, also after an error. What the other
// process read and did not log is lost; at says where it stopped, so that this
// is counted, and may be nil.
func AttachNFLog(cfg NFLogConfig, log *Log, f *os.File, at NFLogPosition) (*NFLogReader, error) {
	if err := cfg.check(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	n := newNFLog(cfg, log)
	var err error
	if n.conn, err = cfg.connect(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	for i := range n.groups {
		g := &n.groups[i]
		err := n.configure(g.number, true)
		if errors.Is(err, unix.EBUSY) { // bound by this socket; EPERM would be another's
			var known bool
			g.next, known = at[g.number]
			g.unsure = !known
			err = n.configure(g.number, false)
		}
		if err != nil {
			return nil, errors.Join(n.bindError(g.number, err), n.conn.Close())
		}
	}
	return n, nil
}
