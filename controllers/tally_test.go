package controllers

import (
	"context"
	"fmt"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/vextrus/saga-operator/internal/engine"
)

// tally is what the operators of a rig have done about the sagas of one name.
type tally struct {
	begun, ended int  // reconciles
	asked        bool // the last one to end asked for another
	// Status writes that were sent to the API server, that it has answered, and that it has taken.
	tried, answered, written int
	patches                  int // of anything else, refused ones too
}

// tally has the tally of a name looked at or changed, and returns what it is then.
func (r *rig) tally(name string, f func(*tally)) tally {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tallies[name] == nil {
		r.tallies[name] = &tally{}
	}
	if f != nil {
		f(r.tallies[name])
	}
	return *r.tallies[name]
}

// reconciles returns how often a saga has begun to be reconciled.
func (r *rig) reconciles(name string) int { return r.tally(name, nil).begun }

// writes returns how often the status of a saga has been written. Who sees what a write has made may have looked before the write was counted, so those under way are waited for.
func (r *rig) writes(name string) int {
	r.Helper()
	n := 0
	r.eventually(func() error {
		t := r.tally(name, nil)
		if n = t.written; t.tried != t.answered {
			return fmt.Errorf("the status of saga %s is being written", name)
		}
		return nil
	})
	return n
}

// waitQuiet waits until nothing more is done about some sagas: their last reconciles have asked for no other, and none begins while another saga is taken in, after everything that the watch
// has shown of them.
func (r *rig) waitQuiet(names ...string) {
	r.Helper()
	r.eventually(func() error {
		before, err := r.quiet(names)
		if err != nil {
			return err
		}
		r.mu.Lock()
		r.barriers++
		barrier := fmt.Sprintf("barrier-%d", r.barriers)
		r.mu.Unlock()
		r.create(barrier, cycle)
		r.waitStalled(barrier, engine.ReasonInvalidDefinition)
		after, err := r.quiet(names)
		if err == nil && after != before {
			err = fmt.Errorf("%d reconciles more have begun", after-before)
		}
		return err
	})
}

// quiet returns how many reconciles of some sagas have begun, if none is under way and none was asked for.
func (r *rig) quiet(names []string) (begun int, err error) {
	for _, name := range names {
		t := r.tally(name, nil)
		if begun += t.begun; t.begun == 0 || t.begun != t.ended || t.asked {
			return 0, fmt.Errorf("saga %s is not at rest: %+v", name, t)
		}
	}
	return begun, nil
}

// counting counts reconciles.
type counting struct {
	rig   *rig
	sagas *SagaReconciler
}

func (c counting) Reconcile(ctx context.Context, k engine.Key) (reconcile.Result, error) {
	c.rig.tally(k.Name, func(t *tally) { t.begun++ })
	res, err := c.sagas.Reconcile(ctx, k)
	c.rig.tally(k.Name, func(t *tally) {
		t.ended++
		t.asked = err != nil || res.RequeueAfter > 0
	})
	return res, err
}

// countingClient is the manager's client, with its writes counted and what a test wants between.
func (r *rig) countingClient(cfg *rest.Config, o client.Options) (client.Client, error) {
	c, err := client.NewWithWatch(cfg, o)
	if err != nil {
		return nil, err
	}
	return interceptor.NewClient(c, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			err := c.Get(ctx, key, o, opts...)
			if err == nil && r.beforeGet != nil {
				r.beforeGet(o)
			}
			return err
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			if r.beforeDelete != nil {
				r.beforeDelete(o)
			}
			return c.Delete(ctx, o, opts...)
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			r.tally(o.GetName(), func(n *tally) { n.patches++ })
			return c.Patch(ctx, o, p, opts...)
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			if r.beforeStatus != nil {
				if err := r.beforeStatus(o); err != nil {
					return err
				}
			}
			r.tally(o.GetName(), func(n *tally) { n.tried++ })
			err := c.SubResource(sub).Patch(ctx, o, p, opts...)
			r.tally(o.GetName(), func(n *tally) {
				if n.answered++; err == nil {
					n.written++
				}
			})
			return err
		},
	}), nil
}
