package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strconv"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// Config are the daemon's settings. Each has a flag of the same name, with
// "log." and the like written "log-". The zero value of a field, except where
// stated, is its default.
type Config struct {
	Queues         Queues `yaml:"queue"`         // default: 0
	Policy         string `yaml:"policy"`        // default: accept and record everything
	Strict         bool   `yaml:"strict"`        // refuse a policy that check warns of
	Mode           string `yaml:"mode"`          // enforce, monitor; default: enforce if there is a policy
	Fail           string `yaml:"fail"`          // open, closed; default: closed in enforce mode
	Malformed      string `yaml:"malformed"`     // drop, accept: packets that cannot be decoded; default: drop
	Hook           string `yaml:"hook"`          // such as "output,input"; default: the user keeps the rules
	OnStop         string `yaml:"on-stop"`       // closed, open: what a stop leaves of the rules of hook; default: as fail
	RequireRules   bool   `yaml:"require-rules"` // refuse to start if nothing would be judged or enforced
	Loopback       bool   `yaml:"loopback"`      // with hook: judge loopback traffic too
	StrictND       bool   `yaml:"strict-neighbour"`
	Offload        string `yaml:"offload"`        // on, off; default: on with hook
	OffloadMask    string `yaml:"offload-mask"`   // bits of marks that are verdictd's; default: 0xff000000, or others if those are in use
	ResetDenied    bool   `yaml:"reset-denied"`   // reset connections that a new policy denies
	Confirm        string `yaml:"confirm"`        // duration; the start is undone unless it is confirmed by then; default: it need not be
	ConfirmPolicy  string `yaml:"confirm-policy"` // duration; the same for each policy that takes another's place; default: it need not be
	NFLogGroups    Groups `yaml:"nflog-group"`
	Flows          int    `yaml:"flows"`           // default: 65536 per queue
	QueueLength    int    `yaml:"queue-length"`    // packets; default: 8192
	CopyRange      int    `yaml:"copy-range"`      // bytes; default: 256
	Attribution    string `yaml:"attribution"`     // auto, proc, off: how owners of sockets are found; default: auto
	HoldFacts      string `yaml:"hold-facts"`      // duration; "0": not at all; default: 250ms
	HoldHash       string `yaml:"hold-hash"`       // duration; "0": not at all; default: 2s
	AcceptUnhashed bool   `yaml:"accept-unhashed"` // a policy may accept for want of a hash that is not known yet
	HashSize       string `yaml:"hash-size"`       // of a program that is hashed; default: 256MiB
	HashTime       string `yaml:"hash-time"`       // duration; default: 30s
	RecordPin      string `yaml:"record-pin"`      // where rules of the user's own find the program that records who sends; default: nowhere
	Spin           string `yaml:"spin"`            // duration; default: 0
	Engine         string `yaml:"engine"`          // compiled, topdown; default: compiled
	PolicyBudget   string `yaml:"policy-budget"`   // duration; default: 50ms
	Control        string `yaml:"control"`         // socket for verdictd status; "none": none; default: /run/verdictd/verdictd.sock
	Metrics        string `yaml:"metrics"`         // address to serve metrics at; default: none
	Watchdog       string `yaml:"watchdog"`        // duration; "0": none; default: 1s
	StatsInterval  string `yaml:"stats-interval"`  // duration; "0": none; default: 60s
	Bundle         Bundle `yaml:"bundle"`
	Log            Log    `yaml:"log"`
}

// Bundle are the settings of a policy that is an OPA bundle. But for the key,
// they go with a bundle on a server only.
type Bundle struct {
	Key         string `yaml:"key"`          // file, or PEM text; default: bundles are not signed
	KeyID       string `yaml:"key-id"`       // default: any
	Alg         string `yaml:"alg"`          // default: RS256
	Scope       string `yaml:"scope"`        // default: none
	CA          string `yaml:"ca"`           // file; default: the system's
	Cert        string `yaml:"cert"`         // file
	CertKey     string `yaml:"cert-key"`     // file
	TokenFile   string `yaml:"token-file"`   // file
	MinInterval string `yaml:"min-interval"` // duration; default: 1m
	MaxInterval string `yaml:"max-interval"` // duration; default: 2m
	Timeout     string `yaml:"timeout"`      // duration; default: 1m
	LastGood    string `yaml:"last-good"`    // file, or none; default: /var/lib/verdictd/bundle.tar.gz
}

// Log are the settings of the audit log.
type Log struct {
	File    string `yaml:"file"`     // "-" is standard output; default: "-"
	Pretty  bool   `yaml:"pretty"`   // lines for people instead of JSON
	MaxSize Size   `yaml:"max-size"` // rotate at this size; default: never
	Keep    int    `yaml:"keep"`     // rotated files to keep; default: 5
}

// Load reads a configuration file. An error has the form
// "FILE:LINE:COLUMN: message".
func Load(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data)
}

// Parse reads a configuration from data; name stands for it in errors.
// Unknown and repeated keys are errors.
func Parse(name string, data []byte) (Config, error) {
	var c Config
	if len(bytes.TrimSpace(data)) == 0 {
		return c, nil
	}
	c.Flows, c.QueueLength, c.CopyRange, c.Log.Keep = -1, -1, -1, -1 // to tell 0 from nothing
	decoder := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict())
	if err := decoder.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, place(name, err)
	}
	if err := decoder.Decode(&Config{}); !errors.Is(err, io.EOF) {
		return Config{}, fmt.Errorf("%s: more than one YAML document (put all settings into one)", name)
	}
	return c, c.noZeros(name)
}

// noZeros refuses numbers that were given as 0, which would stand for the default,
// and makes 0 of those that were not given.
func (c *Config) noZeros(name string) error {
	if reflect.ValueOf(*c).IsZero() { // comments only: the decoder has cleared everything
		return nil
	}
	if c.Log == (Log{}) { // the same for "log:" alone
		c.Log.Keep = -1
	}
	for _, n := range []struct {
		key   string
		value *int
	}{{"flows", &c.Flows}, {"queue-length", &c.QueueLength}, {"copy-range", &c.CopyRange}, {"log.keep", &c.Log.Keep}} {
		switch *n.value {
		case 0:
			return fmt.Errorf("%s: %s: 0 is no value (leave it out for the default)", name, n.key)
		case -1:
			*n.value = 0
		}
	}
	return nil
}

// place puts the place and the remedy into an error of the YAML library.
func place(name string, err error) error {
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil || at.GetToken().Position == nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	pos := at.GetToken().Position
	text := at.GetMessage()
	if wrong, ok := errors.AsType[*yaml.TypeError](err); ok {
		text = fmt.Sprintf("%q: want %s", at.GetToken().Value, kindName(wrong.DstType))
		if value := at.GetToken().Value; value == "[" || value == "-" {
			text = "a list: want " + kindName(wrong.DstType) + ", with commas between its parts: output,input"
		}
	}
	if strings.HasSuffix(text, "was used where mapping is expected") {
		text = fmt.Sprintf("%q: this key has settings below it, each on an indented line of its own, such as file: %[1]s below log", at.GetToken().Value)
	}
	if _, unknown := errors.AsType[*yaml.UnknownFieldError](err); unknown {
		text = unknownKey(at.GetToken().Value)
	}
	return fmt.Errorf("%s:%d:%d: %s", name, pos.Line, pos.Column, strings.TrimSpace(text))
}

// kindName says in the words of a configuration file what a setting holds.
func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a number"
	}
	return "a text"
}

// knownKeys lists all keys in the order of Config.
// unknownKey names the key that is most like one that does not exist, or all.
func unknownKey(key string) string {
	all := knownKeys()
	best, least := "", float64(len(key))/2
	for _, known := range strings.FieldsFunc(all, func(r rune) bool { return strings.ContainsRune(",;: ", r) }) {
		d := float64(levenshtein.ComputeDistance(strings.ReplaceAll(key, "_", "-"), known))
		if strings.HasPrefix(known, key) {
			d -= 0.5
		}
		if d < least {
			best, least = known, d
		}
	}
	if best != "" {
		return fmt.Sprintf("unknown key %q (did you mean %s?)", key, best)
	}
	return fmt.Sprintf("unknown key %q (known keys: %s)", key, all)
}

func knownKeys() string {
	top, below := keysOf(reflect.TypeFor[Config]())
	return strings.Join(append([]string{strings.Join(top, ", ")}, below...), "; ")
}

// keysOf returns the keys of a struct of settings, and for each that has keys of
// its own a text that lists these.
func keysOf(t reflect.Type) (keys, below []string) {
	for i := range t.NumField() {
		key := t.Field(i).Tag.Get("yaml")
		keys = append(keys, key)
		if t.Field(i).Type.Kind() == reflect.Struct {
			of, _ := keysOf(t.Field(i).Type)
			below = append(below, "in "+key+": "+strings.Join(of, ", "))
		}
	}
	return keys, below
}

// Queues is a list of queue numbers, written "0", "0-3" or "0-3,8".
type Queues []uint16

// Set reads the list from its text form. It makes Queues a flag's value.
func (q *Queues) Set(text string) error {
	list, err := numbers("queue", text)
	if err == nil {
		*q = list
	}
	return err
}

// String returns the text form.
func (q *Queues) String() string { return join(*q) }

// Type names the text form in help texts.
func (q *Queues) Type() string { return "N[-M],..." }

// UnmarshalYAML reads the list from a scalar.
func (q *Queues) UnmarshalYAML(node ast.Node) error { return set(q, node) }

// Groups is a list of NFLOG group numbers in the same form.
type Groups []uint16

// Set reads the list from its text form.
func (g *Groups) Set(text string) error {
	list, err := numbers("NFLOG group", text)
	if err == nil {
		*g = list
	}
	return err
}

// String returns the text form.
func (g *Groups) String() string { return join(*g) }

// Type names the text form in help texts.
func (g *Groups) Type() string { return "N[-M],..." }

// UnmarshalYAML reads the list from a scalar.
func (g *Groups) UnmarshalYAML(node ast.Node) error { return set(g, node) }

// maxQueues bounds a list: each number costs a socket and a goroutine.
const maxQueues = 256

func numbers(what, text string) ([]uint16, error) {
	var list []uint16
	seen := map[uint16]bool{}
	for part := range strings.SplitSeq(text, ",") {
		low, high, isRange := strings.Cut(strings.TrimSpace(part), "-")
		first, err := strconv.ParseUint(low, 10, 16)
		last := first
		if err == nil && isRange {
			last, err = strconv.ParseUint(high, 10, 16)
		}
		if err != nil || last < first {
			return nil, fmt.Errorf("%s %q: want a number from 0 to 65535, or a range such as 0-3", what, part)
		}
		if last-first >= maxQueues || len(list)+int(last-first) >= maxQueues {
			return nil, fmt.Errorf("%s %q: more than %d", what, part, maxQueues)
		}
		for n := first; n <= last; n++ {
			if seen[uint16(n)] {
				return nil, fmt.Errorf("%s %d is given twice", what, n)
			}
			seen[uint16(n)] = true
			list = append(list, uint16(n))
		}
	}
	return list, nil
}

// join writes neighbouring numbers as ranges.
func join(list []uint16) string {
	var parts []string
	for i := 0; i < len(list); {
		j := i
		for j+1 < len(list) && list[j+1] == list[j]+1 {
			j++
		}
		part := strconv.Itoa(int(list[i]))
		if j > i {
			part += "-" + strconv.Itoa(int(list[j]))
		}
		parts = append(parts, part)
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// Size is a number of bytes, written "512", "64KiB", "100MiB" or "2GiB".
type Size int64

// Set reads the size from its text form.
func (s *Size) Set(text string) error {
	unit := int64(1)
	digits := strings.TrimSpace(text)
	for i, suffix := range []string{"KiB", "MiB", "GiB"} {
		if rest, ok := strings.CutSuffix(digits, suffix); ok {
			digits, unit = strings.TrimSpace(rest), int64(1)<<(10*(i+1))
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return fmt.Errorf("size %q: want a number of bytes, or one with KiB, MiB or GiB", text)
	}
	*s = Size(n * unit)
	return nil
}

// String returns the text form.
func (s *Size) String() string {
	n, units := int64(*s), []string{"", "KiB", "MiB", "GiB"}
	i := 0
	for n != 0 && n%1024 == 0 && i+1 < len(units) {
		n, i = n/1024, i+1
	}
	return strconv.FormatInt(n, 10) + units[i]
}

// Type names the text form in help texts.
func (s *Size) Type() string { return "SIZE" }

// UnmarshalYAML reads the size from a scalar.
func (s *Size) UnmarshalYAML(node ast.Node) error { return set(s, node) }

// set gives v the text of a YAML scalar. The error has the scalar's place.
func set(v interface{ Set(string) error }, node ast.Node) error {
	text := node.String()
	if s, ok := node.(*ast.StringNode); ok {
		text = s.Value // without quotes
	}
	if err := v.Set(text); err != nil {
		return &yaml.SyntaxError{Message: err.Error(), Token: node.GetToken()}
	}
	return nil
}
