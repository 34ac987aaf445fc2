package record

import (
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf/btf"
)

// offsets are places in the kernel's structures, in bytes.
type offsets struct {
	taskTGID, taskPID, taskLeader, taskParent, taskMM, taskSignal, taskComm int16
	taskStart, taskExecID, taskParentExecID                                 int16
	signalLive, signalTTY, ttyName                                          int16
	mmExe, mmArgStart, mmArgEnd                                             int16
	fileInode, fileDentry, fileMount                                        int16
	inodeNumber, inodeSuper, inodeLinks, superDevice, superMagic            int16
	inodeChanged, inodeChangedNanos, superGranularity, superUserNS, nsLevel int16
	dentryParent, dentryName                                                int16
	mountParent, mountPoint, mountNS, mountBase, mountRoot                  int16
	nsNumber                                                                int16
	volume                                                                  volumeOffsets

	skbSock, sockNet, netCookie, sockCookie, sockState, sockListener, sockPort, sockType int16
	opsSock                                                                              int16
	skbDev, skbData, skbLen, skbDataLen, devIndex, devNet, sockFamily                    int16
	skbInner, skbMac, skbRoute, sockProtocol, routeDev, devFlags, addrSock, udpEncap     int16
	kernSock                                                                             int16  // byte of the bit sk_kern_sock
	kernMask                                                                             uint8  // that bit in the byte
	vrfPort                                                                              uint32 // bit of devFlags: belongs to a VRF

	sockSocket, socketFile, fileCred, credUser            int16
	socketSock, sockUID, sockCgroup, cgroupNode, cgroupID int16 // the last is 0 if the way there is not known

	mptcp mptcpOffsets
}

// fields looks up offsets and keeps the first error.
type fields struct {
	spec *btf.Spec
	err  error
}

// kernelOffsets reads the offsets of the running kernel, and its types into the
// cache. Errors say that BTF is not there, or which field of which structure is
// not.
func kernelOffsets(types *btf.Cache) (*offsets, error) {
	const pointer = 8
	if unsafe.Sizeof(uintptr(0)) != pointer {
		return nil, errors.New("read BTF: only 64-bit kernels are known")
	}
	spec, err := types.Kernel()
	if err != nil {
		return nil, fmt.Errorf("read BTF of the kernel: %v (needs CONFIG_DEBUG_INFO_BTF)", err)
	}
	f := &fields{spec: spec}
	o := &offsets{}
	f.task(o)
	f.file(o)
	o.volume = f.volume(types)
	f.sock(o)
	f.origin(o)
	o.mptcp = f.mptcp()
	f.near(o.mountRoot, o.mountParent, o.mountPoint)
	f.near(o.dentryParent, o.dentryName)
	if f.err != nil {
		return nil, f.err
	}
	return o, nil
}

// near sees to it that fields can be read by code.window.
func (f *fields) near(offsets ...int16) {
	if f.err == nil && slices.Max(offsets)-slices.Min(offsets) > windowSize-8 {
		f.err = fmt.Errorf("read BTF: fields at %v are farther apart than known", offsets)
	}
}

func (f *fields) task(o *offsets) {
	o.taskTGID = f.at("task_struct", 4, "tgid")
	o.taskPID = f.at("task_struct", 4, "pid")
	o.taskLeader = f.at("task_struct", 8, "group_leader")
	o.taskParent = f.at("task_struct", 8, "real_parent")
	o.taskMM = f.at("task_struct", 8, "mm")
	o.taskSignal = f.at("task_struct", 8, "signal")
	o.taskComm = f.at("task_struct", 16, "comm")
	o.taskStart = f.at("task_struct", 8, "start_boottime")
	o.taskExecID = f.at("task_struct", 8, "self_exec_id")
	o.taskParentExecID = f.at("task_struct", 8, "parent_exec_id")
	o.signalLive = f.at("signal_struct", 4, "live")
	o.signalTTY = f.at("signal_struct", 8, "tty")
	o.ttyName = f.at("tty_struct", 64, "name")
	o.mmExe = f.at("mm_struct", 8, "exe_file")
	o.mmArgStart = f.at("mm_struct", 8, "arg_start")
	o.mmArgEnd = f.at("mm_struct", 8, "arg_end")
}

func (f *fields) file(o *offsets) {
	o.fileInode = f.at("file", 8, "f_inode")
	o.fileDentry = f.at("file", 8, "f_path", "dentry")
	o.fileMount = f.at("file", 8, "f_path", "mnt")
	o.inodeNumber = f.at("inode", 8, "i_ino")
	o.inodeSuper = f.at("inode", 8, "i_sb")
	o.inodeLinks = f.at("inode", 4, "i_nlink")
	o.superDevice = f.at("super_block", 4, "s_dev")
	o.superMagic = f.at("super_block", 8, "s_magic")
	o.superGranularity = f.at("super_block", 4, "s_time_gran")
	o.superUserNS = f.at("super_block", 8, "s_user_ns")
	o.nsLevel = f.at("user_namespace", 4, "level")
	o.inodeChanged, o.inodeChangedNanos = f.changed()
	o.dentryParent = f.at("dentry", 8, "d_parent")
	o.dentryName = f.at("dentry", 8, "d_name", "name")
	o.mountParent = f.at("mount", 8, "mnt_parent")
	o.mountPoint = f.at("mount", 8, "mnt_mountpoint")
	o.mountNS = f.at("mount", 8, "mnt_ns")
	o.mountBase = f.at("mount", -1, "mnt")
	o.mountRoot = f.at("mount", 8, "mnt", "mnt_root")
	o.nsNumber = f.at("mnt_namespace", 4, "ns", "inum")
}

// changed returns where the time of the last change of a file is: one field before
// Linux 6.11, under two names.
func (f *fields) changed() (seconds, nanos int16) {
	for _, name := range []string{"i_ctime", "__i_ctime"} {
		in := &fields{spec: f.spec, err: f.err}
		seconds = in.at("inode", 8, name, "tv_sec")
		nanos = in.at("inode", 8, name, "tv_nsec")
		if in.err == nil {
			if nativeBig() {
				nanos += 4
			}
			return seconds, nanos
		}
	}
	return f.at("inode", 8, "i_ctime_sec"), f.at("inode", 4, "i_ctime_nsec")
}

func (f *fields) sock(o *offsets) {
	o.skbSock = f.at("sk_buff", 8, "sk")
	o.sockNet = f.at("sock_common", 8, "skc_net", "net")
	o.netCookie = f.at("net", 8, "net_cookie")
	o.sockCookie = f.at("sock_common", 8, "skc_cookie")
	o.sockPort = f.at("sock_common", 2, "skc_num")
	o.sockState = f.at("sock_common", 1, "skc_state")
	o.sockListener = f.at("sock_common", 8, "skc_listener")
	o.sockType = f.at("sock", 2, "sk_type")
	o.skbDev = f.at("sk_buff", 8, "dev")
	o.skbData = f.at("sk_buff", 8, "data")
	o.skbLen = f.at("sk_buff", 4, "len")
	o.skbDataLen = f.at("sk_buff", 4, "data_len")
	o.devIndex = f.at("net_device", 4, "ifindex")
	o.devNet = f.at("net_device", 8, "nd_net", "net")
	o.sockFamily = f.at("sock_common", 2, "skc_family")
	o.opsSock = f.at("bpf_sock_ops_kern", 8, "sk")
	o.kernSock, o.kernMask = f.bit("sock", "sk_kern_sock")
	o.socketSock = f.at("socket", 8, "sk")
	o.sockUID = f.at("sock", 4, "sk_uid")
	o.sockSocket = f.at("sock", 8, "sk_socket")
	o.socketFile = f.at("socket", 8, "file")
	o.fileCred = f.at("file", 8, "f_cred")
	o.credUser = f.at("cred", 4, "fsuid")
	g := &fields{spec: f.spec, err: f.err}
	o.sockCgroup = g.at("sock", 8, "sk_cgrp_data", "cgroup")
	o.cgroupNode = g.at("cgroup", 8, "kn")
	o.cgroupID = g.at("kernfs_node", 8, "id")
}

// bit returns the byte of a field one bit wide, and the bit in it.
func (f *fields) bit(structure, name string) (at int16, mask uint8) {
	p := f.find(structure, name)
	return int16(p.offset / 8), p.mask()
}

// place is a field in bits from the beginning of its structure.
type place struct {
	offset, width uint32 // width is 0 unless it is a bit field
	typ           btf.Type
}

// mask returns the bit of a field one bit wide within its byte.
func (p place) mask() uint8 {
	if nativeBig() {
		return 0x80 >> (p.offset % 8)
	}
	return 1 << (p.offset % 8)
}

// at returns the offset of a field, named from a structure on, which must have
// size bytes (-1: any).
func (f *fields) at(structure string, size int, names ...string) int16 {
	p := f.find(structure, names...)
	if f.err != nil {
		return 0
	}
	got, err := btf.Sizeof(p.typ)
	switch {
	case err != nil:
		f.err = fmt.Errorf("read BTF: %s.%v: %v", structure, names, err)
	case size >= 0 && got != size, p.offset%8 != 0, p.offset/8 > 1<<15-1:
		f.err = fmt.Errorf("read BTF: %s.%v has %d bytes at bit %d, not %d as known", structure, names, got, p.offset, size)
	}
	return int16(p.offset / 8)
}

func (f *fields) find(structure string, names ...string) place {
	if f.err != nil {
		return place{}
	}
	var s *btf.Struct
	if err := f.spec.TypeByName(structure, &s); err != nil {
		f.err = fmt.Errorf("read BTF: struct %s: %v", structure, err)
		return place{}
	}
	p := place{typ: s}
	for _, name := range names {
		inner, ok := member(p.typ, name)
		if !ok {
			f.err = fmt.Errorf("read BTF: struct %s of this kernel has no %v", structure, names)
			return place{}
		}
		p = place{offset: p.offset + inner.offset, width: inner.width, typ: inner.typ}
	}
	return p
}

// member finds a field of a structure or union, also within nameless ones.
func member(typ btf.Type, name string) (place, bool) {
	var members []btf.Member
	switch t := btf.UnderlyingType(typ).(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	}
	for _, m := range members {
		if m.Name == name {
			return place{uint32(m.Offset), uint32(m.BitfieldSize), m.Type}, true
		}
		if m.Name != "" {
			continue
		}
		if inner, ok := member(m.Type, name); ok {
			inner.offset += uint32(m.Offset)
			return inner, true
		}
	}
	return place{}, false
}
