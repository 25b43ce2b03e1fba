package operations

import (
	"fmt"
	"net/http"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// NewClient returns a client that is fit for Options: without a cache, so that whoever has created a saga finds it, and strict about fields. transport may be nil.
func NewClient(config *rest.Config, transport *http.Client) (client.Client, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{addDocuments, authenticationv1.AddToScheme, authorizationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("making the API's client: %w", err)
		}
	}
	if transport == nil {
		var err error
		if transport, err = rest.HTTPClientFor(config); err != nil {
			return nil, fmt.Errorf("making the API's client: %w", err)
		}
	}
	metered := *transport
	metered.Transport = impersonatingTransport{meteredTransport{transport.Transport}}
	transport = &metered
	c, err := client.New(config, client.Options{Scheme: scheme, HTTPClient: transport, FieldValidation: metav1.FieldValidationStrict})
	if err != nil {
		return nil, fmt.Errorf("making the API's client: %w", err)
	}
	return c, nil
}
