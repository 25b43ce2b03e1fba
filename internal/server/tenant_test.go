package server

import "testing"

func TestTenantOfServiceAccountIsNamespace(t *testing.T) {
	t.Parallel()
	for user, want := range map[string]string{
		"system:serviceaccount:shop:ada": "namespace shop", "system:serviceaccount:shop:bob": "namespace shop", "system:serviceaccount:shops:ada": "namespace shops",
		"ada": "user ada", "namespace shop": "user namespace shop",
	} {
		if got := tenantOf(user); got != want {
			t.Errorf("tenantOf(%q) = %q, want %q", user, got, want)
		}
	}
}
