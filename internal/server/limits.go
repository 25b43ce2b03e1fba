package server

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/util/cache"
)

// Limits bound what clients can take. The zero value of each is its default.
type Limits struct {
	// Concurrent is the maximum number of requests that are served at a time; default 256. A request
	// counts from when its body has been read. Streams and callbacks do not count. Callbacks is the
	// maximum number of callbacks that are served at a time; default 64. One tenant has at most half
	// of what the others leave, and an eighth is reserved for tenants that have none.
	Concurrent, Callbacks int
	// CredentialChecks is the maximum number of bearer tokens and callback tokens that are checked
	// at a time; default 64. Addresses share them as tenants share Concurrent.
	CredentialChecks int
	// Memory is the maximum memory of all requests and of everything that is read for them, in
	// bytes, estimated as decoded; default 96 MiB. One tenant has at most half of what the others
	// leave.
	Memory int64
	// Connections is the maximum number of open connections; default 1000. One address has at most
	// half of what the others leave.
	Connections int
	// UserRate is the maximum rate of requests of one user, or with one callback token, in requests
	// per second; default 50. AddressRate is the maximum rate of requests of one address that have
	// no valid credentials; default 200. Both allow bursts of two seconds' worth.
	UserRate, AddressRate float64
	// Followers is the maximum number of streams; default 200. Tenants share them as they share
	// Concurrent. UserFollowers is the maximum number of streams of one user; default 10.
	Followers, UserFollowers int
	// Headers is how many header fields a request has; 64. HeaderBytes is how large they are together; 16 KiB.
	Headers, HeaderBytes int
	// HeaderTimeout is how long a request's header may take to come; 5 s. ReadTimeout is for the whole request, its body included; 15 s. IdleTimeout is how long a connection is kept without one; 60 s.
	HeaderTimeout, ReadTimeout, IdleTimeout time.Duration
	// Timeout is how long a request may be worked on; 20 s. WriteTimeout is how long request and answer may take together; 40 s. Where a saga is followed, each write has StreamWriteTimeout; 10 s.
	Timeout, WriteTimeout, StreamWriteTimeout time.Duration
	// Heartbeat is how often those who follow hear something; 15 s.
	Heartbeat time.Duration
}

func (l Limits) withDefaults() Limits {
	def(&l.Concurrent, 256)
	def(&l.Callbacks, 64)
	def(&l.CredentialChecks, 64)
	def(&l.Memory, 96<<20)
	def(&l.Connections, 1000)
	def(&l.UserRate, 50)
	def(&l.AddressRate, 200)
	def(&l.Followers, 200)
	def(&l.UserFollowers, 10)
	def(&l.Headers, 64)
	def(&l.HeaderBytes, 16<<10)
	def(&l.HeaderTimeout, 5*time.Second)
	def(&l.ReadTimeout, 15*time.Second)
	def(&l.IdleTimeout, time.Minute)
	def(&l.Timeout, 20*time.Second)
	def(&l.WriteTimeout, 40*time.Second)
	def(&l.StreamWriteTimeout, 10*time.Second)
	def(&l.Heartbeat, 15*time.Second)
	return l
}

func def[T int | int64 | float64 | time.Duration](v *T, otherwise T) {
	if *v <= 0 {
		*v = otherwise
	}
}

const (
	// maxRated is how many users, or addresses, are remembered. Of more than that those are forgotten first who have not been seen for longest.
	maxRated = 10_000
	// ratedFor is how long somebody is remembered: longer than any bucket takes to fill.
	ratedFor = 10 * time.Minute
	// burstSeconds is how much may be saved up.
	burstSeconds = 2
)

// rates has a token bucket for each of many, and bounded memory.
type rates struct {
	rate float64

	mu  sync.Mutex
	all *cache.LRUExpireCache
}

func newRates(perSecond float64) *rates {
	return &rates{rate: perSecond, all: cache.NewLRUExpireCache(maxRated)}
}

// take takes a token and returns 0. If there is none, it returns the time until there is one.
func (r *rates) take(who string) time.Duration {
	reservation := r.limiter(who).Reserve()
	wait := reservation.Delay()
	if wait > 0 {
		reservation.Cancel()
	}
	return wait
}

// wait returns 0 if there is a token, and otherwise the time until there is one. It does not take a
// token.
func (r *rates) wait(who string) time.Duration {
	missing := 1 - r.limiter(who).Tokens()
	if missing <= 0 {
		return 0
	}
	return time.Duration(missing / r.rate * float64(time.Second))
}

// spend takes a token if there is one.
func (r *rates) spend(who string) { r.limiter(who).Allow() }

// limiter returns the token bucket of a user or an address.
func (r *rates) limiter(who string) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, _ := r.all.Get(who)
	limiter, ok := l.(*rate.Limiter)
	if !ok {
		limiter = rate.NewLimiter(rate.Limit(r.rate), max(1, int(burstSeconds*r.rate)))
		r.all.Add(who, limiter, ratedFor)
	}
	return limiter
}

// network returns the address without its port. For IPv6 it returns the /64 network, because a
// client usually has all addresses of its network.
func network(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	if a = a.Unmap(); a.Is6() {
		const network = 64
		if p, err := a.WithZone("").Prefix(network); err == nil {
			return p.String()
		}
	}
	return a.String()
}
