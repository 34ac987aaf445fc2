package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Call sends a command to the daemon at path and decodes its answer into
// result, a pointer. ctx bounds how long it waits. A daemon that ends the
// connection without an answer, as one does whose place another process takes,
// is asked again, for at most 5 s: commands may be carried out twice.
//
// Errors: ErrNobody; a missing right; the daemon's own error, with its text.
func Call(ctx context.Context, path, command string, result any) error {
	line, err := call(ctx, path, command)
	tries := 0
	for ; err != nil && lost(err) && tries < maxTries && ctx.Err() == nil; tries++ {
		time.Sleep(tryPause)
		line, err = call(ctx, path, command)
	}
	switch {
	case tries > 0 && errors.Is(err, ErrNobody):
		return fmt.Errorf("ask verdictd at %s: no answer, it has ended: %w", path, ErrNobody)
	case err != nil:
		return err
	}
	return decode(path, command, line, result)
}

// lost returns whether the daemon took the connection and ended it unanswered.
func lost(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// call asks once and returns the line of the answer.
func call(ctx context.Context, path, command string) ([]byte, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("%w at %s (start one with verdictd run, or give --control)", ErrNobody, path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("ask verdictd at %s: %w (needs root)", path, err)
	case err != nil:
		return nil, fmt.Errorf("ask verdictd at %s: %w", path, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(0, 0)) })
	defer stop()
	line, err := exchange(conn, command)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("ask verdictd at %s: no answer: %w (is it stopped or overloaded?)", path, ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("ask verdictd at %s: no answer: %w", path, err)
	}
	return line, nil
}

// decode reads the answer to a command.
func decode(path, command string, line []byte, result any) error {
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return fmt.Errorf("ask verdictd at %s: answer to %q: %w", path, command, err)
	}
	switch {
	case a.Error != "":
		return fmt.Errorf("verdictd at %s: %s", path, a.Error)
	case a.Version != Version:
		return fmt.Errorf("verdictd at %s speaks version %d of the control protocol, not %d (use the same verdictd)", path, a.Version, Version)
	}
	if err := json.Unmarshal(a.Result, result); err != nil {
		return fmt.Errorf("ask verdictd at %s: answer to %q: %w", path, command, err)
	}
	return nil
}

func exchange(conn net.Conn, command string) ([]byte, error) {
	line, err := json.Marshal(request{Version: Version, Command: command})
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return nil, err
	}
	return bufio.NewReader(io.LimitReader(conn, maxAnswer)).ReadBytes('\n')
}
