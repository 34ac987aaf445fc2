// Package config reads the daemon's configuration file.
//
// It owns the names of the settings, their defaults and what is a valid
// value. It must not know what the settings do: it hands plain values to
// cmd/verdictd, where flags of the same names override them.
package config
