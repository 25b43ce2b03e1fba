package creators

import (
	"log/slog"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// believing returns a check that has just found the policy, as it is since a time.
func believing(t *testing.T, since time.Time) *Check {
	t.Helper()
	want, err := shippedFor(shippedUser)
	if err != nil {
		t.Fatal(err)
	}
	c := NewCheck(nil, slog.New(slog.DiscardHandler))
	c.want, c.since, c.keptTill = &want, since, c.clock().Add(time.Hour)
	return c
}

func TestSagaOlderThanPolicyIsNotBelieved(t *testing.T) {
	t.Parallel()
	since := time.Now().Add(-time.Hour)
	c := believing(t, since)
	for after, want := range map[time.Duration]bool{
		-time.Minute: false, 0: false, time.Second: false, settling: false, settling + time.Second: true, time.Minute: true,
	} {
		if got := c.Protected(t.Context(), since.Add(after)); got != want {
			t.Errorf("a saga that was created %s after the policy is believed: %t", after, got)
		}
	}
}

func TestWeakenedBindingIsNotBelieved(t *testing.T) {
	t.Parallel()
	c := believing(t, time.Now())
	for what, weaken := range map[string]func(*admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec){
		"another policy": func(s *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) { s.PolicyName = "other" },
		"only a warning": func(s *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) {
			s.ValidationActions = []admissionregistrationv1.ValidationAction{admissionregistrationv1.Warn}
		},
		"no action": func(s *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) { s.ValidationActions = nil },
		"parameters": func(s *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) {
			s.ParamRef = &admissionregistrationv1.ParamRef{}
		},
		"some sagas": func(s *admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) {
			s.MatchResources = &admissionregistrationv1.MatchResources{}
		},
	} {
		b := c.want.binding.DeepCopy()
		if err := c.checkBinding(b); err != nil {
			t.Fatalf("the shipped binding is refused: %v", err)
		}
		weaken(&b.Spec)
		if c.checkBinding(b) == nil {
			t.Errorf("%s: the binding is believed", what)
		}
	}
}

func TestPolicyIsAsOldAsItsLastChange(t *testing.T) {
	t.Parallel()
	made := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(after time.Duration) *metav1.Time { return &metav1.Time{Time: made.Add(after)} }
	o := &metav1.ObjectMeta{CreationTimestamp: *at(0), ManagedFields: []metav1.ManagedFieldsEntry{
		{Time: at(time.Hour)}, {Time: at(2 * time.Hour)}, {Time: at(time.Minute)}, {}, {Time: at(3 * time.Hour), Subresource: "status"},
	}}
	if got := changed(o); !got.Equal(made.Add(2 * time.Hour)) {
		t.Errorf("it was last changed at %s, want two hours after %s", got, made)
	}
}
