package httpheader

import (
	"strings"
	"testing"
)

func TestCheckRefusesForgedHeaders(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ names, message string }{
		{"Host content-length Transfer-Encoding TE Trailer Expect Proxy Proxy-Authorization Proxy-Anything", "is set by"},
		{"Idempotency-Key X-Idempotency-Key Saga-Id saga-step Saga-Callback Saga-Anything traceparent TraceState", "is set by"},
		{"Idempotency_Key IDEMPOTENCY.KEY idempotency~key X_Idempotency-Key Saga_Id saga.step Content_Length transfer_encoding", "to many servers"},
		{"X-Forwarded-For x-forwarded-proto X_Forwarded_For X-Forwarded Forwarded X-Real-Ip X_Real.IP X-Forwarded-Client-Cert", "who the client is"},
		{"X-Remote-User X-Remote-Group Remote-User remote_user Impersonate-User Impersonate-Extra-Scopes impersonate_group", "who the client is"},
		{"X-Original-URL X-Original-Host x_original_url X-Rewrite-URL X_Rewrite_Url", "which path"},
		{"X-Client-Cert X-Client-Certificate SSL-Client-Verify ssl_client_s_dn X-SSL-Client-Cert Client-Cert Client-Cert-Chain X-ARR-ClientCert X-Amzn-Mtls-Clientcert", "who the client is"},
		{"Content_Type User_Agent ce_id Ce.Source", "letters, digits and -"},
	} {
		for name := range strings.FieldsSeq(c.names) {
			if err := Check(name); err == nil || !strings.Contains(err.Error(), c.message) {
				t.Errorf("%s: %v, want %q", name, err, c.message)
			}
		}
	}
	for _, name := range []string{"", "X A", "X-A:", "X-\r\nB", "é"} {
		if err := Check(name); err == nil || !strings.Contains(err.Error(), "valid name") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestCheckTakesAuthorsOwnHeaders(t *testing.T) {
	t.Parallel()
	for name := range strings.FieldsSeq("Authorization Cookie Accept Content-Type User-Agent X-Tenant x_tenant X-Api-Key If-Match Prefer X-Request-Id Sagas X-Hosts Remote") {
		if err := Check(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add("Idempotency_Key")
	f.Add("x-tenant")
	f.Fuzz(func(t *testing.T, name string) {
		folded := Fold(name)
		if Check(name) == nil && (Check(folded) != nil || Fold(folded) != folded) {
			t.Fatalf("%q may be given, and %q may not", name, folded)
		}
	})
}
