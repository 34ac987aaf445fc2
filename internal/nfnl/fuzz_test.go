package nfnl

import (
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzNext holds the walk over arbitrary datagrams to its bounds: it ends,
// does not panic, and returns only parts of the datagram.
func FuzzNext(f *testing.F) {
	f.Add(message(3<<8, 1, 1), false)
	f.Add(append(message(3<<8, 1, 1), message(unix.NLMSG_DONE, 1, 1)...), false)
	f.Add(reply(unix.EPERM, unix.NLM_F_ACK_TLVS, message(3<<8|1, 1, 1), nil), true)
	f.Fuzz(func(t *testing.T, b []byte, cut bool) {
		c := batchConn(len(b)+1, b)
		if cut {
			c.hdrs[0].hdr.Flags = unix.MSG_TRUNC
		}
		var m Message
		left := len(b)
		for c.Next(&m) {
			size := headerLen
			for a := NewAttrs(m.Attrs); a.Next(); {
				size += attrLen + len(a.Bytes())
			}
			if left -= size; left < 0 {
				t.Fatalf("messages are longer than their datagram of %d bytes", len(b))
			}
			_ = m.text()
		}
	})
}
