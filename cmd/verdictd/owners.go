package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/verdictd/verdictd/config"
	"github.com/verdictd/verdictd/engine"
	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/process/attribution"
)

// recordPrefix begins the names of descriptors that carry what the kernel has
// recorded about owners of sockets.
const recordPrefix = "record-"

// openOwners makes it known who owns which socket, also those that are there
// already. It comes before the queues: nothing is judged before it.
func (d *daemon) openOwners(ctx context.Context) error {
	maps, err := d.takeRecords()
	if err != nil {
		return err
	}
	if d.attribution != attribution.Auto { // they are of no use here
		for _, f := range maps {
			f.Close()
		}
		maps = nil
	}
	if d.attribution == attribution.Off {
		return nil
	}
	// Rules of the user's own may queue what is forwarded, too.
	forward := d.settings.ruleset == nil || slices.Contains(d.settings.ruleset.Hooks, hook.Forward)
	d.owners, err = attribution.Open(attribution.Config{
		Mode:  d.attribution,
		NetNS: d.netns, Forward: forward, Maps: maps, HashSize: d.hashSize, HashTime: d.hashTime,
	})
	if err != nil {
		return err
	}
	if d.RecordPin != "" {
		if err := d.owners.Pin(d.RecordPin); err != nil {
			return err
		}
	}
	if d.settings.ruleset != nil {
		d.settings.ruleset.Record = d.owners.Program()
	}
	d.owners.Seed(ctx)
	return nil
}

// attributor makes who tells a worker whose its packets are. It is nil if nobody
// can.
func (d *daemon) attributor() func() engine.Attributor {
	if d.owners == nil {
		return nil
	}
	return func() engine.Attributor {
		a := d.owners.New()
		d.attributors = append(d.attributors, a)
		return a
	}
}

// learnOwners finds out beside the packets what takes long.
func (d *daemon) learnOwners(ctx context.Context) error {
	if d.owners == nil {
		return nil
	}
	return d.owners.Run(ctx)
}

// closeOwners ends the recording. The rules that use it must be gone.
func (d *daemon) closeOwners() {
	for _, a := range d.attributors {
		a.Close()
	}
	if d.owners == nil {
		return
	}
	if err := d.owners.Close(); err != nil {
		d.log.Error("recording of owners not ended", "error", err)
	}
}

// checkRecording warns if nothing records who uses sockets, or no rule who sends,
// or if not all can be known of them.
func (d *daemon) checkRecording() {
	if d.owners == nil {
		return
	}
	if missing := d.owners.Report().Missing; len(missing) > 0 {
		d.log.Warn("less will be known of programs", "missing", strings.Join(missing, "; "), "remedy", "verdictd doctor")
	}
	if d.attribution != attribution.Auto {
		return
	}
	err := d.owners.Recorded()
	if err == nil && d.ruleset != nil {
		_, err = d.ruleset.Recording()
	}
	if err != nil {
		d.log.Warn("programs that end at once will not be known", "reason", err, "remedy", "verdictd doctor")
	}
}

// records returns what opens a second descriptor of each of the kernel's records.
func (d *daemon) records() (map[string]*os.File, error) {
	if d.owners == nil {
		return nil, nil
	}
	maps, err := d.owners.Maps()
	named := make(map[string]*os.File, len(maps))
	for name, f := range maps {
		named[recordPrefix+name] = f
	}
	return named, err
}

// takeRecords takes over the records of the daemon before: from the elder, whose
// first message they are, whatever either of the two does with them, or from the
// supervisor if it died.
func (d *daemon) takeRecords() (map[string]*os.File, error) {
	if c := d.line.elder; c != nil {
		m, err := c.Receive()
		if err != nil {
			return nil, err
		}
		var names []string
		if err := m.Decode(&names); err != nil || m.Kind != kindRecords || len(names) != len(m.Files) {
			m.Close()
			return nil, fmt.Errorf("take over: message %d with %d descriptors, want %d with %d: %v", m.Kind, len(m.Files), kindRecords, len(names), err)
		}
		maps := map[string]*os.File{}
		for i, name := range names {
			maps[name[len(recordPrefix):]] = m.Files[i]
		}
		return maps, nil
	}
	maps := map[string]*os.File{}
	for name := range d.line.sockets {
		if len(name) > len(recordPrefix) && name[:len(recordPrefix)] == recordPrefix {
			maps[name[len(recordPrefix):]] = d.line.take(name)
		}
	}
	return maps, nil
}

// Bounds of the settings that say how long a packet waits for facts of its owner.
const (
	maxHoldFacts = 5 * time.Second
	maxHoldHash  = 30 * time.Second
	minHashSize  = 1 << 20
)

// checkHold reads how long packets are held for facts of their owner, and what is
// hashed.
func (s *settings) checkHold() (err error) {
	for _, h := range []struct {
		name, text string
		most       time.Duration
		value      *time.Duration
	}{{"hold-facts", s.HoldFacts, maxHoldFacts, &s.holdFacts}, {"hold-hash", s.HoldHash, maxHoldHash, &s.holdHash}} {
		if h.text == "" {
			continue
		}
		if *h.value, err = time.ParseDuration(h.text); err != nil || *h.value < 0 || *h.value > h.most {
			return settingErrorf(h.name, "want a time up to %v such as 250ms, or 0 for not at all, got %q", h.most, h.text)
		}
		if *h.value == 0 {
			*h.value = -1
		}
	}
	if s.HashSize != "" {
		var size config.Size
		if err := size.Set(s.HashSize); err != nil || size < minHashSize {
			return settingErrorf("hash-size", "want a size from 1MiB such as 256MiB, got %q", s.HashSize)
		}
		s.hashSize = int64(size)
	}
	if s.HashTime != "" {
		if s.hashTime, err = time.ParseDuration(s.HashTime); err != nil || s.hashTime <= 0 {
			return settingErrorf("hash-time", "want a time such as 30s, got %q", s.HashTime)
		}
	}
	return nil
}
