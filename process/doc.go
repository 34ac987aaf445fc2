// Package process says what is known of the owner of a socket: the process, its
// program, its parents, its control group, and where the answer comes from.
//
// It owns these types and what can be told from text alone: the systemd unit and
// the container in the path of a control group, bytes of the kernel as UTF-8. It must not ask the kernel: the
// packages below it do, each by one way (record, sockdiag, procfs, connector),
// and attribution puts their answers together.
package process
