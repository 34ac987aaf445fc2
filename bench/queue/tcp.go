package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tcpChunk = 256 << 10 // bytes per read and write
	tcpStall = 5         // s without progress until a connection is given up
)

// tcp sends over one connection for that long and returns what arrived, in
// bits per second. Both ends block in the kernel, the client on one CPU and the
// server on another: where the scheduler puts them changes the rate by more than
// anything that is measured.
func (t *testbed) tcp(ctx context.Context, length time.Duration) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	at := netip.AddrPortFrom(t.serverAddr, tcpPort)
	var listener int
	err := t.server.Do(func() (err error) {
		if listener, err = tcpSocket(); err != nil {
			return err
		}
		return errors.Join(unix.Bind(listener, sockaddr(at)), unix.Listen(listener, 1))
	})
	if err != nil {
		return 0, fmt.Errorf("listen for TCP: %w", err)
	}
	defer unix.Close(listener)
	var sender sync.WaitGroup
	var sendErr error
	sender.Go(func() {
		sendErr = t.client.Do(func() error {
			return onCPU(t.senderCPU, func() error { return tcpSend(ctx, at, length) })
		})
	})
	var rate float64
	err = onCPU(t.receiverCPU, func() (err error) {
		rate, err = tcpReceive(ctx, listener)
		return err
	})
	if err != nil {
		cancel()
	}
	sender.Wait()
	return rate, errors.Join(err, sendErr)
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
// bytes, in bits per second.
func tcpReceive(ctx context.Context, listener int) (float64, error) {
	fd, _, err := unix.Accept(listener)
	for errors.Is(err, unix.EINTR) {
		fd, _, err = unix.Accept(listener)
	}
	if err != nil {
		return 0, fmt.Errorf("accept over TCP: %w", err)
	}
	defer unix.Close(fd)
	chunk := make([]byte, tcpChunk)
	var total int
	start := time.Now()
	for {
		n, err := unix.Read(fd, chunk)
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case errors.Is(err, unix.EINTR): // the runtime's preemption; a call with a timeout is not restarted
		case err != nil:
			return 0, fmt.Errorf("receive over TCP: %w", err)
		case n == 0:
			return 8 * float64(total) / time.Since(start).Seconds(), nil
		default:
			total += n
		}
	}
}
