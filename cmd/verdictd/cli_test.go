package main

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/verdictd/verdictd/config"
	"github.com/verdictd/verdictd/internal/lab/labtest"
	"github.com/verdictd/verdictd/rules"
)

// TestMain makes the test binary act as verdictd when a script calls that.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"verdictd": main})
}

// TestScripts runs the scripts of testdata/script, which call verdictd as a
// user does. With VERDICTD_UPDATE set it writes what they got into them.
func TestScripts(t *testing.T) {
	repository := labtest.Repository(t)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("VERDICTD_UPDATE") != "",
		Setup: func(e *testscript.Env) error {
			e.Setenv("EXAMPLE", filepath.Join(repository, "policy.rego.example"))
			e.Setenv("TRAFFIC", filepath.Join(repository, "cmd", "verdictd", "testdata", "traffic.hex"))
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name != "root" {
				return false, errors.New("unknown condition " + name)
			}
			return os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"capture": cmdCapture, "json": cmdJSON, "cut": cmdCut,
			"code":                cmdCode("verdictd"),
			"code-without-rights": cmdCode("setpriv", "--bounding-set=-all", "--inh-caps=-all", "verdictd"),
		},
	})
}

// cmdCode returns a script's command that runs a program and compares its exit
// code: code N ARGUMENT...
func cmdCode(program ...string) func(ts *testscript.TestScript, neg bool, args []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) < 2 {
			ts.Fatalf("usage: code N ARGUMENT...")
		}
		want, err := strconv.Atoi(args[0])
		ts.Check(err)
		got := exitOK
		err = ts.Exec(program[0], slices.Concat(program[1:], args[1:])...)
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			got, err = exit.ExitCode(), nil
		}
		ts.Check(err)
		if got != want {
			ts.Fatalf("got exit code %d, want %d", got, want)
		}
	}
}

// cmdCapture writes a capture: capture HEX OUT [LINKTYPE]. HEX holds a frame on
// each line. The name of OUT says which format: .pcap, .pcapng, and then .gz or
// .zst.
func cmdCapture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: capture HEX OUT [LINKTYPE]")
	}
	link := layers.LinkTypeEthernet
	if len(args) == 3 {
		n, err := strconv.ParseUint(args[2], 10, 8)
		ts.Check(err)
		link = layers.LinkType(n)
	}
	frames, err := parseHex(ts.ReadFile(args[0]))
	ts.Check(err)
	name, packed := args[1], filepath.Ext(args[1])
	if packed == ".gz" || packed == ".zst" {
		name = strings.TrimSuffix(name, packed)
	}
	file, err := captureFile(filepath.Ext(name), link, frames)
	ts.Check(err)
	file, err = compressed(packed, file)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), file, 0o600))
}

func parseHex(text string) (frames [][]byte, err error) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		frame, err := hex.DecodeString(line)
		if err != nil {
			return nil, err
		}
		frames = append(frames, frame)
	}
	return frames, nil
}

// captureFile builds a capture of frames that are a millisecond apart.
func captureFile(format string, link layers.LinkType, frames [][]byte) ([]byte, error) {
	var b bytes.Buffer
	var write func(gopacket.CaptureInfo, []byte) error
	flush := func() error { return nil }
	switch format {
	case ".pcap":
		w := pcapgo.NewWriter(&b)
		if err := w.WriteFileHeader(65536, link); err != nil {
			return nil, err
		}
		write = w.WritePacket
	case ".pcapng":
		w, err := pcapgo.NewNgWriter(&b, link)
		if err != nil {
			return nil, err
		}
		write, flush = w.WritePacket, w.Flush
	default:
		return nil, errors.New("unknown format " + format)
	}
	start := time.Unix(1_700_000_000, 0)
	for i, f := range frames {
		info := gopacket.CaptureInfo{
			Timestamp: start.Add(time.Duration(i) * time.Millisecond), CaptureLength: len(f), Length: len(f),
		}
		if err := write(info, f); err != nil {
			return nil, err
		}
	}
	err := flush()
	return b.Bytes(), err
}

func compressed(format string, file []byte) ([]byte, error) {
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch format {
	case ".gz":
		w = gzip.NewWriter(&b)
	case ".zst":
		w, err = zstd.NewWriter(&b)
	default:
		return file, nil
	}
	if err != nil {
		return nil, err
	}
	_, err = w.Write(file)
	err = errors.Join(err, w.Close())
	return b.Bytes(), err
}

// cmdCut writes the first bytes of a file to another: cut N FILE OUT; a
// negative N leaves the last -N out.
func cmdCut(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: cut N FILE OUT")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	text := ts.ReadFile(args[1])
	if n < 0 {
		n += len(text)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(text[:n]), 0o600))
}

// cmdJSON checks that a file is JSON objects which have these keys at top
// level: json FILE KEY...
func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: json FILE KEY...")
	}
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	for n := 1; ; n++ {
		var object map[string]any
		err := d.Decode(&object)
		if err == io.EOF && n > 1 {
			return
		}
		if err != nil {
			ts.Fatalf("object %d: %v", n, err)
		}
		for _, key := range args[1:] {
			if _, ok := object[key]; !ok {
				ts.Fatalf("object %d lacks %q", n, key)
			}
		}
	}
}

// runCLI runs a command line in this process.
func runCLI(args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = run(env{stdin: strings.NewReader(""), stdout: &out, stderr: &err}, args)
	return code, out.String(), err.String()
}

func TestSchemaIsThatOfRules(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want []byte
	}{
		{[]string{"schema"}, rules.Schema()},
		{[]string{"schema", "--decision"}, rules.DecisionSchema()},
	} {
		code, got, stderr := runCLI(tt.args...)
		if code != exitOK || stderr != "" {
			t.Errorf("%v: got exit code %d and %q", tt.args, code, stderr)
		}
		if diff := cmp.Diff(strings.TrimSpace(got), strings.TrimSpace(string(tt.want))); diff != "" {
			t.Errorf("%v (-got +want):\n%s", tt.args, diff)
		}
	}
}

// TestReferenceConfig checks contrib/verdictd.yaml: it names every setting with
// the default that the flag of that setting tells of, and it is valid, also
// with its examples uncommented.
func TestReferenceConfig(t *testing.T) {
	path := filepath.Join(labtest.Repository(t), "contrib", "verdictd.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile(`(?m)^#([a-z-]+: )`).ReplaceAll(text, []byte("$1"))
	for _, version := range [][]byte{text, examples} {
		c, err := config.Parse(path, version)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newSettings(c); err != nil {
			t.Error(err)
		}
	}
	flags := newRunCommand(env{}).Flags()
	told := regexp.MustCompile(`\(default (\S+)\)`)
	for _, key := range settingKeys(reflect.TypeFor[config.Config](), "") {
		flag := flags.Lookup(flagOf(key))
		if flag == nil {
			t.Errorf("setting %s: no flag --%s", key, flagOf(key))
			continue
		}
		name := key[strings.LastIndex(key, ".")+1:]
		line := regexp.MustCompile(`(?m)^ *` + name + `: .*$`).Find(examples)
		if line == nil {
			t.Errorf("%s: lacks %s", path, key)
		}
		if m := told.FindStringSubmatch(flag.Usage); m != nil && !bytes.Contains(line, []byte(m[1])) {
			t.Errorf("%s: got %q, but --%s says the default is %s", path, line, flag.Name, m[1])
		}
	}
}

// TestEffects wants that of every setting it is said whether a reload brings it into
// effect, by the program and by the reference configuration.
func TestEffects(t *testing.T) {
	var said, all []string
	for key := range effects() {
		said = append(said, key)
	}
	all = settingKeys(reflect.TypeFor[config.Config](), "")
	slices.Sort(said)
	slices.Sort(all)
	if diff := cmp.Diff(all, said); diff != "" {
		t.Errorf("settings and their effects (-want +got):\n%s", diff)
	}
	text, err := os.ReadFile(filepath.Join(labtest.Repository(t), "contrib", "verdictd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Join(strings.Fields(strings.ReplaceAll(string(text), "\n#", " ")), " ")
	if want := "At once take effect: " + atReload() + "; the rest with verdictd upgrade."; !strings.Contains(words, want) {
		t.Errorf("the reference configuration does not say %q", want)
	}
	for key, apply := range effects() {
		if apply == nil {
			continue
		}
		// Nothing but the setting itself changes.
		var s settings
		setting(reflect.ValueOf(&s.Config).Elem(), key).Set(other(t, setting(reflect.ValueOf(&s.Config).Elem(), key).Type()))
		var use settings
		apply(&use, &s)
		if got := differences(reflect.ValueOf(use.Config), reflect.ValueOf(config.Config{}), ""); len(got) != 1 || got[0] != key {
			t.Errorf("%s: a reload changes %v", key, got)
		}
	}
}

// setting returns the field of a key.
func setting(c reflect.Value, key string) reflect.Value {
	name, rest, below := strings.Cut(key, ".")
	for i := range c.NumField() {
		if c.Type().Field(i).Tag.Get("yaml") == name {
			if below {
				return setting(c.Field(i), rest)
			}
			return c.Field(i)
		}
	}
	panic("no setting " + key)
}

// other returns a value of a setting that is not its zero value.
func other(t *testing.T, of reflect.Type) reflect.Value {
	t.Helper()
	v := reflect.New(of).Elem()
	switch of.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString("1m")
	case reflect.Int, reflect.Int64:
		v.SetInt(1 << 20)
	default:
		t.Fatalf("a setting of type %v", of)
	}
	return v
}

// flagOf returns the flag of a setting.
func flagOf(key string) string {
	switch key {
	case "log.file":
		return "log"
	case "log.pretty":
		return "pretty"
	}
	return strings.ReplaceAll(key, ".", "-")
}

// settingKeys returns the names of all settings, those of log as log.file.
func settingKeys(t reflect.Type, prefix string) (keys []string) {
	for field := range t.Fields() {
		key := prefix + field.Tag.Get("yaml")
		if field.Type.Kind() == reflect.Struct {
			keys = append(keys, settingKeys(field.Type, key+".")...)
			continue
		}
		keys = append(keys, key)
	}
	return keys
}

// TestSystemdUnit lets systemd read the unit.
func TestSystemdUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		labtest.Lacks(t, "systemd-analyze binary", err)
	}
	unit, err := os.ReadFile(filepath.Join(labtest.Repository(t), "contrib", "systemd", "verdictd.service"))
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable() // stands for the program: systemd looks whether it is there
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "verdictd.service")
	unit = bytes.ReplaceAll(unit, []byte("=/usr/local/sbin/verdictd "), []byte("="+self+" "))
	if err := os.WriteFile(path, unit, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", path).CombinedOutput()
	if err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestRunOutlivesItsReader gives run a standard output that nobody reads any
// more. It must not die of that with its rules in: packets would wait for an
// answer from nobody.
func TestRunOutlivesItsReader(t *testing.T) {
	labtest.Require(t, labtest.Root, labtest.NFQueue, labtest.NFTables)
	const script = `mkfifo "$1"; (: <"$1") & exec "$0" run --hook output >"$1"`
	ns := labtest.Pair(t).Client
	p := labtest.StartDaemon(t, labtest.DaemonConfig{
		NS: ns, Path: "/bin/sh", Args: []string{"-c", script, labtest.Binary(t), filepath.Join(t.TempDir(), "fifo")},
	})
	if code := p.Stop(); code != exitError {
		t.Errorf("got exit code %d, want %d", code, exitError)
	}
	if want := "audit log -: "; !strings.Contains(p.Stderr(), want) {
		t.Errorf("got %q, want %q in it", p.Stderr(), want)
	}
	if show := labtest.Run(t, ns, "hook", "show"); !strings.HasPrefix(show.Stdout, "# not installed") {
		t.Errorf("rules are left: %s", show.Stdout)
	}
}
