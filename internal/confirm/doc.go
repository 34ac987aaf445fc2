// Package confirm remembers what still has to be confirmed, so that a change that
// locks its author out undoes itself.
//
// It owns a directory with the record of the trial under way and the policy that
// was in use before. Both outlive the process: whoever comes after a crash, an
// upgrade or a reboot goes on with the same deadline, and goes back if it is over.
// It must not know sockets, rules or clients, and starts nothing: whoever uses it
// keeps the time.
package confirm
