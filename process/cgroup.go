package process

// Cgroup is a control group of the unified hierarchy (version 2), and what its
// path says.
//
// A path is as trustworthy as whoever may make directories in it: root in most,
// a user below that user's manager (user@1000.service), a container with its own
// cgroup tree below its own group. A user can have a unit "ssh.service", so Unit
// is only ever one of the system's, and what the user's manager calls it is
// UserUnit, as in the journal. A user can also have a group named like any
// container: a rule about a ContainerID also demands the Path or the Unit that the
// runtime gives it.
type Cgroup struct {
	ID   uint64 `json:"id,omitempty"`   // inode of its directory
	Path string `json:"path,omitempty"` // below the root of the hierarchy, such as /system.slice/ssh.service; empty if unknown

	Unit     string `json:"unit,omitempty"`      // unit of the system's manager, spelled as systemctl does: ssh.service, session-3.scope; empty if there is none
	Slice    string `json:"slice,omitempty"`     // innermost systemd slice that Unit is in: system.slice; empty if there is none
	UserUnit string `json:"user_unit,omitempty"` // unit of a user's manager, where Unit is that manager (user@1000.service); whoever the user is named it

	ContainerID string `json:"container_id,omitempty"` // full id (name, for nspawn and lxc) as the path has it; empty if the path is no container's
	Runtime     string `json:"runtime,omitempty"`      // docker, podman, containerd, crio, nspawn, lxc; empty if the path does not say
	PodUID      string `json:"pod_uid,omitempty"`      // uid of a Kubernetes pod, with dashes; empty if it is none
}
