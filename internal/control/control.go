package control

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"time"
)

// Version is the version of the protocol. Client and daemon must agree on it.
const Version = 1

// DefaultPath is where the first daemon of a host listens. Others listen beside
// it (see ListenDefault).
const DefaultPath = "/run/verdictd/verdictd.sock"

var (
	// ErrInUse says that another daemon answers at the path.
	ErrInUse = errors.New("another verdictd answers there")
	// ErrNobody says that no daemon answers at the path.
	ErrNobody = errors.New("no verdictd answers")
)

const (
	maxClients  = 8               // served at once; others wait in the kernel's backlog
	maxRequest  = 4 << 10         // bytes of a request
	maxAnswer   = 16 << 20        // bytes of an answer
	patience    = 5 * time.Second // for a client to ask, and to take its answer
	acceptPause = 100 * time.Millisecond

	maxTries = 250 // of a client whose daemon gives its place to another process
	tryPause = 20 * time.Millisecond
)

type request struct {
	Version int    `json:"version"`
	Command string `json:"command"`
}

type answer struct {
	Version int             `json:"version"`
	Error   string          `json:"error,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
}

// pattern matches the sockets beside DefaultPath.
func pattern() string { return filepath.Join(filepath.Dir(DefaultPath), "*.sock") }
