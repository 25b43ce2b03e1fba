package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/vextrus/saga-operator/api/v1"
	ordertocash "github.com/vextrus/saga-operator/examples/order-to-cash"
	"github.com/vextrus/saga-operator/test/cluster"
)

// The files of the workshop that the processes work with.
const (
	certFile  = "api.crt"
	keyFile   = "api.key"
	caFile    = "ca.crt"
	tokenFile = "orders.token"
)

const (
	// account is the ServiceAccount of the orders service.
	account = "orders"
	// audience is whom its token is for, as the operator's --api-audiences has it.
	audience = "saga-operator"
	// tokenLifetime outlasts any demo.
	tokenLifetime = 24 * time.Hour
)

func (w *World) startCluster(ctx context.Context) (err error) {
	var manifests []string
	for _, dir := range []string{"config/rbac", "config/admission"} {
		found, err := w.manifests(dir)
		if err != nil {
			return err
		}
		manifests = append(manifests, found...)
	}
	if w.Cluster, err = cluster.Start(ctx, cluster.Options{ControllerManager: true}); err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1.AddToScheme(scheme)); err != nil {
		return err
	}
	config := rest.CopyConfig(w.Cluster.Config)
	config.WarningHandler = rest.NoWarnings{}
	if w.Client, err = client.NewWithWatch(config, client.Options{Scheme: scheme}); err != nil {
		return err
	}
	for _, name := range []string{System, Namespace} {
		if err := w.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return fmt.Errorf("making namespace %s: %w", name, err)
		}
	}
	for _, file := range manifests {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading what is deployed: %w", err)
		}
		if err := w.Cluster.Apply(ctx, data); err != nil {
			return fmt.Errorf("applying %s: %w", file, err)
		}
	}
	if err := errors.Join(w.letOrdersStartSagas(ctx), w.certify(ctx)); err != nil {
		return err
	}
	return w.awaitAdmission(ctx)
}

// letOrdersStartSagas gives the orders service a ServiceAccount that may do just that, and its token.
func (w *World) letOrdersStartSagas(ctx context.Context) error {
	named := metav1.ObjectMeta{Namespace: Namespace, Name: account}
	who := &corev1.ServiceAccount{ObjectMeta: named}
	for _, o := range []client.Object{
		who,
		&rbacv1.Role{ObjectMeta: named, Rules: []rbacv1.PolicyRule{{APIGroups: []string{v1.GroupVersion.Group}, Resources: []string{"sagas"}, Verbs: []string{"create", "get"}}}},
		&rbacv1.RoleBinding{
			ObjectMeta: named, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: account},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: Namespace, Name: account}},
		},
	} {
		if err := w.Client.Create(ctx, o); err != nil {
			return fmt.Errorf("letting the orders service start sagas: %w", err)
		}
	}
	// The token is good for the operator and nothing else: in a pod, a projected volume asks for the same.
	seconds := int64(tokenLifetime / time.Second)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}, ExpirationSeconds: &seconds}}
	if err := w.Client.SubResource("token").Create(ctx, who, request); err != nil {
		return fmt.Errorf("asking for a token of the orders service: %w", err)
	}
	const private = 0o600
	if err := os.WriteFile(w.workshop.Path(tokenFile), []byte(request.Status.Token), private); err != nil {
		return fmt.Errorf("writing the token of the orders service: %w", err)
	}
	return nil
}

// certify finds the API a port, and makes its certificate.
func (w *World) certify(ctx context.Context) error {
	var url string
	if err := w.otherPorts(ctx, &url); err != nil {
		return err
	}
	w.API = "https://" + strings.TrimPrefix(url, "http://")
	return writeCertificate(w.workshop.Path(caFile), w.workshop.Path(certFile), w.workshop.Path(keyFile))
}

// Manifest reads a saga of the example as a user would apply it.
func (w *World) Manifest(name string, at ordertocash.URLs) (*v1.Saga, error) {
	text, err := ordertocash.Manifest(name, at)
	if err != nil {
		return nil, err
	}
	saga := &v1.Saga{}
	if err := yaml.UnmarshalStrict(text, saga); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	saga.Namespace = Namespace
	return saga, nil
}

// awaitAdmission waits until the policy that puts the finalizer on is in force.
func (w *World) awaitAdmission(ctx context.Context) error {
	return poll(ctx, "the admission policies", func(ctx context.Context) (bool, string) {
		probe, err := w.Manifest("completes.yaml", ordertocash.DefaultURLs)
		if err != nil {
			return false, err.Error()
		}
		if err := w.Client.Create(ctx, probe, client.DryRunAll); err != nil {
			return false, err.Error()
		}
		return len(probe.Finalizers) > 0, "no finalizer was put on"
	})
}

// poll asks until something holds, and says what it last heard when it does not.
func poll(ctx context.Context, what string, holds func(context.Context) (bool, string)) error {
	var last string
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, patience, true, func(ctx context.Context) (ok bool, _ error) {
		ok, last = holds(ctx)
		return ok, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for %s: %w; last seen: %s", what, err, last)
	}
	return nil
}
