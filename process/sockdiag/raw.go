package sockdiag

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
)

// Raw is a raw or ping socket.
type Raw struct {
	Family uint8 // 4 or 6
	Ping   bool  // a ping socket (SOCK_DGRAM, IPPROTO_ICMP or IPPROTO_ICMPV6), else a raw one

	// ID is the protocol of a raw socket, and the echo identifier of a ping
	// socket: packet.Key has it as both ports.
	ID            uint16
	Local, Remote netip.Addr // 0.0.0.0 or :: where it is not bound or connected
	UID           uint32
	Inode         uint32
}

// ReadRaw returns the raw and ping sockets of the network namespace that the
// file descriptor netns refers to, or that of the calling thread if it is 0. It
// reads files whose length grows with the number of such sockets: mostly few.
//
// A file that the kernel does not have (such as for IPv6) counts as empty, lines
// that are not understood are passed over.
//
// Source: raw_sock_seq_show, net/ipv4/raw.c; ping_v4_format_sock,
// net/ipv4/ping.c; __ip6_dgram_sock_seq_show, net/ipv6/datagram.c.
func ReadRaw(netns int) ([]Raw, error) {
	var all []Raw
	err := inNamespace(netns, func() error {
		for _, f := range []struct {
			name   string
			family uint8
			ping   bool
		}{{"raw", 4, false}, {"raw6", 6, false}, {"icmp", 4, true}, {"icmp6", 6, true}} {
			text, err := os.ReadFile("/proc/thread-self/net/" + f.name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			all = appendRaw(all, text, Raw{Family: f.family, Ping: f.ping})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read raw sockets: %w", err)
	}
	return all, nil
}

// Columns of the files.
const (
	rawLocal  = 1
	rawRemote = 2
	rawUID    = 7
	rawInode  = 9
	rawFields = 10 // at least
)

// appendRaw appends a socket, made after the pattern, for each line of the text
// but the head.
func appendRaw(all []Raw, text []byte, pattern Raw) []Raw {
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) < rawFields {
			continue
		}
		r := pattern
		var ok [2]bool
		r.Local, r.ID, ok[0] = rawEnd(f[rawLocal], r.Family)
		r.Remote, _, ok[1] = rawEnd(f[rawRemote], r.Family)
		uid, errUID := strconv.ParseUint(string(f[rawUID]), 10, 32)
		inode, errInode := strconv.ParseUint(string(f[rawInode]), 10, 32)
		if !ok[0] || !ok[1] || errUID != nil || errInode != nil {
			continue
		}
		r.UID, r.Inode = uint32(uid), uint32(inode)
		all = append(all, r)
	}
	return all
}

// rawEnd reads "ADDRESS:PORT" in hexadecimal digits. The address is printed in
// words of 32 bits, each as this machine reads its four bytes.
func rawEnd(b []byte, family uint8) (addr netip.Addr, port uint16, ok bool) {
	host, tail, found := bytes.Cut(b, []byte(":"))
	words, err := hex.AppendDecode(nil, host)
	n, errPort := strconv.ParseUint(string(tail), 16, 16)
	if !found || err != nil || errPort != nil || family == 4 && len(words) != 4 || family == 6 && len(words) != 16 {
		return netip.Addr{}, 0, false
	}
	for i := 0; i < len(words); i += 4 {
		binary.NativeEndian.PutUint32(words[i:], binary.BigEndian.Uint32(words[i:]))
	}
	addr, ok = netip.AddrFromSlice(words)
	return addr, uint16(n), ok
}
