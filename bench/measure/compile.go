package measure

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed peer.c
var peerSource []byte // a constant to us

// CompilePeer builds the NFQUEUE loops in C in dir and returns the program, whose
// arguments are in peer.c, and the compiler. It needs gcc.
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
