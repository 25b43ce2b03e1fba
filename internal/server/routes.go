package server

import (
	"context"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

const bearerScheme = "bearer"

// The limits of bodies, in bytes. That of a saga has room for its spec and its annotations; that of a callback is the largest answer that is kept.
const (
	maxSagaBody     = 1 << 20
	maxSmallBody    = 16 << 10
	maxCallbackBody = 1<<20 + 8<<10
)

// errorsOfAll are the errors that every operation can be answered with.
var errorsOfAll = []int{
	http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusUnprocessableEntity, http.StatusTooManyRequests,
	http.StatusRequestHeaderFieldsTooLarge, http.StatusInternalServerError, http.StatusServiceUnavailable,
}

const (
	sagasPath = "/v1/namespaces/{namespace}/sagas"
	sagaPath  = sagasPath + "/{name}"
)

// routes are all operations. Each is described here once; requests are parsed and the document is made by this description.
func (s *Server) routes(api huma.API) {
	conflict, body := []int{http.StatusConflict}, []int{http.StatusRequestTimeout, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType}
	register(s, api, huma.Operation{
		OperationID: "createSaga", Method: http.MethodPost, Path: sagasPath, DefaultStatus: http.StatusCreated, Errors: append(conflict, body...),
		Summary:     "Create a saga",
		Description: "Needs the verb create. The same request with the same Idempotency-Key creates one saga, and gets the same answer for 24 hours.",
	}, operation{body: maxSagaBody}, s.createSaga)
	register(s, api, huma.Operation{
		OperationID: "listSagas", Method: http.MethodGet, Path: sagasPath, Errors: []int{http.StatusGone},
		Summary: "List sagas", Description: "Needs the verb list. An answer has continue when there is more.",
	}, operation{}, s.listSagas)
	register(s, api, huma.Operation{
		OperationID: "getSaga", Method: http.MethodGet, Path: sagaPath, Summary: "Get a saga", Description: "Needs the verb get.",
	}, operation{}, s.getSaga)
	register(s, api, historyOperation(api), operation{stream: true}, s.sagaHistory)
	for _, change := range []struct {
		id, path, summary, description string
		handle                         func(context.Context, *SagaPath) (*sagaOutput, error)
	}{
		{"suspendSaga", "/suspend", "Hold a saga", "Needs the verb patch. No attempt is started until the saga is resumed. Doing it again changes nothing.", s.suspendSaga},
		{"resumeSaga", "/resume", "Have a saga go on", "Needs the verb patch. Doing it again changes nothing.", s.resumeSaga},
		{"cancelSaga", "/cancel", "Have a saga rolled back", "Needs the verb patch. It cannot be taken back. Doing it again changes nothing.", s.cancelSaga},
	} {
		register(s, api, huma.Operation{
			OperationID: change.id, Method: http.MethodPost, Path: sagaPath + change.path, Errors: conflict, Summary: change.summary, Description: change.description,
		}, operation{}, change.handle)
	}
	register(s, api, huma.Operation{
		OperationID: "decideSaga", Method: http.MethodPost, Path: sagaPath + "/decide", Errors: append(conflict, body...),
		Summary:     "Decide about a parked saga",
		Description: "Needs the verb update on sagas/decide. Who decided, and why, is part of the saga's history. The same decision again, by its Idempotency-Key, changes nothing, whatever the saga has done since.",
	}, operation{body: maxSmallBody}, s.decideSaga)
	register(s, api, huma.Operation{
		OperationID: "abandonSaga", Method: http.MethodPost, Path: sagaPath + "/abandon", Errors: append(conflict, body...),
		Summary:     "Abandon a saga",
		Description: "Needs the verb update on sagas/abandon. The saga ends as it is, and the operator does nothing more for it. This cannot be reverted. Who abandoned it, and why, is part of its history. Doing it again changes nothing.",
	}, operation{body: maxSmallBody}, s.abandonSaga)
	register(s, api, huma.Operation{
		OperationID: "answerCallback", Method: http.MethodPost, Path: "/v1/callbacks/{token}", DefaultStatus: http.StatusNoContent, Errors: append([]int{http.StatusGone}, append(conflict, body...)...),
		Summary:     "Answer an attempt later",
		Description: "For participants: the URL came in the header Saga-Callback, and its token is the credential. The same answer again is taken again; another one is a conflict.",
	}, operation{body: maxCallbackBody, public: true, callback: true}, s.answerCallback)
	s.serveDocument("/openapi.json", "application/vnd.oai.openapi+json", &s.documentJSON)
	s.serveDocument("/openapi.yaml", "application/vnd.oai.openapi", &s.documentYAML)
}

// register adds an operation to the document, and to the mux, behind what it asks for.
func register[I, O any](s *Server, api huma.API, described huma.Operation, o operation, handle func(context.Context, *I) (*O, error)) {
	described.Security = []map[string][]string{{bearerScheme: {}}}
	if o.public {
		described.Security = []map[string][]string{}
	}
	for _, status := range errorsOfAll {
		if !o.public || status != http.StatusUnauthorized && status != http.StatusForbidden {
			described.Errors = append(described.Errors, status)
		}
	}
	described.MaxBodyBytes, described.BodyReadTimeout = -1, -1 // both are seen to before
	o.server, o.id, o.handler = s, described.OperationID, s.mux
	s.operations[described.Method+" "+described.Path] = &o
	huma.Register(api, described, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			return nil, s.failure(ctx, err)
		}
		return out, nil
	})
	requireKey(api, described)
}

// requireKey says in the document that a key is needed, where it is. The handler asks for it by itself, because its absence has a status of its own.
func requireKey(api huma.API, o huma.Operation) {
	if item := api.OpenAPI().Paths[o.Path]; o.OperationID == "createSaga" {
		for _, p := range item.Post.Parameters {
			p.Required = p.Required || strings.EqualFold(p.Name, "Idempotency-Key")
		}
	}
}

// serveDocument serves the document, which needs no credentials: it is the same for everybody.
func (s *Server) serveDocument(path, media string, document *[]byte) {
	pattern := http.MethodGet + " " + path
	s.operations[pattern] = &operation{server: s, id: "openapi", public: true, handler: s.mux}
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", media)
		_, _ = w.Write(*document)
	})
}
