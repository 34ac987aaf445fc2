package rules

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
)

// packetForm is how ParsePacket wants its text.
const packetForm = "want PROTO SOURCE[:PORT] -> DESTINATION[:PORT] [HOOK] [INTERFACE] [KEY=VALUE]..., such as: tcp 192.0.2.1:4000 -> 198.51.100.2:443 output eth0 user=1000"

// ParsePacket reads a packet that is described in words:
//
//	tcp 192.0.2.1:4000 -> 198.51.100.2:443 output eth0 user=1000
//	icmpv6 2001:db8::1 -> 2001:db8::2 input eth0 type=echo-request
//	udp [2001:db8::1]:4000 -> [2001:db8::2]:53 forward in=eth0 out=eth1 mark=0x10
//
// The keys are in, out, user, group, mark, type and code of ICMP, related=1 of an
// ICMP error about a flow that was let through, flags of TCP such as flags=syn,ack,
// length, ttl, dscp, queue, and time in RFC 3339 form.
// What is not said is as in a packet without it: TTL 64, no mark, no user, the
// hook output, 1970. Without ports, a packet of a protocol that has them is a
// fragment that is not the first.
func ParsePacket(text string) (*Facts, error) {
	words := strings.Fields(text)
	if len(words) < 4 || words[2] != "->" {
		return nil, fmt.Errorf("packet %q: %s", text, packetForm)
	}
	d := described{m: &packet.Meta{Hook: packet.Output}, p: &packet.Packet{Status: packet.OK, TTL: 64, TotalLength: 60}}
	d.f = Facts{Meta: d.m, Packet: d.p}
	err := d.addresses(words[0], words[1], words[3])
	for _, word := range words[4:] {
		if err == nil {
			err = d.word(word)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("packet %q: %w", text, err)
	}
	d.interfaces()
	return &d.f, nil
}

// described is a packet being put together.
type described struct {
	f     Facts
	m     *packet.Meta
	p     *packet.Packet
	iface string
}

func (d *described) addresses(proto, src, dst string) error {
	i := slices.Index(protocolNames(), protocolOf(proto))
	if i < 0 {
		return fmt.Errorf("there is no protocol %q", proto)
	}
	d.p.Protocol = uint8(i)
	from, ports, err := parseEndpoint(src)
	if err != nil {
		return err
	}
	to, toPorts, err := parseEndpoint(dst)
	switch {
	case err != nil:
		return err
	case from.Addr().Is4() != to.Addr().Is4():
		return errors.New("source and destination are of different families")
	case ports != toPorts:
		return errors.New("one end has a port and the other has none")
	case ports && !slices.Contains(withPorts(), protocolOf(proto)):
		return fmt.Errorf("protocol %s has no ports", proto)
	}
	d.p.Src, d.p.Dst, d.p.SrcPort, d.p.DstPort = from.Addr(), to.Addr(), from.Port(), to.Port()
	d.p.Version = 4
	if from.Addr().Is6() {
		d.p.Version = 6
	}
	d.p.HasPorts = ports
	if !ports && slices.Contains(withPorts(), protocolOf(proto)) {
		d.p.Status, d.p.FragmentOffset = packet.Fragment, 1480
	}
	return nil
}

// parseEndpoint reads an address with or without a port.
func parseEndpoint(text string) (end netip.AddrPort, hasPort bool, err error) {
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return netip.AddrPortFrom(a, 0), false, nil
	}
	if end, err = netip.ParseAddrPort(text); err != nil {
		return end, false, fmt.Errorf("%q is no address with or without a port, such as 192.0.2.1:80 or [2001:db8::1]:80", text)
	}
	return end, true, nil
}

// word reads one of the words behind the addresses.
func (d *described) word(word string) error {
	key, value, ok := strings.Cut(word, "=")
	if ok {
		return d.pair(key, value)
	}
	if hook, ok := packet.ParseHook(word); ok {
		d.m.Hook = hook
		return nil
	}
	if d.iface != "" {
		return fmt.Errorf("%q is neither a hook nor KEY=VALUE, and the interface is %s already", word, d.iface)
	}
	d.iface = word
	return nil
}

// interfaces puts the interface that was given without in= or out= in place.
func (d *described) interfaces() {
	switch {
	case d.iface == "":
	case d.m.Hook.Direction() == "in":
		d.f.InInterface = d.iface
	default:
		d.f.OutInterface = d.iface
	}
	// Interfaces are told apart by number where only that matters.
	if d.f.InInterface != "" {
		d.m.In = 1
	}
	if d.f.OutInterface != "" {
		d.m.Out = 2
	}
}

func (d *described) pair(key, value string) error {
	switch key {
	case "in":
		d.f.InInterface = value
		return nil
	case "out":
		d.f.OutInterface = value
		return nil
	case "flags":
		return d.flags(value)
	case "time":
		at, err := time.Parse(time.RFC3339, value)
		if err != nil {
			return fmt.Errorf("time %q: want it such as 2026-03-01T08:30:00Z", value)
		}
		d.m.Time = at.UnixNano()
		return nil
	}
	if to := d.text(key); to != nil {
		*to = value
		return nil
	}
	return d.number(key, value)
}

// ownerKeys are the keys of text that is about the owner of the socket.
func ownerKeys() []string {
	return []string{"exe", "exe-sha256", "comm", "parent-exe", "unit", "slice", "cgroup", "container", "pod", "process-user"}
}

// text returns where the text of a key about the owner belongs, nil if it is no
// such key.
func (d *described) text(key string) *string {
	if !slices.Contains(ownerKeys(), key) {
		return nil
	}
	if d.f.Owner == nil {
		d.f.Owner = &process.Owner{Source: process.BPFFlow, Process: &process.Process{Parents: make([]process.Parent, 1)}}
	}
	o := d.f.Owner
	switch key {
	case "exe":
		return &o.Process.Exe.Path
	case "exe-sha256":
		return &o.Process.Exe.SHA256
	case "comm":
		return &o.Process.Comm
	case "parent-exe":
		return &o.Process.Parents[0].Exe
	case "unit":
		return &o.Cgroup.Unit
	case "slice":
		return &o.Cgroup.Slice
	case "cgroup":
		return &o.Cgroup.Path
	case "container":
		return &o.Cgroup.ContainerID
	case "pod":
		return &o.Cgroup.PodUID
	}
	return &o.User
}

// number reads a value that is a number, or the name of an ICMP type.
func (d *described) number(key, value string) error {
	setters := d.setters()
	set, ok := setters[key]
	switch {
	case !ok:
		return fmt.Errorf("there is no key %q, want in, out, flags, time, %s, %s", key, strings.Join(slices.Sorted(maps.Keys(setters)), ", "), strings.Join(ownerKeys(), ", "))
	case (key == "type" || key == "code") && !d.p.IsICMP():
		return fmt.Errorf("%s=%s: the packet is not ICMP of its own family", key, value)
	}
	if n, ok := d.icmpName(value); ok && key == "type" {
		set.to(n)
		return nil
	}
	c := condition{says: key, max: set.max}
	n, err := c.parseNumber(value, value)
	if err != nil {
		return err
	}
	set.to(n)
	return nil
}

// setter puts a number, up to max, where it belongs.
type setter struct {
	max int64
	to  func(n int64)
}

func (d *described) setters() map[string]setter {
	return map[string]setter{
		"user":   {1<<32 - 1, func(n int64) { d.m.UID, d.m.HasUID = uint32(n), true }},
		"group":  {1<<32 - 1, func(n int64) { d.m.GID, d.m.HasGID = uint32(n), true }},
		"mark":   {1<<32 - 1, func(n int64) { d.m.Mark = uint32(n) }},
		"type":   {255, func(n int64) { d.p.ICMPType = uint8(n) }},
		"code":   {255, func(n int64) { d.p.ICMPCode = uint8(n) }},
		"length": {1<<32 - 1, func(n int64) { d.p.TotalLength = uint32(n) }},
		"ttl":    {255, func(n int64) { d.p.TTL = uint8(n) }},
		"dscp":   {63, func(n int64) { d.p.TOS = uint8(n) << 2 }},
		"queue":  {65535, func(n int64) { d.m.Queue = uint16(n) }},

		"related": {1, func(n int64) { d.f.Related = n == 1 }},
	}
}

// icmpName returns the type that a name stands for in the packet's family.
func (d *described) icmpName(name string) (int64, bool) {
	for _, b := range icmpTypes()[name] {
		if (b.low >= v6) == (d.p.Version == 6) {
			return b.low % v6, true
		}
	}
	return 0, false
}

func (d *described) flags(value string) error {
	if !d.p.Is(packet.ProtoTCP) {
		return errors.New("flags: the packet is not TCP, or a fragment")
	}
	known := strings.Fields("fin syn rst psh ack urg ece cwr ns")
	for name := range strings.SplitSeq(value, ",") {
		i := slices.Index(known, name)
		if i < 0 {
			return fmt.Errorf("there is no TCP flag %s, want %s", strconv.Quote(name), strings.Join(known, ", "))
		}
		d.p.TCPFlags |= 1 << i
	}
	return nil
}
