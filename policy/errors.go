package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// maxErrors is how many errors of a policy are reported at once.
const maxErrors = 50

// Error is something wrong with a policy, at a place in it.
type Error struct {
	File string `json:"file"`
	Line int    `json:"line,omitempty"` // from 1; 0 if the whole file is meant
	Col  int    `json:"col,omitempty"`  // from 1, in bytes
	Msg  string `json:"message"`
	Hint string `json:"hint,omitempty"` // what to do about it; may be empty

	// Code names the kind of mistake for programs, where there is a name: see
	// verdictd check --help.
	Code string `json:"code,omitempty"`
}

// coded gives the error a code.
func (e *Error) coded(code string) *Error {
	e.Code = code
	return e
}

// Error returns "file:line:col: message (hint)".
func (e *Error) Error() string {
	text := e.Place() + ": " + e.Msg
	if e.Hint != "" {
		text += " (" + e.Hint + ")"
	}
	return text
}

// Place returns "file:line:col", or the file alone if that is all there is.
func (e *Error) Place() string {
	if e.Line == 0 {
		return e.File
	}
	return fmt.Sprintf("%s:%d:%d", e.File, e.Line, e.Col)
}

// Errors are the reasons why a policy was refused, in the order of their
// places. It is never empty when it is returned as an error.
type Errors []*Error

// Error returns all errors, one on each line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the errors one by one.
func (e Errors) Unwrap() []error {
	all := make([]error, len(e))
	for i := range e {
		all[i] = e[i]
	}
	return all
}

// sorted returns the errors in the order of their places, without repeats and
// bounded in number.
func (e Errors) sorted() Errors {
	slices.SortStableFunc(e, func(a, b *Error) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Col - b.Col
	})
	e = slices.CompactFunc(e, func(a, b *Error) bool { return *a == *b })
	if len(e) <= maxErrors {
		return e
	}
	last := *e[maxErrors-1]
	last.Msg, last.Hint = fmt.Sprintf("and %d more errors from here on", len(e)-maxErrors+1), ""
	return append(e[:maxErrors-1:maxErrors-1], &last)
}

func fileError(file, msg, hint string) *Error { return &Error{File: file, Msg: msg, Hint: hint} }

func errorAt(loc *ast.Location, msg, hint string) *Error {
	if loc == nil {
		return &Error{File: "policy", Msg: msg, Hint: hint}
	}
	if loc.Row == 0 {
		return fileError(loc.File, msg, hint)
	}
	return &Error{File: loc.File, Line: loc.Row, Col: max(loc.Col, 1), Msg: msg, Hint: hint}
}

// BudgetError is the error of a decision that took too long. No decision was
// made: the failure table decides.
type BudgetError struct{ Budget time.Duration }

// Error returns "evaluation took longer than 50ms".
func (e *BudgetError) Error() string {
	return "evaluation took longer than " + e.Budget.String()
}

// runtimeError turns an error of an evaluation into an *Error where its place
// is known.
func runtimeError(err error) error {
	terr, ok := err.(*topdown.Error)
	if !ok {
		return fmt.Errorf("evaluate policy: %w", err)
	}
	return errorAt(terr.Location, tidy(terr.Message), runtimeHint(terr))
}

func runtimeHint(err *topdown.Error) string {
	if err.Code == topdown.ConflictErr {
		return "let the conditions exclude each other, or join the rules with else"
	}
	return ""
}
