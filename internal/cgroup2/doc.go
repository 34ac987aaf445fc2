// Package cgroup2 finds the hierarchy of control groups version 2.
//
// It owns where the hierarchy is, and nothing that is in it: who attaches to groups
// or reads them opens its root here.
package cgroup2
