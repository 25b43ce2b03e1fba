// Package v1 holds the resources that users write. A Saga is the place to start: its spec says what to do, its status mirrors how far
// that has come. What is decided is decided elsewhere; nothing here does more than give access to a field.
//
// +kubebuilder:object:generate=true
// +groupName=saga.vextrus.io
package v1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the group and the version of everything in this package.
var GroupVersion = schema.GroupVersion{Group: "saga.vextrus.io", Version: "v1"}

var schemeBuilder = runtime.NewSchemeBuilder(addKnownTypes)

// AddToScheme makes the types of this package known to a scheme.
var AddToScheme = schemeBuilder.AddToScheme

func addKnownTypes(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion, &Saga{}, &SagaList{}, &Sink{}, &SinkList{}, &ClusterSink{}, &ClusterSinkList{})
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
