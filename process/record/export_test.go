package record

import (
	"time"
	"unsafe"
)

// Within sets how long a tuple that another program takes over is ambiguous.
func (c Config) Within(window time.Duration) Config {
	c.window = window
	return c
}

// Owners counts the records of open sockets.
func (r *Recorder) Owners() (n int) {
	var cookie uint64
	var rec ownerRecord
	for all := r.maps.owners.Iterate(); all.Next(unsafe.Pointer(&cookie), unsafe.Pointer(&rec)); n++ {
	}
	return n
}
