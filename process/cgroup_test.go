package process

import (
	"strings"
	"testing"
)

// Ids as runtimes make them.
const (
	idA  = "4c01db0b339c0f5b1a3c3a5c9d1f0e2b7a6d5c4b3a291807f6e5d4c3b2a19080"
	idB  = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100"
	pod  = "0c6ea0ec-5d9b-4d3b-8b5e-1a2b3c4d5e6f"
	pod_ = "0c6ea0ec_5d9b_4d3b_8b5e_1a2b3c4d5e6f"
	hash = "b7a6d5c4b3a291807f6e5d4c3b2a1908" // in place of the uid of a static pod
)

type cgroupCase struct {
	path string
	want Cgroup // Path is that of the case
}

func unitCases() []cgroupCase {
	const user = "/user.slice/user-1000.slice/"
	return []cgroupCase{
		{"", Cgroup{}},
		{"/", Cgroup{}},
		{"/init.scope", Cgroup{Unit: "init.scope"}},
		{"/system.slice", Cgroup{Slice: "system.slice"}},
		{"/system.slice/ssh.service", Cgroup{Unit: "ssh.service", Slice: "system.slice"}},
		{"/system.slice/system-getty.slice/getty@tty1.service", Cgroup{Unit: "getty@tty1.service", Slice: "system-getty.slice"}},
		{`/system.slice/system-serial\x2dgetty.slice/serial-getty@ttyS0.service`, Cgroup{Unit: "serial-getty@ttyS0.service", Slice: `system-serial\x2dgetty.slice`}},
		{`/system.slice/dev-disk-by\x2duuid-1.swap`, Cgroup{Unit: `dev-disk-by\x2duuid-1.swap`, Slice: "system.slice"}},
		{"/system.slice/cups.socket", Cgroup{Unit: "cups.socket", Slice: "system.slice"}},
		{"/system.slice/postgresql@16-main.service/worker", Cgroup{Unit: "postgresql@16-main.service", Slice: "system.slice"}},
		// A service that was given a tree of its own names what is in it.
		{"/system.slice/a.service/ssh.service", Cgroup{Unit: "a.service", Slice: "system.slice"}},
		{"/system.slice/a.service/b.slice/ssh.service", Cgroup{Unit: "a.service", Slice: "system.slice"}},
		{"/system.slice/__a.service", Cgroup{Unit: "_a.service", Slice: "system.slice"}},
		{"/_cpu.service", Cgroup{Unit: "cpu.service"}},
		{user + "session-3.scope", Cgroup{Unit: "session-3.scope", Slice: "user-1000.slice"}},
		{user + "user@1000.service", Cgroup{Unit: "user@1000.service", Slice: "user-1000.slice"}},
		{user + "user@1000.service/init.scope", Cgroup{Unit: "user@1000.service", Slice: "user-1000.slice", UserUnit: "init.scope"}},
		{user + "user@1000.service/app.slice/foo.service", Cgroup{Unit: "user@1000.service", Slice: "user-1000.slice", UserUnit: "foo.service"}},
		{user + `user@1000.service/app.slice/app-org.gnome.Terminal.slice/vte-spawn-1.scope`, Cgroup{Unit: "user@1000.service", Slice: "user-1000.slice", UserUnit: "vte-spawn-1.scope"}},
		{user + "user@1000.service/app.slice/foo.service/ssh.service", Cgroup{Unit: "user@1000.service", Slice: "user-1000.slice", UserUnit: "foo.service"}},
		{user + "user@1000.service/mine/ssh.service", Cgroup{Unit: "user@1000.service", Slice: "user-1000.slice"}},
		{user + "user@root.service/ssh.service", Cgroup{Unit: "user@root.service", Slice: "user-1000.slice"}},
		{"/mine/ssh.service", Cgroup{}},
		{"/system.slice/.service", Cgroup{Slice: "system.slice"}},
		{"/system.slice/@.service", Cgroup{Slice: "system.slice"}},
		{"/system.slice/a b.service", Cgroup{Slice: "system.slice"}},
		{"/system.slice/a.timer", Cgroup{Slice: "system.slice"}},
		{"/system.slice/noextension", Cgroup{Slice: "system.slice"}},
		{"/../other.slice/a.service", Cgroup{}},
		{"/system.slice/" + strings.Repeat("a", 250) + ".service", Cgroup{Slice: "system.slice"}},
	}
}

func containerCases() []cgroupCase {
	const user = "/user.slice/user-1000.slice/user@1000.service/"
	return []cgroupCase{
		{"/docker/" + idA, Cgroup{ContainerID: idA, Runtime: "docker"}},
		{"/docker/" + idA + "/init", Cgroup{ContainerID: idA, Runtime: "docker"}},
		{"/docker/" + idA + "/docker/" + idB, Cgroup{ContainerID: idB, Runtime: "docker"}},
		{"/system.slice/docker-" + idA + ".scope", Cgroup{Unit: "docker-" + idA + ".scope", Slice: "system.slice", ContainerID: idA, Runtime: "docker"}},
		{"/system.slice/docker-" + idA + ".scope/system.slice/docker-" + idB + ".scope", Cgroup{Unit: "docker-" + idA + ".scope", Slice: "system.slice", ContainerID: idB, Runtime: "docker"}},
		{"/system.slice/docker-" + idA + ".scope/system.slice/ssh.service", Cgroup{Unit: "docker-" + idA + ".scope", Slice: "system.slice", ContainerID: idA, Runtime: "docker"}},
		{"/machine.slice/libpod-" + idA + ".scope", Cgroup{Unit: "libpod-" + idA + ".scope", Slice: "machine.slice", ContainerID: idA, Runtime: "podman"}},
		{"/machine.slice/libpod-" + idA + ".scope/container", Cgroup{Unit: "libpod-" + idA + ".scope", Slice: "machine.slice", ContainerID: idA, Runtime: "podman"}},
		{"/machine.slice/libpod-conmon-" + idA + ".scope", Cgroup{Unit: "libpod-conmon-" + idA + ".scope", Slice: "machine.slice"}},
		{"/libpod_parent/libpod-" + idA, Cgroup{ContainerID: idA, Runtime: "podman"}},
		{"/system.slice/web.service/libpod-payload-" + idA, Cgroup{Unit: "web.service", Slice: "system.slice", ContainerID: idA, Runtime: "podman"}},
		{user + "user.slice/libpod-" + idA + ".scope/container", Cgroup{Unit: "user@1000.service", Slice: "user-1000.slice", UserUnit: "libpod-" + idA + ".scope", ContainerID: idA, Runtime: "podman"}},
		{"/k8s.io/" + idA, Cgroup{ContainerID: idA, Runtime: "containerd"}},
		{"/system.slice/nerdctl-" + idA + ".scope", Cgroup{Unit: "nerdctl-" + idA + ".scope", Slice: "system.slice", ContainerID: idA, Runtime: "containerd"}},
		{"/machine.slice/machine-deb12.scope/payload", Cgroup{Unit: "machine-deb12.scope", Slice: "machine.slice", ContainerID: "deb12", Runtime: "nspawn"}},
		{`/machine.slice/machine-my\x2dbox.scope`, Cgroup{Unit: `machine-my\x2dbox.scope`, Slice: "machine.slice", ContainerID: `my\x2dbox`, Runtime: "nspawn"}},
		{"/machine.slice/systemd-nspawn@deb12.service/payload/system.slice/ssh.service", Cgroup{Unit: "systemd-nspawn@deb12.service", Slice: "machine.slice", ContainerID: "deb12", Runtime: "nspawn"}},
		{`/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator`, Cgroup{Unit: `machine-qemu\x2d1\x2dvm.scope`, Slice: "machine.slice"}},
		{"/lxc.payload.web/system.slice/nginx.service", Cgroup{ContainerID: "web", Runtime: "lxc"}},
		{"/lxc.payload.web/system.slice/docker-" + idA + ".scope", Cgroup{ContainerID: idA, Runtime: "docker"}},
		{"/lxc.monitor.web", Cgroup{}},
		{"/docker/" + idA + "/lxc.payload.in", Cgroup{ContainerID: "in", Runtime: "lxc"}},
		// What only looks alike.
		{user + "app.slice/lxc.payload.web", Cgroup{Unit: "user@1000.service", Slice: "user-1000.slice"}},
		{user + "machine.slice/machine-web.scope", Cgroup{Unit: "user@1000.service", Slice: "user-1000.slice", UserUnit: "machine-web.scope"}},
		{"/docker-xyz", Cgroup{}},
		{"/docker/xyz", Cgroup{}},
		{"/docker/buildkit", Cgroup{}},
		{"/docker/" + idA[1:], Cgroup{}},
		{"/docker/" + idA + "0", Cgroup{}},
		{"/docker/" + strings.ToUpper(idA), Cgroup{}},
		{"/docker/g" + idA[1:], Cgroup{}},
		{"/" + idA, Cgroup{}},
		{"/mine/" + idA, Cgroup{}},
		{"/system.slice/docker-xyz.scope", Cgroup{Unit: "docker-xyz.scope", Slice: "system.slice"}},
		{"/system.slice/mydocker-" + idA + ".scope", Cgroup{Unit: "mydocker-" + idA + ".scope", Slice: "system.slice"}},
		{"/system.slice/docker.service", Cgroup{Unit: "docker.service", Slice: "system.slice"}},
	}
}

func kubeCases() []cgroupCase {
	slice := "kubepods-burstable-pod" + pod_ + ".slice"
	deep := "/kubepods.slice/kubepods-burstable.slice/" + slice
	kind := "kubelet-kubepods-besteffort-pod" + pod_ + ".slice"
	return []cgroupCase{
		{deep, Cgroup{Slice: slice, PodUID: pod}},
		{deep + "/cri-containerd-" + idA + ".scope", Cgroup{Unit: "cri-containerd-" + idA + ".scope", Slice: slice, ContainerID: idA, Runtime: "containerd", PodUID: pod}},
		{deep + "/crio-" + idA + ".scope", Cgroup{Unit: "crio-" + idA + ".scope", Slice: slice, ContainerID: idA, Runtime: "crio", PodUID: pod}},
		{deep + "/crio-conmon-" + idA + ".scope", Cgroup{Unit: "crio-conmon-" + idA + ".scope", Slice: slice, PodUID: pod}},
		{deep + "/docker-" + idA + ".scope", Cgroup{Unit: "docker-" + idA + ".scope", Slice: slice, ContainerID: idA, Runtime: "docker", PodUID: pod}},
		{"/kubepods.slice/kubepods-pod" + pod_ + ".slice/cri-containerd-" + idA + ".scope", Cgroup{Unit: "cri-containerd-" + idA + ".scope", Slice: "kubepods-pod" + pod_ + ".slice", ContainerID: idA, Runtime: "containerd", PodUID: pod}},
		{"/kubepods.slice/kubepods-pod" + hash + ".slice/cri-containerd-" + idA + ".scope", Cgroup{Unit: "cri-containerd-" + idA + ".scope", Slice: "kubepods-pod" + hash + ".slice", ContainerID: idA, Runtime: "containerd", PodUID: hash}},
		{"/kubepods/burstable/pod" + pod + "/" + idA, Cgroup{ContainerID: idA, PodUID: pod}},
		{"/kubepods/pod" + pod + "/crio-" + idA, Cgroup{ContainerID: idA, Runtime: "crio", PodUID: pod}},
		{"/kubepods/besteffort/pod" + hash + "/" + idA + "/init", Cgroup{ContainerID: idA, PodUID: hash}},
		{"/kubepods/besteffort/pod" + pod + "/" + idA + "/docker/" + idB, Cgroup{ContainerID: idB, Runtime: "docker", PodUID: pod}},
		{"/system.slice/containerd.service/" + slice + ":cri-containerd:" + idA, Cgroup{Unit: "containerd.service", Slice: "system.slice", ContainerID: idA, Runtime: "containerd", PodUID: pod}},
		{"/" + slice + ":crio:" + idA, Cgroup{ContainerID: idA, Runtime: "crio", PodUID: pod}},
		{"/docker/" + idA + "/kubelet.slice/kubelet-kubepods.slice/" + kind + "/cri-containerd-" + idB + ".scope", Cgroup{ContainerID: idB, Runtime: "containerd", PodUID: pod}},
		{"/docker/" + idA + "/kubelet/kubepods/burstable/pod" + pod + "/" + idB, Cgroup{ContainerID: idB, PodUID: pod}},
		{"/mine/pod" + pod + "/" + idA, Cgroup{}},
		{"/kubepods/podx/" + idA, Cgroup{}},
		{"/kubepods/pod" + pod[1:] + "/" + idA, Cgroup{}},
		{"/kubepods/pod" + pod + "/mine", Cgroup{PodUID: pod}},
		{"/kubepods/pod" + pod + "/mine/" + idA, Cgroup{PodUID: pod}},
		{"/a:cri-containerd:" + idA[1:], Cgroup{}},
	}
}

func TestParseCgroup(t *testing.T) {
	for _, list := range [][]cgroupCase{unitCases(), containerCases(), kubeCases()} {
		for _, tt := range list {
			tt.want.Path = tt.path
			if got := ParseCgroup(tt.path); got != tt.want {
				t.Errorf("%s:\ngot  %+v\nwant %+v", tt.path, got, tt.want)
			}
		}
	}
}

// FuzzParseCgroup checks that what is reported is in the path, so that a path
// cannot make up anything.
func FuzzParseCgroup(f *testing.F) {
	for _, list := range [][]cgroupCase{unitCases(), containerCases(), kubeCases()} {
		for _, tt := range list {
			f.Add(tt.path)
		}
	}
	f.Fuzz(func(t *testing.T, path string) {
		c := ParseCgroup(path)
		if c.Path != path || c.ID != 0 {
			t.Errorf("%q: path %q, id %d", path, c.Path, c.ID)
		}
		for _, part := range []string{c.Unit, c.Slice, c.UserUnit, c.ContainerID, c.Runtime} {
			if part == nspawn { // machine- says it by another word
				continue
			}
			if !strings.Contains(path, part) && part != podman && part != containerd {
				t.Errorf("%q: %q is not in it", path, part)
			}
		}
		if !strings.Contains(path, c.PodUID) && !strings.Contains(path, strings.ReplaceAll(c.PodUID, "-", "_")) {
			t.Errorf("%q: pod %q is not in it", path, c.PodUID)
		}
		if (c.UserUnit != "") && c.Unit == "" || c.Runtime != "" && c.ContainerID == "" {
			t.Errorf("%q: half an answer: %+v", path, c)
		}
	})
}

func BenchmarkParseCgroup(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		ParseCgroup("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + pod_ + ".slice/cri-containerd-" + idA + ".scope")
	}
}
