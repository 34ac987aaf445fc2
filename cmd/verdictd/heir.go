package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"github.com/verdictd/verdictd/internal/handover"
)

const (
	// prepareLimit bounds how long a new process may take to load its policy.
	// The old one goes on meanwhile.
	prepareLimit = time.Minute
	// handOverLimit bounds how long packets wait for the new process.
	handOverLimit = 3 * time.Second
)

// heir is the process that is to take the daemon's place.
type heir struct {
	cmd     *exec.Cmd
	conn    *handover.Conn
	request upgradeRequest
}

// awaitHeir waits for a request to upgrade and returns the new process when it
// is ready to take over; nil when ctx is done. A process that does not get
// ready is ended, and nothing changes.
func (d *daemon) awaitHeir(ctx context.Context) *heir {
	for {
		var r upgradeRequest
		select {
		case <-ctx.Done():
			return nil
		case <-d.line.hear:
		case r = <-d.line.requests:
		}
		h, err := d.prepare(ctx, r)
		if err == nil {
			return h
		}
		d.refuse(r, err)
	}
}

// refuse says that an upgrade failed.
func (d *daemon) refuse(r upgradeRequest, err error) {
	d.log.Error("not upgraded, this process goes on", "error", err)
	d.audit.Admin("upgrade_failed", err.Error())
	r.answer(upgradeReply{Error: err.Error()})
}

// prepare starts a new process and waits until it has loaded its policy.
func (d *daemon) prepare(ctx context.Context, r upgradeRequest) (*heir, error) {
	program := r.Program
	if program == "" {
		program = d.line.program
	}
	conn, child, err := handover.Pair()
	if err != nil {
		return nil, fmt.Errorf("upgrade: %w", err)
	}
	cmd := exec.Command(program, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{child}
	env, files, err := d.line.supervisor.Bequeath(4)
	cmd.Env = slices.Concat(os.Environ(), env, []string{handoverEnv + "=3"}) // the first of ExtraFiles
	cmd.ExtraFiles = append(cmd.ExtraFiles, files...)
	if err == nil {
		err = cmd.Start()
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("upgrade: %w", err), conn.Close())
	}
	d.log.Info("upgrading", "program", program, "pid", cmd.Process.Pid)
	h := &heir{cmd: cmd, conn: conn, request: r}
	if err := conn.SetDeadline(time.Now().Add(prepareLimit)); err != nil {
		return nil, h.fail(err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := d.introduce(h); err != nil {
		return nil, h.fail(err)
	}
	return h, nil
}

// introduce gives the new process what it can use beside us, and waits until it
// has loaded its policy.
func (d *daemon) introduce(h *heir) error {
	if err := h.conn.Greet(); err != nil {
		return err
	}
	records, err := d.records()
	if err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(records))
	var files []*os.File
	for _, name := range names {
		files = append(files, records[name])
		defer records[name].Close()
	}
	if err := h.conn.SendJSON(kindRecords, names, files...); err != nil {
		return err
	}
	return h.expect(kindReady)
}

// expect waits for a message of that kind.
func (h *heir) expect(k handover.Kind) error {
	m, err := h.conn.Receive()
	if err != nil {
		return err
	}
	m.Close()
	if m.Kind != k {
		return fmt.Errorf("message %d, want %d", m.Kind, k)
	}
	return nil
}

// fail ends the new process and says why. When it returns, nobody else reads
// the queues.
func (h *heir) fail(err error) error {
	_ = h.cmd.Process.Kill() // it may have ended by itself
	_ = h.cmd.Wait()
	h.conn.Close()
	if errors.Is(err, io.EOF) {
		err = errors.New("ended before it was ready (its own messages say why)")
	}
	return fmt.Errorf("upgrade: new process %d (%s): %w", h.cmd.Process.Pid, h.cmd.ProcessState, err)
}

// handOver gives the daemon's place to its heir. No queue is read meanwhile.
// After an error the heir is gone and the daemon can go on.
func (d *daemon) handOver(ctx context.Context) error {
	h := d.heir
	d.closeMetrics() // the heir listens at the same address
	if err := d.giveAll(ctx, h); err != nil {
		return errors.Join(h.fail(err), d.listenMetrics())
	}
	if c := d.observer.control; c != nil {
		c.Leave()
		d.observer.control = nil
	}
	pid := h.cmd.Process.Pid
	d.log.Info("handed over", "pid", pid)
	d.audit.Admin("handed_over", fmt.Sprintf("to process %d", pid))
	h.request.answer(upgradeReply{PID: pid})
	d.ruleset = nil // the heir's
	d.line.stored = nil
	return nil
}

func (d *daemon) giveAll(ctx context.Context, h *heir) error {
	if err := h.conn.SetDeadline(time.Now().Add(handOverLimit)); err != nil {
		return err
	}
	if err := d.giveLegacy(h); err != nil {
		return err
	}
	for i, w := range d.workers {
		message := binary.BigEndian.AppendUint16(nil, d.Queues[i])
		err := w.EachFlows(func(block []byte) error {
			message = append(message[:2], block...)
			return h.conn.Send(kindFlows, message)
		})
		if err != nil {
			return err
		}
	}
	if err := h.conn.Send(kindEnd, nil); err != nil {
		return err
	}
	if err := h.expect(kindServing); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("told to stop: %w", err)
	}
	// The supervisor must know the new process before it speaks or we end.
	d.supervise(d.line.supervisor.Notify(fmt.Sprintf("MAINPID=%d", h.cmd.Process.Pid)))
	err := h.conn.Send(kindGo, nil)
	if err != nil {
		d.supervise(d.line.supervisor.Notify(fmt.Sprintf("MAINPID=%d", os.Getpid())))
	}
	return err
}

// giveLegacy sends everything but the flows.
func (d *daemon) giveLegacy(h *heir) error {
	l := legacy{Stopped: time.Now(), Engine: d.engine.Past(), Marks: d.marks.legacy(), Hook: d.Hook, Run: d.auditRun, Books: d.observer.book.Past(), Told: d.memory.told, Hangs: d.watchdog.known()}
	for i, q := range d.queues {
		l.Queues = append(l.Queues, queueLegacy{Num: q.Num(), Position: q.Position(), Worker: d.workers[i].Past()})
	}
	if d.nflog != nil {
		l.NFLog = d.nflog.Position()
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	sockets := d.openSockets()
	if c := d.observer.control; c != nil {
		l.Control, sockets[controlName] = c.Path(), c.File
	}
	for name, open := range sockets {
		f, err := open()
		if err != nil {
			return err
		}
		l.Files, files = append(l.Files, name), append(files, f)
	}
	return h.conn.SendJSON(kindLegacy, l, files...)
}

// resume makes the daemon go on after a failed hand-over: the heir may have
// read packets.
func (d *daemon) resume(err error) error {
	d.refuse(d.heir.request, err)
	d.heir = nil
	for _, q := range d.queues {
		if err := q.Recover(); err != nil {
			return err
		}
	}
	return nil
}

// release tells the heir that the audit log is closed, and lets it go. What could
// not be written (unwritten) goes with it, to be written or told by the heir. Told
// to stop after it had let go, the daemon passes that on.
func (d *daemon) release(ctx context.Context, unwritten error) error {
	h := d.heir
	if ctx.Err() != nil {
		_ = h.cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended
	}
	if err := h.conn.SetDeadline(time.Now().Add(handOverLimit)); err != nil {
		return err
	}
	c := closed{Log: d.audit.Past()}
	for _, o := range c.Log.Outputs {
		c.Sequences = append(c.Sequences, o.Seq)
	}
	err := h.conn.SendJSON(kindClosed, c)
	if err != nil {
		err = errors.Join(err, unwritten)
	}
	return errors.Join(err, h.conn.Close(), h.cmd.Process.Release())
}
