// Package egress decides which addresses the operator may connect to on behalf of a user. The operator stands at a better place in the
// network than those who write its objects: it reaches the metadata service of its node, and what listens on its own loopback.
//
// The decision is made on the address that is about to be connected to, in the dialer, after every resolution. A name that is
// resolved to something harmless first and to something else afterwards therefore gains nothing.
package egress

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"
)

// denied is refused unless the administrator allows it. Private networks are not in it: that is where participants live.
var denied = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local or metadata"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("fec0::/10"), "site-local"},
	{netip.MustParsePrefix("100.100.100.200/32"), "metadata"},
	{netip.MustParsePrefix("168.63.129.16/32"), "metadata"},
	{netip.MustParsePrefix("192.0.0.0/24"), "metadata or reserved"},
	{netip.MustParsePrefix("fd00:ec2::/32"), "metadata"},
	{netip.MustParsePrefix("fd20:ce::/32"), "metadata"},
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
	{netip.MustParsePrefix("::/128"), "unspecified"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved or broadcast"},
	// What these embed depends on the network, so it cannot be looked through.
	{netip.MustParsePrefix("64:ff9b:1::/48"), "translated"},
	{netip.MustParsePrefix("2001::/32"), "tunnelled"},
}

// Policy says which addresses may be connected to. It is safe for concurrent use, and does not change but by what DenyAlso was given. The zero value allows everything but
// loopback, link-local, metadata, unspecified, multicast and reserved addresses, in whatever form they are written.
type Policy struct {
	allow []netip.Prefix
	deny  []rule
	also  func(netip.AddrPort) bool
}

// rule is a prefix and, unless it is zero, one port.
type rule struct {
	prefix netip.Prefix
	port   uint16
}

// New makes a policy. An entry of allow is an address or a CIDR, and overrides what is denied by default. An entry of deny is an
// address, a CIDR, or an address with a port, and overrides everything. Names are refused, because many names lead to one address.
func New(allow, deny []string) (*Policy, error) {
	p := &Policy{}
	for _, s := range allow {
		prefix, err := parse(s)
		if err != nil {
			return nil, fmt.Errorf("egress policy: allow %q: %w", s, err)
		}
		p.allow = append(p.allow, prefix)
	}
	for _, s := range deny {
		if ap, err := netip.ParseAddrPort(s); err == nil {
			a := ap.Addr().Unmap().WithZone("")
			p.deny = append(p.deny, rule{netip.PrefixFrom(a, a.BitLen()), ap.Port()})
			continue
		}
		prefix, err := parse(s)
		if err != nil {
			return nil, fmt.Errorf("egress policy: deny %q: %w", s, err)
		}
		p.deny = append(p.deny, rule{prefix: prefix})
	}
	return p, nil
}

// DenyAlso returns the same policy with addresses refused besides, whatever is allowed. It asks before every connection, so that addresses that come and go can be among
// them; denied has to be safe for concurrent use.
func (p *Policy) DenyAlso(denied func(netip.AddrPort) bool) *Policy {
	return &Policy{allow: p.allow, deny: p.deny, also: denied}
}

func parse(s string) (netip.Prefix, error) {
	s = strings.TrimSpace(s)
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("it is neither an IP address nor a CIDR such as 10.0.0.0/8: %w", err)
	}
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// Error says that a connection was refused by the policy. Nothing has been sent then.
type Error struct {
	Address string
	What    string
	// Explicit is true when the administrator denied the address, and false when it is denied by default.
	Explicit bool
}

func (e *Error) Error() string {
	if e.Explicit {
		return fmt.Sprintf("the egress policy forbids connections to %s: an administrator denied this address", e.Address)
	}
	return fmt.Sprintf("the egress policy forbids connections to %s: %s addresses are denied by default; an administrator can allow it in the operator's egress allow list",
		e.Address, e.What)
}

// Check returns an *Error when the address may not be connected to.
func (p *Policy) Check(to netip.AddrPort) error {
	addr := to.Addr().WithZone("").Unmap()
	inner := embedded(addr)
	for _, r := range p.deny {
		if (r.port == 0 || r.port == to.Port()) && (r.prefix.Contains(addr) || r.prefix.Contains(inner)) {
			return &Error{Address: to.String(), Explicit: true}
		}
	}
	if p.also != nil && (p.also(netip.AddrPortFrom(addr, to.Port())) || p.also(netip.AddrPortFrom(inner, to.Port()))) {
		return &Error{Address: to.String(), Explicit: true}
	}
	if slices.ContainsFunc(p.allow, func(a netip.Prefix) bool { return a.Contains(addr) }) {
		return nil
	}
	for _, d := range denied {
		if d.prefix.Contains(addr) || d.prefix.Contains(inner) {
			return &Error{Address: to.String(), What: d.what}
		}
	}
	return nil
}

// embedded returns the IPv4 address that an IPv6 address leads to on a network that translates, and otherwise the zero address, which
// no prefix contains.
func embedded(a netip.Addr) netip.Addr {
	if !a.Is6() {
		return netip.Addr{}
	}
	b := a.As16()
	switch {
	case nat64.Contains(a), compatible.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16]))
	case sixToFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return netip.Addr{}
}

var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	compatible = netip.MustParsePrefix("::/96")
	sixToFour  = netip.MustParsePrefix("2002::/16")
)

// Control is for net.Dialer: it is called with the resolved address of each connection before it is made.
func (p *Policy) Control(network, address string, _ syscall.RawConn) error {
	if network != "tcp4" && network != "tcp6" {
		return &Error{Address: address, What: network}
	}
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("egress policy: address %q: %w", address, err)
	}
	return p.Check(to)
}

// Dialer returns a dialer that asks the policy before every connection.
func (p *Policy) Dialer(timeout time.Duration) *net.Dialer {
	return &net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second, Control: p.Control}
}
