/* cluster/cluster_ring_glob.c - a tenant's pattern, as Go's filepath.Match takes it on Unix.
 *
 *   *           any number of bytes but '/'          [a-z0_]   one character of these
 *   ?           one character but '/'                [^a-z]    one of none of these
 *   \c          the character c
 *
 * A '*' tries the shortest first and gives up for good what stood before the next one, so time is the product of the lengths and not a power. A pattern
 * that is malformed is refused when the ring is read: Thanos meets it when a tenant comes that far.
 */
#include "cluster/cluster_int.h"

/* One UTF-8 character; a byte that is none counts as one, as in Go. */
static size_t rune(struct span s, uint32_t *out)
{
	uint8_t c = (uint8_t)s.p[0];
	size_t n = c < 0x80 ? 1 : c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : c >= 0xc0 ? 2 : 1;
	if (n > s.n || !span_is_utf8(span_of(s.p, n))) {
		*out = 0xfffd;
		return 1;
	}
	uint32_t x = n == 1 ? c : c & (0x7fu >> n);
	for (size_t i = 1; i < n; i++)
		x = x << 6 | ((uint8_t)s.p[i] & 0x3f);
	*out = x;
	return n;
}

static struct span behind(struct span s, size_t n)
{
	return span_of(s.p + n, s.n - n);
}

/* One end of a range in a class. */
static bool class_char(struct span *p, uint32_t *out)
{
	if (p->n == 0 || p->p[0] == '-' || p->p[0] == ']')
		return false;
	if (p->p[0] == '\\') {
		*p = behind(*p, 1);
		if (p->n == 0)
			return false;
	}
	size_t n = rune(*p, out);
	if (*out == 0xfffd && n == 1)
		return false;
	*p = behind(*p, n);
	return p->n > 0;
}

/* p stands behind '['. false: malformed. */
static bool class_of(struct span *p, uint32_t c, bool *in)
{
	bool negated = p->n > 0 && p->p[0] == '^', found = false;
	if (negated)
		*p = behind(*p, 1);
	for (uint32_t n = 0;; n++) {
		uint32_t lo, hi;
		if (n > 0 && p->n > 0 && p->p[0] == ']')
			break;
		if (!class_char(p, &lo))
			return false;
		hi = lo;
		if (p->p[0] == '-') {
			*p = behind(*p, 1);
			if (!class_char(p, &hi))
				return false;
		}
		found |= lo <= c && c <= hi;
	}
	*p = behind(*p, 1);
	*in = found != negated;
	return true;
}

/* One element of the pattern but '*' against the beginning of s: both move on. false: malformed; *is: s fits. */
static bool element(struct span *p, struct span *s, bool *is)
{
	uint32_t c = 0, want;
	size_t n = s->n > 0 ? rune(*s, &c) : 0;
	char e = p->p[0];
	*p = behind(*p, 1);
	if (e == '[') {
		bool in = false;
		if (!class_of(p, c, &in))
			return false;
		*is = n > 0 && in;
	} else if (e == '?') {
		*is = n > 0 && c != '/';
	} else {
		if (e == '\\') {
			if (p->n == 0)
				return false;
			e = p->p[0];
			*p = behind(*p, 1);
		}
		want = (uint8_t)e;
		*is = s->n > 0 && (uint8_t)s->p[0] == want;
		n = 1;
	}
	if (*is)
		*s = behind(*s, n);
	return true;
}

bool ring_glob_valid(struct span p)
{
	while (p.n > 0) {
		struct span nothing = SPAN("");
		bool is;
		if (p.p[0] == '*')
			p = behind(p, 1);
		else if (!element(&p, &nothing, &is))
			return false;
	}
	return true;
}

bool ring_glob_matches(struct span p, struct span s)
{
	struct span star_p = {NULL, 0}, star_s = {NULL, 0}; /* behind the last '*', and what it has not taken yet */
	for (;;) {
		if (p.n > 0 && p.p[0] == '*') {
			p = star_p = behind(p, 1);
			star_s = s;
			continue;
		}
		bool is = p.n == 0 && s.n == 0;
		if (is)
			return true;
		if (p.n > 0 && !element(&p, &s, &is))
			return false;
		if (is)
			continue;
		if (!star_p.p || star_s.n == 0 || star_s.p[0] == '/')
			return false;
		star_s = behind(star_s, 1);
		p = star_p;
		s = star_s;
	}
}
