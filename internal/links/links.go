package links

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Table holds the interface names of a network namespace. Name may be called
// from any goroutine, also while Run follows changes.
type Table struct {
	conn  *netlink.Conn
	names atomic.Pointer[map[uint32]string]
	downs downs
}

// Open reads the interfaces of the calling thread's network namespace, or of
// the one that the file descriptor netns refers to if it is not 0. Close
// frees the socket.
func Open(netns int) (*Table, error) {
	// The subscription comes before the dump, so that no change is missed.
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: netns, Groups: unix.RTMGRP_LINK})
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	t := &Table{conn: conn}
	names, err := dump(netns)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	t.names.Store(&names)
	return t, nil
}

// Name returns the interface's name, or "" if there is none of that index.
func (t *Table) Name(index uint32) string {
	if index == 0 {
		return ""
	}
	return (*t.names.Load())[index]
}

// Close frees the socket; Run returns.
func (t *Table) Close() error { return t.conn.Close() }

// Run follows changes until ctx is done, and calls changed after each. It may
// be called again after it has returned nil.
func (t *Table) Run(ctx context.Context, netns int, changed func()) error {
	if err := t.conn.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("follow network interfaces: %w", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	done := make(chan struct{})
	defer close(done)
	wg.Go(func() {
		select {
		case <-ctx.Done():
			t.conn.SetReadDeadline(time.Unix(1, 0)) // wakes Receive
		case <-done:
		}
	})
	for {
		msgs, err := t.conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // changes were lost: look at all
			names, err := dump(netns)
			if err != nil {
				return fmt.Errorf("list network interfaces: %w", err)
			}
			t.names.Store(&names)
			changed()
			continue
		case errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("follow network interfaces: %w", err)
		}
		names := maps.Clone(*t.names.Load())
		for _, m := range msgs {
			apply(names, m)
			t.downs.note(m, time.Now())
		}
		if !maps.Equal(names, *t.names.Load()) {
			t.names.Store(&names)
			changed()
		}
	}
}

func dump(netns int) (map[uint32]string, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: netns})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	msgs, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, unix.SizeofIfInfomsg),
	})
	if err != nil {
		return nil, err
	}
	names := map[uint32]string{}
	for _, m := range msgs {
		apply(names, m)
	}
	return names, nil
}

// apply enters one RTM_NEWLINK or RTM_DELLINK message.
//
// Source: struct ifinfomsg, include/uapi/linux/rtnetlink.h.
func apply(names map[uint32]string, m netlink.Message) {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return
	}
	index := binary.NativeEndian.Uint32(m.Data[4:8])
	switch m.Header.Type {
	case unix.RTM_DELLINK:
		// A bridge port that leaves its bridge is reported as AF_BRIDGE.
		if m.Data[0] == unix.AF_UNSPEC {
			delete(names, index)
		}
	case unix.RTM_NEWLINK:
		attrs, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfInfomsg:])
		if err != nil {
			return
		}
		for attrs.Next() {
			if attrs.Type() == unix.IFLA_IFNAME {
				names[index] = attrs.String()
			}
		}
	}
}
