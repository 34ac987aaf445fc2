package record

import (
	"unsafe"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// Magic numbers of file systems in which inode numbers are those of a part (a
// subvolume), and the device of the super block is the same for all parts.
//
// Source: include/uapi/linux/magic.h, fs/bcachefs/bcachefs_format.h.
const (
	btrfsMagic    = 0x9123683e // BTRFS_SUPER_MAGIC
	bcachefsMagic = 0xca451a4e // BCACHEFS_STATFS_MAGIC
)

// volumeOffsets lead from an inode of btrfs to the device of its subvolume, which
// is what stat(2) tells.
//
// Source: btrfs_getattr, fs/btrfs/inode.c.
type volumeOffsets struct {
	known  bool
	root   int16 // from the inode, backwards
	device int16 // in btrfs_root
}

// volume looks the offsets up, in the kernel or in its module. Without them a file
// of btrfs has no device.
func (f *fields) volume(types *btf.Cache) (o volumeOffsets) {
	in := &fields{spec: f.spec}
	var s *btf.Struct
	if f.spec.TypeByName("btrfs_inode", &s) != nil {
		module, err := types.Module("btrfs")
		if err != nil {
			return o
		}
		in.spec = module
	}
	o.root = in.at("btrfs_inode", 8, "root") - in.at("btrfs_inode", -1, "vfs_inode")
	o.device = in.at("btrfs_root", 4, "anon_dev")
	o.known = in.err == nil
	return o
}

// device fills in the device that, with the number of the inode, names a file:
// what stat(2) has, or 0 if that is not known. R6 is the inode, R8 the record, R9
// is lost.
func (p *programs) device(c *code) {
	o := p.offsets
	at := field(unsafe.Offsetof(processRecord{}.Device))
	done, none, volume := c.fresh(), c.fresh(), c.fresh()
	c.follow(asm.R9, asm.R6, o.inodeSuper, slotTemp)
	c.probeTo(asm.R8, at, 4, asm.R9, o.superDevice)
	c.follow(asm.R1, asm.R9, o.superMagic, slotTemp)
	c.add(
		asm.LoadImm(asm.R2, bcachefsMagic, asm.DWord), asm.JEq.Reg(asm.R1, asm.R2, none),
		asm.LoadImm(asm.R2, btrfsMagic, asm.DWord), asm.JEq.Reg(asm.R1, asm.R2, volume),
		asm.Ja.Label(done),
	)
	c.label(volume)
	if o.volume.known {
		c.follow(asm.R9, asm.R6, o.volume.root, slotTemp)
		c.probeTo(asm.R8, at, 4, asm.R9, o.volume.device)
		c.add(asm.Ja.Label(done))
	}
	c.label(none)
	c.add(asm.StoreImm(asm.R8, at, 0, asm.Word))
	c.label(done)
}
