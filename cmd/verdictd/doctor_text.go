package main

import (
	"fmt"
	"strings"
)

// Widths of columns.
const (
	stateWidth = 8
	nameWidth  = 20
)

// section is a part of what doctor says.
type section int

const (
	sectionHead section = iota
	sectionQueue
	sectionAttribution
	sectionRights
	sectionFamilies
	sectionConclusion
	sections // how many there are
)

// text returns a section for people.
func (c *checkup) text(s section, colour bool) []byte {
	var b strings.Builder
	p := printer{&b, colour}
	switch s {
	case sectionHead:
		fmt.Fprintf(&b, "Linux %s, %s\n", c.Kernel, c.origin())
	case sectionQueue:
		p.section("queue", c.Queue)
	case sectionAttribution:
		p.section("attribution", c.Attribution)
	case sectionRights:
		whose := "rights of this command"
		if c.Daemon != nil {
			whose = "rights of the daemon"
		}
		p.section(whose, c.Rights)
	case sectionFamilies:
		p.families(c.Families)
	case sectionConclusion:
		fmt.Fprintf(&b, "\n%s\n", c.conclusion())
	}
	return []byte(b.String())
}

// origin says what the findings come from.
func (c *checkup) origin() string {
	switch {
	case c.Daemon == nil && c.NotAsked != "":
		return c.NotAsked + "; tried what one would do"
	case c.Daemon == nil:
		return "no verdictd runs: tried what one would do"
	}
	text := fmt.Sprintf("verdictd %s runs, pid %d: asked it", c.Daemon.Version, c.Daemon.PID)
	if c.Daemon.Elsewhere {
		text += "; rules tried here, not in its network namespace"
	}
	return text
}

func (c *checkup) conclusion() string {
	if c.Unprivileged {
		return "Much is not known without root: sudo verdictd doctor"
	}
	return map[string]string{
		verdictComplete: "All that verdictd can use is there.",
		verdictLimited:  "It works with limits: see limit and missing above.",
		verdictUnable:   "No packet can be judged here: see missing above.",
		verdictUnknown:  "What was seen is good; not all could be seen: run it as root.",
	}[c.Verdict]
}

// printer writes sections.
type printer struct {
	b      *strings.Builder
	colour bool
}

func (p printer) section(title string, findings []finding) {
	fmt.Fprintf(p.b, "\n%s\n", title)
	for _, f := range findings {
		p.row(f.State, f.Name, f.Found)
		p.below(f.Consequence)
		if f.Remedy != "" {
			p.below("do: " + f.Remedy)
		}
	}
}

func (p printer) row(state, name, text string) {
	padded := fmt.Sprintf("%-*s", stateWidth, state)
	if p.colour {
		padded = paint(state) + padded + "\x1b[0m"
	}
	fmt.Fprintf(p.b, "  %s %-*s %s\n", padded, nameWidth, name, text)
}

// below writes a line that belongs to the row above it.
func (p printer) below(text string) {
	if text != "" {
		fmt.Fprintf(p.b, "%*s%s\n", 2+stateWidth+1+nameWidth+1, "", text)
	}
}

// paint begins the colour of a state.
func paint(state string) string {
	switch state {
	case stateOK, familyPresent:
		return "\x1b[32m"
	case stateMissing:
		return "\x1b[31m"
	case stateLimit, stateUnknown:
		return "\x1b[33m"
	}
	return "\x1b[2m"
}

// families writes a row for each family that has a role or had one, and names
// the others.
func (p printer) families(all []family) {
	fmt.Fprint(p.b, "\nnetlink families\n")
	others := map[string][]string{}
	for _, f := range all {
		if f.role == roleNone {
			others[f.State] = append(others[f.State], fmt.Sprintf("%s (%s)", f.Name, f.For))
			continue
		}
		p.row(f.State, f.Name, f.For)
		if f.State == familyAbsent {
			p.below(f.Without)
		}
	}
	for _, state := range []string{familyPresent, familyAbsent, stateUnknown} {
		if names := others[state]; len(names) > 0 {
			p.list(state+", no role:", names)
		}
	}
}

// list writes words in lines that fit a terminal.
func (p printer) list(title string, words []string) {
	const width = 100
	line := "  " + title
	for i, w := range words {
		if i < len(words)-1 {
			w += ","
		}
		if len(line)+1+len(w) > width {
			fmt.Fprintln(p.b, line)
			line = "   "
		}
		line += " " + w
	}
	fmt.Fprintln(p.b, line)
}
