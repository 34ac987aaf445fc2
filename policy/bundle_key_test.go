package policy_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/bundle"

	"github.com/verdictd/verdictd/policy"
)

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

// TestBundleSignatures verifies signatures by keys that fit and that do not.
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
}

// TestKeyWithoutBundle has a key, and policies that have no signature.
func TestKeyWithoutBundle(t *testing.T) {
	key := policy.BundleKey{Key: ecKey(t).public, Algorithm: "ES256"}
	for _, path := range []string{t.TempDir(), "", "../policy.rego.example"} {
		_, err := policy.Load(context.Background(), policy.Source{Path: path, Bundle: policy.Bundle{Key: key}})
		wantError(t, err, "is not a bundle, so it has no signature to verify")
	}
}
