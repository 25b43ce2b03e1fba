package controllers

import (
	"context"
	"fmt"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// secretForbidden is the problem of a sink whose Secret the operator may not read. The operator may
// read Secrets only in namespaces that let it, so the message is the command that does.
func (r *SinkReconciler) secretForbidden(ctx context.Context, namespace, name string) *sinkProblem {
	return &sinkProblem{v1.SinkReasonSecretForbidden, fmt.Sprintf(
		"The operator may not read the Secret %q in namespace %s. It looks again within %s. To let it read the Secrets there, run: "+
			"kubectl create rolebinding saga-secret-reader --namespace=%s --clusterrole=saga-secret-reader %s", name, namespace, r.pace.look, namespace, r.subject(ctx))}
}

// subject names the operator as kubectl does in a binding. The API server knows the name.
func (r *SinkReconciler) subject(ctx context.Context) string {
	if known := r.self.Load(); known != nil {
		return *known
	}
	review := &authenticationv1.SelfSubjectReview{}
	if err := r.Client.Create(ctx, review); err != nil || review.Status.UserInfo.Username == "" {
		r.Logger.Warn("failed to ask the API server who the operator is; check that it may create selfsubjectreviews, as all users may by default", "error", err)
		return "--serviceaccount=" + r.Namespace + ":saga-operator" // as it is shipped
	}
	user := review.Status.UserInfo.Username
	subject := fmt.Sprintf("--user=%q", user)
	if account, ok := strings.CutPrefix(user, "system:serviceaccount:"); ok {
		subject = "--serviceaccount=" + account
	}
	r.self.Store(&subject)
	return subject
}
