package creators

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/vextrus/saga-operator/api/v1"
	"github.com/vextrus/saga-operator/config/admission"
	"github.com/vextrus/saga-operator/test/cluster"
)

// patience bounds every wait; nothing takes that long when all is well.
const patience = 5 * time.Minute

const name = "saga-created-by.saga.vextrus.io"

// shared is the API server of these tests. Policies belong to the whole cluster, so the tests run one
// after the other, and each begins without any.
var shared struct {
	once    sync.Once
	cluster *cluster.Cluster
	err     error
}

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
	code := m.Run()
	if shared.cluster != nil {
		if err := shared.cluster.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// rig is a check with the rights of the operator, in a cluster without policies.
type rig struct {
	*testing.T
	admin client.Client
	check *Check
	log   *bytes.Buffer
}

func newRig(t *testing.T) *rig {
	t.Helper()
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		shared.cluster, shared.err = cluster.Start(ctx, cluster.Options{Manifests: []string{
			"../../config/default/namespace.yaml", "../../config/rbac/service_account.yaml", "../../config/rbac/role.yaml",
			"../../config/rbac/saga_editor_role.yaml",
		}})
	})
	if shared.err != nil {
		t.Fatalf("starting the API server: %v", shared.err)
	}
	r := &rig{T: t, admin: connect(t, shared.cluster.Config), log: &bytes.Buffer{}}
	r.uninstall()
	t.Cleanup(r.uninstall)
	r.check = r.newCheck(r.account("saga-system", "saga-operator"))
	return r
}

func (r *rig) newCheck(config *rest.Config) *Check {
	return NewCheck(connect(r, config), slog.New(slog.NewTextHandler(r.log, nil)))
}

func connect(t testing.TB, config *rest.Config) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	kube, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return kube
}

func (r *rig) account(namespace, name string) *rest.Config {
	r.Helper()
	config, err := shared.cluster.ServiceAccount(context.Background(), namespace, name)
	r.ok(err)
	return config
}

func (r *rig) ok(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// uninstall removes the policy and its binding.
func (r *rig) uninstall() {
	r.Helper()
	policy, binding := &admissionregistrationv1.ValidatingAdmissionPolicy{}, &admissionregistrationv1.ValidatingAdmissionPolicyBinding{}
	for _, o := range []client.Object{policy, binding} {
		o.SetName(name)
		r.ok(client.IgnoreNotFound(r.admin.Delete(context.Background(), o)))
	}
}

// install applies the shipped policy, with a replacement of a text in it.
func (r *rig) install(replace ...string) {
	r.Helper()
	text := strings.NewReplacer(replace...).Replace(string(admission.CreatedByPolicy))
	if len(replace) > 0 && text == string(admission.CreatedByPolicy) {
		r.Fatalf("%q is not in the policy", replace)
	}
	r.ok(shared.cluster.Apply(r.Context(), []byte(text)))
}

// forget has the check look again.
func (r *rig) forget() { r.check.keptTill = time.Time{} }

// protectedLater reports whether a saga is protected that is created long after the policy.
func (r *rig) protectedLater() bool {
	return r.check.Protected(r.Context(), time.Now().Add(time.Hour))
}

func TestCheckBelievesShippedPolicy(t *testing.T) {
	r := newRig(t)
	if r.protectedLater() || r.check.Recorded() {
		t.Error("creators are believed without a policy")
	}
	r.forget()
	if r.protectedLater() || strings.Count(r.log.String(), "created_by_policy.yaml") != 1 {
		t.Errorf("the log does not say once what to install: %s", r.log)
	}
	r.install()
	r.forget()
	if !r.protectedLater() || !r.check.Recorded() {
		t.Fatalf("creators are not believed under the shipped policy: %s", r.log)
	}
	r.uninstall()
	r.forget()
	if r.protectedLater() || r.check.Recorded() {
		t.Error("creators are believed after the policy was removed")
	}
}

func TestCheckBelievesOnlyLaterSagas(t *testing.T) {
	r := newRig(t)
	r.install()
	var binding admissionregistrationv1.ValidatingAdmissionPolicyBinding
	r.ok(r.admin.Get(t.Context(), client.ObjectKey{Name: name}, &binding))
	installed := binding.CreationTimestamp.Time
	for after, want := range map[time.Duration]bool{-time.Hour: false, 0: false, settling: false, settling + 2*time.Second: true} {
		if got := r.check.Protected(t.Context(), installed.Add(after)); got != want {
			t.Errorf("a saga that was created %s after the policy is believed: %t", after, got)
		}
	}
}

// TestCheckDistrustsWeakenedPolicy has one entry for each way to make the policy useless.
func TestCheckDistrustsWeakenedPolicy(t *testing.T) {
	for what, replace := range map[string][]string{
		"only an audit":         {"validationActions: [Deny]", "validationActions: [Audit]"},
		"failures ignored":      {"failurePolicy: Fail", "failurePolicy: Ignore"},
		"another rule":          {"variables.now == variables.before", "true"},
		"another operator":      {"saga-system:saga-operator", "default:default"},
		"no updates":            {"[CREATE, UPDATE]", "[CREATE]"},
		"some namespaces":       {"namespaceSelector: {}", "namespaceSelector: {matchLabels: {a: b}}"},
		"some objects":          {"objectSelector: {}", "objectSelector: {matchLabels: {a: b}}"},
		"another binding":       {"policyName: saga-created-by", "policyName: other"},
		"a binding of some":     {"validationActions: [Deny]", "validationActions: [Deny]\n  matchResources: {objectSelector: {matchLabels: {a: b}}}"},
		"a binding with params": {"validationActions: [Deny]", "validationActions: [Deny]\n  paramRef: {name: a, namespace: b, parameterNotFoundAction: Allow}"},
	} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t)
			r.install(replace...)
			if r.protectedLater() || r.check.Recorded() {
				t.Error("creators are believed")
			}
			r.install()
			r.forget()
			if !r.protectedLater() {
				t.Errorf("creators are not believed after the policy was restored: %s", r.log)
			}
		})
	}
}

// TestCheckDistrustsTimeOfWeakness: the policy was weakened and restored, so older sagas may be forged.
func TestCheckDistrustsTimeOfWeakness(t *testing.T) {
	for part, weakness := range map[string][]string{
		"policy": {"failurePolicy: Fail", "failurePolicy: Ignore"}, "binding": {"validationActions: [Deny]", "validationActions: [Audit]"},
	} {
		t.Run(part, func(t *testing.T) {
			r := newRig(t)
			r.install()
			if !r.protectedLater() {
				t.Fatal("creators are not believed under the shipped policy")
			}
			before := r.check.since
			for deadline := time.Now().Add(patience); !r.changedAfter(before); { // the times of the API server have whole seconds
				if time.Now().After(deadline) {
					t.Fatal("the API server does not record when the policy was changed")
				}
				r.install(weakness...)
				r.install()
			}
			r.forget()
			if !r.protectedLater() || !r.check.since.After(before) {
				t.Error("sagas are believed that were created while the policy was weak")
			}
		})
	}
}

// changedAfter reports whether the API server says that the policy or its binding was changed later.
func (r *rig) changedAfter(before time.Time) bool {
	r.Helper()
	later := false
	for _, o := range []client.Object{&admissionregistrationv1.ValidatingAdmissionPolicy{}, &admissionregistrationv1.ValidatingAdmissionPolicyBinding{}} {
		r.ok(r.admin.Get(r.Context(), client.ObjectKey{Name: name}, o))
		for _, f := range o.GetManagedFields() {
			later = later || f.Time.After(before)
		}
	}
	return later
}

func TestCheckKeepsFindingForAShortTime(t *testing.T) {
	r := newRig(t)
	now := time.Now()
	r.check.clock = func() time.Time { return now }
	if r.protectedLater() {
		t.Fatal("creators are believed without a policy")
	}
	r.install()
	if r.protectedLater() {
		t.Error("the finding was not kept")
	}
	now = now.Add(keep)
	if !r.protectedLater() {
		t.Errorf("a policy that was installed later is not noticed: %s", r.log)
	}
}

func TestCheckNamesOperatorByItsIdentity(t *testing.T) {
	r := newRig(t)
	r.install()
	r.check = NewCheck(connect(t, shared.cluster.Config), slog.New(slog.NewTextHandler(r.log, nil)))
	if r.protectedLater() {
		t.Error("an operator with another name believes the policy of saga-system/saga-operator")
	}
	r.install("system:serviceaccount:saga-system:saga-operator", "admin")
	r.forget()
	if !r.protectedLater() {
		t.Errorf("an operator does not believe the policy that names it: %s", r.log)
	}
}

func TestCheckSaysWhichRightItLacks(t *testing.T) {
	r := newRig(t)
	r.install()
	r.check = r.newCheck(r.account("default", "nobody"))
	if r.protectedLater() || !strings.Contains(r.log.String(), "forbidden") {
		t.Errorf("without the right to read policies: %s", r.log)
	}
}

// TestCreatedByPolicyRefusesForgery runs without the mutating policy: that one would hide a mistake in
// this one.
func TestCreatedByPolicyRefusesForgery(t *testing.T) {
	r := newRig(t)
	r.awaitPolicy(false)
	r.install()
	r.awaitPolicy(true)
	for who, create := range map[string]map[string]bool{
		"admin":    {"": true, "admin": true, "grace": false},
		"operator": {"": true, "system:serviceaccount:saga-system:saga-operator": true, "grace": true},
	} {
		kube := r.admin
		if who == "operator" {
			kube = connect(t, r.account("saga-system", "saga-operator"))
		}
		for creator, allowed := range create {
			o := saga(creator)
			err := kube.Create(t.Context(), o)
			if allowed != (err == nil) || !allowed && !apierrors.IsForbidden(err) {
				t.Errorf("%s creates a saga in the name of %q: %v", who, creator, err)
			}
			if err != nil {
				continue
			}
			r.update(kube, who, o, creator)
			r.ok(r.admin.Delete(t.Context(), o))
		}
	}
}

// TestPolicyRefusesForgedChanger runs without the mutating policies, too.
func TestPolicyRefusesForgedChanger(t *testing.T) {
	r := newRig(t)
	r.awaitPolicy(false)
	r.install()
	r.awaitPolicy(true)
	forged := saga("")
	forged.Annotations = map[string]string{v1.ChangedByAnnotation: "grace"}
	if err := r.admin.Create(t.Context(), forged); !apierrors.IsForbidden(err) {
		t.Errorf("the administrator creates a saga that grace has changed: %v", err)
	}
	o := saga("")
	r.ok(r.admin.Create(t.Context(), o))
	operator := connect(t, r.account("saga-system", "saga-operator"))
	for _, c := range []struct {
		kube    client.Client
		changer string
		allowed bool
	}{
		{r.admin, `"grace"`, false}, {r.admin, `"admin"`, true}, {operator, `"ada"`, true},
		{r.admin, `"ada"`, true}, // as it is
		{r.admin, `"grace"`, false}, {r.admin, "null", true},
	} {
		patch := fmt.Sprintf(`{"metadata":{"annotations":{"saga.vextrus.io/changed-by":%s}}}`, c.changer)
		err := c.kube.Patch(t.Context(), o.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(patch)))
		if c.allowed != (err == nil) || !c.allowed && !apierrors.IsForbidden(err) {
			t.Errorf("as the operator %t: %s: %v", c.kube == operator, patch, err)
		}
	}
	r.ok(r.admin.Delete(t.Context(), o))
}

// update checks that the creator of a saga cannot be changed, and that other fields can.
func (r *rig) update(kube client.Client, who string, o *v1.Saga, creator string) {
	r.Helper()
	for _, patch := range []string{`{"metadata":{"annotations":{"saga.vextrus.io/created-by":"eve"}}}`, `{"metadata":{"annotations":{"saga.vextrus.io/created-by":null}}}`} {
		if strings.Contains(patch, "null") && creator == "" {
			continue // it changes nothing
		}
		if err := kube.Patch(r.Context(), o.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(patch))); !apierrors.IsForbidden(err) {
			r.Errorf("%s patches a saga of %q with %s: %v", who, creator, patch, err)
		}
	}
	if err := kube.Patch(r.Context(), o.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"suspend":true}}`))); err != nil {
		r.Errorf("%s cannot suspend a saga of %q: %v", who, creator, err)
	}
}

func saga(creator string) *v1.Saga {
	o := &v1.Saga{}
	o.Namespace, o.GenerateName = "default", "s-"
	if creator != "" {
		o.Annotations = map[string]string{v1.CreatedByAnnotation: creator}
	}
	if err := json.Unmarshal([]byte(`{"steps":[{"name":"a","http":{"method":"GET","url":"http://a.example"}}]}`), &o.Spec); err != nil {
		panic(err)
	}
	return o
}

// awaitPolicy waits until the API server enforces a policy, or none. Both are a moment after the change: it
// may still enforce the policy of the test before. One of two forgeries is refused then.
func (r *rig) awaitPolicy(enforced bool) {
	r.Helper()
	made := saga("")
	r.ok(r.admin.Create(r.Context(), made))
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"saga.vextrus.io/created-by":"eve"}}}`))
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		created, patched := r.admin.Create(r.Context(), saga("eve"), client.DryRunAll), r.admin.Patch(r.Context(), made.DeepCopy(), patch, client.DryRunAll)
		if enforced == (apierrors.IsForbidden(created) || apierrors.IsForbidden(patched)) {
			return
		}
	}
	r.Fatal("the API server does not enforce the policy as it is now")
}
