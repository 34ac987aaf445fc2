package policy

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Times of a watch, unless WatchConfig says otherwise.
const (
	defaultSettle = 100 * time.Millisecond
	maxSettles    = 10 // a directory that never rests is read after so many of them
)

// WatchConfig says what Watch does.
type WatchConfig struct {
	// Source is the policy to watch. If it is the built-in policy or has an
	// FS, only Reload has an effect.
	Source Source

	// Hash is that of what the files held last, or empty if that is what Current
	// was made of: a change made before Watch began is seen by it. It is another
	// one than Current's where what the files hold is not in use.
	Hash string

	// Current is the policy in use, or nil. If only its data change, its rules
	// are not compiled again.
	Current *Policy

	// Strict is asked before each load, in place of Source.Strict; nil: that counts.
	Strict func() bool

	// Reload asks for a reload whether or not the files have changed, as on
	// SIGHUP. Nil never asks.
	Reload <-chan struct{}

	// OnChange gets each new policy, or the reason why it was refused: then
	// the old one stays in use. It is called from Watch's goroutine. Must not
	// be nil.
	OnChange func(*Policy, error)

	// OnServer gets why the server of a bundle cannot be asked, and nil when it
	// can again; not each time but when that changes. The policy stays. It is
	// called as OnChange is. Nil is not called.
	OnServer func(error)

	// Settle is how long the files must rest before they are read. 0 is
	// 100 ms.
	Settle time.Duration
}

// Watch loads the policy again whenever its files change, until ctx is done:
// then it returns nil. It runs in the caller's goroutine and has ended all of
// its own when it returns.
//
// It watches directories, not files, so it sees editors that replace a file
// by another, and symbolic links that are turned to another target, as
// Kubernetes does with a ConfigMap. What counts is the content: a file that
// was written without a change does nothing, and a bad policy is reported once.
//
// A bundle on a server is asked for now and then, as BundleServer says. A
// bundle that is refused never takes the place of a good one.
//
// An error means that the kernel's watches cannot be had; it says which limit
// to raise. Or the settings of the server are wrong.
func Watch(ctx context.Context, cfg WatchConfig) error {
	if cfg.Settle <= 0 {
		cfg.Settle = defaultSettle
	}
	w := watch{cfg: cfg, old: cfg.Current, seen: cfg.Hash, dirs: map[string]bool{}}
	if w.old != nil && w.seen == "" {
		w.seen = w.old.hash
	}
	if cfg.Source.isRemote() {
		return watchServer(ctx, w)
	}
	if cfg.Source.builtin() || cfg.Source.FS != nil {
		return w.run(ctx, nil, nil)
	}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch policy %s: %w (raise fs.inotify.max_user_instances)", cfg.Source, err)
	}
	defer notify.Close() // ends its goroutine; there is nothing to flush
	w.notify = notify
	if err := w.follow(); err != nil {
		return err
	}
	w.look(ctx, false)
	return w.run(ctx, notify.Events, notify.Errors)
}

// watch is the state of one Watch.
type watch struct {
	cfg    WatchConfig
	notify *fsnotify.Watcher // nil if there are no files to watch
	dirs   map[string]bool   // directories that notify watches
	old    *Policy           // in use; nil if there is none
	seen   string            // hash of the content last loaded or refused, or the reason why it could not be read
}

// run is the loop of a watch.
func (w *watch) run(ctx context.Context, events <-chan fsnotify.Event, errs <-chan error) error {
	timer := time.NewTimer(w.cfg.Settle)
	defer timer.Stop()
	timer.Stop()
	var since time.Time // of the first event not yet acted upon; zero if there is none
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.cfg.Reload:
			w.look(ctx, true)
		case e, ok := <-events:
			if !ok {
				return fmt.Errorf("watch policy %s: the kernel ended the watch", w.cfg.Source)
			}
			since = w.wait(e, since, timer)
		case <-errs:
			// Events were lost: look at everything.
			timer.Reset(w.cfg.Settle)
		case <-timer.C:
			since = time.Time{}
			if err := w.follow(); err != nil {
				w.cfg.OnChange(nil, err)
			}
			w.look(ctx, false)
		}
	}
}

// wait sets the timer to the time to look at the files after event e, and
// returns since when there is something to look at.
func (w *watch) wait(e fsnotify.Event, since time.Time, timer *time.Timer) time.Time {
	if e.Op == fsnotify.Chmod && !w.unreadable() {
		return since // other rights, same content
	}
	if since.IsZero() {
		since = time.Now()
	}
	if time.Since(since) < maxSettles*w.cfg.Settle {
		timer.Reset(w.cfg.Settle)
	}
	return since
}

// unreadable returns whether the last look failed, so that new rights may help.
func (w *watch) unreadable() bool { return strings.HasPrefix(w.seen, unread) }

// unread begins seen when the files could not be read.
const unread = "unread: "

// look reads the policy's files and hands on what they are, unless they are
// what was seen last and the caller does not insist.
func (w *watch) look(ctx context.Context, insist bool) {
	files, errs := w.cfg.Source.read()
	w.see(ctx, files, errs, insist, func(*Policy) {})
}

// see hands on what files are, unless they are what was seen last and the
// caller does not insist, and returns whether it did. It calls accept before with a
// policy that is good.
func (w *watch) see(ctx context.Context, files []file, errs Errors, insist bool, accept func(*Policy)) bool {
	now := unread + errs.Error()
	if len(errs) == 0 {
		now = hash(files)
	}
	if now == w.seen && !insist {
		return false
	}
	w.seen = now
	if len(errs) > 0 {
		w.cfg.OnChange(nil, errs.sorted())
		return true
	}
	src := w.cfg.Source
	if w.cfg.Strict != nil {
		src.Strict = w.cfg.Strict()
	}
	p, err := load(ctx, src, files, w.old)
	if ctx.Err() != nil {
		return false // cut short: says nothing about the policy
	}
	if err == nil {
		accept(p)
		w.old = p
	}
	w.cfg.OnChange(p, err)
	return true
}

// follow makes notify watch the directories that the policy's files are in
// now, and no others.
func (w *watch) follow() error {
	want := w.cfg.Source.watchDirs()
	for range maxSettles {
		if err := w.add(want); err != nil {
			return err
		}
		// A directory that came before the one around it was watched made no event.
		now := w.cfg.Source.watchDirs()
		if slices.Equal(now, want) {
			break
		}
		want = now
	}
	for dir := range w.dirs {
		if !slices.Contains(want, dir) {
			_ = w.notify.Remove(dir) // it may be gone: then the kernel has removed the watch
			delete(w.dirs, dir)
		}
	}
	return nil
}

// add watches directories.
func (w *watch) add(dirs []string) error {
	for _, dir := range dirs {
		// Adding a directory anew is harmless, and needed where another one has
		// taken its name.
		if err := w.notify.Add(dir); err != nil {
			if _, serr := os.Stat(dir); serr != nil {
				continue // gone between the two looks: its parent told us
			}
			return fmt.Errorf("watch directory %s: %w (raise fs.inotify.max_user_watches)", dir, err)
		}
		w.dirs[dir] = true
	}
	return nil
}

// watchDirs returns the directories in which a change can change the policy at
// path: that which holds path; if path is a directory, it and all below; and
// those that symbolic links on the way point into.
func watchDirs(path string) []string {
	set := map[string]bool{filepath.Dir(path): true}
	add := func(p string) {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			set[filepath.Dir(real)] = true
		}
	}
	add(path)
	// WalkDir does not follow a link, so a link to a directory gets a slash.
	root := path
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		root = path + string(filepath.Separator)
	}
	// Errors are met again, and reported, where the policy is read.
	_ = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil
		case d.IsDir() && name != root && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		case d.IsDir():
			set[filepath.Clean(name)] = true
		case d.Type()&fs.ModeSymlink != 0:
			add(name)
		}
		return nil
	})
	return sortedKeys(set)
}
