package main

import (
	"os"

	"github.com/verdictd/verdictd/logsink"
)

// openAudit opens the audit log. After another process it is only made ready:
// awaitLog opens it.
func (d *daemon) openAudit() error {
	host, _ := os.Hostname() // without it the record just lacks the key
	d.auditRun = newRun()
	past := d.remember()
	if past.Run != "" {
		d.auditRun = past.Run
	}
	var err error
	d.audit, err = logsink.New(logsink.Config{
		Encoder: logsink.EncoderConfig{Host: host, Run: d.auditRun}, Logger: d.log, Journal: d.memory.journal(),
	})
	if err != nil || d.line.elder != nil {
		return err
	}
	return d.audit.Open(d.logOutputs(), past)
}

// logOutputs returns where the audit log goes.
func (d *daemon) logOutputs() []logsink.Output {
	if d.outputs != nil {
		return d.outputs
	}
	size := &d.live.Load().Log
	outputs := []logsink.Output{{
		Path: d.Log.File, Pretty: d.Log.Pretty && d.Log.File == "-", Colour: d.env.colour(),
		MaxBytes: int64(size.MaxSize), Keep: size.Keep,
	}}
	if d.Log.Pretty && d.Log.File != "-" {
		outputs = append(outputs, logsink.Output{Path: "-", Pretty: true, Colour: d.env.colour()})
	}
	return outputs
}
