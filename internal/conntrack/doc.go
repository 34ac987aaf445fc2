// Package conntrack lists the connections that the kernel tracks.
//
// It owns the question to the kernel and what of the answer counts. It must not
// know what anybody does with a connection, and changes none: marks are package
// hook's.
package conntrack
