package packet

// Decoder decodes packets. It keeps the state that decoding reuses, so it is
// for one goroutine. The zero value is not ready: use NewDecoder.
type Decoder struct{}

// NewDecoder returns a Decoder.
func NewDecoder() *Decoder { return &Decoder{} }

// Decode decodes the IP packet in data into p, overwriting all of p.
//
// m.EtherType says which IP version the packet claims to be, m.Length how
// long it was on the wire. p.Payload is a part of data. Decode allocates
// nothing and never fails: what cannot be decoded is Malformed, with a
// constant reason.
func (d *Decoder) Decode(m *Meta, data []byte, p *Packet) { *p = Packet{} }
