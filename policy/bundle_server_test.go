package policy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/verdictd/verdictd/policy"
)

// bundleServer serves what it was last told to.
type bundleServer struct {
	mu       sync.Mutex
	packed   []byte
	etag     string
	longPoll time.Duration    // how long to hold a request without news; 0 offers no long polling
	instead  http.HandlerFunc // of all else
	changed  chan struct{}    // closed when the above changes
	asked    []http.Header    // the requests so far
	answered map[int]int      // how often with which status
}

func (s *bundleServer) set(packed []byte, etag string, instead http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.packed, s.etag, s.instead = packed, etag, instead
	close(s.changed)
	s.changed = make(chan struct{})
}

// state returns what to serve, and what is closed when that changes.
func (s *bundleServer) state() (packed []byte, etag string, hold time.Duration, instead http.HandlerFunc, changed chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.packed, s.etag, s.longPoll, s.instead, s.changed
}

func (s *bundleServer) answers(status int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answered[status]
}

func (s *bundleServer) requests() []http.Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *bundleServer) count(status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered[status]++
}

func (s *bundleServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.Header)
	s.mu.Unlock()
	packed, etag, hold, instead, changed := s.state()
	if instead != nil {
		instead(w, r)
		return
	}
	if hold > 0 {
		w.Header().Set("Content-Type", "application/vnd.openpolicyagent.bundles")
		if etag == r.Header.Get("If-None-Match") {
			select {
			case <-changed:
				packed, etag, _, _, _ = s.state()
			case <-time.After(hold):
			case <-r.Context().Done():
				return
			}
		}
	}
	if etag != "" {
		w.Header().Set("ETag", etag)
	}
	if etag != "" && etag == r.Header.Get("If-None-Match") {
		s.count(http.StatusNotModified)
		w.WriteHeader(http.StatusNotModified)
		return
	}
	s.count(http.StatusOK)
	_, _ = w.Write(packed)
}

// serve starts a server of a bundle, on loopback.
func serve(t *testing.T, packed []byte, etag string) (*bundleServer, *httptest.Server) {
	t.Helper()
	s := &bundleServer{packed: packed, etag: etag, changed: make(chan struct{}), answered: map[int]int{}}
	h := httptest.NewServer(s)
	t.Cleanup(func() {
		h.CloseClientConnections()
		h.Close()
	})
	return s, h
}

// remote returns a source that asks often.
func remote(t *testing.T, url string) policy.Source {
	return policy.Source{Path: url + "/fleet/b.tar.gz?secret=x", Bundle: policy.Bundle{
		Keep: filepath.Join(t.TempDir(), "state", "bundle.tar.gz"),
		Server: policy.BundleServer{
			MinInterval: 2 * time.Millisecond, MaxInterval: 4 * time.Millisecond, Timeout: 30 * time.Second, LongPoll: time.Second,
		},
	}}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// cutShort answers with less than it says.
func cutShort(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "1000")
	_, _ = w.Write(make([]byte, 100))
}

// silent does not answer.
func silent(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// hangUp ends the connection.
func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func TestLoadServer(t *testing.T) {
	s, h := serve(t, pack(t, list("r1")), `"1"`)
	src := remote(t, h.URL)
	if p := load(t, src); p.Origin() != (policy.Origin{Revision: "r1"}) || !drops(t, p, "192.0.2.1") {
		t.Errorf("origin: got %+v, want revision r1", p.Origin())
	}
	if got := s.requests()[0].Get("Prefer"); got != "modes=snapshot;wait=1" {
		t.Errorf("Prefer: got %q", got)
	}
	report, err := policy.Check(context.Background(), src)
	if err != nil || report.Failed() != 0 || report.Policy != h.URL+"/fleet/b.tar.gz" {
		t.Errorf("check: got %+v, %v", report, err)
	}
	large := func(w http.ResponseWriter, _ *http.Request) {
		for range 65 {
			_, _ = w.Write(make([]byte, 1<<20))
		}
	}
	loop := func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }
	tests := []struct {
		name    string
		instead http.HandlerFunc
		status  int
		want    string
	}{
		{"404", status(404), 404, "the server answers 404 Not Found (is the path right?)"},
		{"403", status(403), 403, "the server answers 403 Forbidden (bundle-token-file or bundle-cert say who asks)"},
		{"500", status(500), 500, "the server answers 500 Internal Server Error"},
		{"304 unasked", status(304), 304, "the server answers 304 Not Modified"},
		{"hangs up", hangUp, 0, "EOF"},
		{"silent", silent, 0, "no whole answer within 20ms"},
		{"cut short", cutShort, 0, "the answer is cut short"},
		{"too large", large, 0, "the answer is larger than 64 MiB (is this the right path?)"},
		{"redirects", loop, 0, "more than 5 redirects"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.set(nil, "", tt.instead)
			src := remote(t, h.URL)
			if tt.name == "silent" {
				src.Bundle.Server.Timeout = 20 * time.Millisecond
			}
			_, err := policy.Load(context.Background(), src)
			serr, ok := errors.AsType[*policy.ServerError](err)
			if !ok || serr.Status != tt.status || serr.Error() != "fetch "+h.URL+"/fleet/b.tar.gz: "+tt.want {
				t.Errorf("got %T %v, want %q", err, err, tt.want)
			}
		})
	}
}

func TestLoadServerSettings(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/empty", "\n")
	write(t, dir+"/two", "a b\n")
	write(t, dir+"/key.pem", ecKey(t).public)
	tests := []struct {
		name, url string
		server    policy.BundleServer
		want      string
	}{
		{"http", "http://192.0.2.1/b.tar.gz", policy.BundleServer{}, "http needs bundle-key"},
		{"no host", "https:///b.tar.gz", policy.BundleServer{}, "the URL names no host"},
		{"user", "https://u:p@host/b.tar.gz", policy.BundleServer{}, "https://host/b.tar.gz: the URL names a user"},
		{"bad", "https://host:x/b.tar.gz?secret", policy.BundleServer{}, "https://host:x/b.tar.gz: not a URL"},
		{"token over http", "http://127.0.0.1/b.tar.gz", policy.BundleServer{TokenFile: "x"}, "need https"},
		{"no token file", "https://host/b.tar.gz", policy.BundleServer{TokenFile: dir + "/nosuch"}, "read bundle-token-file: stat "},
		{"empty token", "https://host/b.tar.gz", policy.BundleServer{TokenFile: dir + "/empty"}, "does not hold one token"},
		{"two tokens", "https://host/b.tar.gz", policy.BundleServer{TokenFile: dir + "/two"}, "does not hold one token"},
		{"no CA file", "https://host/b.tar.gz", policy.BundleServer{CAFile: dir + "/nosuch"}, "read bundle-ca: stat "},
		{"no CA in it", "https://host/b.tar.gz", policy.BundleServer{CAFile: dir + "/key.pem"}, "holds no certificate in PEM"},
		{"half a pair", "https://host/b.tar.gz", policy.BundleServer{CertFile: dir + "/c.pem"}, "go together"},
		{"no certificate", "https://host/b.tar.gz", policy.BundleServer{CertFile: dir + "/c.pem", KeyFile: dir + "/k.pem"}, "read bundle-cert and bundle-cert-key: open "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := policy.Load(context.Background(), policy.Source{Path: tt.url, Bundle: policy.Bundle{Server: tt.server}})
			wantError(t, err, tt.want)
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("shows the query: %v", err)
			}
		})
	}
}

// TestServerTLS asks a server that wants a certificate and a token, and is not
// trusted by the system.
func TestServerTLS(t *testing.T) {
	s := &bundleServer{packed: pack(t, list("r1")), etag: `"1"`, changed: make(chan struct{}), answered: map[int]int{}}
	h := httptest.NewUnstartedServer(s)
	h.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	h.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are to fail
	h.StartTLS()
	defer h.Close()
	dir := t.TempDir()
	own := h.TLS.Certificates[0]
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]}))
	der, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	must(t, err)
	write(t, dir+"/ca.pem", ca)
	write(t, dir+"/key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	write(t, dir+"/token", "t0ken\n")
	src := remote(t, h.URL)
	src.Bundle.Server.TokenFile = dir + "/token"

	_, err = policy.Load(context.Background(), src)
	if err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("without CA: got %v", err)
	}
	src.Bundle.Server.CAFile = dir + "/ca.pem"
	if _, err = policy.Load(context.Background(), src); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("without certificate: got %v", err)
	}
	src.Bundle.Server.CertFile, src.Bundle.Server.KeyFile = dir+"/ca.pem", dir+"/key.pem"
	load(t, src)
	if got := s.requests()[0].Get("Authorization"); got != "Bearer t0ken" {
		t.Errorf("Authorization: got %q", got)
	}
	_, plain := serve(t, nil, "")
	s.set(nil, "", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, plain.URL, http.StatusFound) })
	if _, err = policy.Load(context.Background(), remoteWith(src, t)); err == nil || !strings.Contains(err.Error(), "redirect from https to http") {
		t.Errorf("redirect: got %v", err)
	}
}

// remoteWith returns src with another place to keep its bundle.
func remoteWith(src policy.Source, t *testing.T) policy.Source {
	src.Bundle.Keep = filepath.Join(t.TempDir(), "other.tar.gz")
	return src
}

// TestKeptBundle starts without the server.
func TestKeptBundle(t *testing.T) {
	s, h := serve(t, pack(t, list("r1")), `"1"`)
	src := remote(t, h.URL)
	first := load(t, src)
	info, err := os.Stat(src.Bundle.Keep)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("kept file: got %v, %v, want mode 600", info, err)
	}
	load(t, policy.Source{Path: src.Bundle.Keep}) // it is a bundle as any

	s.set(pack(t, list("r2"))[:50], `"2"`, nil)
	if p := load(t, src); !p.Origin().Kept || !strings.Contains(p.Origin().Problem.Error(), "cut short") || p.Hash() != first.Hash() {
		t.Errorf("with a broken bundle: got %+v, want the one that was kept", p.Origin())
	}
	s.set(pack(t, list("r2").with("/data.json", `{"blocked": {}}`)), `"3"`, nil)
	if p := load(t, src); !p.Origin().Kept || !strings.Contains(p.Origin().Problem.Error(), "test_listed fails") {
		t.Errorf("with a bundle whose tests fail: got %+v, want the one that was kept", p.Origin())
	}
	h.Close()
	p := load(t, src)
	if _, ok := errors.AsType[*policy.ServerError](p.Origin().Problem); !ok || !p.Origin().Kept || p.Origin().Revision != "r1" {
		t.Errorf("without server: got %+v, want revision r1 that was kept", p.Origin())
	}
	if p.Hash() != first.Hash() {
		t.Errorf("hash: got %s, want %s", p.Hash(), first.Hash())
	}
	keptErrors(t, src)
}

// keptErrors loads what was kept for src where it must not be taken.
func keptErrors(t *testing.T, src policy.Source) {
	t.Helper()
	refused := func(src policy.Source, want string) {
		t.Helper()
		if _, err := policy.Load(context.Background(), src); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	other := src
	other.Path += "&other"
	refused(other, "it was not kept for "+src.String())
	other = src
	other.Bundle.Key = policy.BundleKey{Key: ecKey(t).public, Algorithm: "ES256"}
	refused(other, "bundle missing .signatures.json")
	must(t, os.Chmod(src.Bundle.Keep, 0o620))
	refused(src, "others may write to the file (chmod 600 ")
	must(t, os.Chmod(src.Bundle.Keep, 0o600))
	must(t, os.Truncate(src.Bundle.Keep, 300))
	refused(src, "cut short")
	other.Bundle.Keep = ""
	if _, err := policy.Load(context.Background(), other); err == nil {
		t.Error("loaded a policy from nowhere")
	}
}

// TestKeepFails cannot keep a bundle; that does not make it bad.
func TestKeepFails(t *testing.T) {
	_, h := serve(t, pack(t, list("r1")), "")
	src := remote(t, h.URL)
	write(t, filepath.Dir(src.Bundle.Keep), "a file, not a directory")
	p := load(t, src)
	if o := p.Origin(); o.Kept || o.Problem == nil || !strings.Contains(o.Problem.Error(), "keep bundle for times without the server: ") {
		t.Errorf("got %+v, want the reason", o)
	}
}
