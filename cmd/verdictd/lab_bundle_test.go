package main_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// packBundle returns a bundle of a policy.
func packBundle(t *testing.T, revision, policy string) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	for _, f := range [][2]string{{".manifest", `{"revision": "` + revision + `"}`}, {"policy.rego", policy}} {
		if err := tw.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// serveBundle serves what packed holds, in a namespace at addr.
func serveBundle(t *testing.T, ns *lab.Namespace, addr string, packed *atomic.Pointer[[]byte]) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(*packed.Load()) }))
	s.Listener.Close()
	err := ns.Do(func() (err error) {
		s.Listener, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// says waits until the daemon's messages have all of texts in one line.
func (d *daemon) says(texts ...string) {
	d.t.Helper()
	said := func() bool {
		for line := range strings.Lines(d.Stderr()) {
			n := 0
			for _, text := range texts {
				if strings.Contains(line, text) {
					n++
				}
			}
			if n == len(texts) {
				return true
			}
		}
		return false
	}
	if !lab.Poll(wait, said) {
		d.t.Fatalf("got %q, want a line with %q", d.Stderr(), texts)
	}
}

// TestLabBundleServer has a policy on a server that dies, comes back with
// another policy and then with a broken one.
func TestLabBundleServer(t *testing.T) {
	setup(t)
	client := labtest.Pair(t).Client
	var packed atomic.Pointer[[]byte]
	serveNow := func(revision, policy string) {
		b := packBundle(t, revision, policy)
		packed.Store(&b)
	}
	serveNow("r1", acceptAll)
	server := serveBundle(t, client, "127.0.0.1:0", &packed)
	kept := filepath.Join(t.TempDir(), "state", "last.tar.gz")
	args := []string{"--policy", server.URL + "/b.tar.gz", "--bundle-last-good", kept, "--bundle-min-interval", "1s", "--bundle-max-interval", "1s", "--hook", "output"}

	d := startDaemon(t, client, "", args...)
	if code := d.Stop(); code != 0 {
		t.Errorf("got exit code %d, want 0", code)
	}
	if info, err := os.Stat(kept); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("last good bundle: got %v, %v, want mode 600", info, err)
	}
	addr := server.Listener.Addr().String()
	server.Close()

	d = startDaemon(t, client, "", args...)
	d.says("the last good bundle is in use", "connection refused", "revision=r1")
	serveNow("r2", dropSink)
	server = serveBundle(t, client, addr, &packed)
	d.says("bundle server answers again")
	d.says("policy loaded", "generation=2", "revision=r2")
	serveNow("r3", "package verdictd\n\nverdict := {\n")
	d.says("policy refused, the old one stays", "b.tar.gz/policy.rego:4:")
	server.Close()
	d.says("bundle server does not answer, the policy stays", "connection refused")
	d.Signal(unix.SIGHUP)
	d.says("policy refused, the old one stays", "connection refused", "generation=2")
	if code := d.Stop(); code != 0 {
		t.Errorf("got exit code %d, want 0", code)
	}
	for _, want := range []string{
		`"admin":"policy_last_good"`, `"admin":"bundle_server"`, `"admin":"policy_loaded"`, `revision \"r2\"`, `"admin":"policy_refused"`,
	} {
		if !strings.Contains(d.Stdout(), want) {
			t.Errorf("the audit log lacks %s", want)
		}
	}
}
