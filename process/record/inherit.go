package record

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Names of inherited files: of maps their own, of programs and links these and the
// program's.
const (
	linkFile    = "link-"
	programFile = "program-"
)

// Files returns duplicates of the descriptors of maps, programs and links, for
// Config.Inherited of a successor: who holds them keeps the recording alive. The caller
// closes them.
func (r *Recorder) Files() (map[string]*os.File, error) {
	fds := map[string]int{programFile + flowPart: r.flow.FD()}
	for _, s := range r.maps.specs(Config{}) {
		fds[s.name] = (*s.slot).FD()
	}
	for _, l := range r.links {
		if with, ok := l.Link.(interface{ FD() int }); ok && l.name != holdersPart && l.name != tunnelsPart {
			fds[linkFile+l.name] = with.FD()
		}
	}
	out := make(map[string]*os.File, len(fds))
	for name, old := range fds {
		fd, err := unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			closeFiles(out)
			return nil, fmt.Errorf("duplicate descriptor of %s: %w", name, err)
		}
		out[name] = os.NewFile(uintptr(fd), "bpf-"+name)
	}
	return out, nil
}

func closeFiles(files map[string]*os.File) {
	for _, f := range files {
		f.Close()
	}
}
