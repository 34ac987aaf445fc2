// Package measure is what the benchmarks of this project share: the loops in C
// that verdictd is compared with, peers as processes of their own and the CPU
// time that they take, and tables of what several rounds gave.
package measure
