package packet

// LetPanicsThrough turns gopacket's recover off, so that tests see panics.
func (d *Decoder) LetPanicsThrough() {
	d.ip4.IgnorePanic = true
	d.ip6.IgnorePanic = true
}
