package outbox

import "time"

// Polling has shards that nobody wakes look so seldom.
func (o Options) Polling(every time.Duration) Options {
	o.tests.poll = every
	return o
}

// PageBytes bounds the data of a page.
func (o Options) PageBytes(n int) Options {
	o.tests.bytes = n
	return o
}

// Unhurried gives a relay so long for its end.
func (o Options) Unhurried(d time.Duration) Options {
	o.tests.last = d
	return o
}
