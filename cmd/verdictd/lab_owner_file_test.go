package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/verdictd/verdictd/internal/lab"
	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// once sends a datagram to the port that is its argument, and ends.
const once = `
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])) };
	inet_pton(AF_INET, "10.99.0.2", &to.sin_addr);
	return sendto(socket(AF_INET, SOCK_DGRAM, 0), "x", 1, 0, (void *)&to, sizeof to) != 1;
}`

// shell runs a script in the namespace.
func shell(t *testing.T, ns *lab.Namespace, script string, args ...string) {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-ec", script, "sh"}, args...)...)
	var text []byte
	err := ns.Do(func() (err error) { text, err = cmd.CombinedOutput(); return err })
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, text)
	}
}

// programsOf stops the daemon and compares the programs in its log with what they
// are, by the port that each sent to.
func programsOf(t *testing.T, d *daemon, want map[uint16]string) {
	t.Helper()
	d.Stop()
	owners := ownersOf(t, d.Stdout())
	for port, exe := range want {
		all := owners[port]
		if len(all) == 0 || all[0].Own.Process.Source != "bpf-flow" || all[0].Own.Process.Exe != exe {
			t.Errorf("port %d: got %d decisions, %+v; want %q", port, len(all), all, exe)
		}
	}
}

// TestLabOwnerSubvolume: in each subvolume of btrfs inodes are numbered anew, and the
// kernel's device is the same for all. A program in one that has the number of a
// program in another, and is shown at its path in a mount namespace, is not that
// program.
func TestLabOwnerSubvolume(t *testing.T) {
	setup(t, labtest.GCC, labtest.BPF, labtest.Btrfs)
	lan, dir := labtest.Pair(t), t.TempDir()
	m := filepath.Join(dir, "m")
	if out, err := exec.Command("sh", "-ec", `cd "$1"; mkdir m; truncate -s 200M img; mkfs.btrfs -q img >&2; mount -o loop img m
		btrfs subvolume create m/one; btrfs subvolume create m/two`, "sh", dir).CombinedOutput(); err != nil {
		labtest.Lacks(t, labtest.Btrfs, fmt.Errorf("%w: %s", err, out))
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", m).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	tool, evil := filepath.Join(m, "one/tool"), filepath.Join(m, "two/evil")
	compile(t, once, filepath.Join(dir, "once"))
	d := startDaemon(t, lan.Client, acceptAll, "--hook", "output")
	shell(t, lan.Client, `cp "$1/once" "$2"; cp "$1/once" "$3"; test $(stat -c %i "$2") = $(stat -c %i "$3")
		"$2" 9001; "$3" 9002; unshare -m sh -ec 'mount --bind "$2" "$1"; "$1" 9003; "$1" 9004' sh "$2" "$3"`, dir, tool, evil)
	programsOf(t, d, map[uint16]string{9001: tool, 9002: evil, 9003: "", 9004: ""})
}

// TestLabOwnerLink: a program that a mount namespace shows where the host has a
// symbolic link to its directory has the path that the host's kernel gives it.
func TestLabOwnerLink(t *testing.T) {
	setup(t, labtest.GCC, labtest.BPF)
	lan, dir := labtest.Pair(t), t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "usr"), 0o755), os.MkdirAll(filepath.Join(dir, "var/tmp"), 0o755),
		os.Symlink("../var/tmp", filepath.Join(dir, "usr/tmp")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	evil := filepath.Join(dir, "var/tmp/evil")
	compile(t, once, evil)
	d := startDaemon(t, lan.Client, acceptAll, "--hook", "output")
	shell(t, lan.Client, `"$1/usr/tmp/evil" 9001; mkdir "$1/var/tmp/keep"; unshare -m sh -ec 'cd "$1"; mount --bind var/tmp var/tmp/keep
		mount -t tmpfs x usr; mkdir usr/tmp; mount --bind var/tmp/keep usr/tmp; "$1/usr/tmp/evil" 9002; sleep 0.3' sh "$1"`, dir)
	programsOf(t, d, map[uint16]string{9001: evil, 9002: evil})
}

// TestLabOwnerPreload: what LD_PRELOAD puts into a program is that program, as far as
// anybody can tell. This is a limit, and SECURITY.md says so.
func TestLabOwnerPreload(t *testing.T) {
	setup(t, labtest.GCC, labtest.BPF)
	lan, dir := labtest.Pair(t), t.TempDir()
	compile(t, once, filepath.Join(dir, "once")) // gcc is there and works
	shell(t, lan.Client, `cd "$1"; printf '%s' "$2" >a.c; gcc -w -O1 -shared -fPIC -o a.so a.c; echo 'int main(void) { return 0; }' >b.c; gcc -o trusted b.c`,
		dir, strings.Replace(once, "int main(int argc, char **argv)", "__attribute__((constructor)) static int init(int argc, char **argv)", 1))
	d := startDaemon(t, lan.Client, acceptAll, "--hook", "output")
	shell(t, lan.Client, `LD_PRELOAD="$1/a.so" "$1/trusted" 9001`, dir)
	programsOf(t, d, map[uint16]string{9001: filepath.Join(dir, "trusted")})
}

// TestLabOwnerShared: a listener that a server and its worker hold, older than the
// daemon, has the program that both run, and no pid; that it was looked up is said.
func TestLabOwnerShared(t *testing.T) {
	setup(t, labtest.GCC, labtest.BPF)
	lan, path := labtest.Pair(t), filepath.Join(t.TempDir(), "server")
	compile(t, strings.Replace(listener, "	write(1,", "	fork();\n	write(1,", 1), path)
	cmd := exec.Command(path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := lan.Client.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	connect := func() error {
		return lan.Server.Do(exec.Command("timeout", "5", "bash", "-c", "exec 3<>/dev/tcp/10.99.0.1/9009").Run)
	}
	if !lab.Poll(wait, func() bool { return connect() == nil }) {
		t.Fatal("nobody listens")
	}
	d := startDaemon(t, lan.Client, fmt.Sprintf("package verdictd\n\ndecision := {\"verdict\": \"accept\"} if input.process.exe == %q\n", path), "--hook", "input")
	for range 3 {
		if err := connect(); err != nil {
			t.Errorf("connect: %v", err)
		}
	}
	d.Stop()
	all := ownersOf(t, d.Stdout())[9009]
	if len(all) == 0 {
		t.Errorf("the log has no owner: %s", d.Stdout())
	}
	for _, o := range all {
		if p := o.Own.Process; p.Source != "diag" || p.Exe != path || p.PID != 0 || p.Cmdline != "" || p.Parents != nil {
			t.Errorf("got %+v, want %s and no pid", p, path)
		}
	}
}
