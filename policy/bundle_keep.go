package policy

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Origin says more about where a policy came from.
type Origin struct {
	// Revision is that of the bundle's manifest; it may be empty.
	Revision string

	// Kept is whether this is the last good bundle that was kept, because the
	// server had none.
	Kept bool

	// Problem is, if Kept, why the server's bundle was not taken; else why the
	// bundle could not be kept. Nil if all is well.
	Problem error
}

// Origin returns where the policy came from.
func (p *Policy) Origin() Origin { return p.origin }

// files returns the policy's files, wherever they are.
func (s Source) files(ctx context.Context) ([]file, error) {
	if !s.isRemote() {
		files, errs := s.read()
		if len(errs) > 0 {
			return nil, errs.sorted()
		}
		return files, nil
	}
	server, err := newServer(s)
	if err != nil {
		return nil, err
	}
	defer server.client.CloseIdleConnections()
	a, err := server.fetch(ctx, "", false)
	if err != nil {
		return nil, err
	}
	files, errs := s.Bundle.open(server.shown, a.packed)
	if len(errs) > 0 {
		return nil, errs.sorted()
	}
	return files, nil
}

// loadRemote loads the bundle of a server, or that which was kept.
func loadRemote(ctx context.Context, src Source) (*Policy, error) {
	server, err := newServer(src)
	if err != nil {
		return nil, err
	}
	defer server.client.CloseIdleConnections()
	p, err := loadFetched(ctx, src, server)
	if err == nil || ctx.Err() != nil || src.Bundle.Keep == "" {
		return p, err
	}
	kept, kerr := loadKept(ctx, src)
	switch {
	case errors.Is(kerr, fs.ErrNotExist):
		return nil, err
	case kerr != nil:
		return nil, errors.Join(err, fmt.Errorf("last good bundle %s: %w", src.Bundle.Keep, kerr))
	}
	kept.origin.Kept, kept.origin.Problem = true, err
	return kept, nil
}

func loadFetched(ctx context.Context, src Source, server *server) (*Policy, error) {
	a, err := server.fetch(ctx, "", false)
	if err != nil {
		return nil, err
	}
	files, errs := src.Bundle.open(server.shown, a.packed)
	if len(errs) > 0 {
		return nil, errs.sorted()
	}
	p, err := load(ctx, src, files, nil)
	if err != nil {
		return nil, err
	}
	p.etag, p.longPoll = a.etag, a.longPoll
	p.origin.Problem = keep(src, a.packed)
	return p, nil
}

// loadKept loads the bundle that was kept. It is verified and tested as if it
// were new.
func loadKept(ctx context.Context, src Source) (*Policy, error) {
	name := src.Bundle.Keep
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("others may write to the file (chmod 600 %s)", name)
	}
	packed, rerr := readPacked(os.DirFS(filepath.Dir(name)), filepath.Base(name), name)
	if rerr != nil {
		return nil, rerr
	}
	zr, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil || zr.Comment != keptFor(src) {
		return nil, fmt.Errorf("it was not kept for %s (give each policy a file of its own)", src)
	}
	files, errs := src.Bundle.open(src.String(), packed)
	if len(errs) > 0 {
		return nil, errs.sorted()
	}
	return load(ctx, src, files, nil)
}

// keptFor returns what says in a kept bundle which URL it is from.
func keptFor(src Source) string {
	return fmt.Sprintf("%s sha256:%x", src, sha256.Sum256([]byte(src.Path)))
}

// keep writes a good bundle to the file it is to be kept in. In front goes an
// empty member of the gzip format with the bundle's URL as its comment: it
// remains a bundle, and is not taken for that of another server.
func keep(src Source, packed []byte) error {
	name := src.Bundle.Keep
	if name == "" {
		return nil
	}
	var front bytes.Buffer
	zw := gzip.NewWriter(&front)
	zw.Comment = keptFor(src)
	err := zw.Close()
	if err == nil {
		err = os.MkdirAll(filepath.Dir(name), 0o700)
	}
	if err == nil {
		err = replaceFile(name, front.Bytes(), packed)
	}
	if err != nil {
		return fmt.Errorf("keep bundle for times without the server: %w", err)
	}
	return nil
}

// replaceFile puts a file that only its owner may read in the place of name,
// in one step that a loss of power does not undo.
func replaceFile(name string, parts ...[]byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".bundle-*")
	if err != nil {
		return err
	}
	for _, part := range parts {
		if err == nil {
			_, err = f.Write(part)
		}
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
