package replay

import (
	"encoding/binary"
	"fmt"
)

// Link types that can be taken off.
//
// Source: https://www.tcpdump.org/linktypes.html; 12 and 14 are the values
// that DLT_RAW has on Linux and OpenBSD.
const (
	linkNull        = 0
	linkEthernet    = 1
	linkPPP         = 9
	linkRawLinux    = 12
	linkRawOpenBSD  = 14
	linkPPPHDLC     = 50
	linkPPPEthernet = 51
	linkRaw         = 101
	linkCHDLC       = 104
	linkLoop        = 108
	linkSLL         = 113
	linkIPv4        = 228
	linkIPv6        = 229
	linkNFLOG       = 239
	linkSLL2        = 276
)

const supportedLinks = "0 NULL, 1 ETHERNET, 9 PPP, 12, 14 and 101 RAW, 50 PPP_HDLC, 51 PPP_ETHER, 104 C_HDLC, " +
	"108 LOOP, 113 LINUX_SLL, 228 IPV4, 229 IPV6, 239 NFLOG, 276 LINUX_SLL2"

// A stripper takes the link layer off a frame: it sets l.rest and what it
// learns beside, or l.broken. order is the byte order of the machine that
// captured.
type stripper func(l *link, order binary.ByteOrder, frame []byte)

// stripperOf returns the stripper of a link type, nil if it is not supported.
func stripperOf(linkType uint32) stripper {
	switch linkType {
	case linkEthernet:
		return (*link).ethernet
	case linkNull, linkLoop:
		return (*link).null
	case linkRaw, linkRawLinux, linkRawOpenBSD:
		return (*link).raw
	case linkIPv4:
		return (*link).ipv4
	case linkIPv6:
		return (*link).ipv6
	case linkSLL:
		return (*link).sll
	case linkSLL2:
		return (*link).sll2
	case linkNFLOG:
		return (*link).nflog
	case linkPPP, linkPPPHDLC:
		return (*link).ppp
	case linkPPPEthernet:
		return (*link).pppEthernet
	case linkCHDLC:
		return (*link).chdlc
	}
	return nil
}

// linkTypeName names link types that are met in captures but not supported.
func linkTypeName(linkType uint32) string {
	switch linkType {
	case 6:
		return "IEEE802_5"
	case 8:
		return "SLIP"
	case 10:
		return "FDDI"
	case 105:
		return "IEEE802_11"
	case 107:
		return "FRELAY"
	case 117:
		return "PFLOG"
	case 119:
		return "IEEE802_11_PRISM"
	case 123:
		return "SUNATM"
	case 127:
		return "IEEE802_11_RADIOTAP"
	case 187, 201:
		return "BLUETOOTH_HCI_H4"
	case 189, 220, 249:
		return "USB"
	case 192:
		return "PPI"
	case 195, 230, 283:
		return "IEEE802_15_4"
	case 253:
		return "NETLINK"
	}
	return "unknown"
}

// LinkTypeError says that the frames of an interface cannot be judged because
// their link layer is not known to this package.
type LinkTypeError struct {
	Capture   string // name as given
	Interface int    // number of the interface in its section, 0 in pcap
	LinkType  uint32
}

func (e *LinkTypeError) Error() string {
	return fmt.Sprintf("capture %s: interface %d: link type %d (%s) is not supported (supported: %s)",
		e.Capture, e.Interface, e.LinkType, linkTypeName(e.LinkType), supportedLinks)
}
