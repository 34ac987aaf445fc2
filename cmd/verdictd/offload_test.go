package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
)

// TestOffloadRetry takes back what the kernel knows until that succeeds, and
// says each time that it has not: only then a reload is acknowledged.
func TestOffloadRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		o := &offload{log: slog.New(slog.NewTextHandler(&log, nil))}
		busy, tries := errors.New("busy"), 0
		revoke := func() error {
			if tries++; tries < 4 {
				return busy
			}
			return nil
		}
		if err := o.retry(t.Context(), revoke); err != nil || tries != 4 || strings.Count(log.String(), "still pass by the queue") != 3 {
			t.Errorf("got error %v after %d tries and said\n%s", err, tries, log.String())
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := o.retry(ctx, func() error { return busy }); !errors.Is(err, busy) || !errors.Is(err, context.Canceled) {
			t.Errorf("stopped before it succeeds: got error %v, want both reasons", err)
		}
	})
}
