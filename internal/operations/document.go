package operations

import (
	"encoding/json"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	v1 "github.com/vextrus/saga-operator/api/v1"
)

// document is a saga as the API server has it. Its spec and its status stay the JSON that they are: as a tree they would take up to sixty
// times the memory, and their numbers would not stay as they were written.
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

// documents are a page of sagas.
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

// addDocuments has a scheme take sagas for documents.
func addDocuments(s *runtime.Scheme) error {
	s.AddKnownTypeWithName(v1.GroupVersion.WithKind("Saga"), &document{})
	s.AddKnownTypeWithName(v1.GroupVersion.WithKind("SagaList"), &documents{})
	metav1.AddToGroupVersion(s, v1.GroupVersion)
	return nil
}

// wanted is what somebody wants of a saga, by its spec.
type wanted struct{ Suspend, Cancel bool }

func (d *document) wanted() (w wanted, err error) {
	if err := json.Unmarshal(d.Spec, &w); err != nil {
		return w, fmt.Errorf("reading the spec of saga %s/%s: %w", d.Namespace, d.Name, err)
	}
	return w, nil
}

// phase is where a saga stands; empty before the operator has seen it.
func (d *document) phase() (v1.SagaPhase, error) {
	if len(d.Status) == 0 {
		return "", nil
	}
	var status struct{ Phase v1.SagaPhase }
	if err := json.Unmarshal(d.Status, &status); err != nil {
		return "", fmt.Errorf("reading the status of saga %s/%s: %w", d.Namespace, d.Name, err)
	}
	return status.Phase, nil
}

// encode is a saga as it is answered with.
func encode(d *document) (Object, error) {
	d.ManagedFields = nil
	d.SetGroupVersionKind(v1.GroupVersion.WithKind("Saga")) // the client drops it
	data, err := json.Marshal(d)
	if err != nil {
		return Object{}, fmt.Errorf("encoding saga %s/%s: %w", d.Namespace, d.Name, err)
	}
	return Object{JSON: data}, nil
}
