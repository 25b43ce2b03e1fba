package creators

import (
	"bytes"
	"fmt"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/vextrus/saga-operator/config/admission"
)

// shippedUser is the name of the operator in the shipped policy.
const shippedUser = "system:serviceaccount:saga-system:saga-operator"

// shipped is the policy as it has to be in the cluster, and its binding.
type shipped struct {
	policy  admissionregistrationv1.ValidatingAdmissionPolicy
	binding admissionregistrationv1.ValidatingAdmissionPolicyBinding
}

// shippedFor returns the shipped policy for an operator that the cluster knows as user.
func shippedFor(user string) (s shipped, err error) {
	if user == "" || strings.ContainsAny(user, "'\\\"\n") {
		return s, fmt.Errorf("writing the policy for user %q: a user with such a name cannot be named in it; run the operator as a ServiceAccount", user)
	}
	text := strings.ReplaceAll(string(admission.CreatedByPolicy), shippedUser, user)
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(text)), len(text))
	for _, part := range []any{&s.policy, &s.binding} {
		if err := decoder.Decode(part); err != nil {
			return s, fmt.Errorf("reading the shipped admission policy: %w", err)
		}
	}
	return s, nil
}
