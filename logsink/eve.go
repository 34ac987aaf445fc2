package logsink

import (
	"github.com/verdictd/verdictd/packet"
)

// EncoderConfig holds what an Encoder says in every record. The zero value is
// ready for live traffic.
type EncoderConfig struct {
	Host          string // name of this host, key host; empty: left out
	BootID        string // kernel boot id, key verdictd.boot_id; empty: left out
	Run           string // id of the run, key verdictd.run; empty: left out
	PacketSource  string // key pkt_src; empty: "wire/pcap", which is Suricata's word for live packets
	CommunitySeed uint16 // seed of the Community ID; the same in all tools that are to agree
}

// Encoder writes events as JSON lines in the style of Suricata's EVE log, so
// that what reads EVE reads verdictd. It allocates nothing beyond the buffer
// it appends to. An Encoder is for one goroutine.
//
// Keys that Suricata also writes mean what they mean there. What Suricata has
// no key for stands below "verdictd". Keys without a value are left out.
//
// A record about a packet has at most MaxRecord bytes: texts that a process, a user
// or a policy chose are cut, at a character, and named in the key cut beside them.
// The policy sees them whole.
//
//	| key | in | meaning |
//	|---|---|---|
//	| timestamp | all | time of the event, UTC, microseconds |
//	| seq | all | number of the record: 1, 2, 3 … without gap in one run and output, over upgrades and crashes; a record of the kind loss says how many a crash took |
//	| flow_id | packets | number of the flow, below 2^53; absent if the packet belongs to none |
//	| in_iface | packets | interface that the packet came in by |
//	| event_type | all | see below |
//	| src_ip, src_port, dest_ip, dest_port | packets | addresses in their shortest form; ports if the protocol has them |
//	| proto | packets | TCP, UDP, ICMP, IPv6-ICMP, SCTP … or the number |
//	| ip_v | packets | 4 or 6 |
//	| icmp_type, icmp_code | verdict, drop, packet | ICMP and ICMPv6 |
//	| pkt_src | packets | where packets come from, "wire/pcap" |
//	| direction | packets | to_server if they belong to a flow: records are written from the view of the flow's first packet |
//	| community_id | packets | Community ID v1; not at the end of an ICMP flow, where the type it depends on is not known |
//	| host | all | name of the host, if configured |
//	| verdict.action | verdict, drop | accept or drop |
//	| verdict.reject | drop | ["tcp-reset"] or ["icmp-prohib"] if the sender is told |
//	| verdict.reject-target | drop | to_client: the sender of the packet |
//	| drop.len, .tos, .ttl, .ipid | drop | IPv4 header |
//	| drop.len, .tc, .hoplimit, .flowlbl | drop | IPv6 header |
//	| drop.tcpseq … .tcpurgp | drop | TCP header; tcpres is the NS bit |
//	| drop.udplen, .icmp_id, .icmp_seq | drop | UDP length; ICMP echo |
//	| drop.reason | drop | rules (the policy said so), flow drop (a later packet of a dropped flow), decode error (malformed), or verdictd.reason |
//	| flow.pkts_toserver … .bytes_toclient | flow | counters of both directions |
//	| flow.start, .end, .age | flow | times; age in seconds |
//	| flow.state, .reason | flow | new, established or closed; why it ended |
//	| flow.alerted, .action | flow | false; accept or drop |
//	| stats.* | stats | counters |
//	| verdictd.queue | verdict, drop | number of the queue |
//	| verdictd.group, .prefix | packet | NFLOG group and prefix |
//	| verdictd.packet_id | verdict, drop | number of the packet in its queue |
//	| verdictd.hook, .direction | packets | netfilter hook; in, out or forward as this host sees it |
//	| verdictd.out_iface | packets | interface that the packet leaves by |
//	| verdictd.status, .detail | packets | fragment, malformed or not_ip (ok is left out); what is malformed, or the policy's error |
//	| verdictd.mark, .uid, .gid | packets | packet mark, if not 0; owner of the sending socket |
//	| verdictd.process | verdict, drop, flow | owner of the local socket, with the keys of input.process; parents is an array; in flow the one that was judged |
//	| verdictd.process.cut | verdict, drop, flow | which texts of the owner are only the beginning: ["exe", "cmdline", "parents.1.exe"]; also below the next two |
//	| verdictd.process_before | verdict, drop | who owned it when the flow was judged before, if that is another one |
//	| verdictd.process_at_end | flow | who owned it at the end, if that is another one |
//	| verdictd.offloaded | flow | true if the kernel let later packets pass by: the counters lack them |
//	| verdictd.rule, .message | verdict, drop, flow | the rule that decided, and the free text of its author |
//	| verdictd.cut | packets | which of rule, message and detail are only the beginning |
//	| verdictd.reason | verdict, drop, flow | why: policy, established, related, malformed, policy_error … |
//	| verdictd.set_mark | verdict, drop | mark that the rule sets |
//	| verdictd.policy.generation, .sha256 | verdict, drop, flow | the policy |
//	| verdictd.mode, .would | verdict, flow | monitor; what enforcing the decision would have done |
//	| verdictd.latency_ns | verdict, drop | from receipt to decision |
//	| verdictd.repeat, .repeat_bytes | drop | packets and bytes that this record sums up |
//	| verdictd.header | verdict, packet | the keys of drop but reason |
//	| verdictd.lost, .lost_total, .origin, .message | loss | how many since the last record and since the start; who lost them; why |
//	| verdictd.admin, .message | admin | start, stop, policy …; what exactly |
//	| verdictd.run | all | id of the run: seq goes on as long as it is the same; a new one begins with the record log_begins |
//	| verdictd.boot_id | all | kernel boot id, if configured |
//
// Event types: "verdict" is an accepted and "drop" a dropped or rejected
// packet or flow; in monitor mode all are "verdict". "flow" is a flow's end.
// "packet", which is Suricata's type for a packet that a rule asked to log, is
// one reported by NFLOG: the kernel does not tell NFLOG what became of it.
// "stats", "loss" and "admin" speak about verdictd. In the table, packets
// stands for verdict, drop, flow and packet.
type Encoder struct {
	cfg       EncoderConfig
	seq       uint64
	community communityID
	owners    map[uint32][]byte // of events before, encoded, by ID
}

// NewEncoder returns an Encoder whose first record has seq 1.
func NewEncoder(cfg EncoderConfig) *Encoder {
	if cfg.PacketSource == "" {
		cfg.PacketSource = "wire/pcap"
	}
	return &Encoder{cfg: cfg, community: communityID{seed: cfg.CommunitySeed}, owners: map[uint32][]byte{}}
}

// Append appends e as one line, newline included, and returns the longer
// buffer.
func (x *Encoder) Append(b []byte, e *Event) []byte {
	x.seq++
	b = stamp(append(b, '{'), "timestamp", e.Time)
	b = number(b, "seq", x.seq)
	b = nonzero(b, "flow_id", e.Flow&(1<<53-1))
	if e.aboutPacket() {
		b = x.tuple(b, e)
	} else {
		b = text(b, "event_type", e.eveType())
	}
	b = nonempty(b, "host", x.cfg.Host)
	switch e.Kind {
	case FlowDecision, FlowRepeat:
		b = appendVerdict(b, e)
		if e.Action != packet.Accept {
			b = append(key(b, "drop"), '{')
			b = appendHeader(b, e)
			b = append(text(b, "reason", dropReason(e)), '}')
		}
	case FlowEnd:
		b = appendFlow(b, e)
	case Stats:
		b = append(key(b, "stats"), '{')
		for i := range e.Counters {
			b = number(b, e.Counters[i].Name, e.Counters[i].Value)
		}
		b = append(b, '}')
	}
	b = append(key(b, "verdictd"), '{')
	b = nonempty(b, "boot_id", x.cfg.BootID)
	b = nonempty(b, "run", x.cfg.Run)
	if e.aboutPacket() {
		b = x.appendOwn(b, e)
	} else {
		b = appendAdmin(b, e)
	}
	return append(b, "}}\n"...)
}
