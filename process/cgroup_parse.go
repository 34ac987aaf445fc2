package process

import "strings"

// Runtimes of containers, as Cgroup.Runtime spells them.
const (
	docker     = "docker"
	podman     = "podman"
	containerd = "containerd"
	crio       = "crio"
	nspawn     = "nspawn"
	lxc        = "lxc"
)

// ParseCgroup tells what the path of a control group says. It asks nobody: ID
// stays 0. All results but PodUID are parts of the path.
//
// Unit is what systemd itself would say (cg_path_get_unit and
// cg_path_get_user_unit, src/basic/cgroup-util.c): the first component after the
// slices, and, below a user's manager, the first after the slices there. What
// looks like a unit further down was made by the unit, or runs in a container,
// and is not one. Of containers within containers the innermost is reported.
func ParseCgroup(path string) Cgroup {
	c := Cgroup{Path: path}
	parts := make([]string, 0, 16)
	for part := range strings.SplitSeq(path, "/") {
		if part != "" {
			parts = append(parts, part)
		}
	}
	c.parseUnit(parts)
	c.parseContainer(parts)
	return c
}

func (c *Cgroup) parseUnit(parts []string) {
	slice, rest := skipSlices(parts)
	c.Slice = slice
	if len(rest) == 0 || !isUnit(rest[0]) {
		return
	}
	c.Unit = unescape(rest[0])
	if !isManager(c.Unit) {
		return
	}
	if _, rest = skipSlices(rest[1:]); len(rest) > 0 && isUnit(rest[0]) {
		c.UserUnit = unescape(rest[0])
	}
}

// skipSlices returns the innermost of the slices that parts begins with, and what
// follows them.
func skipSlices(parts []string) (slice string, rest []string) {
	for len(parts) > 0 && strings.HasSuffix(parts[0], ".slice") && isName(parts[0]) {
		slice = unescape(parts[0])
		parts = parts[1:]
	}
	return slice, parts
}

// isUnit tells whether a directory is named like a unit that has processes.
func isUnit(part string) bool {
	if !isName(part) {
		return false
	}
	switch part[strings.LastIndexByte(part, '.'):] {
	case ".service", ".scope", ".socket", ".mount", ".swap":
		return true
	}
	return false
}

// isName is unit_name_is_valid of systemd, src/basic/unit-name.c, after
// unescape.
func isName(part string) bool {
	const maxName = 255
	part = unescape(part)
	dot := strings.LastIndexByte(part, '.')
	if dot <= 0 || len(part) > maxName || part[0] == '@' {
		return false
	}
	for _, b := range []byte(part) {
		letter := b|0x20 >= 'a' && b|0x20 <= 'z'
		if !letter && (b < '0' || b > '9') && !strings.ContainsRune(`:-_.\@`, rune(b)) {
			return false
		}
	}
	return true
}

// unescape undoes cg_escape of systemd: a name that the kernel would take for a
// file of its own has an underscore before it.
func unescape(part string) string { return strings.TrimPrefix(part, "_") }

// isManager tells whether the unit is the service manager of a user.
func isManager(unit string) bool {
	uid, ok := strings.CutPrefix(unit, "user@")
	if !ok {
		return false
	}
	uid, ok = strings.CutSuffix(uid, ".service")
	return ok && digits(uid)
}

func digits(s string) bool {
	for _, b := range []byte(s) {
		if b < '0' || b > '9' {
			return false
		}
	}
	return s != ""
}

// parseContainer goes from the root inwards, so the innermost stays.
func (c *Cgroup) parseContainer(parts []string) {
	inKube := false
	for i, part := range parts {
		parent := ""
		if i > 0 {
			parent = parts[i-1]
		}
		inKube = inKube || isKube(part)
		// kubepods-pod<uid>.slice:cri-containerd:<id> is one directory where the
		// kubelet names slices and the runtime does not ask systemd for them.
		slice, member, joined := strings.Cut(part, ":")
		if inKube {
			if uid := podUID(slice); uid != "" {
				c.PodUID = uid
			}
		}
		if joined {
			c.joined(member)
			continue
		}
		// A name says less than 64 digits: it counts only where the host's root or a
		// container's own makes directories.
		outer := i == 0 || c.ContainerID != ""
		switch {
		case isID(part):
			c.bareID(part, parent)
		case c.prefixed(part):
		case outer || parent == "machine.slice" && i == 1:
			c.named(part, parent)
		}
	}
}

// isKube tells whether pods are below; kind puts "kubelet-" before the slices.
func isKube(part string) bool {
	part = strings.TrimPrefix(part, "kubelet-")
	return part == "kubepods" || strings.HasPrefix(part, "kubepods.") || strings.HasPrefix(part, "kubepods-")
}

// joined takes what follows the slice: "cri-containerd:<id>".
func (c *Cgroup) joined(member string) {
	name, id, ok := strings.Cut(member, ":")
	if !ok || !isID(id) {
		return
	}
	switch name {
	case "cri-containerd":
		c.ContainerID, c.Runtime = id, containerd
	case docker, crio:
		c.ContainerID, c.Runtime = id, name
	}
}

// bareID takes an id by the directory that it is in.
func (c *Cgroup) bareID(id, parent string) {
	switch {
	case parent == docker:
		c.ContainerID, c.Runtime = id, docker
	case parent == "k8s.io":
		c.ContainerID, c.Runtime = id, containerd
	case c.PodUID != "" && podUID(parent) == c.PodUID:
		c.ContainerID, c.Runtime = id, ""
	}
}

// prefixed takes names that begin with the runtime's and end with an id.
func (c *Cgroup) prefixed(part string) bool {
	part = strings.TrimSuffix(part, ".scope")
	dash := strings.LastIndexByte(part, '-')
	if dash < 0 || !isID(part[dash+1:]) {
		return false
	}
	// libpod-conmon- and crio-conmon- are the monitors, which are outside.
	switch part[:dash] {
	case docker:
		c.Runtime = docker
	case "libpod", "libpod-payload":
		c.Runtime = podman
	case "cri-containerd", "nerdctl":
		c.Runtime = containerd
	case crio:
		c.Runtime = crio
	default:
		return false
	}
	c.ContainerID = part[dash+1:]
	return true
}

// named takes containers that have a name and no id.
func (c *Cgroup) named(part, parent string) {
	if name, ok := strings.CutPrefix(part, "lxc.payload."); ok && name != "" {
		c.ContainerID, c.Runtime = name, lxc
		return
	}
	if parent != "machine.slice" {
		return
	}
	if name, ok := strings.CutPrefix(part, "systemd-nspawn@"); ok {
		if name, ok = strings.CutSuffix(name, ".service"); ok && name != "" {
			c.ContainerID, c.Runtime = name, nspawn
		}
		return
	}
	name, ok := strings.CutPrefix(part, "machine-")
	if !ok {
		return
	}
	// libvirt's machines are registered there too, with "qemu-" or "lxc-" and the
	// number first.
	name, ok = strings.CutSuffix(name, ".scope")
	if ok && name != "" && !strings.HasPrefix(name, `qemu\x2d`) && !strings.HasPrefix(name, `lxc\x2d`) {
		c.ContainerID, c.Runtime = name, nspawn
	}
}

// podUID returns the uid in the name of a pod's directory, or "": pod<uid> or
// kubepods-burstable-pod<uid>.slice with underscores for dashes.
func podUID(part string) string {
	if name, ok := strings.CutSuffix(part, ".slice"); ok {
		dash := strings.LastIndexByte(name, '-')
		if dash < 0 || !isKube(name) {
			return ""
		}
		part = strings.ReplaceAll(name[dash+1:], "_", "-")
	}
	uid, ok := strings.CutPrefix(part, "pod")
	if !ok || !isUID(uid) {
		return ""
	}
	return uid
}

// isUID tells whether s is a UUID, or the hash that static pods have in its
// place.
func isUID(s string) bool {
	const hash, uuid = 32, 36
	if len(s) == hash {
		return isHex(s)
	}
	if len(s) != uuid {
		return false
	}
	for i, b := range []byte(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (b == '-') || !dash && !hexDigit(b) {
			return false
		}
	}
	return true
}

// isID tells whether s is a container's id: SHA-256 in hex.
func isID(s string) bool {
	const sha256 = 64
	return len(s) == sha256 && isHex(s)
}

func isHex(s string) bool {
	for _, b := range []byte(s) {
		if !hexDigit(b) {
			return false
		}
	}
	return true
}

func hexDigit(b byte) bool { return b >= '0' && b <= '9' || b >= 'a' && b <= 'f' }
