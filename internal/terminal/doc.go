// Package terminal shows text that others chose so that it is taken for nothing
// else: not for commands to the terminal, nor for other words, columns or lines.
//
// It owns the one rule for that, on two levels. Word is for each value that a
// process or a remote sender can choose (names of programs, arguments, units, names
// of interfaces, answers of a server): it is quoted unless it is one plain word of
// ASCII. Writer is the net below: whatever else is printed, no character that is
// not seen, or that moves others, comes through. JSON needs no quotes of ours, but
// characters that terminals obey are escaped in it as well.
//
// It must not know what is printed.
package terminal
