package main

import (
	"os"

	"github.com/verdictd/verdictd/logsink"
)

// openAudit opens the audit log. After another process it is only made ready:
// awaitLog opens it.
func (d *daemon) openAudit() error {
	host, _ := os.Hostname() // without it the record just lacks the key
	cfg := logsink.Config{Encoder: logsink.EncoderConfig{Host: host}, Logger: d.log}
	if d.line.elder == nil {
		cfg.Outputs = d.logOutputs()
	}
	var err error
	d.audit, err = logsink.New(cfg)
	return err
}

// logOutputs returns where the audit log goes.
func (d *daemon) logOutputs() []logsink.Output {
	if d.outputs != nil {
		return d.outputs
	}
	outputs := []logsink.Output{{
		Path: d.Log.File, Pretty: d.Log.Pretty && d.Log.File == "-", Colour: d.env.colour(),
		MaxBytes: int64(d.Log.MaxSize), Keep: d.Log.Keep,
	}}
	if d.Log.Pretty && d.Log.File != "-" {
		outputs = append(outputs, logsink.Output{Path: "-", Pretty: true, Colour: d.env.colour()})
	}
	return outputs
}
