package hook

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// fakeKernel answers netlink requests without a kernel: dumps are empty, and a
// request is refused when refuse returns an error number for it.
type fakeKernel struct {
	refuse func(netlink.Message) unix.Errno
	got    []netlink.Message
}

func (f *fakeKernel) dial(int) (*kernel, error) {
	conn, err := nftables.New(nftables.WithTestDial(f.answer))
	return &kernel{conn: conn}, err
}

func (f *fakeKernel) answer(req []netlink.Message) ([]netlink.Message, error) {
	f.got = append(f.got, req...)
	var answers []netlink.Message
	for _, m := range req {
		var errno unix.Errno
		if f.refuse != nil {
			errno = f.refuse(m)
		}
		if errno == 0 && m.Header.Flags&netlink.Acknowledge == 0 {
			continue
		}
		a := netlink.Message{Header: m.Header, Data: binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno)))}
		a.Header.Type, a.Header.Flags = netlink.Error, 0
		answers = append(answers, a)
	}
	return answers, nil
}

// refuseRules refuses rules that contain one of the expressions.
func refuseRules(exprs ...string) func(netlink.Message) unix.Errno {
	return func(m netlink.Message) unix.Errno {
		for _, e := range exprs {
			if m.Header.Type == nftMessage(unix.NFT_MSG_NEWRULE) && strings.Contains(string(m.Data), e+"\x00") {
				return unix.ENOENT
			}
		}
		return 0
	}
}

func nftMessage(n uint16) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | n)
}

// TestMessages compares the rules sent to a kernel that has the queue expression
// with what nft itself sends for the text of the plan. The golden files are
// the output of: nft --debug=netlink -c -f NAME.nft > NAME.netlink
func TestMessages(t *testing.T) {
	for _, tt := range goldenTests() {
		t.Run(tt.name, func(t *testing.T) {
			var k fakeKernel
			r, err := install(tt.config, k.dial)
			if err != nil {
				t.Fatal(err)
			}
			if !r.Native() {
				t.Error("the queue expression is not used, though the kernel takes it")
			}
			want, err := os.ReadFile(filepath.Join("testdata", tt.name+".netlink"))
			if err != nil {
				t.Fatal(err)
			}
			got := debugRules(t, r.Config().Table, k.got)
			if diff := cmp.Diff(onlyRules(string(want)), got); diff != "" {
				t.Errorf("rules differ from nft's (-nft +got):\n%s", diff)
			}
		})
	}
}

// onlyRules drops from nft's output the lines about tables, chains and objects.
func onlyRules(debug string) string {
	var w strings.Builder
	for line := range strings.Lines(debug) {
		if !strings.Contains(line, "(null)") {
			w.WriteString(line)
		}
	}
	return w.String()
}

// debugRules writes the rules of a table in the notation of nft --debug=netlink.
// It reads the bytes on its own, not with the library that made them.
func debugRules(t *testing.T, table string, msgs []netlink.Message) string {
	var w strings.Builder
	for _, m := range msgs {
		a := attributes(t, m.Data[min(4, len(m.Data)):])
		if m.Header.Type != nftMessage(unix.NFT_MSG_NEWRULE) || text(a[unix.NFTA_RULE_TABLE]) != table {
			continue
		}
		family := map[byte]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}[m.Data[0]]
		fmt.Fprintf(&w, "%s %s %s\n", family, table, text(a[unix.NFTA_RULE_CHAIN]))
		for _, e := range list(t, a[unix.NFTA_RULE_EXPRESSIONS]) {
			e := attributes(t, e)
			fmt.Fprintf(&w, "  [ %s ]\n", debugExpr(t, text(e[unix.NFTA_EXPR_NAME]), attributes(t, e[unix.NFTA_EXPR_DATA])))
		}
		comment := a[unix.NFTA_RULE_USERDATA]
		fmt.Fprintf(&w, "  userdata = { \\x%02x%s%s\\x00 }\n", comment[0], debugByte(comment[1]), comment[2:len(comment)-1])
	}
	return w.String()
}

func debugByte(b byte) string {
	if b >= 0x20 && b < 0x7f {
		return string(rune(b))
	}
	return fmt.Sprintf("\\x%02x", b)
}

func debugExpr(t *testing.T, name string, a map[uint16][]byte) string {
	n := func(attr uint16) uint32 { return number(a[attr]) }
	switch name {
	case "meta":
		key := map[uint32]string{unix.NFT_META_IIF: "iif", unix.NFT_META_OIF: "oif", unix.NFT_META_MARK: "mark", unix.NFT_META_NFPROTO: "nfproto", unix.NFT_META_L4PROTO: "l4proto", unix.NFT_META_PKTTYPE: "pkttype", uint32(metaIIFKind): "iifkind", uint32(metaTime): "time"}
		if a[unix.NFTA_META_SREG] != nil {
			return fmt.Sprintf("meta set %s with reg %d", key[n(unix.NFTA_META_KEY)], n(unix.NFTA_META_SREG))
		}
		return fmt.Sprintf("meta load %s => reg %d", key[n(unix.NFTA_META_KEY)], n(unix.NFTA_META_DREG))
	case "byteorder":
		return fmt.Sprintf("byteorder reg %d = hton(reg %d, %d, %d)", n(unix.NFTA_BYTEORDER_DREG), n(unix.NFTA_BYTEORDER_SREG), n(unix.NFTA_BYTEORDER_SIZE), n(unix.NFTA_BYTEORDER_LEN))
	case "ct":
		key := map[uint32]string{unix.NFT_CT_STATE: "state", unix.NFT_CT_MARK: "mark", unix.NFT_CT_DIRECTION: "direction", unix.NFT_CT_STATUS: "status"}
		if a[unix.NFTA_CT_SREG] != nil {
			return fmt.Sprintf("ct set %s with reg %d", key[n(unix.NFTA_CT_KEY)], n(unix.NFTA_CT_SREG))
		}
		return fmt.Sprintf("ct load %s => reg %d", key[n(unix.NFTA_CT_KEY)], n(unix.NFTA_CT_DREG))
	case "fib":
		if n(unix.NFTA_FIB_FLAGS) != unix.NFTA_FIB_F_DADDR || n(unix.NFTA_FIB_RESULT) != unix.NFT_FIB_RESULT_ADDRTYPE {
			return "another fib"
		}
		return fmt.Sprintf("fib daddr type => reg %d", n(unix.NFTA_FIB_DREG))
	case "notrack":
		return "notrack"
	case "payload":
		base := map[uint32]string{unix.NFT_PAYLOAD_NETWORK_HEADER: "network", unix.NFT_PAYLOAD_TRANSPORT_HEADER: "transport"}
		return fmt.Sprintf("payload load %db @ %s header + %d => reg %d", n(unix.NFTA_PAYLOAD_LEN), base[n(unix.NFTA_PAYLOAD_BASE)], n(unix.NFTA_PAYLOAD_OFFSET), n(unix.NFTA_PAYLOAD_DREG))
	case "bitwise":
		return fmt.Sprintf("bitwise reg %d = ( reg %d & %s ) ^ %s", n(unix.NFTA_BITWISE_DREG), n(unix.NFTA_BITWISE_SREG), data(t, a[unix.NFTA_BITWISE_MASK]), data(t, a[unix.NFTA_BITWISE_XOR]))
	case "cmp":
		op := map[uint32]string{unix.NFT_CMP_EQ: "eq", unix.NFT_CMP_NEQ: "neq", unix.NFT_CMP_GTE: "gte", unix.NFT_CMP_LTE: "lte"}
		return fmt.Sprintf("cmp %s reg %d %s", op[n(unix.NFTA_CMP_OP)], n(unix.NFTA_CMP_SREG), data(t, a[unix.NFTA_CMP_DATA]))
	case "counter":
		return fmt.Sprintf("counter pkts %d bytes %d", binary.BigEndian.Uint64(a[unix.NFTA_COUNTER_PACKETS]), binary.BigEndian.Uint64(a[unix.NFTA_COUNTER_BYTES]))
	case "objref":
		return fmt.Sprintf("objref type %d name %s", n(unix.NFTA_OBJREF_IMM_TYPE), text(a[unix.NFTA_OBJREF_IMM_NAME]))
	case "immediate":
		v := attributes(t, attributes(t, a[unix.NFTA_IMMEDIATE_DATA])[unix.NFTA_DATA_VERDICT])
		chain := text(v[unix.NFTA_VERDICT_CHAIN])
		verdict := map[uint32]string{0: "drop", 1: "accept", 0xfffffffd: "jump -> " + chain, 0xfffffffc: "goto -> " + chain, 0xfffffffb: "return"}
		return fmt.Sprintf("immediate reg %d %s", n(unix.NFTA_IMMEDIATE_DREG), verdict[number(v[unix.NFTA_VERDICT_CODE])])
	case "reject":
		return fmt.Sprintf("reject type %d code %d", n(unix.NFTA_REJECT_TYPE), n(unix.NFTA_REJECT_ICMP_CODE))
	case "queue":
		s := "queue num " + queueRange(uint16(n(unix.NFTA_QUEUE_NUM)), uint16(n(unix.NFTA_QUEUE_TOTAL)))
		for bit, word := range []string{" bypass", " fanout"} {
			if n(unix.NFTA_QUEUE_FLAGS)&(1<<bit) != 0 {
				s += word
			}
		}
		return s
	}
	return "unknown " + name
}

func attributes(t *testing.T, b []byte) map[uint16][]byte {
	t.Helper()
	a := make(map[uint16][]byte)
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		t.Fatal(err)
	}
	for ad.Next() {
		a[ad.Type()] = ad.Bytes()
	}
	if err := ad.Err(); err != nil {
		t.Fatal(err)
	}
	return a
}

func list(t *testing.T, b []byte) (elems [][]byte) {
	t.Helper()
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		t.Fatal(err)
	}
	for ad.Next() {
		elems = append(elems, ad.Bytes())
	}
	return elems
}

func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// number reads a big-endian attribute of 16 or 32 bits.
func number(b []byte) uint32 {
	var n uint32
	for _, c := range b {
		n = n<<8 | uint32(c)
	}
	return n
}

// data writes a register value as nft does: words in host byte order, the last one
// padded.
func data(t *testing.T, b []byte) string {
	var words []string
	for word := range slices.Chunk(attributes(t, b)[unix.NFTA_DATA_VALUE], 4) {
		words = append(words, fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32(append(word[:len(word):len(word)], 0, 0, 0))))
	}
	return strings.Join(words, " ")
}

// TestFallback checks the target that stands in for the queue expression byte
// by byte: struct xt_NFQ_info_v3, padded to 8.
func TestFallback(t *testing.T) {
	k := fakeKernel{refuse: refuseRules("queue")}
	r, err := install(Config{Hooks: []Hook{Output}, QueueFirst: 258, QueueLast: 261, Bypass: true, Fanout: true}, k.dial)
	if err != nil {
		t.Fatal(err)
	}
	if r.Native() {
		t.Error("the queue expression is said to be used, though the kernel lacks it")
	}
	var got []map[uint16][]byte
	for _, m := range k.got {
		a := attributes(t, m.Data[min(4, len(m.Data)):])
		if m.Header.Type != nftMessage(unix.NFT_MSG_NEWRULE) || text(a[unix.NFTA_RULE_TABLE]) != DefaultTable {
			continue
		}
		for _, e := range list(t, a[unix.NFTA_RULE_EXPRESSIONS]) {
			if e := attributes(t, e); text(e[unix.NFTA_EXPR_NAME]) == "target" {
				got = append(got, attributes(t, e[unix.NFTA_EXPR_DATA]))
			}
		}
	}
	var info []byte
	for _, n := range []uint16{258, 4, 1 | 2, 0} {
		info = binary.NativeEndian.AppendUint16(info, n)
	}
	want := []map[uint16][]byte{{
		unix.NFTA_TARGET_NAME: []byte("NFQUEUE\x00"),
		unix.NFTA_TARGET_REV:  {0, 0, 0, 3},
		unix.NFTA_TARGET_INFO: info,
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("targets (-want +got):\n%s", diff)
	}
}

// TestMissing checks that errors name what a kernel lacks and how to get it.
func TestMissing(t *testing.T) {
	always := func(errno unix.Errno, types ...uint16) func(netlink.Message) unix.Errno {
		return func(m netlink.Message) unix.Errno {
			for _, n := range types {
				if m.Header.Type == nftMessage(n) {
					return errno
				}
			}
			return 0
		}
	}
	tests := []struct {
		name   string
		refuse func(netlink.Message) unix.Errno
		want   []string
		is     error
	}{
		{"rights", always(unix.EPERM, unix.NFT_MSG_GETTABLE), []string{"install table inet verdictd", "(needs CAP_NET_ADMIN)"}, os.ErrPermission},
		{"rights for the change", always(unix.EPERM, unix.NFT_MSG_NEWTABLE), []string{"(needs CAP_NET_ADMIN)"}, os.ErrPermission},
		{"nf_tables", always(unix.EINVAL, unix.NFT_MSG_GETTABLE), []string{"no nf_tables", "modprobe nf_tables"}, unix.EINVAL},
		{"inet family", always(unix.EOPNOTSUPP, unix.NFT_MSG_NEWTABLE), []string{"no nf_tables family inet", "CONFIG_NF_TABLES_INET"}, unix.EOPNOTSUPP},
		{"conntrack", refuseRules("ct"), []string{"no conntrack expression", "modprobe nft_ct"}, nil},
		{"queue and target", refuseRules("queue", "target"), []string{"neither the queue expression nor the NFQUEUE target", "modprobe nft_queue", "nft_compat xt_NFQUEUE"}, nil},
		{"probe table in use", always(unix.EEXIST, unix.NFT_MSG_NEWTABLE), []string{"table verdictd.probe"}, unix.EEXIST},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := fakeKernel{refuse: tt.refuse}
			_, err := install(Config{Hooks: []Hook{Output}}, k.dial)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got error %q, want one with %q", err, want)
				}
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %q does not wrap %v", err, tt.is)
			}
		})
	}
}
