package config_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/verdictd/verdictd/config"
)

func TestParse(t *testing.T) {
	got, err := config.Parse("v.yaml", []byte(`
# queues
queue: 0-3,8
policy: /etc/verdictd/policy.rego
mode: enforce
fail: closed
malformed: accept
hook: output,input
loopback: true
strict-neighbour: true
nflog-group: 5
flows: 1000
queue-length: 100
copy-range: 128
spin: 50us
engine: topdown
policy-budget: 10ms
bundle:
  key: /etc/verdictd/bundle.pem
  key-id: k1
  alg: ES256
  scope: edge
  ca: ca.pem
  cert: cert.pem
  cert-key: key.pem
  token-file: token
  min-interval: 10s
  max-interval: 20s
  timeout: 5s
  last-good: none
log:
  file: "/var/log/eve.json"
  pretty: true
  max-size: 100MiB
  keep: 3
`))
	if err != nil {
		t.Fatal(err)
	}
	want := config.Config{
		Queues: config.Queues{0, 1, 2, 3, 8}, Policy: "/etc/verdictd/policy.rego", Mode: "enforce", Fail: "closed", Malformed: "accept",
		Hook: "output,input", Loopback: true, StrictND: true, NFLogGroups: config.Groups{5},
		Flows: 1000, QueueLength: 100, CopyRange: 128, Spin: "50us", Engine: "topdown", PolicyBudget: "10ms",
		Bundle: config.Bundle{
			Key: "/etc/verdictd/bundle.pem", KeyID: "k1", Alg: "ES256", Scope: "edge", CA: "ca.pem", Cert: "cert.pem", CertKey: "key.pem",
			TokenFile: "token", MinInterval: "10s", MaxInterval: "20s", Timeout: "5s", LastGood: "none",
		},
		Log: config.Log{File: "/var/log/eve.json", Pretty: true, MaxSize: 100 << 20, Keep: 3},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"empty", "", ""},
		{"comment only", "# nothing\n", ""},
		{"unknown key", "queue: 0\npolcy: x\n", `v.yaml:2:1: unknown key "polcy" (did you mean policy?)`},
		{"unknown key below", "log:\n  fil: x\n", `v.yaml:2:3: unknown key "fil" (did you mean file?)`},
		{"underscore", "queue_length: 5\n", `v.yaml:1:1: unknown key "queue_length" (did you mean queue-length?)`},
		{"list for a text", "hook: [output, input]\n", `v.yaml:1:7: a list: want a text, with commas between its parts: output,input`},
		{"text for settings", "log: /var/log/x\n", `v.yaml:1:6: "/var/log/x": this key has settings below it, each on an indented line of its own, such as file: /var/log/x below log`},
		{"empty section", "log:\n  # keep: 5\n", ""},
		{"zero", "queue-length: 0\n", "v.yaml: queue-length: 0 is no value (leave it out for the default)"},
		{"repeated key", "queue: 0\nqueue: 1\n", `v.yaml:2:1: mapping key "queue" already defined at [1:1]`},
		{"syntax", "queue: [0\n", `v.yaml:1:8: sequence end token ']' not found`},
		{"bad queue", "queue: x\n", `v.yaml:1:8: queue "x": want a number from 0 to 65535, or a range such as 0-3`},
		{"bad size", "log:\n  max-size: 5MB # comment\n", `v.yaml:2:13: size "5MB": want a number of bytes, or one with KiB, MiB or GiB`},
		{"wrong type", "flows: many\n", `v.yaml:1:8: "many": want a number`},
		{"wrong type below", "log:\n  pretty: 3\n", `v.yaml:2:11: "3": want true or false`},
		{"two documents", "queue: 0\n---\nqueue: 1\n", "v.yaml: more than one YAML document (put all settings into one)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.Parse("v.yaml", []byte(tt.text))
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestQueues(t *testing.T) {
	tests := []struct{ text, want string }{
		{"0", "0"},
		{"0-3", "0-3"},
		{"3,0,1", "3,0-1"},
		{"65535", "65535"},
		{"", `queue "": want a number from 0 to 65535, or a range such as 0-3`},
		{"-1", `queue "-1": want a number from 0 to 65535, or a range such as 0-3`},
		{"65536", `queue "65536": want a number from 0 to 65535, or a range such as 0-3`},
		{"3-1", `queue "3-1": want a number from 0 to 65535, or a range such as 0-3`},
		{"1,0-1", "queue 1 is given twice"},
		{"0-9999", `queue "0-9999": more than 256`},
	}
	for _, tt := range tests {
		var q config.Queues
		got := ""
		if err := q.Set(tt.text); err != nil {
			got = err.Error()
		} else {
			got = q.String()
		}
		if got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.text, got, tt.want)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "512": 512, "64KiB": 64 << 10, "100 MiB": 100 << 20, "2GiB": 2 << 30} {
		var s config.Size
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("%q: got %d, %v; want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "-1", "1MB", "9999999999GiB", "x"} {
		var s config.Size
		if err := s.Set(text); err == nil {
			t.Errorf("%q: got %d, want an error", text, s)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("queue: 0-3\nlog: {file: x}\n"))
	f.Add([]byte("log: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		config.Parse("v.yaml", data)
	})
}
