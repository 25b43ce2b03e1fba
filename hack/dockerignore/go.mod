module github.com/vextrus/saga-operator/hack/dockerignore

go 1.26.0

require github.com/moby/patternmatcher v0.6.1
