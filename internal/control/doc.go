// Package control lets other processes of the host ask a running daemon.
//
// It owns a Unix socket and the protocol on it: the client sends one line of
// JSON, {"version":1,"command":"status"}, gets one line back,
// {"version":1,"result":{...}} or {"version":1,"error":"..."}, and the
// connection ends. Only root and the user that the daemon runs as are answered.
//
// It must not know what the commands mean.
package control
