package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// savedPlaces are where rulesets are loaded from at boot: by nftables.service of
// Debian, Fedora and Arch, and by iptables-persistent and iptables-services.
func savedPlaces() []string {
	return []string{
		"/etc/nftables.conf", "/etc/sysconfig/nftables.conf", "/etc/nftables/*.nft", "/etc/nftables.d/*.nft",
		"/etc/iptables/rules.v4", "/etc/iptables/rules.v6", "/etc/sysconfig/iptables", "/etc/sysconfig/ip6tables",
	}
}

const (
	maxSaved     = 1 << 20 // bytes that are read of a file: a ruleset, not a list of addresses
	maxSavedFile = 64      // files that are read, includes among them
)

// savedFinding looks for rules of verdictd that were saved with those of others.
// They do not load again: nft cannot read back the rule that notes who sends, and so
// loads nothing of the file.
func savedFinding(root string) finding {
	f := finding{Name: "saved rules", State: stateOK, Found: "no file that is loaded at boot has rules of verdictd in it"}
	var found, unread []string
	queue := slices.Clone(savedPlaces())
	for seen := map[string]bool{}; len(queue) > 0 && len(seen) < maxSavedFile; queue = queue[1:] {
		paths, _ := filepath.Glob(filepath.Join(root, queue[0])) // the patterns of savedPlaces are well formed; others match nothing
		for _, path := range paths {
			if seen[path] {
				continue
			}
			seen[path] = true
			text, err := readSaved(path)
			switch {
			case errors.Is(err, fs.ErrPermission):
				unread = append(unread, path)
			case err != nil:
			case savedTable(text):
				found = append(found, strings.TrimPrefix(path, root))
			}
			queue = append(queue, included(text, filepath.Dir(strings.TrimPrefix(path, root)))...)
		}
	}
	switch {
	case len(found) > 0:
		return finding{f.Name, stateLimit, "rules of verdictd were saved in " + strings.Join(found, ", "),
			"nothing of the file is loaded at the next boot: the rule that runs a BPF program cannot be read back",
			"take verdictd's table (or that rule) out of the file: verdictd puts its table in itself; README says how to save the others"}
	case len(unread) > 0:
		return finding{Name: f.Name, State: stateUnknown, Found: fmt.Sprintf("not readable: %s", strings.Join(unread, ", "))}
	}
	return f
}

// readSaved reads a file, but none that is no plain file or too large.
func readSaved(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxSaved {
		return "", err
	}
	text, err := os.ReadFile(path)
	return string(text), err
}

// savedTable says whether a saved ruleset has rules of verdictd that do not load
// again: its own table, which has a chain of that name, or, among printed rules,
// which are fine to save, one that runs a pinned program.
func savedTable(text string) bool {
	return regexp.MustCompile(`(?m)^\s*(chain verdictd_offload\b|-A verdictd-\S+ .*-m bpf )`).MatchString(text)
}

// included returns the files that a file of nft includes.
func included(text, dir string) (paths []string) {
	for _, m := range regexp.MustCompile(`(?m)^\s*include\s+["']([^"'\n]+)["']`).FindAllStringSubmatch(text, -1) {
		path := m[1]
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		paths = append(paths, path)
	}
	return paths
}
