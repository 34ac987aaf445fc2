package procfs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/verdictd/verdictd/process"
)

// Users holds the names of users as a file like /etc/passwd has them. There is no
// NSS and no cgo: users of LDAP, systemd-userdb or sssd have no name here. Name
// may be called from any goroutine, also while Run follows changes.
type Users struct {
	path  string
	names atomic.Pointer[map[uint32]string]
	seen  version // of the file that names were read from; Run's
}

// version tells one content of a file from another.
type version struct {
	inode, device uint64
	size          int64
	changed       time.Time
}

// OpenUsers reads the file, "/etc/passwd". It keeps nothing open.
func OpenUsers(path string) (*Users, error) {
	u := &Users{path: path}
	if _, err := u.reload(); err != nil {
		return nil, err
	}
	return u, nil
}

// Name returns the name of a user, or "" if there is none. It takes no lock and
// allocates nothing.
func (u *Users) Name(uid uint32) string { return (*u.names.Load())[uid] }

// Run reads the file anew within 5 s of a change, until ctx is done, and calls
// changed, if it is not nil, after each. While the file is missing or cannot be
// read the names stay.
func (u *Users) Run(ctx context.Context, changed func()) error {
	const every = 5 * time.Second
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if again, err := u.reload(); err == nil && again && changed != nil {
			changed()
		}
	}
}

// reload reads the file if it is another than the one that was read last.
func (u *Users) reload() (changed bool, err error) {
	f, err := os.Open(u.path)
	if err != nil {
		return false, fmt.Errorf("read users: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("read users: %w", err)
	}
	now := version{size: info.Size(), changed: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		now.inode, now.device = st.Ino, uint64(st.Dev) //nolint:unconvert // Dev is of 32 bits on some architectures
	}
	if now == u.seen {
		return false, nil
	}
	const most = 64 << 20
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return false, fmt.Errorf("read users: %w", err)
	}
	names := parseUsers(b)
	u.names.Store(&names)
	u.seen = now
	return true, nil
}

// parseUsers reads lines as passwd(5) describes them. Of several names of a user
// the first counts, as for getpwuid(3). Lines that are none are passed over, and
// so are the "+" and "-" lines of NIS.
func parseUsers(b []byte) map[uint32]string {
	names := map[uint32]string{}
	for line := range bytes.Lines(b) {
		const uidField, minFields = 2, 4
		f := bytes.SplitN(bytes.TrimSpace(line), []byte(":"), minFields)
		if len(f) < minFields || len(f[0]) == 0 || bytes.IndexByte([]byte("+-#"), f[0][0]) >= 0 {
			continue
		}
		uid, err := strconv.ParseUint(string(f[uidField]), 10, 32)
		if err != nil {
			continue
		}
		if _, ok := names[uint32(uid)]; !ok {
			names[uint32(uid)] = process.Text(f[0])
		}
	}
	return names
}
