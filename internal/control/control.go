// Package control lets other processes of the host ask a running daemon.
//
// It owns a Unix socket and the protocol on it: the client sends one line of
// JSON, {"version":1,"command":"status"}, gets one line back,
// {"version":1,"result":{...}} or {"version":1,"error":"..."}, and the
// connection ends. Only root and the user that the daemon runs as are answered.
//
// It must not know what the commands mean.
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
