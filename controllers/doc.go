// Package controllers is Kubernetes in, Kubernetes out: it watches the objects that users write, has the engine drive what they ask for, and
// mirrors where that stands into their status. It decides nothing: PostgreSQL does. Start reading at SagaReconciler.Reconcile; there is
// one file per concern.
package controllers
