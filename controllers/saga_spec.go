package controllers

import (
	"strconv"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/manifest"
)

// specBytesAnnotation is on cached objects only: the size of a spec that the cache has without its steps
// and its input.
const specBytesAnnotation = "saga.vextrus.io/cached-spec-bytes"

// maxCachedSpec is the largest spec that the cache keeps whole, in bytes of JSON. Sagas that wait, or that
// cannot be started, must not fill the operator's memory; a larger spec is read again when it is needed.
const maxCachedSpec = 16 << 10

// strip drops a large spec, but for what can be changed, and remembers its size.
func strip(o *v1.Saga) {
	if _, ok := stripped(o); ok {
		return
	}
	delete(o.Annotations, specBytesAnnotation) // only this function may set it
	size := specBytes(o)
	if size <= maxCachedSpec {
		return
	}
	if o.Annotations == nil {
		o.Annotations = map[string]string{}
	}
	o.Annotations[specBytesAnnotation] = strconv.FormatInt(size, 10)
	o.Spec = v1.SagaSpec{Suspend: o.Spec.Suspend, Cancel: o.Spec.Cancel, TTLAfterFinished: o.Spec.TTLAfterFinished}
}

// stripped returns the size of a spec that strip has dropped; false if the spec is whole.
func stripped(o *v1.Saga) (int64, bool) {
	text, ok := o.Annotations[specBytesAnnotation]
	if !ok || len(o.Spec.Steps) > 0 { // every saga has steps: a user has set the annotation
		return 0, false
	}
	size, err := strconv.ParseInt(text, 10, 64)
	return size, err == nil
}

// specBytes returns the size of a saga's spec in bytes of JSON; 0 without an object.
func specBytes(o *v1.Saga) int64 {
	if o == nil {
		return 0
	}
	if size, ok := stripped(o); ok {
		return size
	}
	size, err := manifest.SpecBytes(&o.Spec)
	if err != nil {
		return 0 // manifest.Read says what is wrong with it
	}
	return size
}
