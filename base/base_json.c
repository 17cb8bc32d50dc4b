/* base/base_json.c - see base/json.h. */
#include "base/json.h"

void buf_json_string(struct buf *out, struct span s)
{
	buf_u8(out, '"');
	bool utf8 = span_is_utf8(s);
	for (size_t i = 0; i < s.n; i++) {
		uint8_t c = (uint8_t)s.p[i];
		if (c == '"' || c == '\\') {
			buf_u8(out, '\\');
			buf_u8(out, c);
		} else if (c < 0x20) {
			buf_printf(out, "\\u%04x", c);
		} else if (c >= 0x80 && !utf8) {
			buf_printf(out, "\\ufffd");
		} else {
			buf_u8(out, c);
		}
	}
	buf_u8(out, '"');
}
