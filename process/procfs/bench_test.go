package procfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/verdictd/verdictd/process"
)

func BenchmarkProcess(b *testing.B) {
	fs, pid := open(b), uint32(os.Getpid())
	parents := len(must(fs.Process(pid))(b).Parents)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := fs.Process(pid); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(parents), "parents")
}

func BenchmarkExe(b *testing.B) {
	fs := open(b)
	path := program(b, filepath.Join(b.TempDir(), "a"), "")
	c := start(b, path, nil)
	for _, name := range []string{"at its path", "deleted"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := fs.Exe(c.pid); err != nil {
					b.Fatal(err)
				}
			}
		})
		os.Remove(path)
	}
}

// BenchmarkHost is BenchmarkExe and BenchmarkResolveExeEnded where process 1 has
// another mount namespace than we.
func BenchmarkHost(b *testing.B) {
	h := newHost(b)
	c, path, st := h.run("a")
	for _, name := range []string{"at its path", "deleted"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := h.fs.Exe(c.pid); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("ended/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				h.fs.ResolveExe(path, st.inode, st.device, h.fs.ref.mountNS, 1<<30, 0)
			}
		})
		h.in(func() { os.Remove(path) })
	}
	b.ReportMetric(float64(len(must(mounts(h.fs.ref.process))(b))), "mounts")
}

func BenchmarkStartBoot(b *testing.B) {
	fs, pid := open(b), uint32(os.Getpid())
	for b.Loop() {
		if _, err := fs.StartBoot(pid); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkResolveExeEnded(b *testing.B) {
	fs := open(b)
	path := program(b, filepath.Join(b.TempDir(), "a"), "")
	st := statOf(b, path)
	b.ReportAllocs()
	for b.Loop() {
		fs.ResolveExe(path, st.inode, st.device, fs.ref.mountNS, 1<<30, 0)
	}
}

func BenchmarkCgroup(b *testing.B) {
	fs := open(b)
	id := statOf(b, group(b, fs, fmt.Sprintf("/procfs%d.slice/bench.service", os.Getpid()))).inode
	b.ReportAllocs()
	for b.Loop() {
		if _, err := fs.Cgroup(id); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCgroupOf(b *testing.B) {
	fs, pid := open(b), uint32(os.Getpid())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := fs.CgroupOf(pid); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHolders scans 100 processes with 13 descriptors each, beside those
// that the machine has.
func BenchmarkHolders(b *testing.B) {
	fs := open(b)
	path := program(b, filepath.Join(b.TempDir(), "a"), "")
	f, inode := socket(b)
	const count, inherited = 100, 10
	pids := make([]uint32, 0, count)
	for range count {
		pids = append(pids, start(b, path, func(cmd *exec.Cmd) {
			for range inherited {
				cmd.ExtraFiles = append(cmd.ExtraFiles, f)
			}
		}).pid)
	}
	b.Run("all", func(b *testing.B) {
		b.ReportAllocs()
		sockets := 0
		for b.Loop() {
			sockets = 0
			if err := fs.Holders(b.Context(), func(uint32, uint32, int) error { sockets++; return nil }); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(sockets), "sockets")
	})
	b.Run("one hit", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := fs.HoldersOf(pids[:1], inode); !ok {
				b.Fatal("not found")
			}
		}
	})
	b.Run("one miss", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := fs.HoldersOf(pids[:1], 1); ok {
				b.Fatal("found")
			}
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	h := NewHasher(nil, HasherConfig{})
	key := Key{Device: 1, Inode: 2, Mtime: 3, Ctime: 4, Size: 5}
	h.keep(key, "x")
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := h.Lookup(key); !ok {
			b.Fatal("not found")
		}
	}
}

func BenchmarkHash(b *testing.B) {
	path := program(b, filepath.Join(b.TempDir(), "a"), "")
	st := must(os.Stat(path))(b)
	at := statOf(b, path)
	fs := open(b)
	b.SetBytes(st.Size())
	for b.Loop() {
		h := NewHasher(fs, HasherConfig{})
		if a := h.hash(Request{Path: path, Exe: process.Exe{Inode: at.inode, Device: at.device}}); a.Err != nil {
			b.Fatal(a.Err)
		}
	}
}
