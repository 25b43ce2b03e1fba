package main

var secretBreaks = []Break{
	{
		Name: "A sink's secret is shown in text",
		File: "internal/outbox/sink/sink.go",
		Old:  "	return redacted\n", New: "	return string(s)\n",
		Package: "./internal/outbox/sink", Test: "TestSecretIsRedactedInText",
	},
	{
		Name: "A sink's secret is shown in Go syntax",
		File: "internal/outbox/sink/sink.go",
		Old:  "// GoString implements fmt.GoStringer.\nfunc (s Secret) GoString() string { return s.String() }\n", New: "",
		Package: "./internal/outbox/sink", Test: "TestSecretIsRedactedInGoSyntax",
	},
	{
		Name: "A sink's secret is shown in JSON",
		File: "internal/outbox/sink/sink.go",
		Old:  "// MarshalText implements encoding.TextMarshaler.\nfunc (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }\n", New: "",
		Package: "./internal/outbox/sink", Test: "TestSecretIsRedactedInJSON",
	},
	{
		Name: "A sink's secret is shown in logs",
		File: "internal/outbox/sink/sink.go",
		Old:  "slog.StringValue(s.String())", New: "slog.StringValue(string(s))",
		Package: "./internal/outbox/sink", Test: "TestSecretIsRedactedInLogs",
	},
	{
		Name: "A secret that a service repeats in base64 is shown in the error",
		File: "controllers/sink_secrets.go",
		Old:  "		all = append(all, base64.StdEncoding.EncodeToString([]byte(username+\":\"+password)))\n", New: "		all = append(all, username+\":\"+password)\n",
		Package: "./controllers", Test: "TestSinkErrorsHaveNothingOfItsSecret",
	},
	{
		Name: "A Secret that lists * is sent to every host",
		File: "controllers/sink_secrets.go",
		Old:  "ok && isName && len(below) > 1 && below[0] == '.' && ", New: "ok && isName && ",
		Package: "./controllers", Test: "TestSecretAllowsOnlyHostsThatItLists",
	},
	{
		Name: "A Kafka broker names a host that gets the credentials",
		File: "controllers/sink_secrets.go",
		Old:  "	if len(all.lists) == 0 {\n		return dial\n	}\n", New: "	if len(all.lists) != 1 {\n		return dial\n	}\n",
		Package: "./controllers", Test: "TestBrokersOfSecretAreThoseItLists",
	},
	{
		Name: "A reference names a Secret of another namespace",
		File: "api/v1/sink_types.go",
		Old:  "type SinkSecretReference struct {\n", New: "type SinkSecretReference struct {\n	Namespace string `json:\"namespace,omitempty\"`\n",
		Package: "./api/v1", Test: "TestNoReferenceNamesNamespace",
	},
	{
		Name: "A callback token that was cut off is not redacted",
		File: "internal/callbacktoken/callbacktoken.go",
		Old:  "prefix + `[A-Za-z0-9_-]+`", New: "prefix + `[A-Za-z0-9_-]{43}`",
		Package: "./internal/callbacktoken", Test: "TestRedactRemovesTokens",
	},
	{
		Name: "A callback token that is written with escapes is not redacted in JSON",
		File: "internal/callbacktoken/callbacktoken.go",
		Old:  "if !bytes.Contains(raw, []byte(prefix)) && !bytes.Contains(raw, []byte(`\\u00`)) {", New: "if !bytes.Contains(raw, []byte(prefix)) {",
		Package: "./internal/callbacktoken", Test: "TestRedactJSONRemovesTokens",
	},
	{
		Name: "A callback token in an error is logged",
		File: "cmd/manager/run/logging.go",
		Old:  "a.Value = slog.AnyValue(callbacktoken.RedactError(err))", New: "a.Value = slog.AnyValue(err)",
		Package: "./cmd/manager/run", Test: "TestLoggerRedactsCallbackTokens",
	},
	{
		Name: "Profiles of the memory are served to other machines",
		File: "cmd/manager/run/metrics.go",
		Old:  "	case !loopback:\n", New: "	case !loopback && address[0] != ':':\n",
		Package: "./cmd/manager/run", Test: "TestConfigRefusesPprofBeyondLoopback",
	},
}
