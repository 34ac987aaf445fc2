package record

import "time"

// Within sets how long a tuple that another program takes over is ambiguous.
func (c Config) Within(window time.Duration) Config {
	c.window = window
	return c
}
