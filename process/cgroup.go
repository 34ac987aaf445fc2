package process

// Cgroup is a control group of the unified hierarchy (version 2), and what its
// path says.
//
// A path is as trustworthy as whoever may make directories in it: root in most,
// a user below that user's manager (user@1000.service), a container with its own
// cgroup tree below its own group. A user can have a unit "ssh.service" and a
// group named like any container. So a rule about a unit of the system also
// demands that Manager is empty, and one about a container's ID that Path begins
// where the runtime puts its containers.
type Cgroup struct {
	ID   uint64 `json:"id,omitempty"`   // inode of its directory
	Path string `json:"path,omitempty"` // below the root of the hierarchy, such as /system.slice/ssh.service; empty if unknown

	Unit    string `json:"unit,omitempty"`  // systemd unit, spelled as systemctl does: ssh.service, session-3.scope; empty if there is none
	Slice   string `json:"slice,omitempty"` // innermost systemd slice that the unit is in: system.slice; empty if there is none
	Manager string // user@1000.service if Unit is one of that user's manager; empty if it is one of the system's

	ContainerID string `json:"container_id,omitempty"` // full id (name, for nspawn and lxc) as the path has it; empty if the path is no container's
	Runtime     string `json:"runtime,omitempty"`      // docker, podman, containerd, crio, nspawn, lxc; empty if the path does not say
	PodUID      string `json:"pod_uid,omitempty"`      // uid of a Kubernetes pod, with dashes; empty if it is none
}
