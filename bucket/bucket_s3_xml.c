/* bucket/bucket_s3_xml.c - S3's XML answers, element by element: expat with limits on depth and text, and without DOCTYPE (no entities to blow up). */
#include <expat.h>
#include <stdlib.h>
#include <time.h>
#include "bucket/bucket_s3_int.h"

struct parse {
	const struct s3_xml *handler;
	XML_Parser expat;
	errc rc;
	struct err err;
	int depth;
	char names[LIMIT_S3_XML_DEPTH + 1][S3_XML_NAME_BYTES]; /* names[depth] */
	char text[LIMIT_S3_XML_TEXT_BYTES];
	size_t text_n;
};

static void stop(struct parse *p, errc rc, const char *why)
{
	if (p->rc == OK)
		p->rc = why ? err_set(&p->err, rc, "%s", why) : rc;
	XML_StopParser(p->expat, XML_FALSE);
}

static void XMLCALL on_doctype(void *arg, const XML_Char *name, const XML_Char *sysid, const XML_Char *pubid, int internal)
{
	(void)name, (void)sysid, (void)pubid, (void)internal;
	stop(arg, ERR_CORRUPT, "XML with a DOCTYPE");
}

static void XMLCALL on_open(void *arg, const XML_Char *name, const XML_Char **attributes)
{
	struct parse *p = arg;
	(void)attributes;
	if (p->rc)
		return;
	if (p->depth == LIMIT_S3_XML_DEPTH) {
		stop(p, ERR_CORRUPT, "XML nested too deep");
		return;
	}
	const char *colon = strrchr(name, ':');
	const char *local = colon ? colon + 1 : name;
	size_t n = strlen(local);
	if (n >= S3_XML_NAME_BYTES)
		n = S3_XML_NAME_BYTES - 1; /* longer than any that is looked for */
	p->depth++;
	memcpy(p->names[p->depth], local, n);
	p->names[p->depth][n] = 0;
	p->text_n = 0;
	if (p->handler->open) {
		errc rc = p->handler->open(p->handler->arg, p->depth, p->names[p->depth], &p->err);
		if (rc)
			stop(p, rc, NULL);
	}
}

static void XMLCALL on_text(void *arg, const XML_Char *s, int n)
{
	struct parse *p = arg;
	if (p->rc)
		return;
	if ((size_t)n > sizeof p->text - p->text_n) {
		stop(p, ERR_CORRUPT, "XML element with too much text");
		return;
	}
	memcpy(p->text + p->text_n, s, (size_t)n);
	p->text_n += (size_t)n;
}

static void XMLCALL on_close(void *arg, const XML_Char *name)
{
	struct parse *p = arg;
	(void)name;
	if (p->rc)
		return;
	if (p->handler->close) {
		errc rc = p->handler->close(p->handler->arg, p->depth, p->depth > 1 ? p->names[p->depth - 1] : "", p->names[p->depth],
			span_of(p->text, p->text_n), &p->err);
		if (rc)
			stop(p, rc, NULL);
	}
	p->depth--;
	p->text_n = 0;
}

errc s3_xml_parse(const char *what, struct span xml, const struct s3_xml *handler, struct err *err)
{
	errc rc = OK;
	struct parse *p = calloc(1, sizeof *p);
	CHECK(p, ERR_NOMEM, "%s: out of memory", what);
	CHECK(xml.n <= LIMIT_S3_XML_BYTES, ERR_LIMIT, "%s: %zu bytes of XML", what, xml.n);
	p->handler = handler;
	p->expat = XML_ParserCreate(NULL);
	CHECK(p->expat, ERR_NOMEM, "%s: out of memory", what);
	XML_SetUserData(p->expat, p);
	XML_SetElementHandler(p->expat, on_open, on_close);
	XML_SetCharacterDataHandler(p->expat, on_text);
	XML_SetStartDoctypeDeclHandler(p->expat, on_doctype);

	enum XML_Status status = XML_Parse(p->expat, xml.p, (int)xml.n, 1);
	if (p->rc) {
		rc = err_set(err, p->rc, "%s: %s", what, p->err.msg);
		goto fail;
	}
	CHECK(status == XML_STATUS_OK || XML_GetErrorCode(p->expat) != XML_ERROR_NO_MEMORY, ERR_NOMEM, "%s: out of memory", what);
	CHECK(status == XML_STATUS_OK, ERR_CORRUPT, "%s: not XML at line %lu: %s", what, (unsigned long)XML_GetCurrentLineNumber(p->expat),
		XML_ErrorString(XML_GetErrorCode(p->expat)));
fail:
	if (p && p->expat)
		XML_ParserFree(p->expat);
	free(p);
	return rc;
}

/* n digits at *p, advancing; false when there are fewer. */
static bool digits(const char **p, const char *end, int n, int *out)
{
	*out = 0;
	for (int i = 0; i < n; i++, ++*p) {
		if (*p == end || **p < '0' || **p > '9')
			return false;
		*out = *out * 10 + (**p - '0');
	}
	return true;
}

static bool literal(const char **p, const char *end, char c)
{
	if (*p == end || **p != c)
		return false;
	++*p;
	return true;
}

static bool time_of(struct tm *tm, int64_t *ms)
{
	if (tm->tm_year < 1970 || tm->tm_mon < 1 || tm->tm_mon > 12 || tm->tm_mday < 1 || tm->tm_mday > 31 || tm->tm_hour > 23 || tm->tm_min > 59 ||
		tm->tm_sec > 60)
		return false;
	tm->tm_year -= 1900;
	tm->tm_mon -= 1;
	*ms = (int64_t)timegm(tm) * 1000;
	return true;
}

bool s3_time_parse(struct span s, int64_t *ms)
{
	const char *p = s.p, *end = s.p + s.n;
	struct tm tm = {0};
	if (!digits(&p, end, 4, &tm.tm_year) || !literal(&p, end, '-') || !digits(&p, end, 2, &tm.tm_mon) || !literal(&p, end, '-') ||
		!digits(&p, end, 2, &tm.tm_mday) || !literal(&p, end, 'T') || !digits(&p, end, 2, &tm.tm_hour) || !literal(&p, end, ':') ||
		!digits(&p, end, 2, &tm.tm_min) || !literal(&p, end, ':') || !digits(&p, end, 2, &tm.tm_sec))
		return false;
	int fraction = 0, scale = 100;
	if (p < end && *p == '.') {
		for (p++; p < end && *p >= '0' && *p <= '9'; p++, scale /= 10)
			fraction += (*p - '0') * scale;
	}
	if (!literal(&p, end, 'Z') || p != end || !time_of(&tm, ms))
		return false;
	*ms += fraction;
	return true;
}

bool s3_http_date_parse(struct span s, int64_t *ms)
{
	static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
	const char *p = s.p, *end = s.p + s.n;
	struct tm tm = {0};
	const char *comma = memchr(p, ',', s.n);
	if (!comma)
		return false;
	p = comma + 1;
	if (!literal(&p, end, ' ') || !digits(&p, end, 2, &tm.tm_mday) || !literal(&p, end, ' ') || end - p < 4)
		return false;
	for (int m = 0; m < 12 && !tm.tm_mon; m++) {
		if (memcmp(p, months + m * 3, 3) == 0)
			tm.tm_mon = m + 1;
	}
	p += 3;
	if (!literal(&p, end, ' ') || !digits(&p, end, 4, &tm.tm_year) || !literal(&p, end, ' ') || !digits(&p, end, 2, &tm.tm_hour) ||
		!literal(&p, end, ':') || !digits(&p, end, 2, &tm.tm_min) || !literal(&p, end, ':') || !digits(&p, end, 2, &tm.tm_sec) ||
		!span_is(span_of(p, (size_t)(end - p)), " GMT"))
		return false;
	return time_of(&tm, ms);
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

struct span s3_url_decode(struct span s, struct arena *arena)
{
	char *out = arena_alloc(arena, s.n + 1);
	size_t n = 0;
	if (!out)
		return (struct span){NULL, 0};
	for (size_t i = 0; i < s.n; i++) {
		if (s.p[i] == '%') {
			int hi = s.n - i > 2 ? hex_digit(s.p[i + 1]) : -1, lo = s.n - i > 2 ? hex_digit(s.p[i + 2]) : -1;
			if (hi < 0 || lo < 0)
				return (struct span){NULL, 0};
			out[n++] = (char)(hi * 16 + lo);
			i += 2;
		} else {
			out[n++] = s.p[i] == '+' ? ' ' : s.p[i];
		}
	}
	out[n] = 0;
	return span_of(out, n);
}
