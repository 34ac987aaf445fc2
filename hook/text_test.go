package hook

import (
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

// TestForeignRules prints rules that are not ours: somebody may have added them
// to our table. Nothing in them may be taken for something else.
func TestForeignRules(t *testing.T) {
	meta := &expr.Meta{Key: expr.MetaKeyMARK, Register: 1}
	tests := []struct {
		name  string
		exprs []expr.Any
		udata []byte
		want  string
	}{
		{"unknown expression", []expr.Any{&expr.Masq{}}, nil, "<*expr.Masq>"},
		{"unknown meta key", []expr.Any{&expr.Meta{Key: expr.MetaKeySKUID, Register: 1}, equal([]byte{1, 0, 0})}, nil, "<meta 10> <010000>"},
		{"unknown ct key", []expr.Any{&expr.Ct{Key: expr.CtKeyZONE, Register: 1}, equal([]byte{7})}, nil, "<ct 17> 7"},
		{"unknown comparison", []expr.Any{meta, &expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: []byte{9}}}, nil, "<meta mark op 2 09>"},
		{"not equal", []expr.Any{meta, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{9}}}, nil, "<meta mark op 1 09>"},
		{"raw payload", []expr.Any{&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 9, Len: 1, DestRegister: 1}, equal([]byte{6})}, nil, "@1,72,8 6"},
		{"verdicts", []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}, &expr.Verdict{Kind: expr.VerdictReturn}, &expr.Verdict{Kind: expr.VerdictGoto, Chain: "x"}, &expr.Verdict{Kind: expr.VerdictBreak}}, nil, "drop return goto x <verdict -2>"},
		{"other target", []expr.Any{&expr.Target{Name: "LOG", Info: &xt.Unknown{}}}, nil, "<xt target LOG>"},
		{"short NFQUEUE", []expr.Any{&expr.Target{Name: "NFQUEUE", Rev: 3, Info: &xt.Unknown{1, 0, 1}}}, nil, "<xt target NFQUEUE>"},
		{"comment after another record", nil, []byte("\x07\x01z\x00\x03hi\x00"), `comment "hi"`},
		{"comment cut short", nil, []byte("\x00\x09hi"), ""},
		{"one byte of user data", nil, []byte{0}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := ruleText(&nftables.Rule{Exprs: tt.exprs, UserData: tt.udata}, false); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
