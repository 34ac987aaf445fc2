package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Handler carries out a command and returns what to answer, which must be fit
// for JSON. ctx ends with Serve. It is called by several goroutines at once.
type Handler func(ctx context.Context, command string) (any, error)

// Server is a control socket. Serve is for one goroutine at a time; it may be
// called again after it has returned.
type Server struct {
	listener *net.UnixListener
	path     string
}

// Path returns where clients find the server.
func (s *Server) Path() string { return s.path }

// Close removes the socket, unless it is somebody else's: see Adopt and Leave. A
// running Serve returns an error that is net.ErrClosed.
func (s *Server) Close() error { return s.listener.Close() }

// File returns a second descriptor of the socket, for Adopt in a process that
// takes over. Clients that connect meanwhile wait for whoever serves next.
func (s *Server) File() (*os.File, error) { return s.listener.File() }

// Leave closes the socket and leaves it to another process.
func (s *Server) Leave() error {
	s.listener.SetUnlinkOnClose(false)
	return s.listener.Close()
}

// Adopt returns the Server of a socket that another process has given away, by
// File. Until Own is called the socket at path is that process's, and Close does
// not remove it. f is closed, also after an error.
func Adopt(f *os.File, path string) (*Server, error) {
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over control socket %s: %w", path, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("take over control socket %s: it is a socket of %s", path, l.Addr().Network()), l.Close())
	}
	u.SetUnlinkOnClose(false)
	return &Server{listener: u, path: path}, nil
}

// Own makes the socket this process's: Close removes it.
func (s *Server) Own() { s.listener.SetUnlinkOnClose(true) }

// Serve answers clients until ctx is done, then ends their connections, waits
// for the handlers and returns nil. Clients that are slow, send nonsense or are
// too many never end it.
func (s *Server) Serve(ctx context.Context, h Handler) error {
	if err := s.listener.SetDeadline(time.Time{}); err != nil { // that of the end of the last Serve
		return fmt.Errorf("serve control socket %s: %w", s.path, err)
	}
	var clients sync.WaitGroup
	defer clients.Wait()
	stop := context.AfterFunc(ctx, func() { _ = s.listener.SetDeadline(time.Unix(0, 0)) }) // fails only if closed
	defer stop()
	free := make(chan struct{}, maxClients)
	for {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := s.listener.AcceptUnix()
		switch {
		case err == nil:
			clients.Go(func() {
				defer func() { <-free }()
				defer conn.Close()
				serve(ctx, conn, h)
			})
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("serve control socket %s: %w", s.path, err)
		}
		// Out of descriptors or memory: that passes.
		<-free
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(acceptPause):
		}
	}
}

// serve answers one client. Errors of its connection are its own.
func serve(ctx context.Context, conn *net.UnixConn, h Handler) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(0, 0)) })
	defer stop()
	a := answer{Version: Version}
	result, err := obey(ctx, conn, h)
	if err == nil {
		a.Result, err = json.Marshal(result)
	}
	if err != nil {
		a.Error = err.Error()
	}
	line, err := json.Marshal(a)
	if err != nil || conn.SetWriteDeadline(time.Now().Add(patience)) != nil || ctx.Err() != nil {
		return
	}
	_, _ = conn.Write(append(line, '\n'))
}

// obey reads the request and carries it out.
func obey(ctx context.Context, conn *net.UnixConn, h Handler) (any, error) {
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil { // the deadline of its end may have been replaced
		return nil, err
	}
	line, err := bufio.NewReader(io.LimitReader(conn, maxRequest)).ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("read request: want one line of at most %d bytes: %w", maxRequest, err)
	}
	if err := allowed(conn); err != nil {
		return nil, err // after reading: what is unread when we close would eat the answer
	}
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	if r.Version != Version {
		return nil, fmt.Errorf("request has version %d of the control protocol, want %d", r.Version, Version)
	}
	return h(ctx, r.Command)
}

// allowed returns an error unless the client is root or runs as we do.
func allowed(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var inner error
	err = raw.Control(func(fd uintptr) { cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, inner); err != nil {
		return fmt.Errorf("identify client: %w", err)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d may not control verdictd (needs root)", cred.Uid)
	}
	return nil
}
