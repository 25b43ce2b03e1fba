package run

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// fromConfig reads the first object of a manifest in config/, strictly.
func fromConfig[T any](t *testing.T, file string) *T {
	t.Helper()
	text, err := os.ReadFile("../../../config/" + file)
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n---\n")
	o := new(T)
	if err := yaml.UnmarshalStrict([]byte(first), o); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return o
}

// containerPorts are the ports of the operator's container, by name.
func containerPorts(d *appsv1.Deployment) map[string]int32 {
	ports := map[string]int32{}
	for _, p := range d.Spec.Template.Spec.Containers[0].Ports {
		ports[p.Name] = p.ContainerPort
	}
	return ports
}

func TestDeploymentNamesDefaultPorts(t *testing.T) {
	t.Parallel()
	c, err := Parse(nil, environ("DATABASE_URL", databaseURL), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	ports := containerPorts(fromConfig[appsv1.Deployment](t, "manager/manager.yaml"))
	seen := map[string]string{}
	for name, address := range map[string]string{"api": c.API.Address, "metrics": c.Metrics.Address, "health": c.HealthAddress} {
		if want := ":" + strconv.Itoa(int(ports[name])); address != want {
			t.Errorf("the default address of %s is %s, and the Deployment says %s", name, address, want)
		}
		if other := seen[address]; other != "" {
			t.Errorf("%s and %s have the same default address %s", name, other, address)
		}
		seen[address] = name
	}
}

func TestNetworkPolicyFitsDeployment(t *testing.T) {
	t.Parallel()
	deployment := fromConfig[appsv1.Deployment](t, "manager/manager.yaml")
	policy := fromConfig[networkingv1.NetworkPolicy](t, "network-policy/network_policy.yaml")
	selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector)
	if err != nil {
		t.Fatal(err)
	}
	if policy.Namespace != deployment.Namespace || !selector.Matches(labels.Set(deployment.Spec.Template.Labels)) {
		t.Errorf("the policy selects %s in namespace %s, which are not the operator's pods", selector, policy.Namespace)
	}
	if fmt.Sprint(policy.Spec.PolicyTypes) != "[Ingress Egress]" {
		t.Errorf("the policy is about %v", policy.Spec.PolicyTypes)
	}

	ports, open := containerPorts(deployment), map[string][]networkingv1.NetworkPolicyPeer{}
	for _, rule := range policy.Spec.Ingress {
		if len(rule.From) == 0 || len(rule.Ports) == 0 {
			t.Errorf("this rule admits all callers, or to all ports: %+v", rule)
		}
		for _, p := range rule.Ports {
			if p.Port.Type != intstr.String || ports[p.Port.StrVal] == 0 || *p.Protocol != corev1.ProtocolTCP {
				t.Errorf("the policy admits callers to port %s, which the Deployment does not name", p.Port)
			}
			open[p.Port.StrVal] = rule.From
		}
	}
	if len(open) != 2 || open["api"] == nil || open["metrics"] == nil {
		t.Errorf("the policy admits callers to %v, want api and metrics", open)
	}
	for _, peer := range open["metrics"] {
		if peer.NamespaceSelector == nil || len(peer.NamespaceSelector.MatchLabels) == 0 {
			t.Errorf("metrics are open to %+v", peer)
		}
	}
	checkEgress(t, policy.Spec.Egress)
}

// checkEgress checks that the operator finds what it needs, and that no rule lets it connect anywhere.
func checkEgress(t *testing.T, rules []networkingv1.NetworkPolicyEgressRule) {
	t.Helper()
	needed := map[string]bool{"UDP 53": false, "TCP 53": false, "TCP 5432": false, "TCP 6443": false}
	for _, rule := range rules {
		if len(rule.To) == 0 {
			t.Errorf("this rule lets the operator connect to all addresses: %+v", rule)
		}
		for _, peer := range rule.To {
			if peer.IPBlock != nil {
				if _, network, err := net.ParseCIDR(peer.IPBlock.CIDR); err != nil {
					t.Error(err)
				} else if ones, _ := network.Mask.Size(); ones < 8 {
					t.Errorf("this rule lets the operator connect to %s", network)
				}
				continue
			}
			if peer.NamespaceSelector == nil || len(peer.NamespaceSelector.MatchLabels) == 0 {
				t.Errorf("this rule lets the operator connect to the pods of all namespaces: %+v", rule)
			}
		}
		for _, p := range rule.Ports {
			needed[fmt.Sprintf("%s %s", *p.Protocol, p.Port)] = true
		}
	}
	for port, found := range needed {
		if !found {
			t.Errorf("the operator cannot connect to %s", port)
		}
	}
}
