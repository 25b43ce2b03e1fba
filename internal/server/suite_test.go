package server

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/internal/postgres/throwaway"
	"github.com/vextrus/saga-operator/test/cluster"
)

// shared is the API server of this package's tests, started by the first that needs it. Each test has a namespace of its own.
var shared struct {
	once    sync.Once
	cluster *cluster.Cluster
	err     error
}

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
	code := throwaway.Main(m)
	if flag.Lookup("test.run").Value.String() == "" && code == 0 { // a part of the tests exercises a part of the operations
		if missing := notExercised(); len(missing) > 0 {
			fmt.Fprintln(os.Stderr, "the OpenAPI document has operations and statuses that no test has seen:", missing)
			code = 1
		}
	}
	if shared.cluster != nil {
		if err := shared.cluster.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// manifests are what an administrator installs.
var manifests = []string{
	"default/namespace.yaml", "rbac/service_account.yaml", "rbac/role.yaml", "rbac/saga_viewer_role.yaml", "rbac/saga_editor_role.yaml", "rbac/saga_decider_role.yaml",
	"rbac/saga_abandoner_role.yaml", "rbac/impersonator_role.yaml",
	"admission/creation_policy.yaml", "admission/change_policy.yaml", "admission/created_by_policy.yaml",
}

func kubernetes(t testing.TB) *cluster.Cluster {
	t.Helper()
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		var files []string
		for _, m := range manifests {
			files = append(files, "../../config/"+m)
		}
		if shared.cluster, shared.err = cluster.Start(ctx, cluster.Options{Manifests: files}); shared.err == nil {
			shared.err = awaitPolicies(ctx, shared.cluster)
		}
	})
	if shared.err != nil {
		t.Fatalf("starting the API server: %v", shared.err)
	}
	return shared.cluster
}

// typedClient returns a client with the types of the API and strict validation of fields, as users
// have.
func typedClient(config *rest.Config) (client.Client, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	return client.New(config, client.Options{Scheme: scheme, FieldValidation: metav1.FieldValidationStrict})
}

// awaitPolicies waits until the admission policies know what a saga is, which is a moment after the API server does.
func awaitPolicies(ctx context.Context, c *cluster.Cluster) error {
	kube, err := typedClient(c.Config)
	if err != nil {
		return err
	}
	for {
		var s v1.Saga
		if err := json.Unmarshal([]byte(manifest("first")), &s); err != nil {
			return err
		}
		s.Namespace = "default"
		if err = kube.Create(ctx, &s, client.DryRunAll); err == nil && len(s.Finalizers) > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the admission policies do not work: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// openAPI holds every answer of the tests against the document, and notes which operations and statuses were seen.
var openAPI struct {
	mu        sync.Mutex
	document  []byte
	validator validator.Validator
	seen      map[string]map[string]bool // by operation id
}

// description is what the tests look up in the document.
type description struct {
	Paths map[string]map[string]struct {
		OperationID string
		Responses   map[string]json.RawMessage
	}
}

func described(t testing.TB, document []byte) description {
	t.Helper()
	var d description
	if err := json.Unmarshal(document, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// check holds one answer against the document.
func check(t testing.TB, document []byte, r *http.Request, a *http.Response) {
	t.Helper()
	openAPI.mu.Lock()
	defer openAPI.mu.Unlock()
	if openAPI.validator == nil {
		model, err := libopenapi.NewDocument(document)
		if err != nil {
			t.Fatal(err)
		}
		v, errs := validator.NewValidator(model)
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		openAPI.document, openAPI.validator, openAPI.seen = document, v, map[string]map[string]bool{}
	}
	id := a.Header.Get("X-Test-Operation")
	if id == "" || id == noOperation || id == "openapi" {
		return
	}
	if openAPI.seen[id] == nil {
		openAPI.seen[id] = map[string]bool{}
	}
	openAPI.seen[id][fmt.Sprint(a.StatusCode)] = true
	if a.Header.Get("Content-Type") == eventStream {
		return
	}
	ok, errs := openAPI.validator.ValidateHttpResponse(r, a)
	if !ok {
		for _, e := range errs {
			t.Errorf("%s %s: the answer %d is not as the document says: %v", r.Method, r.URL.Path, a.StatusCode, e)
		}
	}
}

// notExercised are the operations that no test has called with success.
func notExercised() (missing []string) {
	openAPI.mu.Lock()
	defer openAPI.mu.Unlock()
	var d description
	if err := json.Unmarshal(openAPI.document, &d); err != nil {
		return []string{"all: " + err.Error()}
	}
	for _, item := range d.Paths {
		for _, o := range item {
			for status := range o.Responses {
				if status < "300" && !openAPI.seen[o.OperationID][status] {
					missing = append(missing, o.OperationID+" "+status)
				}
			}
		}
	}
	return missing
}
