package operations

import (
	"bytes"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestMarkIsValidOnlyForItsObject(t *testing.T) {
	t.Parallel()
	key := bytes.Repeat([]byte{1}, 32)
	made := time.Unix(1_900_000_000, 0)
	m := mark{request: "r", content: "c", at: made.Unix()}
	object := func(namespace, name, annotation string, created time.Time) *document {
		o := &document{}
		o.Namespace, o.Name, o.CreationTimestamp = namespace, name, metav1.NewTime(created)
		o.Annotations = map[string]string{RequestAnnotation: annotation}
		return o
	}
	good := m.sign(key, "shop", "order-1")
	for what, test := range map[string]struct {
		o     *document
		valid bool
	}{
		"its object":          {object("shop", "order-1", good, made.Add(signatureTolerance)), true},
		"a clock that lags":   {object("shop", "order-1", good, made.Add(-signatureTolerance)), true},
		"a later object":      {object("shop", "order-1", good, made.Add(signatureTolerance+time.Second)), false},
		"another name":        {object("shop", "order-2", good, made), false},
		"another namespace":   {object("mail", "order-1", good, made), false},
		"another request":     {object("shop", "order-1", "x"+good[1:], made), false},
		"other content":       {object("shop", "order-1", "r/x"+good[3:], made), false},
		"another key":         {object("shop", "order-1", m.sign(bytes.Repeat([]byte{2}, 32), "shop", "order-1"), made), false},
		"no signature":        {object("shop", "order-1", "r/c", made), false},
		"no time":             {object("shop", "order-1", "r/c/x/y", made), false},
		"no annotation":       {object("shop", "order-1", "", made), false},
		"an annotation on it": {object("shop", "order-1", good+"/x", made), false},
	} {
		got, ok := verify(key, test.o)
		if ok != test.valid || ok && got != m {
			t.Errorf("%s: %+v, %t", what, got, ok)
		}
	}
}
