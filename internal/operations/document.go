package operations

import (
	"encoding/json"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// document is a saga as the API server stores it. Its spec and its status stay encoded. Decoded
// into a tree they would take up to sixty times the memory, and numbers would lose their original
// text.
type document struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              json.RawMessage `json:"spec,omitempty"`
	Status            json.RawMessage `json:"status,omitempty"`
}

// DeepCopyObject implements runtime.Object.
func (d *document) DeepCopyObject() runtime.Object {
	out := &document{TypeMeta: d.TypeMeta, Spec: slices.Clone(d.Spec), Status: slices.Clone(d.Status)}
	d.DeepCopyInto(&out.ObjectMeta)
	return out
}

// documents is a page of sagas.
type documents struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []document `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (d *documents) DeepCopyObject() runtime.Object {
	out := &documents{TypeMeta: d.TypeMeta, Items: make([]document, len(d.Items))}
	d.DeepCopyInto(&out.ListMeta)
	for i := range d.Items {
		out.Items[i] = *d.Items[i].DeepCopyObject().(*document)
	}
	return out
}

// addDocuments registers document and documents in a scheme as the types of Saga and SagaList.
func addDocuments(s *runtime.Scheme) error {
	s.AddKnownTypeWithName(v1.GroupVersion.WithKind("Saga"), &document{})
	s.AddKnownTypeWithName(v1.GroupVersion.WithKind("SagaList"), &documents{})
	metav1.AddToGroupVersion(s, v1.GroupVersion)
	return nil
}

// specFlags are the fields of a spec that the operations suspend, resume and cancel change.
type specFlags struct{ Suspend, Cancel bool }

func (d *document) specFlags() (f specFlags, err error) {
	if err := json.Unmarshal(d.Spec, &f); err != nil {
		return f, fmt.Errorf("decoding the spec of saga %s/%s: %w", d.Namespace, d.Name, err)
	}
	return f, nil
}

// statusFields are the fields of a status that the operations read.
type statusFields struct {
	Phase           v1.SagaPhase
	RecordedVersion int64
}

// statusFields returns fields of the saga's status. They are zero if the operator has not seen the
// saga yet.
func (d *document) statusFields() (f statusFields, err error) {
	if len(d.Status) == 0 {
		return f, nil
	}
	if err := json.Unmarshal(d.Status, &f); err != nil {
		return f, fmt.Errorf("decoding the status of saga %s/%s: %w", d.Namespace, d.Name, err)
	}
	return f, nil
}

// phase returns the phase in the saga's status.
func (d *document) phase() (v1.SagaPhase, error) {
	f, err := d.statusFields()
	return f.Phase, err
}

// recordedVersion returns the version of the last recorded event, according to the saga's status.
func (d *document) recordedVersion() (int64, error) {
	f, err := d.statusFields()
	return f.RecordedVersion, err
}

// encode returns a saga as a response contains it: without managed fields.
func encode(d *document) (Object, error) {
	d.ManagedFields = nil
	d.SetGroupVersionKind(v1.GroupVersion.WithKind("Saga")) // the client removes it when it decodes
	data, err := json.Marshal(d)
	if err != nil {
		return Object{}, fmt.Errorf("encoding saga %s/%s: %w", d.Namespace, d.Name, err)
	}
	return Object{JSON: data}, nil
}
