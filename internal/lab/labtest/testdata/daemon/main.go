// Command daemon is a stand-in for verdictd in the tests of labtest: it says
// where it runs, gets ready, and ends on SIGTERM with the code it is given.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

func main() {
	code, err := strconv.Atoi(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	ns, err := os.Readlink("/proc/self/ns/net")
	fmt.Println(ns, err, os.Getenv("LAB_TEST"))
	fmt.Fprint(os.Stderr, "starting\nnow re")
	fmt.Fprintln(os.Stderr, "ady")
	<-stop
	os.Exit(code)
}
