package hook

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of nf_tables' notifications, include/uapi/linux/netfilter/nf_tables.h.
const (
	nftNewGen      = unix.NFT_MSG_NEWGEN
	nftaTable      = 1 // the table's name, in messages about tables and what is in them
	nftaGenProcPID = 2
	nftaGenName    = 3
)

// Watcher hears of changes to verdictd's table as they are made. It is not to be
// used by several goroutines.
type Watcher struct {
	conn  *netlink.Conn
	table string
}

// Watch begins to listen. Only Table and NetNS of cfg matter. It needs
// CAP_NET_ADMIN.
func Watch(cfg Config) (*Watcher, error) {
	if err := cfg.defaultPlace(); err != nil {
		return nil, err
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: cfg.NetNS, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return nil, explain("watch nf_tables", err)
	}
	return &Watcher{conn: conn, table: cfg.Table}, nil
}

// Close ends listening.
func (w *Watcher) Close() error { return w.conn.Close() }

// Next waits for the next change of a table of that name, by whomever, and
// returns who made it, as the kernel names him: "nft (pid 4711)", "" if that is
// not known. If changes come faster than they are read, it returns too. It
// returns the error of ctx when that is done.
func (w *Watcher) Next(ctx context.Context) (by string, err error) {
	stop := context.AfterFunc(ctx, func() { _ = w.conn.SetReadDeadline(time.Unix(0, 1)) }) // fails only if closed
	defer stop()
	for touched := false; ; {
		msgs, err := w.conn.Receive()
		switch {
		case ctx.Err() != nil:
			return "", ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			return "", nil
		case err != nil:
			return "", explain("watch nf_tables", err)
		}
		for _, m := range msgs {
			if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|nftNewGen {
				touched = touched || w.concerns(m)
				continue
			}
			if touched { // the last message of a transaction
				return author(m), nil
			}
		}
	}
}

// concerns says whether a notification is about our table.
func (w *Watcher) concerns(m netlink.Message) bool {
	a, err := netlink.UnmarshalAttributes(m.Data[min(genmsgLen, len(m.Data)):])
	for i := range a {
		if a[i].Type == nftaTable && strings.TrimRight(string(a[i].Data), "\x00") == w.table {
			return true
		}
	}
	return err != nil
}

// author returns who made a transaction.
func author(m netlink.Message) string {
	a, err := netlink.UnmarshalAttributes(m.Data[min(genmsgLen, len(m.Data)):])
	if err != nil {
		return ""
	}
	var pid uint32
	var name string
	for i := range a {
		switch {
		case a[i].Type == nftaGenProcPID && len(a[i].Data) == 4:
			pid = binary.BigEndian.Uint32(a[i].Data)
		case a[i].Type == nftaGenName:
			name = strings.TrimRight(string(a[i].Data), "\x00")
		}
	}
	if pid == 0 {
		return ""
	}
	return fmt.Sprintf("%q (pid %d)", name, pid)
}
