package egress

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestByDefaultNoAddressLeadsBackToTheNodeOrItsMetadata(t *testing.T) {
	t.Parallel()
	for prevents, addresses := range map[string][]string{
		"reading what listens on the operator's loopback": {"127.0.0.1:80", "127.8.9.1:80", "[::1]:80"},
		"loopback written as IPv6":                        {"[::ffff:127.0.0.1]:80", "[::127.0.0.1]:80"},
		"loopback through a translator":                   {"[64:ff9b::127.0.0.1]:80", "[2002:7f00:1::]:80"},
		"credentials from AWS, GCP and Azure metadata":    {"169.254.169.254:80", "169.254.170.2:80", "168.63.129.16:80"},
		"metadata through a translator":                   {"[64:ff9b::a9fe:a9fe]:80", "[::ffff:169.254.169.254]:80", "[2002:a9fe:a9fe::1]:80"},
		"metadata by IPv6":                                {"[fd00:ec2::254]:80", "[fd20:ce::254]:80"},
		"metadata of Alibaba and Oracle":                  {"100.100.100.200:80", "192.0.0.192:80"},
		"neighbours on the link":                          {"169.254.1.1:80", "[fe80::1]:80", "[fe80::1%eth0]:80", "[fec0::1]:80"},
		"the unspecified address, which is loopback too":  {"0.0.0.0:80", "0.1.2.3:80", "[::]:80"},
		"groups and broadcasts":                           {"224.0.0.1:80", "255.255.255.255:80", "[ff02::1]:80"},
		"tunnels that hide where they lead":               {"[2001::1]:80", "[64:ff9b:1::7f00:1]:80"},
	} {
		for _, a := range addresses {
			var denied *Error
			if err := new(Policy).Check(netip.MustParseAddrPort(a)); !errors.As(err, &denied) || denied.Explicit {
				t.Errorf("%s: %s: %v", prevents, a, err)
			} else if !strings.Contains(err.Error(), "allow list") {
				t.Errorf("%q does not say what to do", err)
			}
		}
	}
}

func TestParticipantsAreReachedByDefault(t *testing.T) {
	t.Parallel()
	for _, a := range []string{"10.96.0.10:80", "192.168.1.1:443", "172.16.0.1:80", "93.184.216.34:443", "[fd12:3456::1]:80",
		"[2606:2800:220:1::1]:443", "[64:ff9b::5db8:d822]:443", "100.64.0.1:80"} {
		if err := new(Policy).Check(netip.MustParseAddrPort(a)); err != nil {
			t.Error(err)
		}
	}
}

func TestAllowOverridesDefaultsAndDenyOverridesAll(t *testing.T) {
	t.Parallel()
	p, err := New([]string{"127.0.0.0/8", "169.254.169.254", "::1"}, []string{"127.0.0.1:6443", "10.0.0.1:443", "10.9.0.0/16", "[fd00::1]:443"})
	if err != nil {
		t.Fatal(err)
	}
	for address, allowed := range map[string]bool{
		"127.0.0.1:80": true, "[::ffff:127.0.0.1]:80": true, "[::1]:1": true, "169.254.169.254:80": true, "169.254.169.253:80": false,
		"127.0.0.1:6443": false, "[::ffff:127.0.0.1]:6443": false,
		"10.0.0.1:443": false, "10.0.0.1:80": true, "[64:ff9b::a00:1]:443": false, "[64:ff9b::a00:1]:80": true,
		"10.9.8.7:80": false, "10.8.8.7:80": true, "[fd00::1]:443": false, "[fd00::1]:80": true,
		// Allowing IPv4 loopback does not allow the ways round to it.
		"[64:ff9b::127.0.0.1]:80": false,
	} {
		if err := p.Check(netip.MustParseAddrPort(address)); (err == nil) != allowed {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestWhatIsDeniedBesidesOverridesAllAndMayChange(t *testing.T) {
	t.Parallel()
	p, err := New([]string{"10.0.0.1"}, []string{"10.9.0.0/16"})
	if err != nil {
		t.Fatal(err)
	}
	denied := netip.MustParseAddrPort("10.0.0.1:6443")
	p = p.DenyAlso(func(a netip.AddrPort) bool { return a == denied })
	for address, allowed := range map[string]bool{
		"10.0.0.1:6443": false, "[::ffff:10.0.0.1]:6443": false, "[64:ff9b::a00:1]:6443": false, "10.0.0.1:80": true, "10.9.0.1:80": false, "127.0.0.1:80": false,
	} {
		if err := p.Check(netip.MustParseAddrPort(address)); (err == nil) != allowed {
			t.Errorf("%s: %v", address, err)
		}
	}
	was := denied
	denied = netip.MustParseAddrPort("10.0.0.2:6443")
	if p.Check(denied) == nil || p.Check(was) != nil {
		t.Error("it goes by what was denied before")
	}
}

func TestAPolicyTakesNoNames(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"localhost", "kubernetes.default:443", "10.0.0.0/33", ""} {
		if _, err := New([]string{s}, nil); err == nil {
			t.Errorf("allow %q passed", s)
		}
		if _, err := New(nil, []string{s}); err == nil {
			t.Errorf("deny %q passed", s)
		}
	}
}

func TestTheDialerChecksTheResolvedAddress(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	var denied *Error
	if _, err := new(Policy).Dialer(time.Minute).Dial("tcp", "localhost:"+port); !errors.As(err, &denied) {
		t.Errorf("a name for loopback: %v", err)
	}
	p, err := New([]string{"127.0.0.1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Dialer(time.Minute).Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}
