package policy_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"testing"
	"testing/fstest"

	"github.com/verdictd/verdictd/packet"
	"github.com/verdictd/verdictd/policy"
	"github.com/verdictd/verdictd/rules"
)

// FuzzLoad loads arbitrary text as a policy and as data. Whatever is wrong
// with it is reported with a file's name, and what loads can be evaluated.
func FuzzLoad(f *testing.F) {
	for _, text := range oracles(f) {
		f.Add(text, `{"a": [1, 2.5, "x", null, true]}`, "a:\n  - b: 1\n")
	}
	f.Add(accepting, "{", "a: &b\n  c: *b\n")
	f.Add(broken, "[]", "1: 2\n? x\n: y\n")
	f.Fuzz(func(t *testing.T, text, json, yaml string) {
		files := fstest.MapFS{"p.rego": {Data: []byte(text)}, "a/d.json": {Data: []byte(json)}, "b/d.yaml": {Data: []byte(yaml)}}
		p, err := policy.Load(context.Background(), policy.Source{FS: files, SkipTests: true})
		if err != nil {
			errs, ok := errors.AsType[policy.Errors](err)
			if !ok || len(errs) == 0 {
				t.Fatalf("error %v is a %T, want policy.Errors", err, err)
			}
			for _, e := range errs {
				if e.File == "" || e.Msg == "" || e.Line > 0 && e.Col < 1 {
					t.Errorf("error without place or text: %+v", e)
				}
			}
			return
		}
		d := rules.Decision{Action: packet.Accept}
		if err := p.Evaluate(facts(packet.ProtoTCP, "192.0.2.1:1", "192.0.2.2:2"), &d); err != nil && d.Action != packet.Drop {
			t.Errorf("%v with error %v, want drop", d.Action, err)
		}
	})
}

// unzip returns the tar archive in a bundle.
func unzip(t testing.TB, packed []byte) []byte {
	t.Helper()
	zr, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	archive, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

// FuzzBundle loads bundles of any archive. A bundle is good, or refused by
// Errors.
func FuzzBundle(f *testing.F) {
	f.Add(unzip(f, pack(f, list("r1"))))
	f.Add(unzip(f, pack(f, contents{"rules.yaml": "default: accept\n"})))
	f.Add(unzip(f, pack(f, contents{"p.rego": dropping, ".signatures.json": `{"signatures": ["a.b.c"]}`})))
	f.Fuzz(func(t *testing.T, archive []byte) {
		var b bytes.Buffer
		zw := gzip.NewWriter(&b)
		_, _ = zw.Write(archive) // to memory
		must(t, zw.Close())
		packed := b.Bytes()
		_, err := policy.Load(context.Background(), policy.Source{Path: "b.tgz", FS: fstest.MapFS{"b.tgz": {Data: packed}}})
		if _, ok := errors.AsType[policy.Errors](err); err != nil && !ok {
			t.Errorf("got %T %v, want Errors", err, err)
		}
	})
}
