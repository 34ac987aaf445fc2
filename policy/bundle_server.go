package policy

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// Times of a bundle server, unless BundleServer says otherwise.
const (
	DefaultMinInterval   = time.Minute
	DefaultMaxInterval   = 2 * time.Minute
	DefaultBundleTimeout = time.Minute

	defaultLongPoll = 50 * time.Second // less than the minute after which proxies hang up
	firstRetry      = time.Second
	connectTimeout  = 10 * time.Second
	maxRedirects    = 5
)

// longPollType is the media type of a server that offers long polling, which
// is how OPA has it.
const longPollType = "application/vnd.openpolicyagent.bundles"

// BundleServer says how to talk to the server of a bundle.
type BundleServer struct {
	CAFile    string // PEM certificates that alone are trusted; empty: those of the system
	CertFile  string // client certificate, PEM; read at each handshake
	KeyFile   string // its private key, PEM
	TokenFile string // bearer token; read at each request

	// The server is asked again after a random time between MinInterval and
	// MaxInterval, or at once if it offers long polling. Errors make it rarer,
	// up to MaxInterval. 0: DefaultMinInterval, DefaultMaxInterval.
	MinInterval, MaxInterval time.Duration

	// Timeout is that of one whole answer; LongPoll, how long the server may
	// hold it back beyond that. 0: DefaultBundleTimeout, 50 s.
	Timeout, LongPoll time.Duration
}

// withDefaults returns s with all times set.
func (s BundleServer) withDefaults() BundleServer {
	s.MinInterval = cmp.Or(s.MinInterval, DefaultMinInterval)
	s.MaxInterval = max(cmp.Or(s.MaxInterval, DefaultMaxInterval), s.MinInterval)
	s.Timeout = cmp.Or(s.Timeout, DefaultBundleTimeout)
	s.LongPoll = cmp.Or(s.LongPoll, defaultLongPoll)
	return s
}

// ServerError says why a bundle server could not be asked. It says nothing
// about the bundle.
type ServerError struct {
	URL    string // without its query, which may be secret
	Status int    // of HTTP; 0 if there was no whole answer
	Err    error
}

// Error returns "fetch URL: reason".
func (e *ServerError) Error() string { return "fetch " + e.URL + ": " + e.Err.Error() }

// Unwrap returns the reason.
func (e *ServerError) Unwrap() error { return e.Err }

// isRemote returns whether the policy is on a server.
func (s Source) isRemote() bool {
	return s.FS == nil && (strings.HasPrefix(s.Path, "https://") || strings.HasPrefix(s.Path, "http://"))
}

// shownURL returns a URL as messages name it: without its query and user.
func shownURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		text, _, _ = strings.Cut(text, "?")
		return text
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}

// server is a bundle server. It is for one goroutine at a time.
type server struct {
	BundleServer
	url    string
	shown  string
	client *http.Client
}

// newServer returns the server of src, or what is wrong with its settings.
func newServer(src Source) (*server, error) {
	s := &server{BundleServer: src.Bundle.Server.withDefaults(), url: src.Path, shown: shownURL(src.Path)}
	if err := s.check(src.Bundle.Key); err != nil {
		return nil, Errors{fileError(s.shown, err.Error(), "")}
	}
	config, err := s.tls()
	if err != nil {
		return nil, Errors{fileError(s.shown, err.Error(), "")}
	}
	s.client = &http.Client{
		CheckRedirect: checkRedirect,
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: connectTimeout}).DialContext,
			TLSClientConfig:        config,
			TLSHandshakeTimeout:    connectTimeout,
			ForceAttemptHTTP2:      true,
			MaxResponseHeaderBytes: 64 << 10,
			DisableCompression:     true, // a bundle is compressed
		},
	}
	return s, nil
}

// check returns why the server must not be asked with these settings.
func (s *server) check(key BundleKey) error {
	u, err := url.Parse(s.url)
	switch {
	case err != nil:
		return fmt.Errorf("not a URL: %w", reasonOf(err))
	case u.Hostname() == "":
		return errors.New("the URL names no host (write https://host/path/bundle.tar.gz)")
	case u.User != nil:
		return errors.New("the URL names a user (give a token with bundle-token-file, or a client certificate with bundle-cert)")
	case (s.CertFile == "") != (s.KeyFile == ""):
		return errors.New("bundle-cert and bundle-cert-key go together")
	case u.Scheme == "http" && (s.TokenFile != "" || s.CertFile != "" || s.CAFile != ""):
		return errors.New("bundle-token-file, bundle-cert and bundle-ca need https (http would show the token to everybody)")
	case u.Scheme == "http" && key.Key == "" && !loopback(u.Hostname()):
		return errors.New("http needs bundle-key (without it, anybody on the way could change the policy), or use https")
	}
	if err := key.Check(); err != nil {
		return err
	}
	_, err = s.token()
	return err
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// tls returns the settings of connections. It reads the files once to find
// what is wrong with them early.
func (s *server) tls() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CAFile != "" {
		pem, err := readSmall(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read bundle-ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("bundle-ca %s holds no certificate in PEM", s.CAFile)
		}
	}
	if s.CertFile == "" {
		return config, nil
	}
	load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read bundle-cert and bundle-cert-key: %w", err)
		}
		return &cert, nil
	}
	if _, err := load(nil); err != nil {
		return nil, err
	}
	config.GetClientCertificate = load
	return config, nil
}

// token returns the bearer token, "" if there is none.
func (s *server) token() (string, error) {
	if s.TokenFile == "" {
		return "", nil
	}
	data, err := readSmall(s.TokenFile)
	if err != nil {
		return "", fmt.Errorf("read bundle-token-file: %w", err)
	}
	text := strings.TrimSpace(string(data))
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("bundle-token-file %s does not hold one token", s.TokenFile)
	}
	return text, nil
}

func checkRedirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if via[0].URL.Scheme == "https" && next.URL.Scheme != "https" {
		return errors.New("redirect from https to " + next.URL.Scheme)
	}
	return nil
}

// answer is what a server gave.
type answer struct {
	packed   []byte // the bundle; nil if it is still that of the ETag asked with
	etag     string // may be empty
	longPoll bool   // offered; says nothing if packed is nil
}

// fetch asks the server for the bundle unless it is still that of etag, which
// may be empty. With wait, the server may take its time until there is a new
// one. The error is a *ServerError.
func (s *server) fetch(ctx context.Context, etag string, wait bool) (*answer, error) {
	limit := s.Timeout
	if wait {
		limit += s.LongPoll
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a, status, err := s.ask(ctx, etag, wait)
	if err == nil {
		return a, nil
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no whole answer within %v", limit)
	}
	return nil, &ServerError{URL: s.shown, Status: status, Err: reasonOf(err)}
}

// ask makes the request. It returns the status with an error if the status is
// the error.
func (s *server) ask(ctx context.Context, etag string, wait bool) (*answer, int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, 0, err
	}
	token, err := s.token()
	if err != nil {
		return nil, 0, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("User-Agent", "verdictd")
	req.Header.Set("Prefer", "modes=snapshot")
	if wait || etag == "" { // without an ETag there is nothing to wait for: this asks for the offer
		req.Header.Set("Prefer", fmt.Sprintf("modes=snapshot;wait=%d", max(1, int(s.LongPoll/time.Second))))
	}
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close() // read to the end, or to be thrown away
	switch {
	case resp.StatusCode == http.StatusNotModified && etag != "":
		return &answer{}, 0, nil
	case resp.StatusCode != http.StatusOK:
		return nil, resp.StatusCode, statusError(resp.StatusCode)
	}
	packed, err := io.ReadAll(io.LimitReader(resp.Body, MaxBundleSize+1))
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, 0, errors.New("the answer is cut short")
	case err != nil:
		return nil, 0, err
	case len(packed) > MaxBundleSize:
		return nil, 0, fmt.Errorf("the answer is larger than %d MiB (is this the right path?)", MaxBundleSize>>20)
	}
	a := &answer{packed: packed, etag: resp.Header.Get("ETag")}
	a.longPoll = a.etag != "" && resp.Header.Get("Content-Type") == longPollType
	return a, 0, nil
}

// statusError words a status that is not the one asked for.
func statusError(status int) error {
	hint := ""
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		hint = " (bundle-token-file or bundle-cert say who asks)"
	case http.StatusNotFound:
		hint = " (is the path right?)"
	}
	return fmt.Errorf("the server answers %d %s%s", status, http.StatusText(status), hint)
}

// reasonOf returns err without the URL that *url.Error adds: its query may be
// secret.
func reasonOf(err error) error {
	if uerr, ok := errors.AsType[*url.Error](err); ok {
		return uerr.Err
	}
	return err
}
