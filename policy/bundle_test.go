package policy_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/open-policy-agent/opa/v1/bundle"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

// listPolicy drops what data.blocked has. Its test holds for lists that have
// 192.0.2.1.
const listPolicy = `package verdictd

verdict := "drop" if data.blocked[input.ip.src]

verdict := "accept" if not data.blocked[input.ip.src]

test_listed if verdict == "drop" with input.ip.src as "192.0.2.1"
`

// packer makes bundles with more than a file map can say.
type packer struct {
	t  testing.TB
	b  bytes.Buffer
	zw *gzip.Writer
	tw *tar.Writer
}

func newPacker(t testing.TB) *packer {
	p := &packer{t: t}
	p.zw = gzip.NewWriter(&p.b)
	p.tw = tar.NewWriter(p.zw)
	return p
}

func (p *packer) add(h tar.Header, content string) *packer {
	p.t.Helper()
	h.Mode = 0o644
	if h.Size == 0 {
		h.Size = int64(len(content))
	}
	if err := p.tw.WriteHeader(&h); err != nil {
		p.t.Fatal(err)
	}
	if _, err := io.WriteString(p.tw, content); err != nil {
		p.t.Fatal(err)
	}
	return p
}

func (p *packer) close() []byte {
	p.t.Helper()
	if err := errors.Join(p.tw.Close(), p.zw.Close()); err != nil {
		p.t.Fatal(err)
	}
	return p.b.Bytes()
}

type contents map[string]string

// with returns the files and one more, or another in the place of one.
func (c contents) with(name, content string) contents {
	c = maps.Clone(c)
	c[name] = content
	return c
}

func (c contents) without(name string) contents {
	c = maps.Clone(c)
	delete(c, name)
	return c
}

// pack returns a bundle of files.
func pack(t testing.TB, files contents) []byte {
	t.Helper()
	p := newPacker(t)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		p.add(tar.Header{Name: name}, files[name])
	}
	return p.close()
}

// list returns the files of a bundle of listPolicy.
func list(revision string, addrs ...string) contents {
	set := map[string]bool{"192.0.2.1": true}
	for _, a := range addrs {
		set[a] = true
	}
	data, _ := json.Marshal(map[string]any{"blocked": set}) // strings and booleans
	return contents{
		"/policy.rego": listPolicy, "/data.json": string(data),
		"/.manifest": `{"revision": "` + revision + `", "roots": ["verdictd", "blocked"]}`,
	}
}

// bundleFile writes a bundle to a new file.
func bundleFile(t testing.TB, packed []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "b.tar.gz")
	if err := os.WriteFile(path, packed, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// drops returns whether the policy drops packets from src.
func drops(t testing.TB, p *policy.Policy, src string) bool {
	t.Helper()
	var d rules.Decision
	if err := p.Evaluate(facts(packet.ProtoUDP, src+":1", "203.0.113.9:2"), &d); err != nil {
		t.Fatal(err)
	}
	return d.Action == packet.Drop
}

func TestBundle(t *testing.T) {
	files := list("r7", "192.0.2.9").with("/sub/dir/data.yaml", "x: [1]\n").with("/other.json", "not read by OPA either").
		with("/.manifest", `{"revision": "r7"}`)
	path := bundleFile(t, pack(t, files))
	p := load(t, policy.Source{Path: path})
	if got := p.Origin(); got != (policy.Origin{Revision: "r7"}) {
		t.Errorf("origin: got %+v, want revision r7", got)
	}
	for src, want := range map[string]bool{"192.0.2.1": true, "192.0.2.9": true, "192.0.2.2": false} {
		if got := drops(t, p, src); got != want {
			t.Errorf("drops %s: got %v, want %v", src, got, want)
		}
	}
	again := load(t, policy.Source{FS: fstest.MapFS{"x.tgz": {Data: pack(t, files)}}, Path: "x.tgz"})
	if again.Hash() != p.Hash() {
		t.Errorf("the same files in another archive: got hash %s, want %s", again.Hash(), p.Hash())
	}
	later := load(t, policy.Source{Path: bundleFile(t, pack(t, files.with("/.manifest", `{"revision": "r8"}`)))})
	if later.Hash() == p.Hash() {
		t.Error("another revision has the same hash")
	}
}

// TestBundleOfRules reads a bundle of a rules file that includes another.
func TestBundleOfRules(t *testing.T) {
	files := contents{
		"/rules.yaml":      "include: [sets/bad.yaml]\ndefault: accept\nrules:\n  - name: bad\n    verdict: drop\n    from: $bad\n",
		"/sets/bad.yaml":   "sets:\n  bad: [192.0.2.1]\n",
		"/other/unus.yaml": "neither data nor rules\n",
		"/data.json":       "{}",
	}
	p := load(t, policy.Source{Path: bundleFile(t, pack(t, files))})
	if !drops(t, p, "192.0.2.1") || drops(t, p, "192.0.2.2") {
		t.Error("the rules do not hold")
	}
	_, h := serve(t, pack(t, files), "")
	if p := load(t, remote(t, h.URL)); !drops(t, p, "192.0.2.1") {
		t.Error("the rules do not hold when they are on a server")
	}
	_, err := policy.Load(context.Background(), policy.Source{Path: bundleFile(t, pack(t, files.without("/sets/bad.yaml")))})
	wantError(t, err, "b.tar.gz/rules.yaml:1:")
}

// TestBundleOfOPA reads a bundle as OPA writes and signs it.
func TestBundleOfOPA(t *testing.T) {
	key := ecKey(t)
	b, err := bundle.NewReader(bytes.NewReader(pack(t, list("r1")))).Read()
	must(t, err)
	must(t, b.GenerateSignature(bundle.NewSigningConfig(key.private, "ES256", ""), "", false))
	var packed bytes.Buffer
	must(t, bundle.NewWriter(&packed).DisableFormat(true).Write(b))
	src := policy.Source{Path: bundleFile(t, packed.Bytes())}
	src.Bundle.Key = policy.BundleKey{Key: key.public, Algorithm: "ES256"}
	if p := load(t, src); p.Origin().Revision != "r1" {
		t.Errorf("revision: got %q, want r1", p.Origin().Revision)
	}
}

// sparse returns a bundle of n files of 60 MiB that are one hole each, in a
// format of GNU tar: their headers say so, and nothing is stored.
func sparse(t *testing.T, n int) []byte {
	t.Helper()
	var archive bytes.Buffer
	block := func(name string, kind byte, content string) {
		var h [512]byte
		copy(h[:], name)
		copy(h[100:], "0000644\x00")
		copy(h[124:], fmt.Sprintf("%011o\x00", len(content)))
		h[156] = kind
		copy(h[257:], "ustar\x0000")
		copy(h[148:], "        ")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		archive.Write(h[:])
		archive.WriteString(content + strings.Repeat("\x00", -len(content)&511))
	}
	for i := range n {
		records := ""
		for _, r := range []string{"major=0", "minor=1", fmt.Sprintf("size=%d", 60<<20), "numblocks=1", fmt.Sprintf("map=%d,0", 60<<20)} {
			r = " GNU.sparse." + r + "\n"
			records += fmt.Sprint(len(r)+2) + r
		}
		block("pax", tar.TypeXHeader, records)
		block(fmt.Sprintf("%d.json", i), tar.TypeReg, "")
	}
	archive.Write(make([]byte, 1024))
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	if _, err := zw.Write(archive.Bytes()); err != nil {
		t.Fatal(err)
	}
	must(t, zw.Close())
	return b.Bytes()
}

func TestBadBundles(t *testing.T) {
	good := list("r1")
	packed := pack(t, good)
	flipped := bytes.Clone(packed)
	flipped[len(flipped)-5] ^= 1 // of the checksum
	// Zeros after the archive's end: one MiB, again and again.
	var zeros bytes.Buffer
	zw := gzip.NewWriter(&zeros)
	_, _ = zw.Write(make([]byte, 1<<20)) // to memory
	must(t, zw.Close())
	bomb := append(bytes.Clone(packed), bytes.Repeat(zeros.Bytes(), 257)...)
	tests := []struct {
		name   string
		packed []byte
		want   string
	}{
		{"empty", nil, "b.tar.gz: is not a gzipped tar archive: it is cut short (give an OPA bundle"},
		{"text", []byte("package verdictd"), "is not a gzipped tar archive"},
		{"cut short", packed[:len(packed)/2], "read archive: it is cut short"},
		{"cut at the end", packed[:len(packed)-1], "read archive: it is cut short"},
		{"checksum", flipped, "read archive: invalid checksum"},
		{"sparse files", sparse(t, 5), "is larger than 256 MiB when unpacked"},
		{"bomb", bomb, "is larger than 256 MiB when unpacked"},
		{"big file", newPacker(t).add(tar.Header{Name: "data.json", Size: 65 << 20}, "").b.Bytes(), "cut short"},
		{"no policy", pack(t, contents{"/data.json": "{}"}), "holds no policy"},
		{"path upward", pack(t, good.with("../../etc/x.rego", "")), `holds a file with the name "../../etc/x.rego"`},
		{"backslash", pack(t, good.with(`a\b.rego`, "")), `holds a file with the name "a\\b.rego"`},
		{"twice", pack(t, good.with("./policy.rego", dropping)), "b.tar.gz/policy.rego: is in the bundle twice"},
		{"link", newPacker(t).add(tar.Header{Name: "p.rego", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, "").close(), "b.tar.gz/p.rego: is not a regular file (a bundle holds plain files only)"},
		{"syntax", pack(t, good.with("/x/y.rego", "package x\n\nrule := {\n")), "b.tar.gz/x/y.rego:4:"},
		{"type", pack(t, good.with("/policy.rego", broken)), "b.tar.gz/policy.rego:3:22: input.tcp.dprot does not exist"},
		{"forbidden function", pack(t, good.with("/policy.rego", "package verdictd\n\nverdict := http.send({}).body\n")), "b.tar.gz/policy.rego:3:"},
		{"data", pack(t, good.with("/data.json", "{")), "b.tar.gz: bundle refused: bundle load failed on"},
		{"not UTF-8", pack(t, good.with("/policy.rego", "package verdictd\n# \xff\nverdict := \"drop\"\n")), "policy.rego:2:3: not UTF-8 text"},
		{"roots", pack(t, good.with("/.manifest", `{"roots": ["verdictd"]}`)), "manifest roots [verdictd] do not permit data at path '/blocked'"},
		{"roots of rules", pack(t, good.with("/.manifest", `{"roots": ["blocked"]}`)), "do not permit 'package verdictd'"},
		{"manifest", pack(t, good.with("/.manifest", `{`)), "manifest decode"},
		{"conflict", pack(t, good.with("/.manifest", `{}`).with("/data.json", `{"blocked": {}, "verdictd": {"verdict": "drop"}}`)), "verdict"},
		{"version 0", pack(t, good.with("/.manifest", `{"rego_version": 0}`).with("/policy.rego", "package verdictd\n\nverdict = \"drop\" { true }\n")), "policy.rego is in version 0 of Rego (opa fmt"},
		{"wasm", pack(t, good.with("/policy.wasm", "\x00asm")), "holds WebAssembly, which is not run"},
		{"delta", pack(t, contents{"/patch.json": `{"data": [{"op": "upsert", "path": "/blocked", "value": {}}]}`}), "is a delta bundle"},
		{"test fails", pack(t, good.with("/data.json", `{"blocked": {}}`)), "test_listed fails"},
		{"signed, no key", pack(t, sign(t, good, ecKey(t).private, "ES256", "", "")), "verification key not provided (the bundle is signed: give the key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := policy.Load(context.Background(), policy.Source{Path: bundleFile(t, tt.packed)})
			wantError(t, err, tt.want)
		})
	}
}

// wantError checks that err has the text and, being a policy's fault, is Errors.
func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if _, ok := errors.AsType[policy.Errors](err); !ok || !strings.Contains(err.Error(), want) {
		t.Errorf("got %T %v, want %q", err, err, want)
	}
}

// TestWatchBundleFile changes a bundle in a file.
func TestWatchBundleFile(t *testing.T) {
	path := bundleFile(t, pack(t, list("r1")))
	changes, _ := startWatch(t, path, hashOf(t, path))
	replace := func(packed []byte) {
		t.Helper()
		must(t, os.WriteFile(path+".new", packed, 0o644))
		must(t, os.Rename(path+".new", path))
	}
	replace(pack(t, list("r2")))
	if c := next(t, changes); c.err != nil || c.policy.Origin().Revision != "r2" {
		t.Fatalf("got %v, want revision r2", c.err)
	}
	replace(pack(t, list("r3"))[:100])
	if c := next(t, changes); c.err == nil || !strings.Contains(c.err.Error(), "cut short") {
		t.Fatalf("got %v, want that it is cut short", c.err)
	}
	replace(pack(t, list("r1")))
	if c := next(t, changes); c.err != nil || c.policy.Origin().Revision != "r1" {
		t.Fatalf("got %v, want revision r1 again", c.err)
	}
}
