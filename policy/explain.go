package policy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/types"
)

// explainer turns OPA's errors into Errors that say what to do.
type explainer struct {
	builtins []string // the functions that a policy may call
}

// explain returns err, which came from OPA's parser or compiler, as Errors.
// file is the file that was read, for errors that have no place.
func (x explainer) explain(file string, err error) Errors {
	list, ok := errors.AsType[ast.Errors](err)
	if !ok {
		one, ok := errors.AsType[*ast.Error](err)
		if !ok {
			return Errors{fileError(file, err.Error(), "")}
		}
		list = ast.Errors{one}
	}
	var errs Errors
	for _, e := range list {
		if e.Location == nil && strings.HasPrefix(e.Message, "error limit reached") {
			continue // sorted says so, with a number
		}
		out := x.one(e)
		if e.Location == nil {
			out.File = file
		}
		errs = append(errs, out)
	}
	return errs
}

func (x explainer) one(e *ast.Error) *Error {
	msg, hint := tidy(e.Message), ""
	switch d := e.Details.(type) {
	case *ast.RefErrInvalidDetail:
		msg, hint = missing(d)
	case *ast.RefErrUnsupportedDetail:
		msg = fmt.Sprintf("%s is a %s and has nothing below it", d.Ref[:d.Pos+1], types.Sprint(d.Have))
	case *ast.UnificationErrDetail:
		msg, hint = mismatch(e, d)
	case *ast.ArgErrDetail:
		msg, hint = arguments(e.Message, d)
	default:
		msg, hint = x.syntax(e, msg)
	}
	return errorAt(e.Location, msg, hint)
}

// tidy makes one line of a message and drops OPA's own prefix.
func tidy(msg string) string {
	return strings.Join(strings.Fields(strings.TrimPrefix(msg, "rego_parse_error: ")), " ")
}

// missing explains a reference to a key that its object does not have.
func missing(d *ast.RefErrInvalidDetail) (msg, hint string) {
	msg = d.Ref[:d.Pos+1].String() + " does not exist"
	key, ok := d.Ref[d.Pos].Value.(ast.String)
	if !ok {
		return msg, ""
	}
	names := make([]string, 0, len(d.OneOf))
	for _, v := range d.OneOf {
		if s, ok := v.(ast.String); ok {
			names = append(names, string(s))
		}
	}
	parent := d.Ref[:d.Pos].String()
	if hint := unseen(string(key)); hint != "" && d.Pos == 1 && d.Ref[0].Equal(ast.InputRootDocument) {
		return msg, hint
	}
	if best := nearest(string(key), names); best != "" {
		return msg, fmt.Sprintf("did you mean %s.%s?", parent, best)
	}
	if len(names) > 0 {
		return msg, fmt.Sprintf("%s has %s", parent, strings.Join(names, ", "))
	}
	return msg, ""
}

// mismatch explains a comparison of two types that can never be equal.
func mismatch(e *ast.Error, d *ast.UnificationErrDetail) (msg, hint string) {
	left, right := types.Sprint(d.Left), types.Sprint(d.Right)
	msg = fmt.Sprintf("a %s never equals a %s", left, right)
	if e.Location != nil && len(e.Location.Text) > 0 {
		msg = tidy(string(e.Location.Text)) + " is never true: " + msg
	}
	switch text := msg; {
	case strings.Contains(text, "input.uid ") || strings.Contains(text, "input.process.uid "):
		return msg, "it is a number; the name of the user is input.process.user"
	case strings.Contains(text, "input.gid ") || strings.Contains(text, "input.process.gid "):
		return msg, "it is a number: see /etc/group"
	}
	if left == "number" && right == "string" || left == "string" && right == "number" {
		hint = "numbers such as ports are written without quotes, addresses and names with"
	}
	return msg, hint
}

// arguments explains a call with wrong arguments.
func arguments(msg string, d *ast.ArgErrDetail) (string, string) {
	have := make([]string, len(d.Have))
	for i, t := range d.Have {
		have[i] = types.Sprint(t)
	}
	takes := d.Want.Args
	name, _, _ := strings.Cut(msg, ":")
	if b, ok := ast.BuiltinMap[name]; ok { // OPA counts the result as one more argument
		takes = takes[:min(len(takes), b.Decl.Arity())]
	}
	want := make([]string, len(takes))
	for i, t := range takes {
		want[i] = types.Sprint(t)
	}
	return tidy(msg), fmt.Sprintf("it is called with (%s), it takes (%s)", strings.Join(have, ", "), strings.Join(want, ", "))
}

// unseen says where to look for what verdictd does not see, or what has another
// name than elsewhere.
func unseen(key string) string {
	switch key {
	case "tls", "sni", "http", "dns", "quic", "ja3", "ja4", "payload", "data", "app", "host", "url":
		return "a policy sees headers and the owner of the socket, not what a packet carries: verdictd schema lists all"
	case "country", "geoip", "geo", "asn":
		return "put networks into a data file, and test net.cidr_contains(network, input.ip.dst)"
	case "ct", "conntrack", "state", "established":
		return "replies to what the policy accepted pass by themselves"
	case "src", "src_ip", "source", "source_ip", "saddr":
		return "it is input.ip.src"
	case "dst", "dst_ip", "dest", "destination", "daddr":
		return "it is input.ip.dst"
	case "proto", "protocol":
		return "it is input.ip.protocol"
	case "port", "dport", "dest_port":
		return "it is input.dst_port, or input.tcp.dst_port"
	case "user":
		return "it is input.process.user, or input.uid for the number"
	}
	return ""
}

// syntax explains an error of the parser, or another without details.
func (x explainer) syntax(e *ast.Error, msg string) (string, string) {
	switch {
	case e.Message == "package expected":
		return "the policy does not say which package it is", "begin it with: package verdictd"
	case e.Message == "empty module":
		return "the file is empty", "begin it with: package verdictd"
	case e.Message == "cannot assign to ref":
		return ":= gives a name of one's own a value, and this is none", "to compare, write =="
	case e.Message == "illegal token":
		return "there is a character that Rego does not have", "texts stand in double quotes, \"...\", comments behind #"
	case strings.HasPrefix(e.Message, "unexpected else keyword"):
		return "else stands where a condition is expected", "close the body before it: } else := ..."
	}
	return msg, x.hint(e)
}

func (x explainer) hint(e *ast.Error) string {
	if name, ok := strings.CutPrefix(e.Message, "undefined function "); ok {
		return x.function(name)
	}
	switch e.Code {
	case ast.UnsafeVarErr:
		return "nothing gives it a value: declare it with some, assign it with :=, or correct its name"
	case ast.RecursionErr:
		return "a rule cannot depend on itself"
	}
	if e.Message == "unexpected eof token" {
		return "a brace, bracket or parenthesis is not closed"
	}
	if strings.HasPrefix(e.Message, "`if` keyword is required") || strings.HasPrefix(e.Message, "`contains` keyword is required") {
		return "write Rego v1, as OPA 1.0 and later read it"
	}
	return ""
}

// function explains why a function is not known.
func (x explainer) function(name string) string {
	switch {
	case strings.HasPrefix(name, "time.now_ns"), strings.HasPrefix(name, "opa.runtime"):
		return "a decision may depend on the packet only: use input.time.unix and what else input has"
	case strings.HasPrefix(name, "http."), strings.HasPrefix(name, "net.lookup"):
		return "no decision waits for the network: put what it needs into data files"
	case nondeterministic(name):
		return "only functions that give the same result each time are allowed"
	}
	if best := nearest(name, x.builtins); best != "" {
		return "did you mean " + best + "?"
	}
	return ""
}

// nearest returns the name most like key, or "" if none is like it.
func nearest(key string, names []string) string {
	best, bestDistance := "", 0.67 // a name that differs in two of three letters is another name
	for _, name := range names {
		d := float64(levenshtein.ComputeDistance(key, name)) / float64(max(len(key), len(name)))
		if name != "" && strings.HasPrefix(key, name[:1]) {
			d -= 0.01 // of two alike, take the one that begins alike
		}
		if d < bestDistance {
			best, bestDistance = name, d
		}
	}
	return best
}
