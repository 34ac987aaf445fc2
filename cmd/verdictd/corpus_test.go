package main

import (
	"bytes"
	"encoding/json"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/verdictd/verdictd/internal/lab/labtest"
)

// corpusBatch is how many captures one command line replays: to load the policy
// costs as much as to judge hundreds of packets.
const corpusBatch = 64

// corpusPatience is how long one command line may take.
const corpusPatience = 20 * time.Second

// replayed is what came of one command line.
type replayed struct {
	code    int
	packets int    // lines of the report
	report  uint64 // hash of the report
	stderr  string
}

// counter counts the lines of a report and hashes it.
type counter struct {
	lines int
	hash  maphash.Hash
}

func (c *counter) Write(b []byte) (int, error) {
	c.lines += bytes.Count(b, []byte("\n"))
	return c.hash.Write(b)
}

// replayExample replays captures under the example policy, in this process.
func replayExample(t *testing.T, seed maphash.Seed, captures ...string) replayed {
	t.Helper()
	example := filepath.Join(labtest.Repository(t), "policy.rego.example")
	args := append([]string{"replay", "--json", "--policy", example, "--"}, captures...)
	var report counter
	report.hash.SetSeed(seed)
	var stderr strings.Builder
	start := time.Now()
	code := run(env{stdout: &report, stderr: &stderr}, args)
	if took := time.Since(start); took > corpusPatience {
		t.Errorf("%v: took %v", captures, took)
	}
	return replayed{code, report.lines, report.hash.Sum64(), stderr.String()}
}

// corpusFiles returns the files of a part of the corpus, but for those that say
// what the others hold.
func corpusFiles(t *testing.T, part string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(labtest.Corpus(t, part), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.Contains(d.Name(), ".jsonl") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestCorpusReplay replays every capture of the corpus as a user does. Captures
// are refused or judged, and nothing else happens.
func TestCorpusReplay(t *testing.T) {
	seed := maphash.MakeSeed()
	for _, part := range []string{"public", "robustness", "kernel-oracle"} {
		t.Run(part, func(t *testing.T) {
			files := corpusFiles(t, part)
			start, packets, refused := time.Now(), 0, 0
			for len(files) > 0 {
				batch := files[:min(corpusBatch, len(files))]
				files = files[len(batch):]
				p, r := replayBatch(t, seed, batch)
				packets, refused = packets+p, refused+r
			}
			elapsed := time.Since(start)
			t.Logf("%d packets judged, %d captures with errors, %.0f packets/s with loading the policy for each %d captures",
				packets, refused, float64(packets)/elapsed.Seconds(), corpusBatch)
			if packets == 0 {
				t.Error("no packet was judged")
			}
		})
	}
}

// replayBatch replays captures together and, if one of them is no capture,
// which stops all, by halves.
func replayBatch(t *testing.T, seed maphash.Seed, files []string) (packets, problems int) {
	t.Helper()
	r := replayExample(t, seed, files...)
	if judged := strings.Contains(r.stderr, "verdicts accept "); !judged && len(files) > 1 {
		half := len(files) / 2
		packets, problems = replayBatch(t, seed, files[:half])
		p, n := replayBatch(t, seed, files[half:])
		return packets + p, problems + n
	}
	for line := range strings.Lines(r.stderr) {
		if strings.HasPrefix(line, "verdictd: capture ") {
			problems++
		}
	}
	want := exitOK
	if problems > 0 {
		want = exitInput
	}
	if r.code != want {
		t.Errorf("%v: got exit code %d, want %d\n%s", files, r.code, want, r.stderr)
	}
	return r.packets, problems
}

// TestCorpusDeterminism replays captures from all over the corpus twice.
func TestCorpusDeterminism(t *testing.T) {
	const captures = 50
	seed := maphash.MakeSeed()
	files := corpusFiles(t, "public")
	var some []string
	for i := range captures {
		some = append(some, files[i*len(files)/captures])
	}
	first, again := replayExample(t, seed, some...), replayExample(t, seed, some...)
	if first.packets == 0 {
		t.Fatalf("no packet was judged: %s", first.stderr)
	}
	if first.report != again.report || first.code != again.code || first.packets != again.packets {
		t.Errorf("two runs differ: %d packets and exit code %d, %d packets and exit code %d",
			first.packets, first.code, again.packets, again.code)
	}
	t.Logf("%d packets", first.packets)
}

// oracleCase is what Linux did with the frames of a case.
type oracleCase struct {
	Case   string
	Frames []uint64
	L4     string
	Dport  uint16
	Kernel string
}

// oracleLine is what replay says of a frame.
type oracleLine struct {
	Frame    uint64
	Proto    string
	DestPort *uint16 `json:"dest_port"`
	Verdict  string
	Reason   string
	Status   string
}

// TestCorpusKernelOracle compares the report with what the kernel did: a packet
// that it delivered to a port is judged as one to that port, or fails closed.
func TestCorpusKernelOracle(t *testing.T) {
	dir := labtest.Corpus(t, "kernel-oracle")
	code, report, stderr := runCLI("replay", "--json", filepath.Join(dir, "kernel.pcap"),
		"--policy", filepath.Join(labtest.Repository(t), "policy.rego.example"))
	if code != exitOK {
		t.Fatalf("got exit code %d: %s", code, stderr)
	}
	lines := map[uint64]oracleLine{}
	for _, l := range decodeAll[oracleLine](t, strings.NewReader(report)) {
		lines[l.Frame] = l
	}
	truth, err := os.Open(filepath.Join(dir, "kernel.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer truth.Close()
	exact, closed := 0, 0
	for _, c := range decodeAll[oracleCase](t, truth) {
		if c.Kernel != "accepted" || len(c.Frames) != 1 {
			continue
		}
		got := lines[c.Frames[0]]
		switch {
		case got.Proto == c.L4 && got.DestPort != nil && *got.DestPort == c.Dport:
			exact++
		case got.DestPort == nil && got.Verdict == "drop" && (got.Reason == "malformed" || got.Status == "fragment"):
			closed++
			t.Logf("%s: fails closed", c.Case)
		default:
			t.Errorf("%s: got %+v, want %s to port %d", c.Case, got, c.L4, c.Dport)
		}
	}
	t.Logf("%d cases as the kernel decodes them, %d fail closed", exact, closed)
	if exact <= closed {
		t.Errorf("got %d cases decoded, %d failed closed: too few are decoded", exact, closed)
	}
}

// decodeAll decodes JSON values until the end.
func decodeAll[T any](t *testing.T, r io.Reader) (all []T) {
	t.Helper()
	for d := json.NewDecoder(r); ; {
		var v T
		err := d.Decode(&v)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
}
