// Command child is the process that the tests of procfs look at. The variable
// CHILD says what it does before it prints a line and waits for the end of its
// standard input.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	runtime.LockOSThread()
	said := "ready"
	switch os.Getenv("CHILD") {
	case "comm":
		said = fmt.Sprint(unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(unsafe.StringData(os.Getenv("COMM")+"\x00"))), 0, 0, 0))
	case "bind": // in a mount namespace of its own
		check(unix.Mount(os.Getenv("SOURCE"), os.Getenv("TARGET"), "", unix.MS_BIND, ""))
		if os.Getenv("KEEP") == "" {
			check(syscall.Exec(os.Getenv("TARGET"), []string{"x"}, nil))
		}
		fd, err := unix.Open(os.Getenv("TARGET"), unix.O_PATH, 0)
		check(err)
		said = strconv.Itoa(fd)
	case "memfd":
		fd, err := unix.MemfdCreate("named", unix.MFD_CLOEXEC)
		check(err)
		self, err := os.Open("/proc/self/exe")
		check(err)
		f := os.NewFile(uintptr(fd), "memfd")
		_, err = io.Copy(f, self)
		check(err)
		check(syscall.Exec("/proc/self/fd/"+strconv.Itoa(fd), []string{"x"}, nil))
	case "leader": // the first thread ends, another goes on
		go wait("ready")
		syscall.Syscall(unix.SYS_EXIT, 0, 0, 0)
	case "thread":
		tid := make(chan int)
		go func() {
			runtime.LockOSThread()
			tid <- unix.Gettid()
			select {}
		}()
		said = strconv.Itoa(<-tid)
	case "fork": // without exec
		pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno == 0 && pid == 0 {
			// Only system calls from here on; ends with its parent.
			syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0)
			for {
				syscall.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
			}
		}
		said = strconv.Itoa(int(pid))
	case "exec": // another file, on demand
		fmt.Println("ready")
		io.ReadFull(os.Stdin, make([]byte, 1))
		check(syscall.Exec(os.Getenv("TARGET"), []string{"x"}, nil))
	case "loop": // executes one of two files after the other, until it is killed
		if len(os.Args) == 1 {
			fmt.Println("ready")
		}
		other := os.Getenv("OTHER")
		check(syscall.Exec(other, []string{other, "x"}, []string{"CHILD=loop", "OTHER=" + os.Getenv("THIS"), "THIS=" + other}))
	case "chain":
		n, _ := strconv.Atoi(os.Getenv("DEPTH"))
		if n == 0 {
			said = strconv.Itoa(os.Getpid())
			break
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = []string{"CHILD=chain", "DEPTH=" + strconv.Itoa(n-1)}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		check(cmd.Start())
		if os.Getenv("ORPHAN") != "" {
			return
		}
		cmd.Wait()
		return
	case "sockets":
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		check(err)
		defer c.Close()
	}
	wait(said)
}

func wait(said string) {
	fmt.Println(said)
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
