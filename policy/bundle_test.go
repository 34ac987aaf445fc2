package policy_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
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

// keyPair is a key in PEM, private and public.
type keyPair struct{ private, public string }

func ecKey(t testing.TB) keyPair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return newPair(t, key, &key.PublicKey)
}

func newPair(t testing.TB, private, public any) keyPair {
	t.Helper()
	priv, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return keyPair{
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: priv})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub})),
	}
}

// sign returns the files and a signature of them, made by OPA.
func sign(t *testing.T, files contents, private, alg, id, scope string) contents {
	t.Helper()
	claims := filepath.Join(t.TempDir(), "claims.json")
	write(t, claims, `{"scope": "`+scope+`"}`)
	b, err := bundle.NewReader(bytes.NewReader(pack(t, files))).Read()
	if err != nil {
		t.Fatal(err)
	}
	var infos []bundle.FileInfo
	for name, content := range files {
		var value any = []byte(content)
		if bundle.IsStructuredDoc(name) {
			if err := json.Unmarshal([]byte(content), &value); err != nil {
				t.Fatal(err)
			}
		}
		hasher, err := bundle.NewSignatureHasher(bundle.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		sum, err := hasher.HashFile(value)
		if err != nil {
			t.Fatal(err)
		}
		infos = append(infos, bundle.NewFile(strings.TrimPrefix(name, "/"), hex.EncodeToString(sum), "SHA-256"))
	}
	token, err := bundle.GenerateSignedToken(infos, bundle.NewSigningConfig(private, alg, claims), id)
	if err != nil {
		t.Fatal(err)
	}
	b.Signatures = bundle.SignaturesConfig{Signatures: []string{token}}
	text, err := json.Marshal(b.Signatures)
	if err != nil {
		t.Fatal(err)
	}
	return files.with("/.signatures.json", string(text))
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
		{"bomb", bomb, "is larger than 256 MiB when unpacked"},
		{"big file", newPacker(t).add(tar.Header{Name: "data.json", Size: 65 << 20}, "").b.Bytes(), "cut short"},
		{"no policy", pack(t, contents{"/data.json": "{}"}), "holds no policy"},
		{"path upward", pack(t, good.with("../../etc/x.rego", "")), `holds a file with the name "../../etc/x.rego"`},
		{"backslash", pack(t, good.with(`a\b.rego`, "")), `holds a file with the name "a\\b.rego"`},
		{"twice", pack(t, good.with("./policy.rego", dropping)), "b.tar.gz/policy.rego: is in the bundle twice"},
		{"link", newPacker(t).add(tar.Header{Name: "p.rego", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, "").close(), "b.tar.gz/p.rego: is not a regular file (a bundle holds no links)"},
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

func TestBundleSignatures(t *testing.T) {
	ec, other := ecKey(t), ecKey(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	rs := newPair(t, rsaKey, &rsaKey.PublicKey)
	dir := t.TempDir()
	write(t, dir+"/secret", "a secret of some length, for HMAC\n")
	write(t, dir+"/ec.pem", ec.public)
	good := list("r1")
	signed := sign(t, good, ec.private, "ES256", "k1", "s1")
	key := policy.BundleKey{Key: ec.public, ID: "k1", Algorithm: "ES256", Scope: "s1"}
	tests := []struct {
		name  string
		files contents
		key   policy.BundleKey
		want  string // empty: it is good
	}{
		{"good", signed, key, ""},
		{"key in a file", signed, policy.BundleKey{Key: dir + "/ec.pem", Algorithm: "ES256", Scope: "s1"}, ""},
		{"RS256", sign(t, good, rs.private, "RS256", "", ""), policy.BundleKey{Key: rs.public}, ""},
		{"HS256", sign(t, good, "a secret of some length, for HMAC", "HS256", "", ""), policy.BundleKey{Key: dir + "/secret", Algorithm: "HS256"}, ""},
		{"unsigned", good, key, "bundle missing .signatures.json file (sign it with opa build"},
		{"no signature in it", good.with("/.signatures.json", `{"signatures": []}`), key, "missing JWT"},
		{"nothing in it", good.with("/.signatures.json", `{}`), key, "bundle missing .signatures.json"},
		{"not JSON", good.with("/.signatures.json", `x`), key, "signatures decode"},
		{"other key", sign(t, good, other.private, "ES256", "k1", "s1"), key, "verify JWT signature"},
		{"other algorithm", sign(t, good, "a secret of some length, for HMAC", "HS256", "k1", "s1"), key, "verify JWT signature"},
		{"rule changed", signed.with("/policy.rego", dropping), key, "policy.rego: digest mismatch"},
		{"data changed", signed.with("/data.json", `{"blocked": {"192.0.2.1": true, "192.0.2.2": true}}`), key, "data.json: digest mismatch"},
		{"manifest changed", signed.with("/.manifest", `{"revision": "r2", "roots": ["verdictd", "blocked"]}`), key, ".manifest: digest mismatch"},
		{"file added", signed.with("/more.rego", "package verdictd\n"), key, "more.rego not included in bundle signature (the file was added"},
		{"file missing", signed.without("/data.json"), key, "specified in bundle signatures but not found"},
		{"scope", signed, policy.BundleKey{Key: ec.public, Algorithm: "ES256", Scope: "s2"}, "scope mismatch (bundle-scope"},
		{"scope not asked for", signed, policy.BundleKey{Key: ec.public, Algorithm: "ES256"}, "scope mismatch"},
		{"key id", signed, policy.BundleKey{Key: ec.public, ID: "k2", Algorithm: "ES256", Scope: "s1"}, "corresponding to ID k1 not found (bundle-key-id"},
		{"no key id", sign(t, good, ec.private, "ES256", "", "s1"), key, "verification key ID is empty"},
		{"no such file", signed, policy.BundleKey{Key: dir + "/nosuch"}, "read bundle-key: stat "},
		{"private key", signed, policy.BundleKey{Key: ec.private, Algorithm: "ES256"}, `holds "PRIVATE KEY", want a public key`},
		{"no key in it", signed, policy.BundleKey{Key: dir + "/secret"}, "is not a public key in PEM"},
		{"EC for RS256", signed, policy.BundleKey{Key: ec.public}, "is an elliptic curve key, and bundle-alg is RS256"},
		{"RSA for ES256", signed, policy.BundleKey{Key: rs.public, Algorithm: "ES256"}, "is an RSA key, and bundle-alg is ES256"},
		{"public key as a secret", signed, policy.BundleKey{Key: ec.public, Algorithm: "HS256"}, "is no secret, which HS256 needs"},
		{"algorithm", signed, policy.BundleKey{Key: ec.public, Algorithm: "none"}, `bundle-alg "none" is not known`},
		{"scope alone", good, policy.BundleKey{Scope: "s1"}, "go with bundle-key only"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := policy.Source{Path: bundleFile(t, pack(t, tt.files)), Bundle: policy.Bundle{Key: tt.key}}
			_, err := policy.Load(context.Background(), src)
			if tt.want != "" {
				wantError(t, err, tt.want)
			} else if err != nil {
				t.Errorf("got %v, want a policy", err)
			}
		})
	}
	for _, path := range []string{dir, "", "../policy.rego.example"} {
		_, err := policy.Load(context.Background(), policy.Source{Path: path, Bundle: policy.Bundle{Key: key}})
		wantError(t, err, "is not a bundle, so it has no signature to verify")
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
