package rules

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// item is one element of the values that a condition lists. Which members are
// valid follows from the condition's kind.
type item struct {
	low, high int64        // numbers, both included; flags as 0 or 1
	prefix    netip.Prefix // addresses
	name      string       // names, without the star
	wild      bool         // every name that begins with name
}

// span returns the keys that the item stands for.
func (c *condition) span(it item) span {
	switch c.kind() {
	case Addr:
		return prefixSpan(it.prefix)
	case String:
		return nameSpan(it.name, it.wild)
	}
	return numberSpan(it.low, it.high)
}

// parse reads one element. The error says what is wrong and what to write.
func (c *condition) parse(text string) ([]item, error) {
	switch {
	case c.parseItem != nil:
		return c.parseItem(c, text)
	case c.kind() == Addr:
		return parseAddress(text)
	case c.kind() == String:
		return c.parseName(text)
	case c.kind() == Bool:
		b, ok := parseBool(text)
		if !ok {
			return nil, fmt.Errorf("%q is neither yes nor no", text)
		}
		return []item{flagItem(b)}, nil
	}
	return c.parseNumbers(text)
}

func flagItem(b bool) item {
	if b {
		return item{low: 1, high: 1}
	}
	return item{}
}

func parseBool(text string) (value, ok bool) {
	switch text {
	case "yes", "true", "on":
		return true, true
	case "no", "false", "off":
		return false, true
	}
	return false, false
}

// parseNumbers reads "22", "0x10", "8000-8099", or a name of numbers.
func (c *condition) parseNumbers(text string) ([]item, error) {
	if list, ok := c.names[text]; ok {
		items := make([]item, len(list))
		for i, b := range list {
			items[i] = item{low: b.low, high: b.high}
		}
		return items, nil
	}
	if c.nameOnly {
		return nil, c.unknown(text, slices.Sorted(maps.Keys(c.names)))
	}
	first, last, isRange := strings.Cut(text, "-")
	low, err := c.parseNumber(strings.TrimSpace(first), text)
	high := low
	if err == nil && isRange {
		high, err = c.parseNumber(strings.TrimSpace(last), text)
	}
	if err != nil {
		return nil, err
	}
	if high < low {
		return nil, fmt.Errorf("range %q goes backwards, want %d-%d", text, high, low)
	}
	return []item{{low: low, high: high}}, nil
}

// parseNumber reads one number of the element whole.
func (c *condition) parseNumber(text, whole string) (int64, error) {
	digits, base := text, 10
	if hex, ok := strings.CutPrefix(strings.ToLower(text), "0x"); ok {
		digits, base = hex, 16
	}
	if base == 10 && len(digits) > 1 && digits[0] == '0' {
		return 0, fmt.Errorf("%q begins with 0, want it in decimal without leading zeros", whole)
	}
	n, err := strconv.ParseUint(digits, base, 63)
	switch {
	case errors.Is(err, strconv.ErrRange) || err == nil && int64(n) > c.max:
		return 0, fmt.Errorf("%q is too large: %s goes from 0 to %d", whole, c.says, c.max)
	case err != nil && strings.Contains(whole, ","):
		return 0, fmt.Errorf("%q is one text, want a list: [%s]", whole, strings.Join(strings.FieldsFunc(whole, func(r rune) bool { return r == ',' || r == ' ' }), ", "))
	case err != nil && len(c.names) > 0:
		return 0, c.unknown(whole, slices.Sorted(maps.Keys(c.names)))
	case err != nil && (c.key == "user" || c.key == "group"):
		return 0, fmt.Errorf("%q is no number, want that of the %s (getent %s %s tells it)%s", whole, c.key, map[string]string{"user": "passwd", "group": "group"}[c.key], whole, byName(c.key, whole))
	case err != nil && strings.HasSuffix(c.key, "-port") && c.key != "":
		return 0, fmt.Errorf("%q is no number: ports have no names here, want one from 0 to %d (getent services %s tells it) or a range such as 8000-8099", whole, c.max, whole)
	case err != nil:
		return 0, fmt.Errorf("%q is no number, want one from 0 to %d or a range such as %d-%d", whole, c.max, c.max/2, c.max)
	}
	return int64(n), nil
}

// byName says what condition asks for the name of a user.
func byName(key, name string) string {
	if key != "user" {
		return ""
	}
	return ", or process-user: " + name + ", which asks who owns the socket by name"
}

// unknown returns the error for a word that is not one of known.
func (c *condition) unknown(text string, known []string) error {
	if best := nearest(text, known); best != "" {
		return fmt.Errorf("there is no %s %q, did you mean %s?", c.says, text, best)
	}
	return fmt.Errorf("there is no %s %q, want %s", c.says, text, strings.Join(known, ", "))
}

// parseAddress reads an address or a network in CIDR form.
func parseAddress(text string) ([]item, error) {
	p, err := netip.ParsePrefix(text)
	if a, addrErr := netip.ParseAddr(text); addrErr == nil {
		if a.Zone() != "" {
			return nil, fmt.Errorf("address %q has a zone, want it without: in-interface and out-interface say where", text)
		}
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case err != nil && strings.Contains(text, "/"):
		return nil, fmt.Errorf("%q is no network, want one such as 192.0.2.0/24 (length 0 to 32) or 2001:db8::/32 (length 0 to 128)", text)
	case err != nil:
		return nil, fmt.Errorf("%q is no address, want one such as 192.0.2.1 or 2001:db8::1, a network such as 192.0.2.0/24, or $NAME of a set", text)
	case p.Addr().Is4In6():
		return nil, fmt.Errorf("%q is an IPv4 address in IPv6 form, want it as IPv4", text)
	case p != p.Masked():
		return nil, fmt.Errorf("network %q has bits set beyond its length, want %s, or the address alone", text, p.Masked())
	}
	return []item{{prefix: p}}, nil
}

// parseName reads a name, or the beginning of names: "eth*".
func (c *condition) parseName(text string) ([]item, error) {
	name, wild := text, false
	if c.wild {
		name, wild = strings.CutSuffix(text, "*")
	}
	if c.canon != nil {
		name = c.canon(name)
	}
	if c.enum != nil && !slices.Contains(c.enum, name) {
		return nil, c.unknown(text, slices.DeleteFunc(slices.Clone(c.enum), isDigits))
	}
	switch {
	case name == "" && wild:
		return nil, fmt.Errorf("%q is every name, want a beginning such as eth* or no such condition", text)
	case name == "":
		return nil, errors.New("name is empty")
	case c.paths[0] == HashPath && (len(name) != 64 || strings.Trim(name, "0123456789abcdef") != ""):
		return nil, fmt.Errorf("%q is no SHA-256, want 64 hexadecimal digits in lower case, as sha256sum FILE prints them", text)
	case c.kindOfPath() && name[0] != '/':
		return nil, fmt.Errorf("%q is no path from the root, want one such as /usr/bin/curl (the name alone is comm)", text)
	case strings.ContainsAny(name, "* \t\r\n"):
		return nil, fmt.Errorf("%q has a star or a space within, want a name, or a beginning such as eth*", text)
	}
	return []item{{name: name, wild: wild}}, nil
}

// kindOfPath returns whether values are paths of programs.
func (c *condition) kindOfPath() bool { return strings.HasSuffix(c.paths[0], ".exe") }

func isDigits(s string) bool { return strings.Trim(s, "0123456789") == "" }

// parseICMPType reads a name, which stands for its type in each family, or
// numbers, which stand for themselves in both.
func parseICMPType(c *condition, text string) ([]item, error) {
	plain := *c
	plain.max = v6 - 1
	items, err := plain.parseNumbers(text)
	if err != nil || c.names[text] != nil {
		return items, err
	}
	return append(items, item{low: items[0].low + v6, high: items[0].high + v6}), nil
}

// parseTime reads "08:00-18:00": from 08:00:00 up to, not including, 18:00:00.
// A time that ends before it begins goes over midnight.
func parseTime(_ *condition, text string) ([]item, error) {
	first, last, ok := strings.Cut(text, "-")
	begin, ok1 := parseClock(first)
	end, ok2 := parseClock(last)
	switch {
	case !ok || !ok1 || !ok2:
		return nil, fmt.Errorf("%q is no time of day, want one such as 08:00-18:00 or 22:00-06:00, in UTC", text)
	case begin == end || begin == 24*60:
		return nil, fmt.Errorf("time %q is empty, want an end after its begin (24:00 is the end of the day)", text)
	case begin < end:
		return []item{{low: begin, high: end - 1}}, nil
	case end == 0:
		return []item{{low: begin, high: 24*60 - 1}}, nil
	}
	return []item{{low: begin, high: 24*60 - 1}, {low: 0, high: end - 1}}, nil
}

// parseClock reads "08:00" as minutes since midnight; 24:00 is the day's end.
func parseClock(text string) (minutes int64, ok bool) {
	text = strings.TrimSpace(text)
	if len(text) != 5 || text[2] != ':' || !isDigits(text[:2]+text[3:]) {
		return 0, false
	}
	minutes = int64(text[0]-'0')*600 + int64(text[1]-'0')*60 + int64(text[3]-'0')*10 + int64(text[4]-'0')
	return minutes, text[3] < '6' && minutes <= 24*60
}

// parseWeekday reads "mon", or "fri-mon" for four days.
func parseWeekday(c *condition, text string) ([]item, error) {
	first, last, isRange := strings.Cut(strings.ToLower(text), "-")
	if !isRange {
		return c.parseNumbers(first)
	}
	begin, err := c.parseNumbers(first)
	if err != nil {
		return nil, err
	}
	end, err := c.parseNumbers(last)
	if err != nil {
		return nil, err
	}
	var items []item
	for day := begin[0].low; ; day = (day + 1) % 7 {
		items = append(items, item{low: day, high: day})
		if day == end[0].low {
			return items, nil
		}
	}
}
