package replay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/verdictd/verdictd/packet"
)

// A Judge judges packets and explains how. It is used by one goroutine.
type Judge interface {
	// Judge judges one packet. m and data are lent until it returns. An empty
	// data is a frame whose link layer could not be taken off: the judge
	// treats it as any malformed packet.
	Judge(m *packet.Meta, data []byte) Outcome
}

// Outcome is a verdict and how it came about.
type Outcome struct {
	Packet  *packet.Packet // the packet as decoded, lent until the next call of Judge; nil if it was not
	Verdict packet.Verdict
	Proto   string // name of the transport protocol, empty if there is none
	Flow    uint64 // number of the flow, 0 if there is none
	Rule    string // rule that decided, empty if none did
	Reason  string // "policy", "established", "malformed", "not_ip", ...; one of a few constants
	Detail  string // the rule's own reason, why the packet is malformed, or an error; may be empty
}

// Format is the format of a report.
type Format uint8

// Formats.
const (
	Text Format = iota // one aligned line per packet, for people
	JSON               // one JSON object per line and packet
)

// Options say how captures are read and reported. The zero value reports as
// text, without colour and with times relative to the first packet of each
// capture, and finds the hook of each packet by itself.
type Options struct {
	Format   Format
	Color    bool // Text only: colour the verdicts with ANSI sequences
	Absolute bool // Text only: print times of day (UTC)

	// FixHook says that every packet is judged at Hook. Otherwise Local or,
	// if it is empty, the capture itself tells, as in the package
	// documentation. Loopback addresses are local once Local is not empty.
	FixHook bool
	Hook    packet.Hook
	Local   []netip.Prefix

	// Interface is the name of the interface for captures that name none, as
	// all pcap files. Empty: those packets have no interface.
	Interface string

	// NewInterface is called with every interface that captures name, before
	// its first packet is judged with that index in Meta.In or Meta.Out. It
	// may be nil.
	NewInterface func(index uint32, name string)

	// Stdin is what the capture "-" reads; nil if there is none.
	Stdin io.Reader

	// Warn is called, at the end of a capture, for each interface whose frames
	// had to be skipped. It may be nil.
	Warn func(error)

	// Progress is called every 4096 packets. It may be nil.
	Progress func(Progress)
}

// Progress says how far a run is.
type Progress struct {
	Capture string // name as given
	Packets uint64 // judged so far, in all captures
	Offset  int64  // bytes of this capture read so far, uncompressed
}

const (
	progressEvery = 1 << 12
	cancelEvery   = 1 << 10 // frames between two looks at the context
	maxWarnings   = 64      // per capture
)

// Run judges the packets of the captures in order, writes a line for each to
// out and returns the figures of the run.
//
// Whatever is wrong with a capture is a *CaptureError or a *LinkTypeError. If
// a capture cannot be opened or is none, Run fails before it judges anything.
// An error within a capture ends that capture: all packets before it are
// judged and reported, the run goes on with the next capture, and Run returns
// all such errors joined. Frames of unsupported link types are skipped; it is
// an error if a capture has no others.
//
// An error of out or the end of ctx ends the run, the latter with ctx.Err().
// Reading is not interrupted by ctx: a capture from a pipe ends only when the
// pipe does.
func Run(ctx context.Context, o Options, captures []string, judge Judge, out io.Writer) (Summary, error) {
	if err := checkNames(captures, o.Stdin); err != nil {
		return Summary{}, err
	}
	start := time.Now()
	r := &run{
		ctx: ctx, options: &o, judge: judge,
		out:    bufio.NewWriterSize(out, bufferSize),
		ifaces: interfaces{byName: map[string]uint32{}, added: o.NewInterface},
		rec:    record{several: len(captures) > 1},
		sum:    Summary{Reasons: map[string]uint64{}, Rules: map[string]uint64{}},
	}
	r.encoder = &textEncoder{color: o.Color, absolute: o.Absolute}
	if o.Format == JSON {
		r.encoder = jsonEncoder{}
	}
	var problems []error
	for _, name := range captures {
		problem, fatal := r.capture(name)
		problems = append(problems, problem)
		if fatal != nil {
			problems = append(problems, fatal)
			break
		}
	}
	if err := r.out.Flush(); err != nil && !errors.Is(errors.Join(problems...), err) {
		problems = append(problems, fmt.Errorf("write report: %w", err))
	}
	r.sum.Elapsed = time.Since(start)
	return r.sum, errors.Join(problems...)
}

// An encoder appends the line of one packet.
type encoder interface {
	begin() // a capture begins
	line(b []byte, r *record) []byte
}

// record is a judged packet and all that its line may say.
type record struct {
	capture string
	several bool // there are several captures
	frame   *frame
	link    *link
	in, out string // names of interfaces
	Outcome
}

// run is the state of Run. What is reused from packet to packet lives here.
type run struct {
	ctx     context.Context
	options *Options
	judge   Judge
	out     *bufio.Writer
	encoder encoder
	ifaces  interfaces
	sum     Summary

	frame   frame
	link    link
	rec     record
	none    packet.Packet
	line    []byte
	skipped []error // warnings of this capture
}

// capture judges one capture. A problem concerns this capture only, after a
// fatal error the run cannot go on.
func (r *run) capture(name string) (problem, fatal error) {
	c, err := openCapture(name, r.options.Stdin)
	if err != nil {
		return err, nil
	}
	defer func() {
		if err := c.close(); err != nil {
			problem = errors.Join(problem, openError(name, err))
		}
	}()
	r.begin(name)
	before := r.sum.Packets
	problem, fatal = r.frames(c)
	r.sum.endCapture(c.reader.frames(), before)
	if r.sum.Packets == before {
		return errors.Join(append(r.skipped, problem)...), fatal
	}
	for _, err := range r.skipped {
		if r.options.Warn != nil {
			r.options.Warn(err)
		}
	}
	return problem, fatal
}

func (r *run) begin(name string) {
	r.skipped = r.skipped[:0]
	r.rec.capture = name
	r.encoder.begin()
	r.sum.beginCapture()
}

// frames judges the frames of an open capture.
func (r *run) frames(c *capture) (problem, fatal error) {
	for {
		err := c.next(&r.frame)
		if err == io.EOF {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
		if r.frame.number%cancelEvery == 0 && r.ctx.Err() != nil {
			return nil, r.ctx.Err()
		}
		if r.frame.iface.strip == nil {
			r.refuse(c.name, r.frame.iface)
			continue
		}
		if err := r.packet(); err != nil {
			return nil, err
		}
		if r.sum.Packets%progressEvery == 0 && r.options.Progress != nil {
			r.options.Progress(Progress{Capture: c.name, Packets: r.sum.Packets, Offset: c.src.off})
		}
	}
}

// refuse notes an interface whose frames are skipped.
func (r *run) refuse(name string, i *iface) {
	if i.refused || len(r.skipped) == maxWarnings {
		return
	}
	i.refused = true
	r.skipped = append(r.skipped, &LinkTypeError{Capture: name, Interface: i.id, LinkType: i.linkType})
}

// packet judges the frame just read and writes its line.
func (r *run) packet() error {
	l := &r.link
	l.strip(&r.frame)
	r.options.place(l, r.indexOf(r.frame.iface))
	rec := &r.rec
	rec.Outcome = r.judge.Judge(&l.Meta, l.rest)
	if l.broken != "" {
		rec.Detail = l.broken
	}
	if rec.Packet == nil {
		rec.Packet = &r.none
	}
	rec.frame, rec.link = &r.frame, l
	rec.in, rec.out = r.ifaces.name(l.In), r.ifaces.name(l.Out)
	r.sum.add(rec)
	r.line = r.encoder.line(r.line[:0], rec)
	if _, err := r.out.Write(r.line); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// indexOf returns the index of the interface that captured. "any" is the
// name of tcpdump for all interfaces: it names none.
func (r *run) indexOf(i *iface) uint32 {
	if i.index != 0 {
		return i.index
	}
	name := i.name
	if name == "" || name == "any" {
		name = r.options.Interface
	}
	i.index = r.ifaces.index(name)
	return i.index
}
