/* query/query_json.c - values, times and label sets in the words of Prometheus' query API. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/json.h"
#include "query/query_int.h"

void json_labels(struct buf *out, struct labels l)
{
	buf_u8(out, '{');
	for (uint32_t i = 0; i < l.n; i++) {
		if (i > 0)
			buf_u8(out, ',');
		buf_json_string(out, l.v[i].name);
		buf_u8(out, ':');
		buf_json_string(out, l.v[i].value);
	}
	buf_u8(out, '}');
}

/* The fewest digits that read back as the same number: d.ddde[+-]dd. */
static void shortest(double v, char *text, size_t size)
{
	for (int digits = 0; digits <= 16; digits++) {
		snprintf(text, size, "%.*e", digits, v);
		if (f64_bits(strtod(text, NULL)) == f64_bits(v))
			return;
	}
}

/* As Go's 'f' with the fewest digits, and its 'e' below 1e-6 and from 1e21 on. */
void json_value(struct buf *out, uint64_t bits)
{
	char text[40], digits[24];
	double v = f64_of_bits(bits);
	if (isnan(v) || isinf(v)) {
		buf_printf(out, "\"%s\"", isnan(v) ? "NaN" : v > 0 ? "+Inf" : "-Inf");
		return;
	}
	shortest(fabs(v), text, sizeof text);
	const char *sign = bits >> 63 ? "-" : "";
	if (v != 0 && (fabs(v) < 1e-6 || fabs(v) >= 1e21)) {
		buf_printf(out, "\"%s%s\"", sign, text);
		return;
	}
	int n = 0, exponent = 0;
	const char *p = text;
	for (; *p && *p != 'e'; p++)
		if (*p != '.')
			digits[n++] = *p;
	digits[n] = 0;
	if (*p == 'e')
		exponent = atoi(p + 1);
	buf_printf(out, "\"%s", sign);
	static const char zeros[] = "000000000000000000000"; /* between 1e-6 and 1e21 */
	if (exponent < 0)
		buf_printf(out, "0.%.*s%s", -exponent - 1, zeros, digits);
	else if (exponent >= n - 1)
		buf_printf(out, "%s%.*s", digits, exponent - n + 1, zeros);
	else
		buf_printf(out, "%.*s.%s", exponent + 1, digits, digits + exponent + 1);
	buf_u8(out, '"');
}

void json_seconds(struct buf *out, int64_t t)
{
	uint64_t abs = t < 0 ? 0 - (uint64_t)t : (uint64_t)t;
	buf_printf(out, "%s%" PRIu64, t < 0 ? "-" : "", abs / 1000);
	if (abs % 1000 > 0)
		buf_printf(out, ".%03" PRIu64, abs % 1000);
}

void json_warnings(struct buf *out, const struct question *qn, const char *first)
{
	size_t n = 0;
	for (const char *text = first ? first : question_warning(qn, 0); text; n++) {
		buf_printf(out, "%s", n ? "," : ",\"warnings\":[");
		buf_json_string(out, span_cstr(text));
		text = question_warning(qn, first ? n : n + 1);
	}
	if (n > 0)
		buf_u8(out, ']');
}
