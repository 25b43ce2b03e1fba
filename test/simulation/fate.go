package simulation

import (
	"fmt"
	"time"
)

// Script takes the place of chance in a case that is written by hand.
type Script struct {
	// Fates gives the fate of calls, by name; all others are done.
	Fates map[string]fate
	// Delays says how long calls take, by name, and how far caches lag, by the name of the node and of the change.
	Delays map[string]time.Duration
	// Skews are the differences between the operators' clocks and the world's time; positive is ahead.
	Skews []time.Duration
	// Gateway is what gateways answer.
	Gateway gatewayAnswer
	// Nodes is how many operators there are, 1 by default; Places how many attempts of each run at once, 64 by default.
	Nodes, Places int
	// Sagas are made instead of generated ones, and Acts happen beside them.
	Sagas []*testSaga
	Acts  func(w *World)
	// Tamper changes the books before they are checked, for tests of the checker.
	Tamper func(w *World)
}

// gatewayAnswer is what something between an operator and a participant answers.
type gatewayAnswer struct {
	status int
	typ    string
	body   string
}

// gateways are the answers that are drawn from.
var gateways = []gatewayAnswer{
	{401, "application/json", `{"message":"token expired"}`},
	{403, "text/plain", "RBAC: access denied"},
	{404, "text/html", "<html><head><title>404 Not Found</title></head></html>"},
	{409, "application/json", `{"message":"a request with this key is in progress"}`},
	{413, "text/html", "<html>413 Request Entity Too Large</html>"},
	{503, "text/plain", "upstream connect error or disconnect/reset before headers"},
	{504, "text/plain", "upstream request timeout"},
	{200, "text/html", "<html><body>please log in</body></html>"},
	{308, "text/html", ""},
}

// rate is how likely a fault is in the world's storm.
func (w *World) rate() float64 { return pick(w.chance, "rate", "", 0.02, 0.06, 0.15) }

// fateOf draws what becomes of a call.
func (w *World) fateOf(c *call) fate {
	if w.Script != nil {
		f, ok := w.Script.Fates[c.name]
		if !ok {
			f = done
		}
		return f
	}
	switch {
	case c.urgent && c.class == request:
		return pick(w.chance, "gave up", c.name, hungBefore, hungAfter)
	case c.urgent && c.class == publish:
		return pick(w.chance, "gave up", c.name, hungBefore, hungAfter)
	case c.class == timeOut, w.calm(), w.Without["fault "+c.name], !w.chance.happens("fault", c.name, w.rate()*weight(c.class)):
		return done
	}
	return pick(w.chance, "fate", c.name, fates[c.class]...)
}

// weight is how much more likely a class of call is to fail. Calls to participants are what the world is about.
func weight(c class) float64 {
	switch c {
	case request, publish, callbackIn, brokerIn, decisionCall:
		return 2
	case storeRead, apiRead, apiWrite:
		return 0.3
	default:
		return 0.7
	}
}

// delay draws how long a call takes until something becomes of it.
func (w *World) delay(c *call) time.Duration {
	if w.Script != nil {
		return w.Script.Delays[c.name]
	}
	if w.calm() || w.Without["delay "+c.name] {
		return 0
	}
	name := "delay " + c.name
	switch p := w.float("delay", name); {
	case p < 0.7:
		return 0
	case p < 0.9 || c.class != request:
		return w.between("how long", name, 0, 200*time.Millisecond)
	case p < 0.97:
		return w.between("how long", name, 0, 3*time.Second)
	default:
		return w.between("how long", name, 0, 15*time.Second)
	}
}

// gatewayFor draws what a gateway answers to a call. After it has forwarded a request it cannot say that the request was not for it.
func (w *World) gatewayFor(name string, forwarded bool) gatewayAnswer {
	if w.Script != nil {
		return w.Script.Gateway
	}
	if forwarded {
		return pick(w.chance, "gateway", name, gateways[5], gateways[6])
	}
	return pick(w.chance, "gateway", name, gateways...)
}

func (g gatewayAnswer) String() string { return fmt.Sprintf("%d %s", g.status, g.typ) }
