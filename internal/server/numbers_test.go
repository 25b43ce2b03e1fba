package server

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"k8s.io/client-go/rest"
)

// numbers are those that a decoder of JSON is likely to spoil.
const numbers = `{"account":9007199254740993,"most":9223372036854775807,"least":-9223372036854775808,"more":9223372036854775808,"huge":123456789012345678901234567890,
	"price":1.0,"third":0.1,"thousand":1e3,"small":1e-7,"list":[9007199254740993,{"deep":-9007199254740993}]}`

// apiServer sends a request to the API server itself, and nothing of it is decoded on the way.
func (r *rig) apiServer(method, path string, body string) []byte {
	r.Helper()
	config := kubernetes(r).Config
	kube, err := rest.HTTPClientFor(config)
	r.ok(err)
	req, err := http.NewRequestWithContext(r.Context(), method, strings.TrimSuffix(config.Host, "/")+path, strings.NewReader(body))
	r.ok(err)
	req.Header.Set("Content-Type", "application/json")
	res, err := kube.Do(req)
	r.ok(err)
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	r.ok(err)
	if res.StatusCode >= http.StatusMultipleChoices {
		r.Fatalf("the API server answers %s %s with %d %s", method, path, res.StatusCode, answer)
	}
	return answer
}

// inputOf is the input of a saga as it stands in JSON.
func inputOf(t *testing.T, object []byte) string {
	t.Helper()
	var s struct {
		Spec struct{ Input json.RawMessage }
	}
	if err := json.Unmarshal(object, &s); err != nil {
		t.Fatal(err)
	}
	return string(s.Spec.Input)
}

func TestNumbersReachTheClusterAsTheyDoWithoutTheAPI(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	token := r.editor()
	withInput := `{"apiVersion":"saga.vextrus.io/v1","kind":"Saga","metadata":{"name":%q},"spec":{"input":` + numbers + `,` + spec[1:] + `}`
	const path = "/apis/saga.vextrus.io/v1/namespaces/%s/sagas"
	r.apiServer(http.MethodPost, fmt.Sprintf(path, r.ns), fmt.Sprintf(withInput, "direct"))
	want := inputOf(t, r.apiServer(http.MethodGet, fmt.Sprintf(path, r.ns)+"/direct", ""))
	a := r.do(call{method: "POST", path: sagas, token: token, header: key(uuid.NewString()), body: fmt.Sprintf(withInput, "by-api")})
	if a.status != http.StatusCreated {
		t.Fatalf("%d %s", a.status, a.body)
	}
	for what, object := range map[string][]byte{
		"answered with": a.body,
		"read":          r.do(call{method: "GET", path: sagas + "/by-api", token: token}).body,
		"stored":        r.apiServer(http.MethodGet, fmt.Sprintf(path, r.ns)+"/by-api", ""),
	} {
		if got := inputOf(t, object); got != want {
			t.Errorf("%s was\n%s, and without the API it is\n%s", what, got, want)
		}
	}
}
