// Package handover passes open descriptors and what belongs to them from one
// process to another.
//
// It owns two protocols. Conn connects a process with the child that is to
// take its place: numbered messages with descriptors, over a socket that the
// child inherits. Notifier, Given and Keeper speak the service manager's
// protocol, sd_notify(3) with FDSTORE=1 and sd_listen_fds_with_names(3): a
// process leaves descriptors with its supervisor and finds them again when it
// is started anew after a crash. The supervisor is systemd, or verdictd's own
// keeper, which uses Keeper.
//
// It must not know what the descriptors are.
package handover
