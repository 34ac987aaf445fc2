package record

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// programs puts programs together. Without offsets (no BTF) the programs read
// nothing from kernel structures.
type programs struct {
	maps    *maps
	offsets *offsets
	window  time.Duration // see flowWindow
	// arriving: the program is one for packets that come in.
	arriving bool
	own      uint64 // cookie of the namespace whose packets are judged; 0: not known
}

// part is one program and where it is attached.
type part struct {
	name     string
	typ      ebpf.ProgramType
	attach   ebpf.AttachType // of cgroup programs
	point    string          // tracepoint, if it is for one
	iter     string          // iterator, if it is of one
	optional bool
	ins      asm.Instructions

	prog *ebpf.Program
	err  error
}

// flowPart is the name of the program that a rule attaches.
const flowPart = "flow"

// parts assembles all programs that can be used.
func (p *programs) parts(forward bool) []*part {
	hook := func(name string, typ ebpf.ProgramType, attach ebpf.AttachType, hook Hook) *part {
		return &part{name: name, typ: typ, attach: attach, ins: p.owner(hook)}
	}
	all := []*part{
		{name: flowPart, typ: ebpf.SocketFilter, ins: p.flow()},
		hook("sock_create", ebpf.CGroupSock, ebpf.AttachCGroupInetSockCreate, HookCreate),
		hook("connect4", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, HookConnect),
		hook("connect6", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect, HookConnect),
		hook("sendmsg4", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP4Sendmsg, HookSend),
		hook("sendmsg6", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP6Sendmsg, HookSend),
		hook("post_bind4", ebpf.CGroupSock, ebpf.AttachCGroupInet4PostBind, HookBind),
		hook("post_bind6", ebpf.CGroupSock, ebpf.AttachCGroupInet6PostBind, HookBind),
		{name: "release", typ: ebpf.CGroupSock, attach: ebpf.AttachCgroupInetSockRelease, ins: p.release()},
	}
	for _, version := range []string{"4", "6"} {
		bind, connect := ebpf.AttachCGroupInet4PostBind, ebpf.AttachCGroupInet4Connect
		if version == "6" {
			bind, connect = ebpf.AttachCGroupInet6PostBind, ebpf.AttachCGroupInet6Connect
		}
		all = append(all,
			&part{name: "port_bind" + version, typ: ebpf.CGroupSock, attach: bind, ins: p.portTaken()},
			&part{name: "port_connect" + version, typ: ebpf.CGroupSockAddr, attach: connect, ins: p.portConnected()},
		)
	}
	if p.offsets != nil {
		all = append(all,
			&part{name: "port_release", typ: ebpf.CGroupSock, attach: ebpf.AttachCgroupInetSockRelease, optional: true, ins: p.portReleased()},
			&part{name: "exec", typ: ebpf.RawTracepoint, point: "sched_process_exec", ins: p.exec()},
			&part{name: "fork", typ: ebpf.RawTracepoint, point: "sched_process_fork", ins: p.fork()},
			&part{name: "exit", typ: ebpf.RawTracepoint, point: "sched_process_exit", ins: p.exit()},
			&part{name: holdersPart, typ: ebpf.Tracing, attach: ebpf.AttachTraceIter, iter: taskFile, optional: true, ins: p.holders()},
			&part{name: tunnelsPart, typ: ebpf.Tracing, attach: ebpf.AttachTraceIter, iter: udpSockets, optional: true, ins: p.tunnels()},
			&part{name: "destroyed", typ: ebpf.RawTracepoint, point: "tcp_destroy_sock", ins: p.destroyed()},
			&part{name: "accept", typ: ebpf.SockOps, attach: ebpf.AttachCGroupSockOps, optional: true, ins: p.accept()},
		)
	}
	if forward && p.offsets != nil && p.own != 0 {
		all = append(all, &part{name: "arrive", typ: ebpf.RawTracepoint, point: "netif_receive_skb", optional: true, ins: p.arrive()})
	}
	return all
}

// load loads the programs side by side, as the verifier takes milliseconds for
// each, and notes errors with them. types has the kernel's types, or will read
// them.
func load(all []*part, types *btf.Cache) {
	var wait sync.WaitGroup
	for _, p := range all {
		wait.Go(func() {
			// A collection of one: only that takes a cache.
			one, err := ebpf.NewCollectionWithOptions(&ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{p.name: {
				Name: "vd_" + p.name, Type: p.typ, AttachType: p.attach, AttachTo: p.iter, License: "GPL", Instructions: p.ins,
			}}}, ebpf.CollectionOptions{Cache: types})
			if err == nil {
				p.prog = one.DetachProgram(p.name)
			}
			if p.err = err; p.err != nil {
				p.err = fmt.Errorf("load program %s: %w%s", p.name, p.err, needs(p.err))
			}
		})
	}
	wait.Wait()
}

// attachAll loads all programs and attaches all but the flow program. An error
// is the first of a program that is not optional; the caller must detach then.
func (r *Recorder) attachAll(dir *os.File, types *btf.Cache, cfg Config) error {
	own := cmp.Or(cfg.NetNS, OwnNetNS())
	all := (&programs{maps: &r.maps, offsets: r.offsets, window: r.window, own: own}).parts(cfg.Forward)
	if cfg.Forward && (r.offsets == nil || own == 0) {
		r.miss("who in another network namespace sends what is forwarded", errors.New("needs BTF, and Linux 5.14"))
	}
	load(all, types)
	var first error
	for _, p := range all {
		if p.err == nil && first == nil {
			p.err = r.attach(dir, p)
		}
		if p.prog != nil && p.prog != r.flow {
			p.prog.Close() // the link keeps it
		}
		state := Program{Name: p.name, Attached: p.err == nil}
		if p.err != nil {
			state.Reason = p.err.Error()
			if first == nil && !p.optional {
				first = p.err
			}
		}
		r.stats.Programs = append(r.stats.Programs, state)
	}
	return first
}

// attach links one program to its place.
func (r *Recorder) attach(dir *os.File, p *part) error {
	if p.name == flowPart {
		r.flow = p.prog
		return nil
	}
	if p.iter != "" {
		l, err := link.AttachIter(link.IterOptions{Program: p.prog})
		if err != nil {
			return fmt.Errorf("attach program %s to iterator %s: %w%s", p.name, p.iter, err, needs(err))
		}
		if p.iter == udpSockets {
			r.tunnels = l
		} else {
			r.iter = l
		}
		r.links = append(r.links, attached{l, p.name})
		return nil
	}
	if p.point != "" {
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: p.point, Program: p.prog})
		if err != nil {
			return fmt.Errorf("attach program %s to tracepoint %s: %w%s", p.name, p.point, err, needs(err))
		}
		r.links = append(r.links, attached{l, p.name})
		return nil
	}
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: p.prog, Attach: p.attach})
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("attach program %s to cgroup %s: %w (another program holds this hook alone, without BPF_F_ALLOW_MULTI: see bpftool cgroup show)",
			p.name, dir.Name(), err)
	}
	if err != nil {
		return fmt.Errorf("attach program %s to cgroup %s: %w%s", p.name, dir.Name(), err, needs(err))
	}
	r.links = append(r.links, attached{l, p.name})
	return nil
}
