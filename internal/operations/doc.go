// Package operations is what can be asked of the operator: commands and queries about sagas, on two buses. Whoever is in front of them, HTTP or another program, authenticates the
// caller and sends; who may do what is decided here, for every command and every query, by the cluster (see Permission).
//
// Sagas are objects of Kubernetes: starting, holding and cancelling one changes its object, as kubectl does, and the reconcilers do the rest. Their history is in PostgreSQL, where no
// role of the cluster reaches: it is read for those only who may get the saga. Start reading at New.
package operations
