package measure

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

//go:embed peer.c
var peerSource []byte // a constant to us

// Loop says how the program that CompilePeer builds runs.
type Loop struct {
	Mode                                  string // batched, spin or simple
	Queues, MaxLen, RecvBuffer, CopyRange int
	Spin                                  time.Duration // of the mode spin
	Mark                                  uint32        // 0: none
}

// Args returns the arguments that peer.c explains.
func (l Loop) Args() []string {
	args := []string{l.Mode}
	for _, n := range []int{l.Queues, l.MaxLen, l.RecvBuffer, l.CopyRange, int(l.Spin.Nanoseconds())} {
		args = append(args, strconv.Itoa(n))
	}
	if l.Mark != 0 {
		args = append(args, strconv.FormatUint(uint64(l.Mark), 10))
	}
	return args
}

// CompilePeer builds the NFQUEUE loops in C in dir and returns the program, whose
// arguments are those of a Loop, and the compiler. It needs gcc.
func CompilePeer(ctx context.Context, dir string) (program, compiler string, err error) {
	if program, err = Compile(ctx, dir, "peer", peerSource); err != nil {
		return "", "", err
	}
	version, err := exec.CommandContext(ctx, "gcc", "-dumpfullversion").Output()
	if err != nil {
		return "", "", fmt.Errorf("ask gcc for its version: %w", err)
	}
	return program, "gcc " + strings.TrimSpace(string(version)), nil
}

// Compile builds a program of one C source in dir. It needs gcc.
func Compile(ctx context.Context, dir, name string, source []byte, flags ...string) (program string, err error) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		return "", fmt.Errorf("gcc is not on the path (install it: apt install gcc libc6-dev)")
	}
	program = filepath.Join(dir, name)
	if err := os.WriteFile(program+".c", source, 0o600); err != nil {
		return "", err
	}
	args := append([]string{"-O2", "-pthread", "-o", program, program + ".c"}, flags...)
	if out, err := exec.CommandContext(ctx, gcc, args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile %s.c: %w (needs libc6-dev): %s", name, err, out)
	}
	return program, nil
}
