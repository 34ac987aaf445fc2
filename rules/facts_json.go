package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ParseInput reads an input document, a JSON object as Schema describes it.
// Every field is checked against Fields: that it exists, its type, its range.
// name is the document's in errors, which read "name:line:column: message";
// columns count bytes. The first error is returned.
func ParseInput(name string, text []byte) (*Input, error) {
	p := &inputParser{in: NewInput(), text: text, d: json.NewDecoder(bytes.NewReader(text))}
	p.d.UseNumber()
	if err := p.document(); err != nil {
		line, col := p.place()
		return nil, fmt.Errorf("%s:%d:%d: %w", name, line, col, err)
	}
	return p.in, nil
}

// inputParser reads one input document.
type inputParser struct {
	in   *Input
	text []byte
	d    *json.Decoder
	at   int // where the last token begins
}

// place returns the line and column of p.at, both from 1.
func (p *inputParser) place() (line, col int) {
	head := p.text[:min(p.at, len(p.text))]
	return bytes.Count(head, []byte{'\n'}) + 1, len(head) - bytes.LastIndexByte(head, '\n')
}

// skip notes where the decoder is, behind any of the bytes in blank.
func (p *inputParser) skip(blank string) {
	p.at = int(p.d.InputOffset())
	for p.at < len(p.text) && strings.IndexByte(blank, p.text[p.at]) >= 0 {
		p.at++
	}
}

// token returns the next token and notes where it begins.
func (p *inputParser) token() (json.Token, error) {
	p.skip(" \t\r\n,:")
	t, err := p.d.Token()
	if err == nil {
		return t, nil
	}
	p.skip(" \t\r\n")
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the document ends early")
	}
	return nil, fmt.Errorf("not JSON: %s", strings.TrimPrefix(err.Error(), "json: "))
}

func (p *inputParser) document() error {
	t, err := p.token()
	if err != nil {
		return err
	}
	if t != json.Delim('{') {
		return errors.New(`input is not an object, want one such as {"tcp": {"dst_port": 443}}`)
	}
	if err := p.object(""); err != nil {
		return err
	}
	rest := p.text[p.d.InputOffset():]
	if blank := len(rest) - len(bytes.TrimLeft(rest, " \t\r\n")); blank < len(rest) {
		p.at = len(p.text) - len(rest) + blank
		return errors.New("the document goes on after its JSON value")
	}
	return nil
}

// object reads the object at path, after its brace.
func (p *inputParser) object(path string) error {
	seen := map[string]bool{}
	for {
		t, err := p.token()
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok {
			return nil // the closing brace: the decoder lets nothing else stand here
		}
		if seen[key] {
			return fmt.Errorf("input.%s is given twice", path+key)
		}
		seen[key] = true
		if err := p.member(path + key); err != nil {
			return err
		}
	}
}

// member reads what stands after the key that ends path.
func (p *inputParser) member(path string) error {
	i := p.in.index(path)
	if i < 0 && !p.leads(path) {
		return p.in.noField(path)
	}
	t, err := p.token()
	if err != nil {
		return err
	}
	if i >= 0 {
		return p.value(i, t)
	}
	if t != json.Delim('{') {
		return fmt.Errorf("input.%s is %s, want an object", path, tokenKind(t))
	}
	return p.object(path + ".")
}

// leads returns whether there are fields below path.
func (p *inputParser) leads(path string) bool {
	for i := range p.in.fields {
		if strings.HasPrefix(p.in.fields[i].Path, path+".") {
			return true
		}
	}
	return false
}

// value gives field i the value of token t.
func (p *inputParser) value(i int, t json.Token) error {
	f := &p.in.fields[i]
	text := ""
	switch v := t.(type) {
	case string:
		if f.Kind == String || f.Kind == Addr {
			text = v
			break
		}
		return fmt.Errorf("input.%s is a string, want %s", f.Path, f.wants())
	case json.Number:
		if f.Kind == Int {
			text = v.String()
			break
		}
		return fmt.Errorf("input.%s is a number, want %s", f.Path, f.wants())
	case bool:
		if f.Kind == Bool {
			text = fmt.Sprint(v)
			break
		}
		return fmt.Errorf("input.%s is true or false, want %s", f.Path, f.wants())
	case nil:
		return fmt.Errorf("input.%s is null, want %s (leave out what the packet does not have)", f.Path, f.wants())
	default:
		return fmt.Errorf("input.%s is %s, want %s", f.Path, tokenKind(t), f.wants())
	}
	v, err := f.parse(text)
	if err == nil {
		p.in.put(i, v)
	}
	return err
}

func tokenKind(t json.Token) string {
	switch t.(type) {
	case json.Delim:
		if t == json.Delim('{') {
			return "an object"
		}
		return "an array"
	case string:
		return "a string"
	case json.Number:
		return "a number"
	case bool:
		return "true or false"
	}
	return "null"
}
