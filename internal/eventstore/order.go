package eventstore

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A position is drawn before its transaction commits, so a reader that remembers the last position it saw passes over an event that commits late. A reader
// of all events remembers instead which transactions it has seen: a snapshot, as PostgreSQL itself keeps one. What it has not had yet is what is visible now and was not
// then. (The method is that of PgQ, Skype 2007.)

// View is the transactions that were committed at one moment, in PostgreSQL's own form: all below Min, and those below Max that were not Running.
// The zero value is the view in which nothing has happened.
type View struct {
	// Epoch counts the database clusters that the store has lived in: restored into another one, transaction ids may begin again, lower. Everything of an earlier epoch
	// than the view's was committed.
	Epoch    int32
	Min, Max uint64
	// Running are the transactions from Min to Max that had not ended, ascending.
	Running []uint64
}

// Token names the transaction of an append. A reader whose checkpoint sees it has had its events.
type Token struct {
	Epoch       int32
	Transaction uint64
}

// Sees reports whether a transaction was committed in the view.
func (v View) Sees(t Token) bool {
	switch {
	case t.Epoch != v.Epoch:
		return t.Epoch < v.Epoch
	case t.Transaction >= v.Max:
		return false
	default:
		_, running := slices.BinarySearch(v.Running, t.Transaction)
		return !running
	}
}

// Snapshot is the view, without its epoch, as PostgreSQL writes a pg_snapshot.
func (v View) Snapshot() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:%d:", max(v.Min, 1), max(v.Max, 1))
	for i, x := range v.Running {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatUint(x, 10))
	}
	return b.String()
}

// ParseView reads what PostgreSQL writes of a pg_snapshot.
func ParseView(epoch int32, snapshot string) (View, error) {
	v := View{Epoch: epoch}
	lower, rest, ok1 := strings.Cut(snapshot, ":")
	upper, list, ok2 := strings.Cut(rest, ":")
	var err1, err2 error
	v.Min, err1 = strconv.ParseUint(lower, 10, 64)
	v.Max, err2 = strconv.ParseUint(upper, 10, 64)
	ok := ok1 && ok2 && err1 == nil && err2 == nil && v.Min > 0 && v.Min <= v.Max && !strings.HasSuffix(list, ",") // there is no transaction 0
	for list != "" && ok {
		var one string
		one, list, _ = strings.Cut(list, ",")
		x, err := strconv.ParseUint(one, 10, 64)
		ok = err == nil && x >= v.Min && x < v.Max && (len(v.Running) == 0 || v.Running[len(v.Running)-1] < x)
		v.Running = append(v.Running, x)
	}
	if !ok {
		return View{}, fmt.Errorf("reading a checkpoint: %q is not a snapshot such as 10:20:12,15", snapshot)
	}
	return v, nil
}

func (t Token) String() string { return fmt.Sprintf("%d-%d", t.Epoch, t.Transaction) }

// ParseToken reads what Token.String writes.
func ParseToken(s string) (Token, error) {
	epoch, transaction, _ := strings.Cut(s, "-")
	e, err1 := strconv.ParseInt(epoch, 10, 32)
	x, err2 := strconv.ParseUint(transaction, 10, 64)
	if err1 != nil || err2 != nil || e < 0 {
		return Token{}, fmt.Errorf("reading a token: %.64q is not one such as 1-1042", s)
	}
	return Token{Epoch: int32(e), Transaction: x}, nil
}

// Checkpoint is how far a reader of all events has come. The zero value is the beginning. Readers keep it and hand it back; what is in it is the store's business.
type Checkpoint struct {
	// Done: everything that it sees has been read.
	Done View
	// Floor is the newest position at Done. What began later has higher ones, which spares the search for it.
	Floor int64
	// Until, where given, is the view up to which a backlog is being read in pages: everything that it sees and Done does not, up to Position, has been read too.
	Until      *View
	UntilFloor int64
	Position   int64
}

// Sees reports whether the reader has had the events of an append, all of them.
func (c Checkpoint) Sees(t Token) bool { return c.Done.Sees(t) }

// Filter selects events. The zero value lets everything through.
type Filter struct {
	// Categories and Types are those let through; all where empty.
	Categories, Types []string
}

// Matches reports whether the filter lets an event through.
func (f Filter) Matches(e *Recorded) bool {
	return (len(f.Categories) == 0 || slices.Contains(f.Categories, Category(e.Stream))) && (len(f.Types) == 0 || slices.Contains(f.Types, e.Type))
}

// Page is a part of the order of all events.
type Page struct {
	Events []Recorded
	// Next is the checkpoint of a reader that has had the page. After returns the one in the middle of it.
	Next Checkpoint
	// More says that there is more to read right now.
	More bool
	// Behind is how many positions lie between the page's end and the newest event; an upper bound of the events left.
	Behind int64

	window Checkpoint
}

// NewPage is for implementations of Store: a page of the window that c reads, which is set to end there.
func NewPage(events []Recorded, c, next Checkpoint, more bool, behind int64) Page {
	return Page{Events: events, Next: next, More: more, Behind: behind, window: c}
}

// After returns the checkpoint of a reader that has had the first n events of the page.
func (p *Page) After(n int) Checkpoint {
	if n >= len(p.Events) {
		return p.Next
	}
	c := p.window
	if n > 0 {
		c.Position = p.Events[n-1].Position
	}
	return c
}

// Category is what stands before the first "-" of a stream's name; the whole name where there is none.
func Category(stream string) string {
	category, _, _ := strings.Cut(stream, "-")
	return category
}
