package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/bench/measure"
)

const (
	sendBatch   = 32     // datagrams per system call
	payloadSize = 18     // bytes: the smallest Ethernet frame
	rttTimeout  = 500000 // µs until a round trip counts as lost
)

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	_   uint32
}

// openSink opens the socket that the flood goes to. A filter discards every
// datagram before it is stored; the socket counts them as drops.
func (t *testbed) openSink() error {
	return t.server.Do(func() (err error) {
		if t.sink, err = udpSocket(netip.AddrPortFrom(t.serverAddr, sinkPort)); err != nil {
			return fmt.Errorf("open sink: %w", err)
		}
		discard := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
		return unix.SetsockoptSockFprog(t.sink, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &discard})
	})
}

// delivered returns how many datagrams have reached the sink, modulo 2^32.
func (t *testbed) delivered() (uint32, error) {
	var info [unix.SK_MEMINFO_VARS]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(t.sink), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, os.NewSyscallError("getsockopt", errno)
	}
	return info[unix.SK_MEMINFO_DROPS], nil
}

func (t *testbed) openSenders() error {
	return t.client.Do(func() error {
		for i := range manySources {
			fd, err := udpSocket(netip.AddrPortFrom(source(i), 0))
			if err != nil {
				return fmt.Errorf("open sender: %w", err)
			}
			t.senders = append(t.senders, fd)
			if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(t.serverAddr, sinkPort))); err != nil {
				return fmt.Errorf("connect sender: %w", err)
			}
		}
		return nil
	})
}

// udpSocket opens a blocking UDP socket that gives up receiving after a while.
func udpSocket(at netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		unix.Bind(fd, sockaddr(at)),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: rttTimeout}),
	)
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// flood sends count small datagrams as fast as it can, in turn from the first
// sources addresses, a batch from each.
func (t *testbed) flood(ctx context.Context, count, sources int) error {
	payload := make([]byte, payloadSize)
	iov := unix.Iovec{Base: &payload[0]}
	iov.SetLen(len(payload))
	var msgs [sendBatch]mmsghdr
	for i := range msgs {
		msgs[i].hdr.Iov = &iov
		msgs[i].hdr.SetIovlen(1)
	}
	return measure.OnCPU(t.senderCPU, func() error {
		for i := 0; count > 0; i++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(t.senders[i%sources]),
				uintptr(unsafe.Pointer(&msgs)), uintptr(min(count, sendBatch)), 0, 0, 0)
			if errno != 0 && errno != unix.EINTR {
				return os.NewSyscallError("sendmmsg", errno)
			}
			if errno == 0 {
				count -= int(n)
			}
		}
		return nil
	})
}

// echo answers datagrams to echoPort until stop is called. Client and server
// block in the kernel on one CPU: no poller stands between a datagram and its
// answer.
func (t *testbed) echo() (stop func() error, err error) {
	var fd int
	err = t.server.Do(func() (err error) {
		fd, err = udpSocket(netip.AddrPortFrom(t.serverAddr, echoPort))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open echo server: %w", err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	var served error
	wg.Go(func() {
		served = measure.OnCPU(t.senderCPU, func() error {
			buf := make([]byte, 64)
			for ctx.Err() == nil {
				n, from, err := unix.Recvfrom(fd, buf, 0)
				if err == nil {
					_ = unix.Sendto(fd, buf[:n], 0, from) // a lost answer is the client's to count
				}
			}
			return nil
		})
	})
	return func() error {
		cancel()
		_ = unix.Shutdown(fd, unix.SHUT_RD) // wakes Recvfrom; ENOTCONN is right
		wg.Wait()
		return errors.Join(served, unix.Close(fd))
	}, nil
}

// roundTrips returns the times of count round trips, sorted, one in flight,
// and how many got no answer.
func (t *testbed) roundTrips(ctx context.Context, count int) (times []time.Duration, lost int, err error) {
	var fd int
	err = t.client.Do(func() (err error) {
		fd, err = udpSocket(netip.AddrPortFrom(source(0), 0))
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("open echo client: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(netip.AddrPortFrom(t.serverAddr, echoPort))); err != nil {
		return nil, 0, fmt.Errorf("connect echo client: %w", err)
	}
	const maxLost = 20
	err = measure.OnCPU(t.senderCPU, func() error {
		for i := range count {
			took, err := roundTrip(fd, uint32(i))
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.Is(err, unix.EAGAIN) && lost < maxLost:
				lost++
			case err != nil:
				return fmt.Errorf("round trip %d, %d lost: %w", i, lost, err)
			default:
				times = append(times, took)
			}
		}
		return nil
	})
	slices.Sort(times)
	return times, lost, err
}

func roundTrip(fd int, number uint32) (time.Duration, error) {
	var buf [payloadSize]byte
	binary.BigEndian.PutUint32(buf[:], number)
	start := time.Now()
	if _, err := unix.Write(fd, buf[:]); err != nil {
		return 0, err
	}
	for {
		_, err := unix.Read(fd, buf[:])
		if errors.Is(err, unix.EINTR) {
			continue // the runtime's preemption; a read with a timeout is not restarted
		}
		if err != nil {
			return 0, err
		}
		if binary.BigEndian.Uint32(buf[:]) == number {
			return time.Since(start), nil
		}
	}
}
