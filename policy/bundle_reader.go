package policy

import (
	"bytes"
	"io"

	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/loader/filter"
)

// unpacked hands the files of an unpacked bundle to OPA's bundle reader. It
// implements bundle.DirectoryLoader. Its options are those of other loaders:
// the files are in memory, within the limits, and links are none among them.
type unpacked struct{ files []file }

// NextFile implements bundle.DirectoryLoader.
func (u *unpacked) NextFile() (*bundle.Descriptor, error) {
	if len(u.files) == 0 {
		return nil, io.EOF
	}
	f := u.files[0]
	u.files = u.files[1:]
	return bundle.NewDescriptor(f.name, "/"+f.name, bytes.NewBuffer(f.content)), nil
}

// WithFilter implements bundle.DirectoryLoader.
func (u *unpacked) WithFilter(filter.LoaderFilter) bundle.DirectoryLoader { return u }

// WithPathFormat implements bundle.DirectoryLoader.
func (u *unpacked) WithPathFormat(bundle.PathFormat) bundle.DirectoryLoader { return u }

// WithSizeLimitBytes implements bundle.DirectoryLoader.
func (u *unpacked) WithSizeLimitBytes(int64) bundle.DirectoryLoader { return u }

// WithFollowSymlinks implements bundle.DirectoryLoader.
func (u *unpacked) WithFollowSymlinks(bool) bundle.DirectoryLoader { return u }
