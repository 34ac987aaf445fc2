package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/verdictd/verdictd/hook"
	"github.com/verdictd/verdictd/internal/feed"
)

// markStatus says which bits of packet and connection marks are verdictd's, and who
// else uses marks.
type markStatus struct {
	Mask     string   `json:"mask,omitempty"` // empty: none
	Last     uint32   `json:"last,omitempty"` // greatest number of a generation, see hook.Marks
	Chosen   string   `json:"chosen,omitempty"`
	Conflict []string `json:"conflicts,omitempty"`      // who uses bits or numbers of verdictd's
	Overwrit []string `json:"overwritten_by,omitempty"` // who sets whole connection marks
	Unread   []string `json:"not_known,omitempty"`      // who may use any
	Error    string   `json:"error,omitempty"`          // why others may be missing here
}

// knownUser is a program that uses marks.
type knownUser struct {
	name   string
	bits   uint32 // 0: the number value
	value  uint32
	source string
}

// knownUsers are programs that use marks, by which a use is named. Their bits are
// taken only if no others are free, whether or not they are here.
func knownUsers() []knownUser {
	return []knownUser{
		{"kube-proxy", 0xc000, 0, "pkg/proxy/apis/config, iptablesMasqueradeBit 14, and 15 for KUBE-MARK-DROP"},
		{"CNI port mapping", 0x2000, 0, "containernetworking/plugins, plugins/meta/portmap, DefaultMarkBit 13"},
		{"AWS VPC CNI", 0x80, 0, "amazon-vpc-cni-k8s, AWS_VPC_K8S_CNI_CONNMARK"},
		{"Tailscale", 0xff0000, 0, "tailscale, tsconst/linuxfw.go"},
		{"mwan3", 0x3f00, 0, "OpenWrt, mmx_mask"},
		{"Calico", 0xffff0000, 0, "Felix, IptablesMarkMask"},
		{"Cilium", 0xffff0f00, 0, "cilium, pkg/datapath/linux/linux_defaults/mark.go"},
		{"wg-quick", 0, 51820, "wg-quick(8): the first free number from the port 51820 on"},
		{"Mullvad", 0, 0x6d6f6c65, "mullvadvpn-app, TUNNEL_FWMARK"},
		{"Istio", 0, 1337, "istio, TPROXY mark 0x539"},
		{"policy routing by hand, and Docker's ingress, which counts from 256", 0x1ff, 0, "moby, libnetwork: fwMarkCtr"},
	}
}

// named says who uses a mark, by what is known of it.
func named(m *feed.Mark) string {
	for _, k := range knownUsers() {
		if m.Bits != 0 && m.Bits == k.bits || m.Bits == 0 && m.Value != 0 && m.Value == k.value {
			return fmt.Sprintf("%s (as %s)", m, k.name)
		}
	}
	return m.String()
}

// marksBeside returns the marks with a mask beside those of others, and who is in
// the way all the same.
func marksBeside(mask uint32, others []feed.Mark) (m hook.Marks, conflicts []string, err error) {
	if m, err = hook.NewMarks(mask); err != nil {
		return m, nil, err
	}
	for i := range others {
		if o := &others[i]; o.Bits == 0 && !o.Unread {
			m, _ = m.Avoiding(o.Value)
		}
	}
	return m, inTheWay(m, others), nil
}

// inTheWay says who uses bits or numbers that are verdictd's.
func inTheWay(m hook.Marks, others []feed.Mark) (who []string) {
	for i := range others {
		o := &others[i]
		number := o.Value & m.Mask
		meets := o.Bits&m.Mask != 0 || o.Bits == 0 && !o.Unread && number != 0 && number <= m.Last
		if meets && !slices.Contains(who, named(o)) {
			who = append(who, named(o))
		}
	}
	return who
}

// freeMask returns bits that nobody else uses: 8 if there are, else 4, and such that
// no known program uses if there are; 0 if there are none.
func freeMask(others []feed.Mark) uint32 {
	var known uint32
	for _, k := range knownUsers() {
		known |= k.bits &^ hook.DefaultMask
	}
	free := func(mask uint32) bool {
		_, conflicts, err := marksBeside(mask, others)
		return err == nil && len(conflicts) == 0
	}
	if free(hook.DefaultMask) {
		return hook.DefaultMask
	}
	for _, avoid := range []uint32{known, 0} {
		for _, width := range []int{8, 4} {
			for shift := 32 - width; shift >= 0; shift -= 4 {
				if mask := uint32(1<<width-1) << shift; mask&avoid == 0 && free(mask) {
					return mask
				}
			}
		}
	}
	return 0
}

// chooseMarks returns the marks of the first generation: those with the bits that the
// settings name or, if they name none, the default's or others that are free. Rules
// of the user's own have the bits that they were printed with.
func (d *daemon) chooseMarks() (hook.Marks, error) {
	others, err := feed.Marks(d.netns)
	if err != nil {
		d.log.Warn("who else uses packet marks is known in part", "error", err)
	}
	st := markStatus{}
	mask := d.mask
	if d.settings.ruleset == nil {
		others = slices.DeleteFunc(others, func(m feed.Mark) bool { return m.Bits == mask })
	}
	m, conflicts, err := marksBeside(mask, others)
	if err != nil {
		return m, err
	}
	free := freeMask(others)
	switch {
	case len(conflicts) == 0:
	case d.settings.ruleset == nil: // told by lookMarks
	case d.OffloadMask != "":
		return m, settingErrorf("offload-mask", "bits %#x of packet and connection marks are in use by others: %s: %s", mask, strings.Join(conflicts, "; "), maskRemedy(free))
	case free == 0:
		return m, settingErrorf("offload-mask", "no 4 bits of packet and connection marks are free: %s: %s", strings.Join(conflicts, "; "), maskRemedy(free))
	default:
		st.Chosen = fmt.Sprintf("others use %#x: %s", mask, strings.Join(conflicts, "; "))
		d.log.Info("other bits of packet and connection marks than the default's", "mask", fmt.Sprintf("%#x", free), "reason", st.Chosen)
		d.mask, d.settings.ruleset.Mask = free, free
		if m, _, err = marksBeside(free, others); err != nil {
			return m, err
		}
	}
	d.observer.chosen(st.Chosen)
	return m, nil
}

// maskRemedy says what to do about bits that others use.
func maskRemedy(free uint32) string {
	if free == 0 {
		return "keep them from some of their bits, or do without offload and rejection: --offload-mask 0"
	}
	return fmt.Sprintf("leave --offload-mask out, or say --offload-mask %#x", free)
}

// useOf says who else uses marks beside m.
func useOf(m hook.Marks, others []feed.Mark, err error) (st markStatus) {
	if err != nil {
		st.Error = err.Error()
	}
	st.Mask, st.Last, st.Conflict = fmt.Sprintf("%#x", m.Mask), m.Last, inTheWay(m, others)
	for i := range others {
		switch m := &others[i]; {
		case m.Overwrites:
			st.Overwrit = append(st.Overwrit, m.Where)
		case m.Unread:
			st.Unread = append(st.Unread, m.Where)
		}
	}
	slices.Sort(st.Overwrit)
	st.Overwrit = slices.Compact(st.Overwrit)
	return st
}

// marksEvery is how often it is looked who uses marks: who begins to is told.
const marksEvery = 30 * time.Second

// lookMarks looks who else uses marks, and tells what has changed.
func (d *daemon) lookMarks() {
	if d.mask == 0 {
		return
	}
	others, err := feed.Marks(d.netns)
	if d.settings.ruleset == nil {
		others = slices.DeleteFunc(others, func(m feed.Mark) bool { return m.Bits == d.mask })
	}
	now := useOf(d.marks.legacy().Latest, others, err)
	before := d.observer.use(&now)
	for _, who := range added(before.Conflict, now.Conflict) {
		text := fmt.Sprintf("%s; verdictd has %s: marks of one may be taken for the other's", who, now.Mask)
		d.log.Warn("others use packet marks of verdictd's", "who", who, "mask", now.Mask, "remedy", maskRemedy(freeMask(others)))
		d.audit.Admin("marks_conflict", text)
	}
	if d.offloads {
		for _, who := range added(before.Overwrit, now.Overwrit) {
			d.log.Warn("somebody overwrites connection marks: flows that are decided may come up again and again", "who", who, "remedy", overwriteRemedy(now.Mask))
		}
	}
}

// overwriteRemedy says how to leave verdictd's bits alone.
func overwriteRemedy(mask string) string {
	return fmt.Sprintf("let it leave the bits %s as they are, such as by CONNMARK --save-mark with --nfmask and --ctmask, or by: ct mark set (ct mark and %s) or ...", mask, mask)
}

// added returns what is in now and not in before.
func added(before, now []string) (list []string) {
	for _, s := range now {
		if !slices.Contains(before, s) {
			list = append(list, s)
		}
	}
	return list
}

// chosen notes why the bits are not the default's.
func (o *observer) chosen(why string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.marks.Chosen = why
}

// use notes who uses marks, and returns what was noted before.
func (o *observer) use(now *markStatus) (before markStatus) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before = o.marks
	now.Chosen = before.Chosen
	o.marks = *now
	return before
}

// remarkedEvery is how often it is told that offloaded flows come up.
const remarkedEvery = 10 * time.Minute

// remarked warns of offloaded flows that come up, at most each remarkedEvery.
func (d *daemon) remarked(now time.Time) {
	n := d.engine.Stats().Remarked
	if n == d.observer.remarked || now.Sub(d.observer.toldRemarked) < remarkedEvery {
		return
	}
	d.observer.mu.Lock()
	st := d.observer.marks
	d.observer.mu.Unlock()
	who := strings.Join(st.Overwrit, "; ")
	if who == "" {
		who = "not known"
	}
	d.log.Warn("packets come up though their flow is decided: somebody overwrites connection marks",
		"packets", n-d.observer.remarked, "total", n, "who", who, "remedy", overwriteRemedy(st.Mask))
	d.audit.Admin("connection_marks_overwritten", fmt.Sprintf("%d packets came up though their flow is decided (who overwrites connection marks: %s)", n-d.observer.remarked, who))
	d.observer.remarked, d.observer.toldRemarked = n, now
}

// text says it to people, a line each.
func (st *markStatus) text() (lines []string) {
	if st.Mask == "" {
		return nil
	}
	if st.Chosen != "" {
		lines = append(lines, fmt.Sprintf("bits %s, as %s", st.Mask, st.Chosen))
	}
	if len(st.Conflict) > 0 {
		lines = append(lines, fmt.Sprintf("bits %s are in use by others: %s", st.Mask, strings.Join(st.Conflict, "; ")))
	}
	if len(st.Overwrit) > 0 {
		lines = append(lines, "connection marks are overwritten by: "+strings.Join(st.Overwrit, "; "))
	}
	return lines
}

// finding says it for doctor.
func (st *markStatus) finding(others []feed.Mark, running bool) finding {
	f := finding{Name: "packet marks", State: stateOK, Found: fmt.Sprintf("bits %s are verdictd's, and nobody else uses them", st.Mask)}
	free := freeMask(others)
	switch {
	case st.Error != "":
		f.State, f.Found = stateUnknown, "who else uses them is known in part: "+st.Error
	case len(st.Conflict) > 0 && !running && free != 0:
		f = finding{f.Name, stateNote, fmt.Sprintf("others use %s: %s", st.Mask, strings.Join(st.Conflict, "; ")),
			fmt.Sprintf("verdictd run takes %#x", free), "nothing, or --offload-mask"}
	case len(st.Conflict) > 0:
		f = finding{f.Name, stateLimit, fmt.Sprintf("others use bits of %s: %s", st.Mask, strings.Join(st.Conflict, "; ")),
			"marks of one may be taken for the other's", "verdictd upgrade or restart: " + maskRemedy(free)}
	case len(st.Overwrit) > 0:
		f = finding{f.Name, stateNote, "connection marks are overwritten by: " + strings.Join(st.Overwrit, "; "),
			"flows that are decided may come up again and again (status counts them)", overwriteRemedy(st.Mask)}
	case len(st.Unread) > 0:
		f.Found = fmt.Sprintf("bits %s are verdictd's; sets of marks are not read: %s", st.Mask, strings.Join(st.Unread, "; "))
		f.State = stateNote
	}
	return f
}

// findMarks is the finding about marks: those of the daemon that was asked, or the
// default's.
func (c *checkup) findMarks() finding {
	others, err := feed.Marks(0)
	m, _, maskErr := marksBeside(hook.DefaultMask, others)
	running := c.Daemon != nil && !c.Daemon.Elsewhere
	if running {
		if c.marks.Mask == "" {
			return finding{Name: "packet marks", State: stateNote, Found: "the daemon uses none"}
		}
		_, maskErr = fmt.Sscanf(c.marks.Mask, "0x%x", &m.Mask)
		m.Last = c.marks.Last
	}
	if maskErr != nil {
		return finding{Name: "packet marks", State: stateUnknown, Found: maskErr.Error()}
	}
	st := useOf(m, others, err)
	return st.finding(others, running)
}
