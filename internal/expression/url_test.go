package expression

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAValueCannotLeaveItsPlaceInAURL(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		"http://h/orders/${input.orderId}":               "http://h/orders/1042",
		"http://h/orders/${input.path}":                  "http://h/orders/a%2F..%2Fb%3Fc%23d%20%C3%A9",
		"http://h/?q=${input.path}&n=1":                  "http://h/?q=a%2F..%2Fb%3Fc%23d+%C3%A9&n=1",
		"http://h-${input.orderId}.x:80/":                "http://h-1042.x:80/",
		"http://${input.orderId == '' ? 'a' : 'b.c:8'}/": "http://b.c:8/",
		"${'http://h/x'}/${input.path}":                  "http://h/x/a%2F..%2Fb%3Fc%23d%20%C3%A9",
		"${'http://h/x?a=1'}&b=${'&c=2'}":                "http://h/x?a=1&b=%26c%3D2",
		"${'http://other/x?y=' + input.orderId}":         "http://other/x?y=1042",
		"http://h/orders/${input.count}/${'lines'}":      "http://h/orders/3/lines",
	} {
		got, err := render(t, map[string]any{"url": source}, WithoutResponse)
		if err != nil || got.(map[string]any)["url"] != want {
			t.Errorf("%s: got %v, %v, want %s", source, got, err, want)
		}
	}
	for source, want := range map[string]string{
		"http://${input.path}/":          "cannot stand in the host",
		"http://h${'.evil' + ''}/":       "cannot stand in the host",
		"http://h${':1' + ''}/":          "cannot stand in the host",
		"http://h${'_' + ''}.x/":         "cannot stand in the host",
		"http://${'[' + ''}::1]/":        "cannot stand in the host",
		"http://h:8${'.' + ''}/":         "cannot stand in the host",
		"http://${'' + ''}h/":            "cannot stand in the host",
		"http://h${'@evil'}/":            "cannot stand in the host",
		"http://h${':1@evil'}/":          "cannot stand in the host",
		"http://h/orders/${input.empty}": "empty",
		"http://h/orders/${input.note}":  "null",
	} {
		_, err := render(t, map[string]any{"url": source}, WithoutResponse)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", source, err, want)
		}
	}
	// Elsewhere a text stays as it is.
	got, err := render(t, map[string]any{"body": map[string]any{"url": "http://h/${input.path}"}}, WithoutResponse)
	if want := map[string]any{"body": map[string]any{"url": "http://h/a/../b?c#d é"}}; err != nil || !cmp.Equal(want, got) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestSampleURLsRefuseHostByValue(t *testing.T) {
	t.Parallel()
	for template, want := range map[string]string{
		"${input.url}":                                                "begins with an expression",
		"${input.base}/x/${input.id}":                                 "begins with an expression",
		"${steps.a.output.location}":                                  "begins with an expression",
		"${input.scheme}://h/x":                                       "begins with an expression",
		"${input.host}:80/":                                           "begins with an expression",
		"${'http://h/' + input.id}":                                   "begins with an expression",
		"${''}${input.url}":                                           "begins with an expression",
		"${input.a ? input.b : 'http://h'}/x":                         "begins with an expression",
		"${input.a ? 'http://g' : input.b}/x":                         "begins with an expression",
		"http://h:${input.port}/x":                                    "in its port",
		"http://h:8${input.port}/x":                                   "in its port",
		"http://[::1]:${input.port}/x":                                "in its port",
		"${'http://h:80'}${input.more}/x":                             "in its port",
		"http://h${input.a ? '@evil' : 'x'}/":                         "cannot stand in the host",
		"http://" + strings.Repeat("${input.a ? 'a' : 'b'}", 7) + "/": "more than 64 hosts",
	} {
		if urls, err := SampleURLs(template); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v, want %q", template, urls, err, want)
		}
	}
}

func TestSampleURLsShowEveryChoice(t *testing.T) {
	t.Parallel()
	for template, want := range map[string][]string{
		"http://h/x":                                                 {"http://h/x"},
		"http://${input.region}.payments/x":                          {"http://1.payments/x"},
		"http://h/${input.url}?q=${input.a ? 'b' : 'c'}":             {"http://h/1?q=1"},
		"${input.eu ? 'http://eu:80' : 'https://us/v1'}/${input.id}": {"http://eu:80/1", "https://us/v1/1"},
		"http://${input.a ? 'a.b' : input.c ? 'c:1' : 'd'}/":         {"http://a.b/", "http://c:1/", "http://d/"},
		"http://h:${input.a ? '1' : '2'}/":                           {"http://h:1/", "http://h:2/"},
		"http://h/$${x}":                                             {"http://h/${x}"},
	} {
		got, err := SampleURLs(template)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v, %s", template, err, diff)
		}
	}
}

// FuzzURLHost renders values of any kind into the host: they never choose another domain or port.
func FuzzURLHost(f *testing.F) {
	for _, value := range []string{"eu", ".evil", ":1", "@evil", "x/..", "x?", "x#", `x\`, "[", "é", "%2e", "１", ""} {
		f.Add(value)
	}
	tmpl, errs := Compile(map[string]any{"url": "http://a-${input.x}.payments.svc:80/x"}, WithoutResponse)
	if errs != nil {
		f.Fatal(errs)
	}
	f.Fuzz(func(t *testing.T, value string) {
		got, err := tmpl.Render(t.Context(), Scope{Input: map[string]any{"x": value}})
		if err != nil {
			return
		}
		u, err := url.Parse(got.(map[string]any)["url"].(string))
		if err != nil || u.User != nil || u.Port() != "80" || u.Path != "/x" || strings.Count(u.Host, ".") != 2 || !strings.HasSuffix(u.Host, ".payments.svc:80") {
			t.Fatalf("%q: %v, %v", value, got, err)
		}
	})
}
