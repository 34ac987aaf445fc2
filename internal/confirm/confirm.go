package confirm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Limits of the time that a trial may be given.
const (
	Shortest = 2 * time.Second
	Longest  = 24 * time.Hour
)

// Trial is something that has to be confirmed.
type Trial struct {
	// Until is the end of the trial. What was not confirmed by then is undone.
	Until time.Time `json:"until"`

	// Start is whether it is the start of the daemon that is on trial: it ends, and
	// takes its rules out. Else it is a policy.
	Start bool `json:"start,omitempty"`

	// Left is whether rules of an earlier run were in the kernel before the start:
	// then they stay, as what was before.
	Left bool `json:"left,omitempty"`

	// Policy is the SHA-256 of the policy on trial, Before that of the one that was
	// in use before and is saved in the directory. Both are empty if Start.
	Policy string `json:"policy,omitempty"`
	Before string `json:"before,omitempty"`

	// Undone is whether the trial has ended without a confirmation. It is kept as
	// long as the policy's files are as they were on trial.
	Undone bool `json:"undone,omitempty"`
}

// Over returns whether the trial has ended.
func (t *Trial) Over(now time.Time) bool { return t.Undone || !now.Before(t.Until) }

// CheckLimit returns what is wrong with the time for a trial.
func CheckLimit(d time.Duration) error {
	if d < Shortest || d > Longest {
		return fmt.Errorf("want %s to %s, got %s", Shortest, Longest, d)
	}
	return nil
}

// Dir is a directory that holds the record of one daemon. The zero value keeps
// nothing. It is for one goroutine and one process at a time.
type Dir string

const recordName = "trial.json"

// PolicyFile returns where the policy from before a trial is saved.
func (d Dir) PolicyFile() string { return filepath.Join(string(d), "before.policy") }

// Load returns the trial under way, nil if there is none.
func (d Dir) Load() (*Trial, error) {
	if d == "" {
		return nil, nil
	}
	content, err := os.ReadFile(filepath.Join(string(d), recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var t Trial
	if err == nil {
		err = json.Unmarshal(content, &t)
	}
	if err != nil {
		return nil, fmt.Errorf("read what is to be confirmed: %w", err)
	}
	return &t, nil
}

// Save notes a trial, in one step that a loss of power does not undo. A missing
// directory is made, for its owner alone.
func (d Dir) Save(t *Trial) error {
	if err := d.save(t); err != nil {
		return fmt.Errorf("note what is to be confirmed: %w", err)
	}
	return nil
}

func (d Dir) save(t *Trial) error {
	content, err := json.Marshal(t)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(string(d), ".trial-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(string(d), recordName))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Clear forgets the trial and what was saved for it.
func (d Dir) Clear() error {
	if d == "" {
		return nil
	}
	var errs []error
	for _, name := range []string{filepath.Join(string(d), recordName), d.PolicyFile()} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	// The directory goes too, unless it holds something else.
	_ = os.Remove(string(d))
	return errors.Join(errs...)
}
