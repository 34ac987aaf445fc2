package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/verdictd/verdictd/rules"
)

// never returns why field cannot have the value v, or nil if it can. Values
// that differ in type from the field are errors of the type checker already,
// but not within collections and data.
func never(field *rules.Field, v ast.Value) *fault {
	switch field.Kind {
	case rules.Int:
		n, ok := v.(ast.Number)
		if !ok {
			return &fault{code: "value", msg: "it is a number", hint: "write numbers such as ports without quotes"}
		}
		if i, ok := n.Int64(); !ok || i < 0 || i > field.Max {
			return &fault{code: "value", msg: fmt.Sprintf("it goes from 0 to %d", field.Max)}
		}
	case rules.Bool:
		if _, ok := v.(ast.Boolean); !ok {
			return &fault{code: "value", msg: "it is true or false"}
		}
	case rules.String:
		s, ok := v.(ast.String)
		if !ok {
			return &fault{code: "value", msg: "it is a string"}
		}
		return notText(field, string(s))
	case rules.Addr:
		return notAddress(v)
	}
	return nil
}

// notText returns why a field of text cannot have the value s.
func notText(field *rules.Field, s string) *fault {
	name := field.Path[strings.LastIndexByte(field.Path, '.')+1:]
	switch {
	case field.Path == "ip.protocol":
		return notProtocol(s)
	case field.Enum != nil && !slices.Contains(field.Enum, s):
		hint := ""
		if best := nearest(s, field.Enum); best != "" {
			hint = fmt.Sprintf("write %q", best)
		}
		return &fault{code: "value", msg: "it is one of " + strings.Join(field.Enum, ", "), hint: hint}
	case field.Path == rules.HashPath && (len(s) != 64 || strings.Trim(s, "0123456789abcdef") != ""):
		return &fault{code: "value", msg: "a SHA-256 is 64 hexadecimal digits in lower case", hint: "write what sha256sum FILE prints"}
	case (name == "exe" || name == "exe_inside") && !strings.HasPrefix(s, "/"):
		return &fault{code: "value", msg: "it is a path from the root", hint: "write the whole path, such as /usr/bin/curl; the name alone is input.process.comm"}
	}
	return nil
}

func notProtocol(s string) *fault {
	if _, ok := rules.ParseProtocol(s); ok {
		return nil
	}
	f := &fault{code: "protocol", msg: "there is no such protocol"}
	var names []string
	for n := range 256 {
		name := rules.ProtocolName(uint8(n))
		if fmt.Sprint(n) == s {
			f.msg, f.hint = "protocols that have a name are called by it", fmt.Sprintf("write %q, or input.ip.protocol_number == %d", name, n)
			return f
		}
		if strings.Trim(name, "0123456789") != "" {
			names = append(names, name)
		}
	}
	if best := nearest(strings.ToLower(s), names); best != "" {
		f.hint = fmt.Sprintf("write %q", best)
	} else {
		f.hint = "write one of " + strings.Join(names, ", ") + ", or the number"
	}
	return f
}

func notAddress(v ast.Value) *fault {
	s, ok := v.(ast.String)
	if !ok {
		return &fault{code: "value", msg: "it is an address, a string"}
	}
	if _, err := netip.ParsePrefix(string(s)); err == nil {
		return &fault{code: "network-compared", msg: "it is an address, not a network", hint: "use net.cidr_contains(" + v.String() + ", ...)", suspicion: true}
	}
	addr, err := netip.ParseAddr(string(s))
	if err != nil {
		return &fault{code: "value", msg: "that is no IP address"}
	}
	if canonical := addr.Unmap().WithZone("").String(); canonical != string(s) {
		mapped := addr.Is4In6() && addr.String() == string(s) // which IPv6 packets can have
		return &fault{code: "value", msg: "addresses are compared in their canonical form", hint: fmt.Sprintf("write %q", canonical), suspicion: mapped}
	}
	return nil
}
