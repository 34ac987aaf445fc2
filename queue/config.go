package queue

import (
	"fmt"
	"math/bits"
	"time"
)

// Limits of the kernel.
const (
	MaxMaxLen    = 65536 // packets that one queue holds, whatever it is told
	MaxCopyRange = 65531 // bytes, NFQNL_MAX_COPY_RANGE
)

// MaxSpin is the longest Config.Spin. The wake-up that spinning saves takes some
// 30 µs: there is nothing to gain by much longer times.
const MaxSpin = 10 * time.Millisecond

// Config describes a queue. The zero value is queue 0 with defaults, failing
// closed.
type Config struct {
	Num uint16 // queue number

	// MaxLen is how many packets may wait for a verdict; the kernel drops what
	// comes beyond, or accepts it under FailOpen. 0 means 8192, at most
	// MaxMaxLen.
	MaxLen uint32

	// CopyRange is how many bytes of each packet are copied to us. 0 means 256,
	// enough for all headers; at most MaxCopyRange. Payload inspection needs
	// more.
	CopyRange uint32

	// RecvBuffer is how many bytes of messages the kernel may hold for us; what
	// comes beyond is dropped, or accepted under FailOpen. 0 means enough for
	// MaxLen packets.
	RecvBuffer int

	// FailOpen makes the kernel accept the packets that the queue or the receive
	// buffer has no room for. The kernel counts these nowhere.
	FailOpen bool

	// NetNS is a descriptor of the network namespace to bind in; 0 means that
	// of the calling thread.
	NetNS int

	// Drain bounds how long Run goes on after its context is done. 0 means
	// 100 ms; negative means not at all.
	Drain time.Duration

	// Spin is how long Run looks for the next packet again and again after the
	// last one, before it sleeps until one comes. It saves the wake-up of
	// packets that follow within that time and costs a CPU meanwhile. 0 means
	// not at all; at most MaxSpin.
	Spin time.Duration
}

// withDefaults returns cfg with its zero values filled in.
func (cfg Config) withDefaults() (Config, error) {
	if cfg.MaxLen == 0 {
		cfg.MaxLen = 8192
	}
	if cfg.CopyRange == 0 {
		cfg.CopyRange = 256
	}
	if cfg.Drain == 0 {
		cfg.Drain = 100 * time.Millisecond
	}
	if cfg.MaxLen > MaxMaxLen {
		return cfg, fmt.Errorf("queue %d: length of %d packets is more than the kernel's %d", cfg.Num, cfg.MaxLen, MaxMaxLen)
	}
	if cfg.CopyRange > MaxCopyRange {
		return cfg, fmt.Errorf("queue %d: copy range of %d bytes is more than the kernel's %d", cfg.Num, cfg.CopyRange, MaxCopyRange)
	}
	if cfg.Spin < 0 || cfg.Spin > MaxSpin {
		return cfg, fmt.Errorf("queue %d: spinning for %v is not within 0 to %v", cfg.Num, cfg.Spin, MaxSpin)
	}
	if cfg.RecvBuffer == 0 {
		cfg.RecvBuffer = recvBuffer(cfg.MaxLen, cfg.CopyRange)
	}
	return cfg, nil
}

// messageOverhead is more than the attributes beside the payload need: at most
// 300 bytes, as neither conntrack nor security context is asked for.
const messageOverhead = 512

// recvBuffer estimates what maxLen queued packets cost the receive buffer: the
// kernel charges the allocation of each message, a power of two that includes
// 320 bytes of bookkeeping, and 256 bytes for its struct sk_buff. Packets that
// fill a large copy range are taken to be 4 KiB on average. The kernel doubles
// the size it is given, so half of it is asked for.
func recvBuffer(maxLen, copyRange uint32) int {
	size := min(copyRange, 4096) + messageOverhead
	unit := 1<<bits.Len32(size-1) + 256
	return int(maxLen) * unit / 2
}
