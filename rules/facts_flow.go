package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/process"
)

// flowForm is how ParseFlow wants its text.
const flowForm = "want PROTOCOL SOURCE[:PORT] -> DESTINATION[:PORT] [HOOK] [INTERFACE] [FIELD VALUE]..., such as: tcp 10.0.0.1:40000 -> 1.2.3.4:443 output eth0 uid 1000"

// ParseFlow reads the facts of a packet from text such as
//
//	tcp 10.0.0.1:40000 -> 1.2.3.4:443 output eth0 uid 1000
//	icmpv6 fe80::1 -> ff02::1 input icmp.type 135
//	udp [2001:db8::1]:4000 -> [2001:db8::2]:53 forward interface.in eth0 interface.out eth1
//
// FIELD is any field, by its path; FIELD=VALUE is the same. What is not said,
// and does not follow, is unknown. A packet of a protocol with ports that has
// none is a fragment that is not the first.
func ParseFlow(text string) (*Input, error) {
	words := strings.Fields(text)
	if len(words) < 4 || words[2] != "->" {
		return nil, fmt.Errorf("flow %.200q: %s", text, flowForm)
	}
	in, err := parseFlow(words)
	if err != nil {
		return nil, fmt.Errorf("flow %.200q: %w", text, err)
	}
	return in, nil
}

func parseFlow(words []string) (*Input, error) {
	f, err := flowFacts(words[0], words[1], words[3])
	if err != nil {
		return nil, err
	}
	in := InputOf(f)
	in.Forget(func(path string) bool {
		return saidByFlow(path) || path == "ip.fragment" && f.Packet.Status == packet.Fragment
	})
	return in, in.flowWords(words[4:])
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
	if p.Protocol, ok = ParseProtocol(proto); !ok {
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
	hasPorts := slices.Contains([]uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoSCTP, packet.ProtoDCCP}, p.Protocol)
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
		Meta: &packet.Meta{HasUID: true, HasGID: true}, Packet: p, InInterface: "?", OutInterface: "?", Owner: AnyOwner(),
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

// flowWords reads what stands behind the addresses.
func (in *Input) flowWords(words []string) error {
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		if path, value, ok := strings.Cut(word, "="); ok {
			if err := in.flowField(path, value); err != nil {
				return err
			}
			continue
		}
		if in.index(word) >= 0 {
			if len(words) == 0 {
				return fmt.Errorf("%s has no value", word)
			}
			if err := in.flowField(word, words[0]); err != nil {
				return err
			}
			words = words[1:]
			continue
		}
		if err := in.flowPlace(word); err != nil {
			return err
		}
	}
	return nil
}

// flowField sets a field and those that follow from it.
func (in *Input) flowField(path, value string) error {
	i := in.index(path)
	if i >= 0 && !in.present.Has(i) && !in.unknown.Has(i) {
		return fmt.Errorf("a packet of this protocol has no %s", path)
	}
	if i >= 0 && saidByFlow(path) {
		return fmt.Errorf("%s follows from what stands before it", path)
	}
	if err := in.Set(path, value); err != nil || path != "hook" {
		return err
	}
	hook, _ := packet.ParseHook(value)
	return in.Set("direction", hook.Direction())
}

// flowPlace reads a hook or the interface that belongs to it.
func (in *Input) flowPlace(word string) error {
	if _, ok := packet.ParseHook(word); ok {
		return in.flowField("hook", word)
	}
	path := "interface.out"
	switch direction := in.index("direction"); {
	case !in.present.Has(direction):
		return fmt.Errorf("%q is no field and no hook, and an interface stands behind the hook, or as interface.in %[1]s", word)
	case in.values[direction].Str == "in":
		path = "interface.in"
	}
	if i := in.index(path); in.present.Has(i) {
		return fmt.Errorf("%q is no field, and %s is %s already", word, path, in.values[i].Str)
	}
	return in.Set(path, word)
}
