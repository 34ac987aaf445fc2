package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/bench/measure"
)

const (
	tcpChunk = 256 << 10 // bytes per read and write
	tcpStall = 5         // s without progress until a connection is given up
)

// stream is what a TCP connection was measured to be.
type stream struct {
	rate float64       // bits per second
	kib  float64       // KiB that arrived
	cpu  time.Duration // of both ends, and of the forwarding that the kernel does in their name
}

// tcp sends over one connection for that long. Both ends block in the kernel, the
// client on one CPU and the server on another: where the scheduler puts them
// changes the rate by more than anything that is measured.
func (t *testbed) tcp(ctx context.Context, length time.Duration) (s stream, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	at := netip.AddrPortFrom(t.serverAddr, tcpPort)
	var listener int
	err = t.server.Do(func() (err error) {
		if listener, err = tcpSocket(); err != nil {
			return err
		}
		return errors.Join(unix.Bind(listener, sockaddr(at)), unix.Listen(listener, 1))
	})
	if err != nil {
		return s, fmt.Errorf("listen for TCP: %w", err)
	}
	defer unix.Close(listener)
	var sender sync.WaitGroup
	var sendErr error
	var sent, received time.Duration
	sender.Go(func() {
		sendErr = t.client.Do(func() error {
			return measure.OnCPU(t.senderCPU, func() error {
				return timed(&sent, func() error { return tcpSend(ctx, at, length) })
			})
		})
	})
	err = measure.OnCPU(t.receiverCPU, func() error {
		return timed(&received, func() (err error) {
			s.rate, s.kib, err = tcpReceive(ctx, listener)
			return err
		})
	})
	if err != nil {
		cancel()
	}
	sender.Wait()
	s.cpu = sent + received
	return s, errors.Join(err, sendErr)
}

// timed calls fn, which must stay on its thread, and tells how long the thread
// ran.
func timed(took *time.Duration, fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &before); err != nil {
		return os.NewSyscallError("getrusage", err)
	}
	err := fn()
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &after); err != nil {
		return os.NewSyscallError("getrusage", err)
	}
	*took = time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	return err
}

// tcpSocket opens a blocking TCP socket that gives up after tcpStall.
func tcpSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: tcpStall}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: tcpStall}),
	)
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func tcpSend(ctx context.Context, to netip.AddrPort, length time.Duration) error {
	fd, err := tcpSocket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		return fmt.Errorf("connect over TCP: %w", err)
	}
	chunk := make([]byte, tcpChunk)
	for end := time.Now().Add(length); time.Now().Before(end) && ctx.Err() == nil; {
		if _, err := unix.Write(fd, chunk); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("send over TCP: %w", err)
		}
	}
	return ctx.Err()
}

// tcpReceive takes one connection and returns the rate at which it brought
// bytes, in bits per second, and how many KiB.
func tcpReceive(ctx context.Context, listener int) (rate, kib float64, err error) {
	fd, _, err := unix.Accept(listener)
	for errors.Is(err, unix.EINTR) {
		fd, _, err = unix.Accept(listener)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("accept over TCP: %w", err)
	}
	defer unix.Close(fd)
	chunk := make([]byte, tcpChunk)
	var total int
	start := time.Now()
	for {
		n, err := unix.Read(fd, chunk)
		switch {
		case ctx.Err() != nil:
			return 0, 0, ctx.Err()
		case errors.Is(err, unix.EINTR): // the runtime's preemption; a call with a timeout is not restarted
		case err != nil:
			return 0, 0, fmt.Errorf("receive over TCP: %w", err)
		case n == 0:
			return 8 * float64(total) / time.Since(start).Seconds(), float64(total) / 1024, nil
		default:
			total += n
		}
	}
}
