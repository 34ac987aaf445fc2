package hook

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
)

// Defaults for the zero values of Config.
const (
	DefaultTable    = "verdictd"
	DefaultPriority = 10
)

// Hook is a place in the kernel's packet path. The numbers are the kernel's.
//
// Source: enum nf_inet_hooks, include/uapi/linux/netfilter.h.
type Hook uint8

// Hooks.
const (
	Prerouting Hook = iota
	Input
	Forward
	Output
	Postrouting
)

// String returns the hook's name in lower case.
func (h Hook) String() string {
	switch h {
	case Prerouting:
		return "prerouting"
	case Input:
		return "input"
	case Forward:
		return "forward"
	case Output:
		return "output"
	case Postrouting:
		return "postrouting"
	}
	return fmt.Sprintf("hook(%d)", uint8(h))
}

// ParseHooks reads a list of hook names separated by commas, such as
// "output,input". An unknown name, a repeated one and an empty list are errors.
func ParseHooks(list string) ([]Hook, error) {
	var hooks []Hook
	for name := range strings.SplitSeq(list, ",") {
		h, ok := parseHook(strings.TrimSpace(name))
		if !ok {
			return nil, fmt.Errorf("unknown hook %q in %q: want prerouting, input, forward, output or postrouting", name, list)
		}
		if slices.Contains(hooks, h) {
			return nil, fmt.Errorf("hook %s is named twice in %q", h, list)
		}
		hooks = append(hooks, h)
	}
	return hooks, nil
}

func parseHook(name string) (Hook, bool) {
	for h := Prerouting; h <= Postrouting; h++ {
		if h.String() == name {
			return h, true
		}
	}
	return 0, false
}

// Family says which packets a table sees.
type Family uint8

// Families. The zero value is Inet: IPv4 and IPv6.
const (
	Inet Family = iota
	IPv4
	IPv6
)

// String returns the family's name as nft writes it.
func (f Family) String() string {
	switch f {
	case IPv4:
		return "ip"
	case IPv6:
		return "ip6"
	}
	return "inet"
}

func (f Family) kernel() nftables.TableFamily {
	switch f {
	case IPv4:
		return nftables.TableFamilyIPv4
	case IPv6:
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyINet
}

// Config says which packets go to which queue. Only Hooks has no default.
type Config struct {
	// Hooks are the places where packets are taken; at least one.
	Hooks []Hook

	// QueueFirst and QueueLast are the queues packets are spread over; both
	// included. QueueLast 0 stands for QueueFirst.
	QueueFirst, QueueLast uint16

	// Bypass lets packets pass while nobody has bound the queue (fail open when
	// dead). It does not help when a bound queue is full or its reader stalls.
	Bypass bool

	// Fanout spreads packets over the queues by CPU. Without it they are spread
	// by a hash of the two addresses, so that a flow stays on one queue.
	Fanout bool

	// Table names the table; "" stands for DefaultTable. Two daemons in one
	// network namespace need two names.
	Table string

	// Family is the table's family; the zero value is Inet.
	Family Family

	// Loopback also sends packets over the loopback interface to the queue.
	Loopback bool

	// StrictNeighbour also sends IPv6 neighbour discovery to the queue: ICMPv6
	// types 133 to 137 with hop limit 255, which RFC 4861 demands and no router
	// passes on. A policy that denies them cuts the host off from IPv6.
	StrictNeighbour bool

	// OwnMark, if not 0, is the packet mark of verdictd's own packets. Packets
	// with (mark & OwnMask) == OwnMark pass at output and postrouting. OwnMask 0
	// stands for all 32 bits. Setting a mark takes CAP_NET_ADMIN or CAP_NET_RAW.
	OwnMark, OwnMask uint32

	// Mask are the bits of packet and connection marks for the ruleset and
	// verdictd to talk in (see Marks); 0 means none, and then neither rejecting
	// nor offload works. Nobody else may use these bits: packets that bring
	// them along lose them.
	Mask uint32

	// Offload lets flows that are decided for good pass by the queue. It needs
	// Mask, and not all hooks go together with it: see CanOffload.
	Offload bool

	// Record, if not 0, is a file descriptor of this process: a BPF program of
	// type socket filter, which is run for each packet that is about to be
	// queued at output and postrouting, and must return 0. It can tell which
	// socket sends the packet, while that is there. The descriptor must stay
	// open until the last Restore; the rules keep the program itself. Where the
	// kernel cannot run it, the rest is installed: see Ruleset.Recording. For
	// Plan any number does.
	Record int

	// RecordPin, if not "", is the path where such a program is pinned, for
	// the script of PrintIptables. The program must be there when the script
	// runs.
	RecordPin string

	// Priority is the chains' priority, -199 to 299: after conntrack has seen
	// the packet. 0 stands for DefaultPriority; the order of two chains with the
	// same priority is not defined, so that 0 itself (filter) is of no use.
	Priority int

	// Until, if not zero, is when the rules end to have an effect: from then on all
	// packets pass, whether or not anybody reads the queue. It is for rules that may
	// lock their author out, and that Ruleset.Keep makes stay.
	Until time.Time

	// NetNS is a file descriptor of the network namespace to work in. It must
	// stay open until the last call. 0 stands for the calling thread's own.
	NetNS int
}

// minPriority and maxPriority bound Config.Priority: after conntrack (-200),
// before its helpers (300).
//
// Source: enum nf_ip_hook_priorities, include/uapi/linux/netfilter_ipv4.h.
const (
	minPriority = -199
	maxPriority = 299
)

// withDefaults returns the configuration with every default filled in, or says
// what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	if len(c.Hooks) == 0 {
		return c, fmt.Errorf("no hook named: want at least one of prerouting, input, forward, output, postrouting")
	}
	c.Hooks = slices.Sorted(slices.Values(c.Hooks))
	if last := c.Hooks[len(c.Hooks)-1]; last > Postrouting {
		return c, fmt.Errorf("unknown hook %d", last)
	}
	if len(slices.Compact(slices.Clone(c.Hooks))) < len(c.Hooks) {
		return c, fmt.Errorf("a hook is named twice in %v", c.Hooks)
	}
	if err := c.defaultQueues(); err != nil {
		return c, err
	}
	if err := c.defaultPlace(); err != nil {
		return c, err
	}
	if err := c.checkRecord(); err != nil {
		return c, err
	}
	return c, c.defaultMarks()
}

func (c *Config) defaultQueues() error {
	if c.QueueLast == 0 {
		c.QueueLast = c.QueueFirst
	}
	if c.QueueLast < c.QueueFirst {
		return fmt.Errorf("queues %d-%d: the last is below the first", c.QueueFirst, c.QueueLast)
	}
	if c.QueueFirst == 0 && c.QueueLast == 0xffff {
		return fmt.Errorf("queues 0-65535: the kernel takes at most 65535 queues in one rule")
	}
	if c.Fanout && c.QueueFirst == c.QueueLast {
		return fmt.Errorf("fanout over queue %d alone: it needs more than one queue", c.QueueFirst)
	}
	return nil
}

func (c *Config) defaultPlace() error {
	if c.Family > IPv6 {
		return fmt.Errorf("unknown table family %d", c.Family)
	}
	if c.OwnMask == 0 {
		c.OwnMask = 0xffffffff
	}
	if c.OwnMark&^c.OwnMask != 0 {
		return fmt.Errorf("own mark %#x has bits outside its mask %#x: no packet could carry it", c.OwnMark, c.OwnMask)
	}
	if c.Priority == 0 {
		c.Priority = DefaultPriority
	}
	if c.Priority < minPriority || c.Priority > maxPriority {
		return fmt.Errorf("priority %d: want %d to %d, after conntrack", c.Priority, minPriority, maxPriority)
	}
	if c.Table == "" {
		c.Table = DefaultTable
	}
	// A name that nft and a shell both read as one word.
	if !regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,99}$`).MatchString(c.Table) {
		return fmt.Errorf("table name %q: want a letter or _, then up to 99 letters, digits, _, . or -", c.Table)
	}
	return nil
}

// table returns the table's kernel name.
func (c Config) table() *nftables.Table {
	return &nftables.Table{Name: c.Table, Family: c.Family.kernel()}
}

// queueRange writes total queues from first on.
func queueRange(first, total uint16) string {
	if total <= 1 {
		return fmt.Sprint(first)
	}
	return fmt.Sprintf("%d-%d", first, uint32(first)+uint32(total)-1)
}
