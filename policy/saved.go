package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/verdictd/verdictd/rules"
)

// saved is a policy as Save writes it.
type saved struct {
	Version int         `json:"version"`
	SHA256  string      `json:"sha256"`
	Files   []savedFile `json:"files"`
}

type savedFile struct {
	Name    string `json:"name"`
	Shown   string `json:"shown"`
	Content []byte `json:"content"`
	Rules   bool   `json:"rules,omitempty"` // the rules file that says what the policy is
}

// savedVersion changes whenever a saved policy cannot be read as before.
const savedVersion = 1

// Save writes the policy's files into one file, readable by its owner alone, from
// which LoadSaved makes the same policy. A file that is there is replaced in one
// step; a missing directory is made.
func (p *Policy) Save(name string) error {
	s := saved{Version: savedVersion, SHA256: p.hash}
	for i := range p.program.files {
		f := &p.program.files[i]
		s.Files = append(s.Files, savedFile{Name: f.name, Shown: f.shown, Content: f.content, Rules: f.rules != nil})
	}
	content, err := json.Marshal(&s)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(name), 0o700)
	}
	if err == nil {
		err = replaceFile(name, content)
	}
	if err != nil {
		return fmt.Errorf("save policy to %s: %w", name, err)
	}
	return nil
}

// LoadSaved loads a policy that Save wrote. src says how it is run; where it is
// from is of no account. Its tests are not run: it was in use.
//
// An error wraps fs.ErrNotExist if there is no such file.
func LoadSaved(ctx context.Context, name string, src Source) (*Policy, error) {
	files, err := readSaved(name)
	if err != nil {
		return nil, fmt.Errorf("load the policy saved in %s: %w", name, err)
	}
	src.SkipTests = true
	return load(ctx, src, files, nil)
}

func readSaved(name string) ([]file, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("others may write to the file (chmod 600 %s)", name)
	}
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var s saved
	if err := json.Unmarshal(content, &s); err != nil {
		return nil, err
	}
	if s.Version != savedVersion {
		return nil, fmt.Errorf("version %d of the file, want %d", s.Version, savedVersion)
	}
	files := make([]file, len(s.Files))
	main := -1
	for i, f := range s.Files {
		files[i] = file{name: f.Name, shown: f.Shown, content: f.Content}
		if f.Rules {
			main = i
		}
	}
	if got := hash(files); got != s.SHA256 {
		return nil, fmt.Errorf("its content has the hash %s, want %s (the file is damaged: delete it)", got, s.SHA256)
	}
	if main < 0 {
		return files, nil
	}
	files[main].rules, err = rules.ParsePlain(files[main].shown, func(name string) ([]byte, error) {
		i := slices.IndexFunc(files, func(f file) bool { return f.shown == name })
		if i < 0 {
			return nil, errors.New("not among the saved files")
		}
		files[i].plain = true
		return files[i].content, nil
	})
	return files, err
}
