package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

func TestWhatIsNotExactlyASagaIsRefusedAndSaysWhere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.editor()
	deep := strings.Repeat("[", 40) + strings.Repeat("]", 40)
	meta := func(more string) string {
		return fmt.Sprintf(`{"metadata":{"name":"order-1"%s},"spec":%s}`, more, spec)
	}
	for name, c := range map[string]struct {
		body, location string
		header         http.Header
		status         int
		reason         string
	}{
		"an unknown field":                {body: `{"metadata":{"name":"a"},"status":{},"spec":` + spec + `}`, status: 422, location: "body.status"},
		"unknown metadata":                {body: meta(`,"finalizers":["x"]`), status: 422, location: "body.metadata.finalizers"},
		"an owner":                        {body: meta(`,"ownerReferences":[]`), status: 422, location: "body.metadata.ownerReferences"},
		"another namespace":               {body: meta(`,"namespace":"kube-system"`), status: 422, location: "body.metadata.namespace"},
		"the operator's own label":        {body: meta(`,"labels":{"saga.vextrus.io/shard":"1"}`), status: 422, location: "body.metadata.labels"},
		"the operator's own subdomain":    {body: meta(`,"annotations":{"x.saga.vextrus.io/y":"1"}`), status: 422, location: "body.metadata.annotations"},
		"a bad label":                     {body: meta(`,"labels":{"a":"%%"}`), status: 422, location: "body.metadata.labels"},
		"an unknown field of the spec":    {body: `{"metadata":{"name":"a"},"spec":{"stpes":[],"steps":[{"name":"a","http":{"method":"GET","url":"http://a"}}]}}`, status: 422, location: "body.spec.stpes"},
		"an unknown field of a step":      {body: `{"metadata":{"name":"a"},"spec":{"steps":[{"name":"a","colour":"red","http":{"method":"GET","url":"http://a"}}]}}`, status: 422, location: "body.spec.steps[0].colour"},
		"a wrong value":                   {body: `{"metadata":{"name":"a"},"spec":{"steps":[{"name":"A B","http":{"method":"GET","url":"http://a"}}]}}`, status: 422, location: "body.spec.steps[0].name"},
		"a rule that is broken":           {body: `{"metadata":{"name":"a"},"spec":{"steps":[{"name":"a","dependsOn":["b"],"http":{"method":"GET","url":"http://a"}}]}}`, status: 422, location: "body.spec.steps"},
		"no spec":                         {body: `{"metadata":{"name":"a"}}`, status: 422, location: "body"},
		"a spec that is none":             {body: `{"metadata":{"name":"a"},"spec":7}`, status: 422, location: "body.spec"},
		"no name":                         {body: `{"metadata":{},"spec":` + spec + `}`, status: 422, location: "body.metadata.name"},
		"a name that is none":             {body: manifest("Order 1"), status: 422, location: "body.metadata.name"},
		"another kind":                    {body: `{"kind":"Pod","metadata":{"name":"a"},"spec":` + spec + `}`, status: 422, location: "body.kind"},
		"a large spec":                    {body: `{"metadata":{"name":"a"},"spec":{"input":{"x":"` + strings.Repeat("x", 300<<10) + `"},"steps":[]}}`, status: 422, location: "body.spec"},
		"a list":                          {body: `[]`, status: 422, location: "body"},
		"null":                            {body: `null`, status: 422, location: "body"},
		"a key twice":                     {body: `{"metadata":{"name":"a"},"metadata":{"name":"b"},"spec":` + spec + `}`, status: 400, location: "body.metadata"},
		"a key twice, written otherwise":  {body: `{"metadata":{"name":"a","n\u0061me":"b"},"spec":` + spec + `}`, status: 400, location: "body.metadata.name"},
		"a key twice, deep":               {body: `{"metadata":{"name":"a"},"spec":{"steps":[{"name":"a","name":"b"}]}}`, status: 400, location: "body.spec.steps.0.name"},
		"a key in other letters":          {body: `{"metadata":{"name":"a"},"Metadata":{"name":"b"},"spec":` + spec + `}`, status: 422, location: "body.Metadata"},
		"deep JSON":                       {body: `{"metadata":{"name":"a"},"spec":{"input":{"x":` + deep + `}}}`, status: 400, location: "body.spec.input.x.0"},
		"very deep JSON":                  {body: strings.Repeat(`{"a":`, 100_000), status: 400, location: "body.a.a.a.a"},
		"something behind it":             {body: manifest("a") + `{}`, status: 400, location: "body"},
		"half of it":                      {body: manifest("a")[:60], status: 400},
		"no JSON":                         {body: `name: a`, status: 400, location: "body"},
		"no UTF-8":                        {body: "{\"metadata\":{\"name\":\"\xff\"}}", status: 400, location: "body"},
		"nothing but space":               {body: "  ", status: 400, location: "body"},
		"YAML":                            {body: "a: b", header: http.Header{"Content-Type": {"application/yaml"}}, status: 415},
		"a form":                          {body: "a=b", header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, status: 415},
		"a patch":                         {body: manifest("a"), header: http.Header{"Content-Type": {"application/merge-patch+json"}}, status: 415},
		"no content type":                 {body: manifest("a"), header: http.Header{"Content-Type": {""}}, status: 415},
		"another charset":                 {body: manifest("a"), header: http.Header{"Content-Type": {"application/json; charset=utf-16"}}, status: 415},
		"compressed":                      {body: manifest("a"), header: http.Header{"Content-Encoding": {"gzip"}}, status: 415},
		"too large":                       {body: `{"a":"` + strings.Repeat("x", maxSagaBody) + `"}`, status: 413},
		"no key":                          {body: manifest("a"), header: http.Header{"Idempotency-Key": nil}, status: 400, reason: "KeyMissing"},
		"a key that is none":              {body: manifest("a"), header: http.Header{"Idempotency-Key": {`"a`}}, status: 400, reason: "InvalidKey"},
		"two keys":                        {body: manifest("a"), header: http.Header{"Idempotency-Key": {"a", "b"}}, status: 400, reason: "InvalidKey"},
		"a key that is too long":          {body: manifest("a"), header: http.Header{"Idempotency-Key": {strings.Repeat("k", 300)}}, status: 400, reason: "InvalidKey"},
		"a number that no float can hold": {body: `{"metadata":{"name":"a"},"spec":{"input":{"x":1e999},"steps":[{"name":"a","http":{"method":"GET","url":"http://a"}}]}}`, status: 400},
	} {
		t.Run(name, func(t *testing.T) {
			header := key("k-" + strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), ",", ""))
			for k, v := range c.header {
				header[k] = v
			}
			a := r.do(call{method: "POST", path: sagas, token: token, body: c.body, header: header})
			if a.status != c.status {
				t.Fatalf("%d, want %d: %.500s", a.status, c.status, a.body)
			}
			p := a.problem(t)
			if c.reason != "" && p.Reason != c.reason {
				t.Errorf("reason %s, want %s", p.Reason, c.reason)
			}
			if c.location != "" && (len(p.Errors) == 0 || p.Errors[0].Location != c.location) {
				t.Errorf("it does not say that %s is wrong: %.500s", c.location, a.body)
			}
			if len(a.body) > 4<<10 || p.Detail == "" {
				t.Errorf("the problem has %d bytes: %.500s", len(a.body), a.body)
			}
		})
	}
}

func TestEveryPathParameterIsChecked(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.editor()
	for path, status := range map[string]int{
		"/v1/namespaces/NS/sagas/UPPER":                       422,
		"/v1/namespaces/NS/sagas/" + "a%2Fb":                  422,
		"/v1/namespaces/NS/sagas/" + "a%2F..%2Fb":             404,
		"/v1/namespaces/no.dots/sagas":                        422,
		"/v1/namespaces/NS/sagas/x/history?uid=1":             422,
		"/v1/namespaces/NS/sagas/x/history?after=-1":          422,
		"/v1/namespaces/NS/sagas/x/history?limit=1001":        422,
		"/v1/namespaces/NS/sagas/x/history?limit=1&x=y":       422,
		"/v1/namespaces//sagas":                               404,
		"/v1/namespaces/NS/sagas/../sagas":                    404,
		"/v1/namespaces/NS/sagas/" + strings.Repeat("a", 254): 422,
		"/nowhere": 404,
		"/":        404,
	} {
		if a := r.do(call{method: "GET", path: path, token: token}); a.status != status || a.problem(t).Detail == "" {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	a := r.do(call{method: "DELETE", path: "/v1/namespaces/NS/sagas", token: token})
	if a.status != http.StatusMethodNotAllowed || a.header.Get("Allow") != "GET, POST" || a.problem(t).Detail == "" {
		t.Errorf("DELETE: %d %v %s", a.status, a.header, a.body)
	}
	if a := r.do(call{method: "POST", path: "/v1/namespaces/NS/sagas/x/suspend", token: token, body: `{}`}); a.status != http.StatusBadRequest {
		t.Errorf("a body for what takes none: %d %s", a.status, a.body)
	}
}

func TestCheckJSONLimitsNodes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"[" + strings.Repeat("0,", maxNodes-2) + "0]": true, "[" + strings.Repeat("0,", maxNodes-1) + "0]": false,
		`[{` + strings.Repeat(`"":{`, 10) + strings.Repeat(`}`, 11) + strings.Repeat(`,{"":0}`, maxNodes/3) + `]`: false,
	} {
		nodes, err := checkJSON([]byte(text))
		if (err == nil) != want || nodes > maxNodes+1 {
			t.Errorf("checkJSON(%.40s…) read %d nodes, error %v", text, nodes, err)
		}
	}
}

func FuzzCheckJSON(f *testing.F) {
	for _, s := range []string{`{"a":[1,{"b":null}]}`, `{"a":1,"a":2}`, `[`, `"x" 1`, strings.Repeat("[", 99), "{\"\\ud800\":1}", `1e999`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		nodes, err := checkJSON(data)
		if nodes > maxNodes+1 {
			t.Errorf("checkJSON read %d nodes, more than the limit", nodes)
		}
		if err == nil && !json.Valid(data) {
			t.Errorf("%q is no JSON and was taken", data)
		}
		if err != nil && jsontext.Value(data).IsValid() && !bytes.ContainsAny(data, "{[") && len(bytes.TrimSpace(data)) > 0 && strings.ToValidUTF8(string(data), "") == string(data) {
			t.Errorf("%q was refused: %v", data, err)
		}
	})
}
