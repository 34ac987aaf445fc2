package rules_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/rules"
)

// parse reads the rules file rules.yaml of files.
func parse(files map[string]string) (*rules.Ruleset, error) {
	return rules.ParsePlain("rules.yaml", func(name string) ([]byte, error) {
		text, ok := files[name]
		if !ok {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		return []byte(text), nil
	})
}

// TestPlainGolden compares what is said about rules files with the archives in
// testdata/plain: errors, or else findings, explanation and translation. The
// comment of an archive lists packets, one on each line.
func TestPlainGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/plain/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files, want := map[string]string{}, map[string]string{}
			var kept []txtar.File
			for _, f := range archive.Files {
				if name, ok := strings.CutPrefix(f.Name, "want/"); ok {
					want[name] = string(f.Data)
					continue
				}
				files[f.Name] = string(f.Data)
				kept = append(kept, f)
			}
			got := describe(t, files, string(archive.Comment))
			if *update {
				for _, name := range []string{"errors", "findings", "explain", "packets", "rego"} {
					if text, ok := got[name]; ok {
						kept = append(kept, txtar.File{Name: "want/" + name, Data: []byte(text)})
					}
				}
				archive.Files = kept
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got), go test ./rules -update rewrites it:\n%s", diff)
			}
		})
	}
}

func describe(t *testing.T, files map[string]string, packets string) map[string]string {
	t.Helper()
	set, err := parse(files)
	if err != nil {
		if _, ok := errors.AsType[rules.PlainErrors](err); !ok {
			t.Fatalf("error is a %T, want PlainErrors", err)
		}
		return map[string]string{"errors": err.Error() + "\n"}
	}
	got := map[string]string{}
	for _, f := range set.Findings() {
		got["findings"] += fmt.Sprintf("%s: %s: %s\n", f.Place, f.Level, f.Msg)
	}
	var b strings.Builder
	if err := set.Explain(&b); err != nil {
		t.Fatal(err)
	}
	got["explain"] = b.String()
	b.Reset()
	for line := range strings.Lines(packets) {
		line = strings.TrimSpace(line)
		f, err := rules.ParsePacket(line)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, line)
		if err := set.ExplainPacket(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	if b.Len() > 0 {
		got["packets"] = b.String()
	}
	translation := set.Rego()
	if again := set.Rego(); string(again.Text) != string(translation.Text) {
		t.Error("two translations differ")
	}
	got["rego"] = string(translation.Text)
	return got
}

func FuzzParsePlain(f *testing.F) {
	example, err := os.ReadFile("../rules.yaml.example")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(example))
	f.Add("rules: [{name: a, verdict: drop, not: {from: [2001:db8::1, ::/0]}, time: 22:00-06:00}]\ndefault: {verdict: accept, log: no}\n")
	f.Add("include: [rules.yaml, a/../b.yaml]\nsets: {a: [$b], b: $a}\nrules:\n- {name: x, verdict: delegate, to-port: [0x10, 1-2]}\n")
	f.Fuzz(func(t *testing.T, text string) {
		set, err := parse(map[string]string{"rules.yaml": text, "b.yaml": text})
		if err != nil {
			list, ok := errors.AsType[rules.PlainErrors](err)
			if !ok || len(list) == 0 {
				t.Fatalf("error is %#v, want PlainErrors", err)
			}
			for _, e := range list {
				if e.Msg == "" || e.Place.File == "" || e.Place.Line < 0 {
					t.Errorf("error without text or place: %+v", e)
				}
			}
			return
		}
		translation := set.Rego()
		if lines := strings.Count(string(translation.Text), "\n"); lines != len(translation.Lines) {
			t.Errorf("translation has %d lines and places for %d", lines, len(translation.Lines))
		}
		set.Findings()
		if err := set.Explain(&strings.Builder{}); err != nil {
			t.Error(err)
		}
	})
}

// TestConditionsCoverFields makes whoever adds a field decide whether plain
// rules can ask for it.
func TestConditionsCoverFields(t *testing.T) {
	not := map[string]string{
		"packet.status":      "fragment says what matters of it",
		"ip.protocol_number": "proto takes numbers",
		"ip.ecn":             "not a property that rules are about",
		"tcp.src_port":       "from-port with proto",
		"tcp.dst_port":       "to-port with proto",
		"udp.src_port":       "from-port with proto",
		"udp.dst_port":       "to-port with proto",
		"udp.length":         "length",
		"tcp.seq":            "differs in every packet",
		"tcp.ack":            "differs in every packet",
		"tcp.window":         "differs in every packet",
		"icmp.id":            "chosen by the sender",
		"icmp.seq":           "differs in every packet",
		"time.unix":          "time and weekday",

		"process.pid":               "differs in every process",
		"process.start":             "differs in every process",
		"process.cmdline":           "the process can change it",
		"process.tty":               "not a property that rules are about",
		"process.exe_inside":        "the process can choose it",
		"process.exe_inode":         "exe-sha256",
		"process.exe_device":        "exe-sha256",
		"process.exe_deleted":       "not a property that rules are about",
		"process.uid":               "user",
		"process.gid":               "group",
		"process.user_unit":         "the user can choose it",
		"process.container.runtime": "container",
	}
	asked := rules.ConditionFields()
	for _, f := range rules.Fields() {
		if strings.HasPrefix(f.Path, "process.parents.") && f.Path != "process.parents.1.exe" {
			continue // parent-exe
		}
		if _, ok := not[f.Path]; ok == slices.Contains(asked, f.Path) {
			t.Errorf("%s: asked for by a condition: %v, listed as not asked for: %v", f.Path, slices.Contains(asked, f.Path), ok)
		}
	}
}

func TestParsePacket(t *testing.T) {
	const tcp = "tcp 10.0.0.1:1 -> 1.2.3.4:2"
	plain := func(text string) map[string]string {
		in, err := rules.ParsePacket(text)
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]string{}
		for _, field := range showInput(in) {
			path, value, _ := strings.Cut(field, "=")
			values[path] = value
		}
		return values
	}
	for path, want := range map[string]string{
		"hook": "output", "direction": "out", "ip.ttl": "64", "packet.length": "60", "mark": "0", "tcp.flags.syn": "false", "time.hour": "0",
		"uid": "?", "process.exe": "?", "interface.out": "?", "process.source": "?",
	} {
		if got := plain(tcp)[path]; got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	tests := []struct{ text, want string }{ // fields that differ from those without the words behind the addresses
		{tcp + " output eth0", "interface.out=eth0"},
		{"udp [2001:db8::1]:5 -> [2001:db8::2]:53 forward in=a out=b user=7 mark=0x10", "direction=forward hook=forward interface.in=a interface.out=b mark=16 uid=7"},
		{"icmp 10.0.0.1 -> 1.2.3.4 input eth1 type=echo-request ttl=3", "direction=in hook=input icmp.type=8 interface.in=eth1 ip.ttl=3"},
		{"icmpv6 ::1 -> ::2 icmp-type echo-request", "icmp.type=128"},
		{"47 10.0.0.1 -> 1.2.3.4 time=1970-01-01T01:00:01Z", "time.hour=1 time.unix=3601"},
		{tcp + " flags=syn,ack", "tcp.flags.ack=true tcp.flags.syn=true"},
		{tcp + " exe=/usr/bin/curl", "process.exe=/usr/bin/curl process.source=bpf-flow"},
		{tcp + " unit ssh.service process-source=looked-up", "process.source=looked-up process.unit=ssh.service"},
		{tcp + " process.unit=ssh.service uid 7", "process.source=bpf-flow process.unit=ssh.service uid=7"},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			before := plain(strings.Join(strings.Fields(tt.text)[:4], " "))
			var got []string
			for path, value := range plain(tt.text) {
				if before[path] != value {
					got = append(got, path+"="+value)
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(strings.Fields(tt.want), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if in, err := rules.ParseFlow(strings.Replace(tt.text, "eth0", "out=eth0", 1)); err != nil || in == nil {
				t.Errorf("ParseFlow does not read it: %v", err)
			}
		})
	}
}

// TestFindingsAreExact compares which rules are said to never match with what
// is found by trying a packet for every combination of values that the rules
// tell apart.
func TestFindingsAreExact(t *testing.T) {
	var packets []*rules.Input
	for _, src := range []string{"10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "11.0.0.0", "200.0.0.0", "::1", "2001:db8::1"} {
		for _, ttl := range []uint8{0, 1, 2, 3, 4, 5, 255} {
			for _, in := range []string{"", "eth0", "eth1", "eth2", "wan0", "x"} {
				packets = append(packets, rules.InputOf(&rules.Facts{Meta: &packet.Meta{}, InInterface: in,
					Packet: &packet.Packet{Status: packet.OK, Src: netip.MustParseAddr(src), TTL: ttl, Protocol: 47}}))
			}
		}
	}
	r := rand.New(rand.NewPCG(7, 8))
	dead, alive := 0, 0
	for range 3000 {
		count := 2 + r.IntN(7)
		text := randomRules(r, count)
		set, err := parse(map[string]string{"rules.yaml": text})
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		want := map[string]bool{}
		for i := range count {
			want[fmt.Sprintf("r%d", i)] = true
		}
		for _, in := range packets {
			delete(want, set.Match(in).Rule.Name)
		}
		got := map[string]bool{}
		for _, f := range set.Findings() {
			if f.Level == rules.Warning {
				got[strings.Split(f.Msg, `"`)[1]] = true
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("rules that never match (-want +got):\n%s\n%s\n%v", diff, text, set.Findings())
		}
		dead, alive = dead+len(want), alive+count-len(want)
	}
	if dead < 1000 || alive < 1000 {
		t.Errorf("%d rules never match and %d do: too few to say much", dead, alive)
	}
}

// randomRules returns a file of rules r0, r1 and so on.
func randomRules(r *rand.Rand, count int) string {
	values := map[string][]string{
		"from":         {"10.0.0.0/30", "10.0.0.0/31", "10.0.0.2/31", "10.0.0.1", "10.0.0.4", "0.0.0.0/1", "128.0.0.0/1", "0.0.0.0/0", "::/0", "2000::/3"},
		"ttl":          {"0-1", "2", "3-4", "5-255", "0-255", "0", "1-4"},
		"in-interface": {"eth0", "eth1", "eth*", "wan0"},
	}
	var b strings.Builder
	b.WriteString("rules:\n")
	for i := range count {
		fmt.Fprintf(&b, "  - {name: r%d, verdict: drop, proto: gre", i)
		not := ""
		for _, key := range []string{"from", "ttl", "in-interface"} {
			list := values[key]
			condition := fmt.Sprintf(", %s: [%s, %s]", key, list[r.IntN(len(list))], list[r.IntN(len(list))])
			switch r.IntN(4) {
			case 0:
				not += condition
			case 1, 2:
				b.WriteString(condition)
			}
		}
		if not != "" {
			b.WriteString(", not: {" + not[2:] + "}")
		}
		b.WriteString("}\n")
	}
	return b.String()
}
