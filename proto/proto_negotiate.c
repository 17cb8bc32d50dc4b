/* proto/proto_negotiate.c - which message a write request carries, judged from its headers before its body is looked at.
 *
 *   Content-Type                                                      message
 *   absent                                                            1.0
 *   application/x-protobuf                                            1.0
 *   application/x-protobuf;proto=prometheus.WriteRequest              1.0
 *   application/x-protobuf;proto=io.prometheus.write.v2.Request       2.0
 *   anything else                                                     415
 *
 * Media type, parameter name and encoding are matched without case and with spaces around them trimmed: a sender that writes "; proto=" means 2.0,
 * and to take that for 1.0, as some receivers do, loses its data silently. Content-Encoding: absent or snappy.
 */
#include <ctype.h>
#include "proto/proto.h"

static struct span trim(struct span s)
{
	while (s.n && (s.p[0] == ' ' || s.p[0] == '\t'))
		s = span_of(s.p + 1, s.n - 1);
	while (s.n && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\t'))
		s.n--;
	return s;
}

static bool same_word(struct span a, struct span b)
{
	if (a.n != b.n)
		return false;
	for (size_t i = 0; i < a.n; i++)
		if (tolower((unsigned char)a.p[i]) != tolower((unsigned char)b.p[i]))
			return false;
	return true;
}

/* Cuts *rest at the first `sep`: returns what is before it, trimmed. */
static struct span cut(struct span *rest, char sep)
{
	const char *at = rest->n ? memchr(rest->p, sep, rest->n) : NULL;
	struct span before = *rest;
	if (at) {
		before.n = (size_t)(at - rest->p);
		*rest = span_of(at + 1, rest->n - before.n - 1);
	} else {
		*rest = span_of(rest->p + rest->n, 0);
	}
	return trim(before);
}

errc rw_negotiate(struct span content_type, struct span content_encoding, enum rw_version *v, struct err *err)
{
	*v = RW_NONE;
	struct span rest = trim(content_type);
	enum rw_version found = RW_NONE;
	if (rest.n) {
		struct span media = cut(&rest, ';');
		if (!same_word(media, SPAN("application/x-protobuf")))
			return err_id(
				err, ERRID_CONTENT_TYPE, ERR_UNSUPPORTED, "content type \"%.*s\" is not application/x-protobuf", SPAN_ARG(media));
		while (rest.n) {
			struct span value = cut(&rest, ';');
			struct span name = cut(&value, '=');
			value = trim(value);
			if (!same_word(name, SPAN("proto")))
				continue;
			if (value.n >= 2 && value.p[0] == '"' && value.p[value.n - 1] == '"')
				value = span_of(value.p + 1, value.n - 2);
			enum rw_version this = span_is(value, "prometheus.WriteRequest")	  ? RW_1
					       : span_is(value, "io.prometheus.write.v2.Request") ? RW_2
												  : RW_NONE;
			if (this == RW_NONE || (found != RW_NONE && found != this))
				return err_id(err, ERRID_CONTENT_TYPE, ERR_UNSUPPORTED,
					"content type names the message \"%.*s\"; prometheus.WriteRequest and io.prometheus.write.v2.Request are "
					"understood",
					SPAN_ARG(value));
			found = this;
		}
	}
	struct span encoding = trim(content_encoding);
	if (encoding.n && !same_word(encoding, SPAN("snappy")))
		return err_id(err, ERRID_CONTENT_ENCODING, ERR_UNSUPPORTED, "content encoding \"%.*s\" is not snappy", SPAN_ARG(encoding));
	*v = found == RW_NONE ? RW_1 : found;
	return OK;
}
