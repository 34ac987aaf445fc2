package policy

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"
)

// Limits of a bundle, in bytes: as it is stored and sent, and unpacked. Those
// of its files are MaxRegoSize and MaxDataSize.
const (
	MaxBundleSize   = 64 << 20
	MaxUnpackedSize = 256 << 20
)

// manifestFile is the name of a bundle's manifest. Its content is a part of
// the policy's hash: it has the revision.
const manifestFile = ".manifest"

// Bundle says how a policy that is an OPA bundle is verified and had from a
// server. The zero Bundle takes unsigned bundles only.
type Bundle struct {
	// Key verifies the bundle's signature. With a key, a policy that is not a
	// bundle, and a bundle without a valid signature of all its files, are
	// refused. Without, a signed bundle is refused: it would not be verified.
	Key BundleKey

	// Server says how to talk to the server, if Source.Path is a URL.
	Server BundleServer

	// Keep is the file that the last good bundle of a server is kept in; its
	// directory is made if need be. Load falls back on it when the server
	// has no good bundle. Empty keeps nothing.
	Keep string
}

// isBundle returns whether the name is that of a bundle file.
func isBundle(name string) bool {
	return strings.HasSuffix(name, ".tar.gz") || strings.HasSuffix(name, ".tgz")
}

// readBundle reads the bundle file at s.Path.
func (s Source) readBundle() ([]file, Errors) {
	fsys, name := s.FS, path.Clean(s.Path)
	if fsys == nil {
		name = filepath.Base(s.Path)
		fsys = os.DirFS(filepath.Dir(s.Path))
	}
	packed, err := readPacked(fsys, name, s.Path)
	if err != nil {
		return nil, Errors{err}
	}
	return s.Bundle.open(s.Path, packed)
}

// readPacked reads the bundle file name of fsys. It opens nothing but regular
// files: a FIFO would block for ever.
func readPacked(fsys fs.FS, name, shown string) ([]byte, *Error) {
	info, err := fs.Stat(fsys, name)
	if err != nil {
		return nil, fileError(shown, "read bundle: "+reason(err), "give the path of an OPA bundle, as opa build makes it")
	}
	if !info.Mode().IsRegular() {
		return nil, fileError(shown, "is not a regular file", "")
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, fileError(shown, "read bundle: "+reason(err), "")
	}
	defer f.Close() // opened for reading: nothing to lose
	packed, err := io.ReadAll(io.LimitReader(f, MaxBundleSize+1))
	if err != nil {
		return nil, fileError(shown, "read bundle: "+reason(err), "")
	}
	if len(packed) > MaxBundleSize {
		return nil, tooLarge(shown)
	}
	return packed, nil
}

func tooLarge(shown string) *Error {
	return fileError(shown, fmt.Sprintf("is larger than %d MiB", MaxBundleSize>>20), "is this the right file?")
}

// open unpacks and verifies a bundle and returns the policy's files in it. In
// messages a file is named as if the bundle, called shown, were a directory.
func (b Bundle) open(shown string, packed []byte) ([]file, Errors) {
	all, rerr := unpack(shown, packed)
	if rerr != nil {
		return nil, Errors{rerr}
	}
	verify, err := b.Key.verification()
	if err != nil {
		return nil, Errors{fileError(shown, err.Error(), "")}
	}
	read, err := bundle.NewCustomReader(&unpacked{files: all}).
		WithBundleVerificationConfig(verify).
		WithCapabilities(capabilities()).
		WithRegoVersion(ast.RegoV1).
		Read()
	if err != nil {
		return nil, bundleErrors(shown, err)
	}
	if err := supported(&read); err != nil {
		return nil, Errors{fileError(shown, err.Error(), "")}
	}
	return policyFiles(shown, all, &read)
}

// supported returns why verdictd cannot run a bundle that OPA may be able to.
func supported(b *bundle.Bundle) error {
	switch {
	case b.Type() == bundle.DeltaBundleType:
		return errors.New("is a delta bundle (serve whole bundles; modes=snapshot was asked for)")
	case len(b.WasmModules) > 0 || len(b.Manifest.WasmResolvers) > 0:
		return errors.New("holds WebAssembly, which is not run (build the bundle without -t wasm, so that it holds the Rego)")
	}
	for _, m := range b.Modules {
		version, err := b.RegoVersionForFile(m.RelativePath, ast.RegoV1)
		if err != nil {
			return fmt.Errorf("rego version of %s: %w", m.Path, err)
		}
		if version != ast.RegoV1 {
			return fmt.Errorf("%s is in version 0 of Rego (opa fmt --write --v0-v1 brings it to version 1)", strings.TrimPrefix(m.Path, "/"))
		}
	}
	return nil
}

// policyFiles returns those files of a bundle that make the policy, sorted by
// name: as in OPA the Rego files, the data files called data.json, data.yaml
// or data.yml, and the manifest; and as in a directory, a rules file.
func policyFiles(shown string, all []file, b *bundle.Bundle) ([]file, Errors) {
	manifest, err := json.Marshal(b.Manifest)
	if err != nil {
		return nil, Errors{fileError(shown, "manifest: "+err.Error(), "")}
	}
	files := slices.DeleteFunc(all, func(f file) bool { return !isPolicyFile(f.name) })
	if main := plainOf(files); main != nil {
		var errs Errors
		// What a rules file includes is in the bundle too: there is no other place.
		if files, errs = readPlain(embed.FS{}, main.name, main.shown, files); len(errs) > 0 {
			return nil, errs
		}
	}
	files = slices.DeleteFunc(files, func(f file) bool {
		name := path.Base(f.name)
		return isData(name) && !f.plain && name != "data.json" && !bundle.IsYAMLDataFile(name)
	})
	files = append(files, file{name: manifestFile, shown: inBundle(shown, manifestFile), content: manifest})
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.name, b.name) })
	return files, nil
}

// isManifest returns whether the file is a bundle's manifest. Files of
// directories never are: there, names that begin with a dot are passed over.
func (f *file) isManifest() bool { return f.name == manifestFile }

// revision returns the revision of the bundle that files are from, or "".
func revision(files []file) string {
	i := slices.IndexFunc(files, func(f file) bool { return f.isManifest() })
	if i < 0 {
		return ""
	}
	var m bundle.Manifest
	if err := json.Unmarshal(files[i].content, &m); err != nil {
		return "" // cannot be: policyFiles wrote it
	}
	return m.Revision
}

// bundleErrors words an error of OPA's bundle reader.
func bundleErrors(shown string, err error) Errors {
	if list, ok := errors.AsType[ast.Errors](err); ok {
		for _, e := range list {
			if e.Location != nil {
				at := *e.Location
				at.File = inBundle(shown, at.File)
				e.Location = &at
			}
		}
		x := (&program{caps: capabilities()}).explainer()
		return x.explain(shown, list).sorted()
	}
	text := err.Error()
	for _, h := range bundleHints() {
		if strings.Contains(text, h.has) {
			return Errors{fileError(shown, "bundle refused: "+text, h.hint)}
		}
	}
	return Errors{fileError(shown, "bundle refused: "+text, "")}
}

type bundleHint struct{ has, hint string }

// bundleHints says what to do about errors of OPA's bundle reader.
func bundleHints() []bundleHint {
	return []bundleHint{
		{"missing .signatures.json", "sign it with opa build --signing-key, or leave bundle-key out"},
		{"verification key not provided", "the bundle is signed: give the key with bundle-key"},
		{"verify JWT signature", "the key or its algorithm (bundle-alg) is not the signer's, or the bundle was changed"},
		{"not found in the target bundle", "the bundle lacks signed files: build it again"},
		{"not included in bundle signature", "the file was added after the bundle was signed"},
		{"digest mismatch", "the file was changed after the bundle was signed"},
		{"scope mismatch", "bundle-scope must be the scope that the signature names"},
		{"verification key corresponding", "bundle-key-id must be the key id that the signature names"},
		{"verification key ID is empty", "the signature names no key id: leave bundle-key-id out"},
		{"do not permit", "add the path to roots in .manifest, or move the file"},
	}
}

// unpack returns the files of a gzipped tar archive, sorted by name. Names are
// relative, slash-separated and unique.
func unpack(shown string, packed []byte) ([]file, *Error) {
	zr, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fileError(shown, "is not a gzipped tar archive: "+archiveReason(err), "give an OPA bundle, as opa build makes it")
	}
	plain := &io.LimitedReader{R: zr, N: MaxUnpackedSize + 1} // more than the files: their headers count
	files, rerr := untar(shown, tar.NewReader(plain))
	if rerr == nil {
		// What follows the archive's end has no meaning but for the checksum.
		if _, err = io.Copy(io.Discard, plain); err != nil {
			rerr = fileError(shown, "read archive: "+archiveReason(err), "")
		}
	}
	if plain.N == 0 {
		return nil, tooLargeUnpacked(shown)
	}
	return files, rerr
}

func tooLargeUnpacked(shown string) *Error {
	return fileError(shown, fmt.Sprintf("is larger than %d MiB when unpacked", MaxUnpackedSize>>20), "is this the right file?")
}

func untar(shown string, tr *tar.Reader) ([]file, *Error) {
	var files []file
	seen := map[string]bool{}
	total := int64(0)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, fileError(shown, "read archive: "+archiveReason(err), "")
		}
		if h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		// A sparse file is larger than what the archive has of it.
		if total += max(h.Size, 0); total > MaxUnpackedSize {
			return nil, tooLargeUnpacked(shown)
		}
		f, rerr := untarFile(shown, h, tr)
		switch {
		case rerr != nil:
			return nil, rerr
		case seen[f.name]:
			return nil, fileError(f.shown, "is in the bundle twice", "")
		case len(files) == maxFiles:
			return nil, fileError(shown, fmt.Sprintf("holds more than %d files", maxFiles), "is this the right file?")
		}
		seen[f.name] = true
		files = append(files, f)
	}
}

func untarFile(shown string, h *tar.Header, r io.Reader) (file, *Error) {
	name := path.Clean("/" + h.Name)[1:]
	f := file{name: name, shown: inBundle(shown, name)}
	limit := int64(MaxDataSize)
	if path.Ext(name) == ".rego" {
		limit = MaxRegoSize
	}
	switch {
	case name == "" || strings.Contains(h.Name, "\\") || slices.Contains(strings.Split(h.Name, "/"), ".."):
		return f, fileError(shown, fmt.Sprintf("holds a file with the name %q", h.Name), "names are paths below the bundle's root")
	case h.Typeflag != tar.TypeReg:
		return f, fileError(f.shown, "is not a regular file", "a bundle holds plain files only")
	case h.Size > limit:
		return f, fileError(f.shown, fmt.Sprintf("is larger than %d MiB", limit>>20), "")
	}
	var err error
	if f.content, err = io.ReadAll(r); err != nil {
		return f, fileError(f.shown, "read archive: "+archiveReason(err), "")
	}
	if at := invalidUTF8(f.content); at >= 0 && isPolicyFile(name) {
		line, col := position(f.content, at)
		return f, &Error{File: f.shown, Line: line, Col: col, Msg: "not UTF-8 text", Hint: "save the file as UTF-8"}
	}
	return f, nil
}

// archiveReason words an error of package gzip or tar.
func archiveReason(err error) string {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return "it is cut short"
	}
	return strings.TrimPrefix(strings.TrimPrefix(err.Error(), "archive/tar: "), "gzip: ")
}

// inBundle returns how messages name a file of a bundle. It is a path also if
// the bundle's name is a URL.
func inBundle(shown, name string) string {
	_, place, isURL := strings.Cut(shown, "://")
	if !isURL {
		place = shown
	}
	return path.Join(place, name)
}
