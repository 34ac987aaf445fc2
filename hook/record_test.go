package hook

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// recordConfig has every hook, so that the golden files show where there is no
// recording.
func recordConfig() Config {
	return Config{
		Hooks: []Hook{Prerouting, Input, Forward, Output, Postrouting}, QueueFirst: 3, Mask: DefaultMask,
		Record: 7, RecordPin: "/sys/fs/bpf/verdictd/sender",
	}
}

// TestRecordGolden compares the plan and the script with files. nft can print
// the match, but not read it: there is no golden file of its messages.
func TestRecordGolden(t *testing.T) {
	for name, c := range map[string]Config{
		"record":         recordConfig(),
		"record-offload": {Hooks: []Hook{Output}, Mask: DefaultMask, Offload: true, Record: 1, RecordPin: "/run/bpf/p", Family: IPv4},
	} {
		plan, err := Plan(c)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name+".nft", plan)
		var script bytes.Buffer
		if err := PrintIptables(c, &script); err != nil {
			t.Fatal(err)
		}
		golden(t, name+".sh", script.String())
	}
}

// TestRecordMessage checks the match byte by byte: struct xt_bpf_info_v1 with
// the mode XT_BPF_MODE_FD_ELF, its descriptor at 4, and nothing else.
func TestRecordMessage(t *testing.T) {
	var k fakeKernel
	r, err := install(recordConfig(), k.dial)
	if err != nil {
		t.Fatal(err)
	}
	if on, err := r.Recording(); !on || err != nil {
		t.Errorf("recording: got %v, error %v, want true", on, err)
	}
	info := make([]byte, 528)
	binary.NativeEndian.PutUint16(info, 2)
	binary.NativeEndian.PutUint32(info[4:], 7)
	match := map[uint16][]byte{
		unix.NFTA_MATCH_NAME: []byte("bpf\x00"),
		unix.NFTA_MATCH_REV:  {0, 0, 0, 1},
		unix.NFTA_MATCH_INFO: info,
	}
	want := map[string][]map[uint16][]byte{"output": {match}, "postrouting": {match}}
	if diff := cmp.Diff(want, sentMatches(t, k)); diff != "" {
		t.Errorf("matches by chain (-want +got):\n%s", diff)
	}
}

// sentMatches returns the xt matches in the rules of our table, by chain.
func sentMatches(t *testing.T, k fakeKernel) map[string][]map[uint16][]byte {
	got := map[string][]map[uint16][]byte{}
	for _, m := range k.got {
		a := attributes(t, m.Data[min(4, len(m.Data)):])
		if m.Header.Type != nftMessage(unix.NFT_MSG_NEWRULE) || text(a[unix.NFTA_RULE_TABLE]) != DefaultTable {
			continue
		}
		for _, e := range list(t, a[unix.NFTA_RULE_EXPRESSIONS]) {
			if e := attributes(t, e); text(e[unix.NFTA_EXPR_NAME]) == "match" {
				chain := text(a[unix.NFTA_RULE_CHAIN])
				got[chain] = append(got[chain], attributes(t, e[unix.NFTA_EXPR_DATA]))
			}
		}
	}
	return got
}

// TestRecordMissing installs where the program cannot be run: all but its rule
// is put in, and the reason is told.
func TestRecordMissing(t *testing.T) {
	refused := func(errno unix.Errno) fakeKernel {
		refuse := refuseRules("match")
		return fakeKernel{refuse: func(m netlink.Message) unix.Errno {
			if refuse(m) != 0 {
				return errno
			}
			return 0
		}}
	}
	tests := []struct {
		name   string
		kernel fakeKernel
		change func(*Config)
		want   string
	}{
		{"no match in the kernel", refused(unix.ENOENT), nil, "modprobe -a nft_compat xt_bpf"},
		{"no program", refused(unix.EBADF), nil, "descriptor 7 is no BPF program"},
		{"program of another type", refused(unix.EINVAL), nil, "descriptor 7 is no BPF program"},
		{"refused otherwise", refused(unix.ENOMEM), nil, "cannot allocate memory"},
		{"not asked for", fakeKernel{}, func(c *Config) { c.Record = 0 }, ""},
		{"hooks that nobody sends at", fakeKernel{}, func(c *Config) { c.Hooks = c.Hooks[:3] }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := recordConfig()
			if tt.change != nil {
				tt.change(&c)
			}
			r, err := install(c, tt.kernel.dial)
			if err != nil {
				t.Fatal(err)
			}
			on, err := r.Recording()
			if on || (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("recording: got %v, error %v, want false and %q", on, err, tt.want)
			}
			if got := sentMatches(t, tt.kernel); len(got) > 0 {
				t.Errorf("got matches in %v, want none", got)
			}
		})
	}
}

func TestRecordBadConfig(t *testing.T) {
	for _, tt := range []struct {
		fd        int
		pin, want string
	}{
		{-1, "", "-1 is no file descriptor"},
		{0, "bpf/p", "pinned program"},
		{0, "/a b", "pinned program"},
		{0, "/a\nCOMMIT", "pinned program"},
		{0, "/" + strings.Repeat("p", 511), "pinned program"},
	} {
		_, err := Plan(Config{Hooks: []Hook{Output}, Record: tt.fd, RecordPin: tt.pin})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%d, %q: got error %v, want %q", tt.fd, tt.pin, err, tt.want)
		}
	}
}
