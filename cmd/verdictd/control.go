package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/verdictd/verdictd/internal/control"
)

// noControl is the value of --control for no socket.
const noControl = "none"

// listenControl opens the control socket, or goes on with that of the daemon
// before. One that was not asked for may be missing.
func (d *daemon) listenControl() error {
	o := &d.observer
	path := d.line.legacy.Control
	if f := d.line.take(controlName); f != nil {
		if d.Control == path || d.Control == "" && filepath.Dir(path) == filepath.Dir(control.DefaultPath) {
			var err error
			o.control, err = control.Adopt(f, path)
			return err
		}
		f.Close()
	}
	var err error
	switch d.Control {
	case noControl:
	case "":
		if o.control, err = control.ListenDefault(); err != nil {
			d.log.Warn("verdictd status and reload will find nobody", "error", err)
		}
	default:
		if o.control, err = control.Listen(d.Control); err != nil {
			return err
		}
	}
	return nil
}

// ownControl makes the control socket of the daemon before ours, or takes it
// away if we listen elsewhere.
func (d *daemon) ownControl() {
	c, old := d.observer.control, d.line.legacy.Control
	if c != nil {
		c.Own()
	}
	if old != "" && (c == nil || c.Path() != old) {
		_ = os.Remove(old) // nobody listens there any more
	}
}

// Commands of the control socket.
const (
	commandStatus  = "status"
	commandReload  = "reload"
	commandSockets = "sockets"
	commandConfirm = "confirm"
)

func (d *daemon) obey(ctx context.Context, line string) (any, error) {
	command, args, _ := strings.Cut(line, " ")
	switch command {
	case commandStatus:
		return d.status()
	case commandSockets:
		return d.sockets(ctx)
	case commandConfirm:
		return d.confirmTrial()
	case commandReload:
		o, err := parseOrder(args)
		if err != nil {
			return nil, err
		}
		d.audit.Reopen()
		c := d.reread()
		if c.Error != "" {
			return &reloadResult{Config: c}, nil
		}
		r, err := d.observer.reload.run(ctx, o)
		if err == nil {
			r.Config = c
		}
		return r, err
	}
	return nil, fmt.Errorf("unknown command %q: want %s, %s, %s or %s", command, commandStatus, commandSockets, commandReload, commandConfirm)
}
