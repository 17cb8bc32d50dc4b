package main

import (
	"fmt"
	"os"
	"regexp"
	"regexp/syntax"
)

func hex(s string) string {
	if s == "" {
		return "-"
	}
	return fmt.Sprintf("%x", s)
}

func main() {
	texts := []string{"", "a", "b", "ab", "ba", "abc", "foo", "bar", "foobar", "barfoo", "foo\nbar", "\n", "foo\n", "\nfoo", "FOO", "Foo", "aa", "aaa", "a.b", "a+b", "a|b", "a-b", "api-1", "api-12",
		"api-", "x", "1", "12", "ä", "äb", "Ä", "日本", "k", "K", "\u212a", "ſ", "s", "foo$", "^foo", "_", "{", "a{", "a{1", "a{,2}", "]", "}", "\\", "a\\b", "host:9090", "10.0.0.1", "10x0.0.1", "GET", "get", "/api/v1/read", "a b", "\t", "\x00", "a\x00b", "prod-eu-1", "prod-us-2", "node_cpu", "5xx", "500", "503", "404", "\U0001F600"}
	pats := []string{"", ".", ".*", ".+", ".?", "a", "foo", "foo|bar", "foo|bar|", "|foo", "(foo|bar)", "(?:foo|bar)", "(foo|bar)baz?", "foo.*", "foo.+", ".*foo", ".*foo.*", ".+foo", "^foo$", "^foo", "foo$", "^foo|bar$", "foo$|^bar", "f^oo", "foo$bar", "(^foo)", "(foo$)", "^", "$", "^$", "^^foo", "foo$$", "^*", "$*", "^?foo", "a^b",
		"a*", "a+", "a?", "a*?", "a+?", "a??", "a**", "a++", "a?*", "*", "+", "?", "|*", "(*)", "a|*", "a{2}", "a{2,}", "a{1,2}", "a{0}", "a{0,}", "a{1}", "a{,2}", "a{", "a{1", "a{1,", "a{x}", "a{2}{3}", "a{2}*", "a{1001}", "a{1000}", "a{2,1}", "(a{1000}){2}", "{", "}", "]", "a]", "a}", "{2}",
		"[abc]", "[a-c]", "[^a]", "[^a-z]", "[]a]", "[^]a]", "[a-]", "[-a]", "[a", "[", "[]", "[^", "[b-a]", "[a-c]b", "[ab][bc]", "[abc]+", "[[:alpha:]]+", "[[:digit:]]", "[[:^digit:]]", "[[:foo:]]", "[a\\]]", "[\\d]", "[\\w-]+", "[a-\\d]", "[\\.]", "[.]", "[$]", "[日本]+", "[ä]", "[a-zA-Z0-9_]+", "[k]", "[\\x61]", "[\\n]",
		"\\.", "a\\.b", "a\\+b", "a\\|b", "a\\-b", "\\_", "\\-", "\\/", "\\:", "\\ ", "\\d", "\\d+", "\\D", "\\w+", "\\W", "\\s", "\\S+", "\\n", "\\t", "foo\\n", "\\a", "\\f", "\\v", "\\r", "\\b", "\\bfoo\\b", "\\Bfoo", "\\A", "\\Afoo", "foo\\z", "foo\\Z", "\\C", "\\x61", "\\x{61}", "\\x{1F600}", "\\141", "\\1", "\\8", "\\0", "\\07", "\\e", "\\g", "\\i", "\\ä", "\\", "a\\", "\\Qa.b\\E", "\\Qa.b", "\\Qa\\Eb", "\\E", "\\pL", "\\p{L}+", "\\pN", "\\PL", "\\p{Greek}", "\\p{foo}", "\\R", "\\X", "\\K", "\\Q\\\\E", "\\Qa\\b",
		"(?i)foo", "(?i:foo)", "(?i)FOO|bar", "foo|(?i)bar", "(?i)k", "(?i)s", "(?i)ä", "(?i)[a-c]", "(?s)foo.bar", "(?-s)foo.bar", "(?s:.)", "(?-s:.)", "(?m)^foo$", "(?m)foo$.bar", "(?m:^)foo", "(?U)a*", "(?U:a+)", "(?x)foo", "(?P<n>foo)", "(?<n>foo)", "(?<n>foo)|(?<m>bar)", "(?P<n>a)(?P<n>b)", "(?P<1n>a)", "(?P<>a)", "(?P=n)", "(?=a)", "(?!a)", "(?<=a)b", "(?<!a)b", "(?>a)", "(?#c)", "(?", "(", ")", "()", "(())", "(|)", "a)(b", "a)", "(a", "((a)", "(?:", "(?:)", "(?i", "(?i)", "(?i-s:foo)", "(?ii)a", "(?z)a", "(?i)(?-i)foo", "(?:(?i)foo)bar",
		"a|b|ab", "a(b|c)", "(a|b)(b|a)", "(a|b)c?", "(a|ab)c?", "a(|b)", "(foo)?bar", "(foo)*bar", "(foo)+", "foo(bar)?", "foo(.*)", "(foo).*", "foo.*bar", "foo.*.*", "foo.+.*", "foo.*.+", "foo.+.+", "foo.?", "foo.{2}", "foo.{0,}", "(foo|foo).*", "(foo|bar).*", "(foo|bar).+", "foo.*|foo.*", "foo.*|bar.*", "foo.*|bar", "foo|bar.*", "foo|foobar", ".*|foo", ".+|foo", "|.+", "|.*", "(.*)", "(.+)?", "(.*)foo", ".*.*", ".+.*", "..", "...", "(?:.)", "(a.*)?", "(a.+)|", "api-[0-9]", "api-[0-9]+", "api-\\d+", "api-.*", "api-(1|12)", "(api|app)-(1|2|12)", "prod-(eu|us)-[12]", "5..", "5xx|4xx", "[45]0[0-9]", "10\\.0\\.0\\.1", "10.0.0.1", "host:[0-9]+", "GET|POST", "/api/v1/(read|write)", "/api/.*", "node_.*", "日本|ä", "日.", "ä?b?", "日*", "日{2}", "\xff", "a\xffb", "[\xff]", "\x00", "a\x00b", "a\nb", "foo\nbar", "😀", ".{1}", "(ab)?c?", "x*", "x?y?z?", "((((a))))", "((a|b)|(c|d))", "a|b|c|d|e|f|g", "a||b", "||", "|", "a|(b|)", "[a][b]", "[ab]?", "[ab]*", "(?:a|b)?b", "^(foo|bar)$", "^(?:foo|bar)$", "^foo.*$", "^.*$", "^.+$", "(?i)^foo$", "foo-bar", "a#b", "a~b", "a\"b", "a'b", "a`b", "a&b", "a%b", "<a>", "\\<a\\>", "a,b", "a=b", "a@b", "\\@", "\\#", "\\\"", "\\'", "\\`", "\\~", "\\&", "\\%", "\\,", "\\;", "\\!", "\\=", "\\<"}
	fmt.Println("# What Go's regexp says of ^(?s:PATTERN)$, Prometheus' meaning of a matcher. First line: the texts. Then: pattern, and per text 1 or 0; ! = does not compile. All hexadecimal, - is empty.")
	for i, t := range texts {
		if i > 0 {
			fmt.Print(" ")
		}
		fmt.Print(hex(t))
	}
	fmt.Println()
	for _, p := range pats {
		if _, err := syntax.Parse(p, syntax.Perl|syntax.DotNL); err != nil {
			fmt.Println(hex(p), "!")
			fmt.Fprintln(os.Stderr, p, err)
			continue
		}
		re, err := regexp.Compile("^(?s:" + p + ")$")
		if err != nil {
			fmt.Println(hex(p), "!")
			continue
		}
		fmt.Print(hex(p), " ")
		for _, t := range texts {
			if re.MatchString(t) {
				fmt.Print("1")
			} else {
				fmt.Print("0")
			}
		}
		fmt.Println()
	}
}
