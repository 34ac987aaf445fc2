package policy

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/keys"
)

// BundleKey verifies the signatures of bundles. The zero BundleKey is none.
type BundleKey struct {
	// Key is a public key or certificate in PEM, or the name of a file that
	// holds one or, for the algorithms HS256 and the like, the shared secret.
	// A file is read again with each bundle. Empty is no key.
	Key string

	// ID is the key id that a signature must name. Empty takes any.
	ID string

	// Algorithm is that of the signature: RS256 (the default), RS384, RS512,
	// PS256, PS384, PS512, ES256, ES384, ES512, HS256, HS384 or HS512.
	Algorithm string

	// Scope is the scope that a signature must name; empty: none.
	Scope string
}

// anyKey is the id of the key when signatures may name any.
const anyKey = "bundle-key"

// maxKeySize bounds the files of keys and tokens.
const maxKeySize = 1 << 20

// isFile returns whether the key is the name of a file.
func (k BundleKey) isFile() bool {
	return k.Key != "" && !strings.HasPrefix(strings.TrimSpace(k.Key), "-----BEGIN")
}

// current returns the content of the key's file, or why it cannot be read; the
// same text as long as nothing changes.
func (k BundleKey) current() string {
	if !k.isFile() {
		return ""
	}
	data, err := readSmall(k.Key)
	if err != nil {
		return "unread: " + err.Error()
	}
	return string(data)
}

// verification returns what OPA's bundle reader wants to know; nil without a
// key.
func (k BundleKey) verification() (*bundle.VerificationConfig, error) {
	if k.Key == "" {
		return nil, k.Check()
	}
	text, err := k.text()
	if err != nil {
		return nil, err
	}
	config := &keys.Config{Key: text, Algorithm: k.algorithm(), Scope: k.Scope}
	if k.ID != "" {
		return bundle.NewVerificationConfig(map[string]*keys.Config{k.ID: config}, "", k.Scope, nil), nil
	}
	return bundle.NewVerificationConfig(map[string]*keys.Config{anyKey: config}, anyKey, k.Scope, nil), nil
}

// Check returns what is wrong with the key, other than that its file may
// change.
func (k BundleKey) Check() error {
	if k.Key != "" {
		_, err := k.text()
		return err
	}
	if k.ID != "" || k.Algorithm != "" || k.Scope != "" {
		return errors.New("bundle-key-id, bundle-alg and bundle-scope go with bundle-key only")
	}
	return nil
}

func (k BundleKey) algorithm() string {
	if k.Algorithm == "" {
		return "RS256"
	}
	return k.Algorithm
}

// text returns the key as OPA wants it.
func (k BundleKey) text() (string, error) {
	alg := k.algorithm()
	if !keys.IsSupportedAlgorithm(alg) {
		return "", fmt.Errorf("bundle-alg %q is not known (want RS256, PS256, ES256, HS256, or one of them with 384 or 512)", alg)
	}
	text, name := k.Key, "bundle-key"
	if k.isFile() {
		data, err := readSmall(k.Key)
		if err != nil {
			return "", fmt.Errorf("read bundle-key: %w", err)
		}
		text, name = string(data), "bundle-key "+k.Key
	}
	text = strings.TrimSpace(text)
	if strings.HasPrefix(alg, "HS") {
		if text == "" || strings.HasPrefix(text, "-----BEGIN") {
			return "", fmt.Errorf("%s is no secret, which %s needs (a public key is no secret: anybody could sign with it)", name, alg)
		}
		return text, nil
	}
	if err := checkPublicKey(text, alg); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return text, nil
}

// checkPublicKey returns why text is not a public key of alg.
func checkPublicKey(text, alg string) error {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return errors.New("is not a public key in PEM (it begins with -----BEGIN PUBLIC KEY-----)")
	}
	var key any
	var err error
	switch block.Type {
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	case "CERTIFICATE":
		var cert *x509.Certificate
		if cert, err = x509.ParseCertificate(block.Bytes); err == nil {
			key = cert.PublicKey
		}
	default:
		return fmt.Errorf("holds %q, want a public key (the private key stays with who signs)", block.Type)
	}
	if err != nil {
		return err
	}
	switch key.(type) {
	case *rsa.PublicKey:
		if strings.HasPrefix(alg, "ES") {
			return fmt.Errorf("is an RSA key, and bundle-alg is %s (want RS256 or PS256)", alg)
		}
	case *ecdsa.PublicKey:
		if !strings.HasPrefix(alg, "ES") {
			return fmt.Errorf("is an elliptic curve key, and bundle-alg is %s (want ES256, ES384 or ES512)", alg)
		}
	default:
		return fmt.Errorf("is a %T, want an RSA or an elliptic curve key", key)
	}
	return nil
}

// readSmall reads a regular file of a key or token.
func readSmall(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // opened for reading: nothing to lose
	data, err := io.ReadAll(io.LimitReader(f, maxKeySize+1))
	if err == nil && len(data) > maxKeySize {
		err = fmt.Errorf("%s is larger than %d KiB", name, maxKeySize>>10)
	}
	return data, err
}
