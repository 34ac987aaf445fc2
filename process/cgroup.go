package process

// Cgroup is a control group of the unified hierarchy (version 2), and what its
// path says.
type Cgroup struct {
	ID   uint64 // inode of its directory
	Path string // below the root of the hierarchy, such as /system.slice/ssh.service; empty if unknown

	Unit  string // systemd unit: ssh.service, session-3.scope; empty if there is none
	Slice string // innermost systemd slice: system.slice; empty if there is none

	ContainerID string // full id as the path has it; empty if the path is no container's
	Runtime     string // docker, podman, containerd, crio; empty if the path does not say
	PodUID      string // uid of a Kubernetes pod, with dashes; empty if it is none
}
