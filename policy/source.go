package policy

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/verdictd/verdictd/rules"
)

// Limits of a policy's files, in bytes. They are far above what people write
// and keep a wrong path from filling the memory.
const (
	MaxRegoSize = 4 << 20
	MaxDataSize = 64 << 20
	maxFiles    = 10_000
)

//go:embed default.rego
var embedded embed.FS

// Source says where a policy is and how it is to be run. The zero Source is
// the built-in policy, which accepts and records every packet.
type Source struct {
	// Path is a Rego file of any name, a rules file (.yaml or .yml, see
	// rules.Ruleset), or a directory. Of a directory, every file below it
	// counts that ends in .rego, .json, .yaml or .yml; names that begin with a
	// dot and symbolic links to directories are passed over. Its rules.yaml (or
	// rules.yml), if there is one, is a rules file; all other .yaml files that
	// it does not include are data.
	// Files that end in _test.rego take part in tests only. A data file is an
	// object; its directory, not its name, says where below data it is found.
	// A path that ends in .tar.gz or .tgz is an OPA bundle, and one that begins
	// with http:// or https:// a bundle on a server; there, data files are
	// those that OPA takes, data.json, data.yaml and data.yml, and a rules.yaml
	// may be at the root.
	// Empty means FS itself or, without FS, the built-in policy.
	Path string

	// FS holds Path. Nil is the operating system's file system.
	FS fs.FS

	// Bundle says how a bundle is verified, and had from a server.
	Bundle Bundle

	// Budget is the time that one decision may take. 0 is DefaultBudget.
	Budget time.Duration

	// Engine says what evaluates the policy.
	Engine Engine

	// Shadow compares decisions of a compiled policy with OPA's; nil compares
	// none.
	Shadow *Shadow

	// Strict refuses a policy that Check warns of.
	Strict bool

	// SkipTests loads the policy without running its tests.
	SkipTests bool
}

// String returns the source as messages name it.
func (s Source) String() string {
	if s.builtin() {
		return "built-in policy"
	}
	if s.isRemote() {
		return shownURL(s.Path)
	}
	return cmp.Or(s.Path, ".")
}

func (s Source) builtin() bool { return s.Path == "" && s.FS == nil }

// file is one file of a policy.
type file struct {
	name    string // relative to the policy's root, slash-separated
	shown   string // as messages name it
	content []byte
	plain   bool           // a rules file
	rules   *rules.Ruleset // what it and those it includes say; nil in those
}

func (f *file) isRego() bool { return !f.plain && !f.isManifest() && !isData(f.name) }
func (f *file) isTest() bool { return strings.HasSuffix(f.name, "_test.rego") }

func isData(name string) bool {
	switch path.Ext(name) {
	case ".json", ".yaml", ".yml":
		return true
	}
	return false
}

// read returns the policy's files, sorted by name, or what is wrong with them
// and perhaps some of them.
func (s Source) read() ([]file, Errors) {
	if isBundle(s.Path) {
		return s.readBundle()
	}
	if s.Bundle.Key != (BundleKey{}) {
		return nil, Errors{fileError(s.String(), "is not a bundle, so it has no signature to verify", "give an OPA bundle (.tar.gz, or a URL), or leave bundle-key out")}
	}
	if s.builtin() {
		s.FS, s.Path = embedded, "default.rego"
	}
	root := path.Clean(s.Path)
	if s.FS != nil {
		return readTree(s.FS, root, root)
	}
	// The directory is opened through its parent so that a file and a
	// directory are one case.
	dir, name := filepath.Split(filepath.Clean(s.Path))
	if name == "" || name == "." || name == ".." {
		return readTree(os.DirFS(s.Path), ".", s.Path)
	}
	if dir == "" {
		dir = "."
	}
	return readTree(os.DirFS(dir), name, filepath.Clean(s.Path))
}

// readTree reads the file or directory root of fsys; shown is its name in
// messages.
func readTree(fsys fs.FS, root, shown string) ([]file, Errors) {
	info, err := fs.Stat(fsys, root)
	if err != nil {
		return nil, Errors{fileError(shown, "read policy: "+reason(err), "give the path of a .rego file, of a rules file, or of a directory that holds one")}
	}
	if !info.IsDir() {
		if isPlain(root) {
			return readPlain(fsys, root, shown, nil)
		}
		if isData(root) {
			return nil, Errors{fileError(shown, "is a data file, not a policy", "give the directory that holds it and the .rego file")}
		}
		content, err := readFile(fsys, root, shown)
		if err != nil {
			return nil, Errors{err}
		}
		return []file{{name: path.Base(root), shown: shown, content: content}}, nil
	}
	return readDir(fsys, root, shown)
}

// readDir reads the files below directory root of fsys. It does without
// fs.Sub, whose Stat opens the file, which for a FIFO never returns.
func readDir(fsys fs.FS, root, shown string) ([]file, Errors) {
	var files []file
	var errs Errors
	err := fs.WalkDir(fsys, root, func(name string, d fs.DirEntry, err error) error {
		relative := strings.TrimPrefix(strings.TrimPrefix(name, root), "/")
		if root == "." {
			relative = name
		}
		place := filepath.Join(shown, filepath.FromSlash(relative))
		if err != nil {
			errs = append(errs, fileError(place, "read policy: "+reason(err), ""))
			return nil
		}
		hidden := name != root && strings.HasPrefix(d.Name(), ".")
		if hidden && d.IsDir() {
			return fs.SkipDir
		}
		if hidden || d.IsDir() || !isPolicyFile(name) || linkToDir(fsys, name, d) {
			return nil
		}
		if len(files) == maxFiles {
			errs = append(errs, fileError(shown, fmt.Sprintf("holds more than %d policy files", maxFiles), "is this the right directory?"))
			return fs.SkipAll
		}
		content, rerr := readFile(fsys, name, place)
		if rerr != nil {
			errs = append(errs, rerr)
			return nil
		}
		files = append(files, file{name: relative, shown: place, content: content})
		return nil
	})
	if err != nil {
		errs = append(errs, fileError(shown, "read policy: "+reason(err), ""))
	}
	if len(errs) > 0 {
		return nil, errs
	}
	if main := plainOf(files); main != nil { // WalkDir goes in lexical order
		return readPlain(fsys, path.Join(root, main.name), main.shown, files)
	}
	return files, nil
}

func isPolicyFile(name string) bool { return path.Ext(name) == ".rego" || isData(name) }

// linkToDir returns whether the entry is a symbolic link to a directory.
func linkToDir(fsys fs.FS, name string, d fs.DirEntry) bool {
	if d.Type()&fs.ModeSymlink == 0 {
		return false
	}
	info, err := fs.Stat(fsys, name)
	return err == nil && info.IsDir()
}

// readFile returns a file's content. It opens nothing but regular files: a
// FIFO would block for ever.
func readFile(fsys fs.FS, name, shown string) ([]byte, *Error) {
	info, err := fs.Stat(fsys, name)
	if err != nil {
		return nil, fileError(shown, "read policy: "+reason(err), "")
	}
	if !info.Mode().IsRegular() {
		return nil, fileError(shown, "is not a regular file", "")
	}
	limit := int64(MaxRegoSize)
	if isData(name) {
		limit = MaxDataSize
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, fileError(shown, "read policy: "+reason(err), "")
	}
	defer f.Close() // opened for reading: nothing to lose
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fileError(shown, "read policy: "+reason(err), "")
	}
	if int64(len(content)) > limit {
		return nil, fileError(shown, fmt.Sprintf("is larger than %d MiB", limit>>20), "move large lists to .json or .yaml files, of up to 64 MiB each")
	}
	if at := invalidUTF8(content); at >= 0 {
		line, col := position(content, at)
		return nil, &Error{File: shown, Line: line, Col: col, Msg: "not UTF-8 text", Hint: "save the file as UTF-8"}
	}
	return content, nil
}

// reason returns err without the operation and path that *fs.PathError adds:
// the message around it names the file.
func reason(err error) string {
	if perr, ok := errors.AsType[*fs.PathError](err); ok {
		return perr.Err.Error()
	}
	return err.Error()
}

// invalidUTF8 returns the offset of the first byte that is not UTF-8, or -1.
func invalidUTF8(b []byte) int {
	if utf8.Valid(b) {
		return -1
	}
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

// position returns the line and column, both from 1, of offset at in text.
// Columns count bytes, as OPA's do.
func position(text []byte, at int) (line, col int) {
	head := text[:min(max(at, 0), len(text))]
	return bytes.Count(head, []byte{'\n'}) + 1, len(head) - bytes.LastIndexByte(head, '\n')
}

// hash returns the SHA-256, in hex, of the names and contents of files. Each
// is preceded by its length, so that no two policies have the same text.
func hash(files []file) string {
	h := sha256.New()
	for i := range files {
		for _, part := range [][]byte{[]byte(files[i].name), files[i].content} {
			var size [8]byte
			binary.BigEndian.PutUint64(size[:], uint64(len(part)))
			h.Write(size[:])
			h.Write(part)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
