/* net/net_route.c - which handler a method and path belong to.
 *
 * Paths are compared segment by segment, each decoded on its own: %2F inside a segment is part of a name, not a separator. An exact path
 * wins over one with a "*". Scanning a table of a few dozen routes costs less than hashing the path would.
 */
#include "net/net_int.h"

static struct span segment_next(struct span *rest)
{
	const char *slash = memchr(rest->p, '/', rest->n);
	struct span s = span_of(rest->p, slash ? (size_t)(slash - rest->p) : rest->n);
	size_t used = s.n + (slash ? 1 : 0);
	*rest = span_of(rest->p + used, rest->n - used);
	return s;
}

/* Trailing slashes are kept as an empty last segment, so "/a" and "/a/" differ. */
static size_t segment_count(struct span path)
{
	size_t n = 1;
	for (size_t i = 0; i < path.n; i++)
		n += path.p[i] == '/';
	return n;
}

static bool path_matches(struct span pattern, const struct span *segments, size_t n, struct span *arg, bool *star)
{
	*star = false;
	if (segment_count(pattern) != n)
		return false;
	for (size_t i = 0; i < n; i++) {
		struct span want = segment_next(&pattern);
		if (span_is(want, "*")) {
			if (segments[i].n == 0)
				return false;
			*star = true;
			*arg = segments[i];
		} else if (!span_eq(want, segments[i])) {
			return false;
		}
	}
	return true;
}

errc route_match(struct http_server *s, struct http_request *r, const struct net_route **out, unsigned *allow, struct err *err)
{
	errc rc = OK;
	*out = NULL;
	*allow = 0;
	size_t n = segment_count(r->path);
	struct span *segments = arena_alloc(&r->arena, n * sizeof *segments);
	CHECK(segments, ERR_NOMEM, "no memory for a path of %zu segments", n);
	struct span rest = r->path, arg = {0};
	for (size_t i = 0; i < n; i++) {
		segments[i] = segment_next(&rest);
		rc = net_unescape(segments[i], false, &r->arena, &segments[i], err);
		if (rc == ERR_INVALID)
			err_id(err, ERRID_BAD_REQUEST, rc, "the path has a malformed escape");
		if (rc)
			goto fail;
	}
	unsigned method = r->method == HTTP_HEAD ? HTTP_HEAD | HTTP_GET : r->method;
	for (size_t i = 0; i < s->n_routes; i++) {
		bool star;
		if (!path_matches(span_cstr(s->routes[i].r.path), segments, n, &arg, &star))
			continue;
		*allow |= s->routes[i].r.methods;
		if (!(s->routes[i].r.methods & method) || (*out && star))
			continue;
		*out = &s->routes[i];
		r->path_arg = star ? arg : (struct span){0};
		if (!star)
			break;
	}
fail:
	return rc;
}
