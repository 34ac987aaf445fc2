// Package links knows the names of the network interfaces of one network
// namespace and follows their changes over rtnetlink.
//
// It owns the table that turns the interface index of a packet into a name.
// It must not know what the names are used for.
package links
