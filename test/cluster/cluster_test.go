package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/vextrus/saga-operator/internal/ports"
	"github.com/vextrus/saga-operator/test/cluster"
)

// patience bounds every wait. It is long because the machine may be busy; nothing waits that long when all is well.
const patience = 5 * time.Minute

// shared is the cluster of the tests that do not stop it.
var shared *cluster.Cluster

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard())
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	var err error
	shared, err = cluster.Start(ctx, cluster.Options{CRDs: []string{}, Manifests: []string{"testdata/policy.yaml"}, ControllerManager: true})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := shared.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func TestTheServerReportsItsRelease(t *testing.T) {
	if !ours(t) {
		t.Skip("the user's binaries may be of any release")
	}
	t.Parallel()
	d, err := discovery.NewDiscoveryClientForConfig(shared.Config)
	if err != nil {
		t.Fatal(err)
	}
	v, err := d.ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile("../../hack/controlplane/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mod), "k8s.io/kubernetes "+v.GitVersion+"\n") {
		t.Errorf("the server reports %s, which is not what hack/controlplane/go.mod requires", v.GitVersion)
	}
}

// ours says whether the control plane is the one that `make controlplane` builds, as it is in `make test`, and not another that the user has named.
func ours(t *testing.T) bool {
	t.Helper()
	named := os.Getenv("KUBEBUILDER_ASSETS")
	if named == "" {
		return true
	}
	cmd := exec.CommandContext(t.Context(), "../../hack/controlplane/build.sh", "--dir")
	cmd.Env = append(os.Environ(), "KUBEBUILDER_ASSETS=")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	built, err1 := os.Stat(strings.TrimSpace(string(out)))
	used, err2 := os.Stat(named)
	return err1 == nil && err2 == nil && os.SameFile(built, used)
}

func TestADeletedNamespaceIsEmptiedAndGoes(t *testing.T) {
	t.Parallel()
	c := newClient(t, shared.Config)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "doomed"}}
	create(t, c, ns)
	create(t, c, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "doomed", Name: "inside"}})
	if err := c.Delete(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the namespace is gone", func() error { return gone(c.Get(t.Context(), client.ObjectKeyFromObject(ns), ns)) })
}

func TestDependentsOfADeletedOwnerAreCollected(t *testing.T) {
	t.Parallel()
	c := newClient(t, shared.Config)
	owner := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "owner"}}
	create(t, c, owner)
	dependent := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "dependent",
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID}}}}
	create(t, c, dependent)
	if err := c.Delete(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the dependent is gone", func() error { return gone(c.Get(t.Context(), client.ObjectKeyFromObject(dependent), dependent)) })
}

func TestAMutatingAdmissionPolicyPutsAFinalizerAndTheCreatorsName(t *testing.T) {
	t.Parallel()
	c := newClient(t, shared.Config)
	i := 0
	eventually(t, "the policy takes effect", func() error {
		i++
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("marked-%d", i), Labels: map[string]string{"mark": ""}}}
		create(t, c, m)
		if len(m.Finalizers) != 1 || m.Annotations["created-by"] != "admin" {
			return fmt.Errorf("finalizers %q, annotations %q", m.Finalizers, m.Annotations)
		}
		return nil
	})
}

func TestAUserAndAServiceAccountMayDoWhatRBACGrantsAndNoMore(t *testing.T) {
	t.Parallel()
	admin := newClient(t, shared.Config)
	user, err := shared.User("jane", "readers")
	if err != nil {
		t.Fatal(err)
	}
	account, err := shared.ServiceAccount(t.Context(), "operators", "operator")
	if err != nil {
		t.Fatal(err)
	}
	create(t, admin, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "readers"},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"list"}}}})
	create(t, admin, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "readers"},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "readers"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "readers"},
			{Kind: "ServiceAccount", Namespace: "operators", Name: "operator"}}})

	for name, config := range map[string]*rest.Config{"user": user, "service account": account} {
		text, err := cluster.Kubeconfig(config)
		if err != nil {
			t.Fatal(err)
		}
		loaded, err := clientcmd.RESTConfigFromKubeConfig(text)
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, loaded)
		eventually(t, name+" may list", func() error { return c.List(t.Context(), &corev1.ConfigMapList{}) })
		if err := c.List(t.Context(), &corev1.SecretList{}); !apierrors.IsForbidden(err) {
			t.Errorf("%s lists secrets: %v, want forbidden", name, err)
		}
	}
}

func TestARestartedAPIServerKeepsItsDataAndCredentials(t *testing.T) {
	t.Parallel()
	cl := cluster.New(t, cluster.Options{CRDs: []string{}})
	account, err := cl.ServiceAccount(t.Context(), "default", "before")
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, cl.Config)
	kept := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kept"}}
	create(t, c, kept)

	if err := cl.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(kept), kept); err == nil {
		t.Error("the stopped server answers")
	}
	if p, err := ports.Take(t.Context(), portOf(t, cl.Config.Host)); err == nil {
		p.Release()
		t.Error("somebody else could take the port of the server while it was stopped")
	}
	if err := cl.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(kept), kept); err != nil {
		t.Error(err)
	}
	if err := newClient(t, account).Get(t.Context(), client.ObjectKeyFromObject(kept), kept); !apierrors.IsForbidden(err) {
		t.Errorf("the token of before: %v, want forbidden, not unauthorized", err)
	}
}

func TestAStoppedClusterLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	cl := cluster.New(t, cluster.Options{CRDs: []string{}, ControllerManager: true})
	dir := filepath.Dir(cl.Kubeconfig())
	pids := processes(t, dir)
	if len(pids) != 3 {
		t.Fatalf("the cluster has processes %v, want 3", pids)
	}
	if err := cl.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is still there", pid)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there", dir)
	}
}

func TestAStartThatIsGivenUpLeavesNothingBehind(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := cluster.Start(ctx, cluster.Options{CRDs: []string{}})
		ended <- err
	}()
	// It is given up when etcd runs: kube-apiserver is yet to come then.
	eventually(t, "etcd is started", func() error {
		select {
		case err := <-ended:
			ended <- err
			return nil
		default:
		}
		if len(processes(t, filepath.Join(os.TempDir(), "saga-cluster-*"))) == 0 {
			return errors.New("its process id is not recorded")
		}
		return nil
	})
	pids := processes(t, filepath.Join(os.TempDir(), "saga-cluster-*"))
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v, want canceled", err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is still there", pid)
		}
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestAStartThatIsGivenUpAtItsVeryBeginningSaysSo gives it up while it asks where the control plane is.
func TestAStartThatIsGivenUpAtItsVeryBeginningSaysSo(t *testing.T) {
	repository := t.TempDir()
	script := filepath.Join(repository, "hack", "controlplane", "build.sh")
	if err := os.MkdirAll(filepath.Dir(script), 0o700); err != nil {
		t.Fatal(err)
	}
	asked := filepath.Join(repository, "asked")
	if err := syscall.Mkfifo(asked, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho >'"+asked+"'\nexec sleep 600\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(repository)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, _ = os.ReadFile(asked) // returns when the script has written
		cancel()
	}()
	if _, err := cluster.Start(ctx, cluster.Options{CRDs: []string{}}); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v, want canceled", err)
	}
}

func TestAMissingControlPlaneSaysHowToGetIt(t *testing.T) {
	t.Setenv("KUBEBUILDER_ASSETS", t.TempDir())
	if _, err := cluster.Start(t.Context(), cluster.Options{CRDs: []string{}}); err == nil || !strings.Contains(err.Error(), "make controlplane") {
		t.Errorf("the error is %v", err)
	}
}

// processes are the ids that the cluster's guard has recorded. A file may be there before the id is in it.
func processes(t *testing.T, dir string) (pids []int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "run", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if len(text) == 0 || text[len(text)-1] != '\n' {
			continue
		}
		var pid int
		if _, err := fmt.Sscan(string(text), &pid); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func portOf(t *testing.T, host string) int {
	t.Helper()
	_, text, err := net.SplitHostPort(strings.TrimPrefix(strings.TrimSuffix(host, "/"), "https://"))
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return number
}

func newClient(t *testing.T, config *rest.Config) client.Client {
	t.Helper()
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func create(t *testing.T, c client.Client, o client.Object) {
	t.Helper()
	if err := c.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

func gone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return errors.Join(errors.New("still there"), err)
}

func eventually(t *testing.T, what string, holds func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) { //nolint:forbidigo // the pause between two looks
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s: %v", what, err)
		}
	}
}
