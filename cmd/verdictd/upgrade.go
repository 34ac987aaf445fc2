package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// upgradeDir holds a socket for each daemon that can be upgraded, named by its
// process id. Who may connect may have the daemon run a program, so only its
// user may.
const upgradeDir = "/run/verdictd/upgrade"

// upgradeRequest asks a daemon to let another process take its place. The zero
// value is a request that nobody waits for, such as by a signal.
type upgradeRequest struct {
	Program string `json:"program"` // path; empty: the one that runs

	conn net.Conn
}

type upgradeReply struct {
	PID   int    `json:"pid"`   // of the new process
	Error string `json:"error"` // why the old one goes on
}

// answer tells who asked what became of it, if they still listen.
func (r upgradeRequest) answer(reply upgradeReply) {
	if r.conn == nil {
		return
	}
	defer r.conn.Close()
	_ = r.conn.SetDeadline(time.Now().Add(time.Second))
	_ = json.NewEncoder(r.conn).Encode(reply)
}

func newUpgradeCommand(e env) *cobra.Command {
	var pid int
	cmd := &cobra.Command{
		Use:   "upgrade [PROGRAM]",
		Short: "Let a new process take the place of a running daemon, losing no packet",
		Long: `upgrade makes a running verdictd start PROGRAM, by default the file that it was
itself started from, with the arguments it was started with. When the new
process has loaded configuration and policy, it takes over the queues, the NFLOG
groups, the flows with what was decided about them, and the numbers of flows,
generations and audit records. Packets wait in the kernel meanwhile; connections
go on. If the policy is the same, its generation and decisions stay; if not, it
counts as the next generation, as after a reload.

If the new process does not get ready within a minute, or ends, the old one goes
on as if nothing had happened.

SIGUSR2 to the daemon does the same without PROGRAM. Where it runs under systemd
or verdictd run --keeper, these follow the new process.`,
		Example: "  sudo verdictd upgrade\n" +
			"  sudo verdictd upgrade ./verdictd-new --pid 4711",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var r upgradeRequest
			if len(args) == 1 {
				var err error
				if r.Program, err = filepath.Abs(args[0]); err != nil {
					return err
				}
			}
			conn, old, err := dialDaemon(upgradeDir, pid)
			if err != nil {
				return err
			}
			defer conn.Close()
			reply, err := r.ask(conn)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(e.stdout, "process %d has taken the place of %d\n", reply.PID, old)
			return err
		},
	}
	cmd.Flags().IntVar(&pid, "pid", 0, "process id of the daemon, if several run")
	return cmd
}

// ask sends the request and waits for its end.
func (r upgradeRequest) ask(conn net.Conn) (upgradeReply, error) {
	var reply upgradeReply
	if err := conn.SetDeadline(time.Now().Add(prepareLimit + 2*handOverLimit)); err != nil {
		return reply, err
	}
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return reply, fmt.Errorf("ask the daemon: %w", err)
	}
	if err := json.NewDecoder(conn).Decode(&reply); err != nil {
		return reply, fmt.Errorf("the daemon does not answer: %w (see its own messages)", err)
	}
	if reply.Error != "" {
		return reply, errors.New(reply.Error)
	}
	return reply, nil
}

// dialDaemon connects to the daemon with that process id, or to the only one
// there is if pid is 0.
func dialDaemon(dir string, pid int) (conn net.Conn, found int, err error) {
	pattern := "*"
	if pid != 0 {
		pattern = strconv.Itoa(pid)
	}
	paths, err := filepath.Glob(filepath.Join(dir, pattern+".sock"))
	if err != nil {
		return nil, 0, err
	}
	var pids []string
	for _, path := range paths {
		c, err := net.Dial("unix", path)
		if errors.Is(err, syscall.ECONNREFUSED) {
			continue // its daemon died
		}
		if err != nil {
			return nil, 0, errors.Join(fmt.Errorf("connect to the daemon: %w", err), closeIf(conn))
		}
		pids = append(pids, strings.TrimSuffix(filepath.Base(path), ".sock"))
		if len(pids) == 1 {
			conn = c
			continue
		}
		c.Close()
	}
	if len(pids) == 1 {
		found, err = strconv.Atoi(pids[0])
		return conn, found, err
	}
	if len(pids) > 1 {
		conn.Close()
		return nil, 0, badInput(fmt.Errorf("several daemons run, with the process ids %s (say which with --pid)", strings.Join(pids, ", ")))
	}
	return nil, 0, fmt.Errorf("no daemon to upgrade: no %s.sock in %s answers (is verdictd run running, and by the same user?)", pattern, dir)
}

func closeIf(c net.Conn) error {
	if c == nil {
		return nil
	}
	return c.Close()
}

// openUpgrades opens the socket that verdictd upgrade connects to.
func (d *daemon) openUpgrades() {
	if d.line.hear == nil {
		return
	}
	var err error
	if d.upgrades, err = listenForUpgrades(upgradeDir); err != nil {
		d.log.Warn("verdictd upgrade does not find this process, send it SIGUSR2 instead", "error", err)
	}
}

func (d *daemon) closeUpgrades() {
	if d.upgrades == nil {
		return
	}
	d.upgrades.Close()
	_ = os.Remove(upgradeDir) // unless another daemon's socket is in it
}

// listenForUpgrades opens the daemon's socket. Without it SIGUSR2 still works.
func listenForUpgrades(dir string) (*net.UnixListener, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	removeDead(dir)
	path := filepath.Join(dir, strconv.Itoa(os.Getpid())+".sock")
	// A dead process that had our id may have left it.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// removeDead removes what daemons that were killed have left.
func removeDead(dir string) {
	paths, _ := filepath.Glob(filepath.Join(dir, "*.sock")) // fails for bad patterns only
	for _, path := range paths {
		c, err := net.Dial("unix", path)
		if errors.Is(err, syscall.ECONNREFUSED) {
			os.Remove(path)
		}
		if err == nil {
			c.Close()
		}
	}
}

// serveUpgrades takes requests from the daemon's socket, one after the other,
// until ctx is done.
func (d *daemon) serveUpgrades(ctx context.Context) error {
	l := d.upgrades
	if l == nil {
		return nil
	}
	if err := l.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("listen for upgrades: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { l.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return errors.Join(closeIf(conn))
		}
		if err != nil {
			return fmt.Errorf("listen for upgrades: %w", err)
		}
		d.readRequest(ctx, conn)
	}
}

// readRequest reads a request and passes it on.
func (d *daemon) readRequest(ctx context.Context, conn net.Conn) {
	r := upgradeRequest{}
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if err := json.NewDecoder(conn).Decode(&r); err != nil {
		conn.Close() // a look whether somebody is there
		return
	}
	r.conn = conn
	select {
	case d.line.requests <- r:
	case <-ctx.Done():
		r.answer(upgradeReply{Error: "the daemon is being stopped or upgraded"})
	}
}
