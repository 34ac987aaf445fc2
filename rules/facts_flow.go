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

// flowForm is how a packet is described in words.
const flowForm = "want PROTOCOL SOURCE[:PORT] -> DESTINATION[:PORT] [HOOK] [INTERFACE] [KEY=VALUE]..., such as: tcp 10.0.0.1:40000 -> 1.2.3.4:443 output eth0 user=1000"

// ParseFlow reads the facts of a packet from text such as
//
//	tcp 10.0.0.1:40000 -> 1.2.3.4:443 output eth0 user=1000
//	icmpv6 fe80::1 -> ff02::1 input type=neighbour-solicitation
//	udp [2001:db8::1]:4000 -> [2001:db8::2]:53 forward in=eth0 out=eth1 mark=0x10
//
// KEY is one of FlowKeys or any field, by its path; KEY VALUE is the same as
// KEY=VALUE. What is not said, and does not follow, is unknown. A packet of a
// protocol with ports that has none is a fragment that is not the first.
func ParseFlow(text string) (*Input, error) { return parseFlow(text, false) }

// ParsePacket is ParseFlow, but takes for granted what every packet has and is not
// said: the hook output, TTL 64, a length of 60 bytes, no mark, no TCP flags, queue 0,
// 1970. If it says anything of a process, the source of that is bpf-flow.
func ParsePacket(text string) (*Input, error) { return parseFlow(text, true) }

func parseFlow(text string, usual bool) (*Input, error) {
	words := strings.Fields(text)
	if len(words) < 4 || words[2] != "->" {
		return nil, fmt.Errorf("packet %.200q: %s", text, flowForm)
	}
	f, err := flowFacts(words[0], words[1], words[3])
	if err != nil {
		return nil, fmt.Errorf("packet %.200q: %w", text, err)
	}
	in := InputOf(f)
	in.Forget(func(path string) bool {
		return saidByFlow(path) || path == "ip.fragment" && f.Packet.Status == packet.Fragment
	})
	if usual {
		in.assume(f.Packet)
	}
	if err := in.flowWords(words[4:]); err != nil {
		return nil, fmt.Errorf("packet %.200q: %w", text, err)
	}
	if usual && in.saysOwner() {
		return in, in.Set("process.source", process.BPFFlow.String())
	}
	return in, nil
}

// assume gives unknown fields the values that they have in an ordinary packet, but
// for type and code of ICMP, of which none is ordinary.
func (in *Input) assume(p *packet.Packet) {
	unusual := []string{"icmp.type", "icmp.code"}
	plain := *p
	plain.TTL, plain.TotalLength, plain.Echo = 64, 60, false
	usual := InputOf(&Facts{Meta: &packet.Meta{Hook: packet.Output}, Packet: &plain})
	for i := range in.fields {
		if in.unknown.Has(i) && usual.present.Has(i) && !slices.Contains(unusual, in.fields[i].Path) {
			in.put(i, usual.values[i])
		}
	}
}

// saysOwner returns whether the document says something of a process, and not how
// that is known.
func (in *Input) saysOwner() bool {
	said := false
	for i := range in.fields {
		if strings.HasPrefix(in.fields[i].Path, "process.") && in.present.Has(i) {
			if in.fields[i].Path == "process.source" {
				return false
			}
			said = true
		}
	}
	return said
}

// saidByFlow returns whether protocol, addresses and ports give the field.
func saidByFlow(path string) bool {
	switch path {
	case "packet.status", "ip.version", "ip.src", "ip.dst", "ip.protocol", "ip.protocol_number":
		return true
	}
	return strings.HasSuffix(path, "_port")
}

// flowFacts returns a packet that has every field which one of this protocol
// can have.
func flowFacts(proto, src, dst string) (*Facts, error) {
	p := &packet.Packet{Status: packet.OK, Version: 4}
	var ok bool
	if p.Protocol, ok = ParseProtocol(protocolOf(proto)); !ok {
		return nil, fmt.Errorf("there is no protocol %q, want a name such as tcp, udp, icmp, or a number if it has none", proto)
	}
	from, ports, err := parseEnd(src)
	if err != nil {
		return nil, err
	}
	to, toPorts, err := parseEnd(dst)
	if err != nil {
		return nil, err
	}
	p.Src, p.Dst, p.SrcPort, p.DstPort, p.HasPorts = from.Addr(), to.Addr(), from.Port(), to.Port(), ports
	hasPorts := slices.Contains(withPorts(), ProtocolName(p.Protocol))
	switch {
	case p.Src.Is4() != p.Dst.Is4():
		return nil, errors.New("source and destination are of different families")
	case ports != toPorts:
		return nil, errors.New("one end has a port and the other has none")
	case ports && !hasPorts:
		return nil, fmt.Errorf("protocol %s has no ports", proto)
	case !ports && hasPorts:
		p.Status, p.FragmentOffset = packet.Fragment, 8
	}
	if p.Src.Is6() {
		p.Version = 6
	}
	p.Echo = p.IsICMP()
	return &Facts{
		Meta: &packet.Meta{HasUID: true, HasGID: true}, Packet: p, InInterface: "?", OutInterface: "?", InPort: "?", OutPort: "?", Owner: AnyOwner(),
	}, nil
}

// AnyOwner returns an owner that has every fact there is about owners, for
// inputs of which nothing is known: see Input.Forget.
func AnyOwner() *process.Owner {
	p := &process.Process{
		PID: 1, Start: 1, Comm: "?", Cmdline: "?", TTY: "?", Exe: process.Exe{Path: "?", Inside: "?", Inode: 1, SHA256: "?"},
	}
	for range process.MaxParents {
		p.Parents = append(p.Parents, process.Parent{PID: 1, Exe: "?", Comm: "?"})
	}
	return &process.Owner{
		HasUID: true, HasGID: true, User: "?", Process: p,
		Cgroup: process.Cgroup{Path: "?", Unit: "?", UserUnit: "?", Slice: "?", ContainerID: "?", Runtime: "?", PodUID: "?"},
	}
}

// parseEnd reads an address with or without a port.
func parseEnd(text string) (end netip.AddrPort, hasPort bool, err error) {
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil && a.Zone() == "" {
		return netip.AddrPortFrom(a, 0), false, nil
	}
	end, err = netip.ParseAddrPort(text)
	if err != nil || end.Addr().Zone() != "" {
		return end, false, fmt.Errorf("%q is no address with or without a port, such as 192.0.2.1:80 or [2001:db8::1]:80", text)
	}
	return end, true, nil
}

// FlowKeys returns the short names of fields in the words of a packet, with the
// paths of these: the conditions of rules files that are about one field, in, out,
// type, code and related. Besides there are flags (of TCP: syn,ack) and time (as RFC 3339 has
// it), which stand for several fields.
func FlowKeys() map[string]string {
	keys := map[string]string{"in": "interface.in", "out": "interface.out", "type": "icmp.type", "code": "icmp.code", "related": RelatedPath}
	for _, c := range conditions() {
		if path := c.paths[0]; (len(c.paths) == 1 || path == "icmp.type") && path != c.key && !saidByFlow(path) {
			keys[c.key] = path
		}
	}
	return keys
}

// flowWords reads what stands behind the addresses.
func (in *Input) flowWords(words []string) error {
	keys := FlowKeys()
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		key, value, pair := strings.Cut(word, "=")
		_, short := keys[key]
		if !pair && in.index(word) < 0 && !short && key != "flags" {
			if err := in.flowPlace(word); err != nil {
				return err
			}
			continue
		}
		if !pair {
			if len(words) == 0 {
				return fmt.Errorf("%s has no value", word)
			}
			value, words = words[0], words[1:]
		}
		if short {
			key = keys[key]
		}
		if err := in.flowField(key, value); err != nil {
			return err
		}
	}
	return nil
}

// flowField sets a field and those that follow from it.
func (in *Input) flowField(path, value string) error {
	switch path {
	case "flags":
		return in.flowFlags(value)
	case "time":
		return in.flowTime(value)
	}
	i := in.index(path)
	switch {
	case i < 0 && !strings.Contains(path, "."):
		return fmt.Errorf("there is no key %q, want flags, time, %s, or a field as verdictd schema lists them", path, strings.Join(slices.Sorted(maps.Keys(FlowKeys())), ", "))
	case i >= 0 && !in.present.Has(i) && !in.unknown.Has(i):
		return fmt.Errorf("a packet of this protocol has no %s", path)
	case i >= 0 && saidByFlow(path):
		return fmt.Errorf("%s follows from what stands before it", path)
	}
	if path == "icmp.type" {
		value = in.icmpNumber(value)
	}
	if err := in.Set(path, value); err != nil || path != "hook" {
		return err
	}
	hook, _ := packet.ParseHook(value)
	return in.Set("direction", hook.Direction())
}

// icmpNumber returns the number of a type that is given by its name, in the packet's
// family.
func (in *Input) icmpNumber(name string) string {
	for _, b := range icmpTypes()[name] {
		if six := in.values[in.index("ip.version")].Int == 6; (b.low >= v6) == six {
			return strconv.FormatInt(b.low%v6, 10)
		}
	}
	return name
}

// flowFlags sets the TCP flags that are named, and no others.
func (in *Input) flowFlags(names string) error {
	const prefix = "tcp.flags."
	set := strings.Split(names, ",")
	for i := range in.fields {
		name, ok := strings.CutPrefix(in.fields[i].Path, prefix)
		if !ok {
			continue
		}
		at := slices.Index(set, name)
		if err := in.flowField(prefix+name, strconv.FormatBool(at >= 0)); err != nil {
			return err
		}
		if at >= 0 {
			set = slices.Delete(set, at, at+1)
		}
	}
	if len(set) > 0 {
		return fmt.Errorf("there is no TCP flag %q: %w", set[0], in.noField(prefix+set[0]))
	}
	return nil
}

// flowTime sets the fields of a time.
func (in *Input) flowTime(text string) error {
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return fmt.Errorf("time %q: want it such as 2026-03-01T08:30:00Z", text)
	}
	now := InputOf(&Facts{Meta: &packet.Meta{Time: at.UnixNano()}, Packet: &packet.Packet{}})
	for i := range in.fields {
		if strings.HasPrefix(in.fields[i].Path, "time.") {
			in.put(i, now.values[i])
		}
	}
	return nil
}

// flowPlace reads a hook or the interface that belongs to it.
func (in *Input) flowPlace(word string) error {
	if _, ok := packet.ParseHook(word); ok {
		return in.flowField("hook", word)
	}
	path := "interface.out"
	switch direction := in.index("direction"); {
	case !in.present.Has(direction):
		return fmt.Errorf("%q is no key, no field and no hook, and an interface stands behind the hook, or as in=%[1]s", word)
	case in.values[direction].Str == "in":
		path = "interface.in"
	}
	if i := in.index(path); in.present.Has(i) {
		return fmt.Errorf("%q is no key and no field, and %s is %s already", word, path, in.values[i].Str)
	}
	return in.Set(path, word)
}
