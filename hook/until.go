package hook

import (
	"encoding/binary"
	"strconv"
	"time"

	"github.com/google/nftables/expr"
)

// opened matches every packet from t on, by the kernel's clock of the day.
//
// Source: NFT_META_TIME_NS, Linux 5.4: nanoseconds of CLOCK_REALTIME, in host byte
// order; comparisons go byte by byte, so the order is turned round before.
func opened(t time.Time) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: metaTime, Register: 1},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: uint32(timeLen), Size: uint32(timeLen)},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: binary.BigEndian.AppendUint64(nil, uint64(t.UnixNano()))},
	}
}

const (
	metaTime expr.MetaKey = 30 // NFT_META_TIME_NS, which the library does not know
	timeLen  int          = 8
)

// timeText writes such a time as nft reads it, whatever the time zone: in seconds.
func timeText(data []byte) string {
	return strconv.FormatUint(binary.BigEndian.Uint64(data)/uint64(time.Second), 10)
}

// Keep makes the rules stay for good: Config.Until no longer counts. They change
// in one transaction, and no packet is lost.
func (r *Ruleset) Keep() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.plan.Until.IsZero() || r.plan.kept {
		return nil
	}
	r.plan.kept = true
	if err := r.install(); err != nil {
		r.plan.kept = false
		return err
	}
	return nil
}
