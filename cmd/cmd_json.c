/* cmd/cmd_json.c - the block list as JSON, the same for /-/flush and `varve bucket ls`. */
#include <inttypes.h>
#include "cmd/cmd_int.h"

void json_string(struct buf *out, struct span s)
{
	buf_u8(out, '"');
	bool utf8 = span_is_utf8(s);
	for (size_t i = 0; i < s.n; i++) {
		uint8_t c = (uint8_t)s.p[i];
		if (c == '"' || c == '\\')
			buf_printf(out, "\\%c", c);
		else if (c < 0x20)
			buf_printf(out, "\\u%04x", c);
		else if (c >= 0x80 && !utf8)
			buf_printf(out, "\\ufffd");
		else
			buf_u8(out, c);
	}
	buf_u8(out, '"');
}

void blocks_json(const struct catalog_block *b, size_t n, struct buf *out)
{
	buf_printf(out, "{\"blocks\":[");
	for (size_t i = 0; i < n; i++) {
		buf_printf(out, "%s\n{\"ulid\":\"%s\",\"tenant\":", i ? "," : "", ulid_text(b[i].ulid).s);
		json_string(out, b[i].tenant);
		buf_printf(out,
			",\"min_time\":%" PRId64 ",\"max_time\":%" PRId64 ",\"resolution\":%" PRId64 ",\"level\":%" PRIu32
			",\"state\":\"%s\",\"labels\":{",
			b[i].mint, b[i].maxt, b[i].resolution_ms, b[i].level, block_state_name(b[i].state));
		for (uint32_t k = 0; k < b[i].ext_labels.n; k++) {
			buf_printf(out, "%s", k ? "," : "");
			json_string(out, b[i].ext_labels.v[k].name);
			buf_u8(out, ':');
			json_string(out, b[i].ext_labels.v[k].value);
		}
		buf_printf(out, "},\"samples\":%" PRIu64 ",\"series\":%" PRIu64 ",\"bytes\":%" PRIu64, b[i].n_samples, b[i].n_series, b[i].bytes);
		if (b[i].reason.n > 0) {
			buf_printf(out, ",\"reason\":");
			json_string(out, b[i].reason);
		}
		buf_printf(out, "}");
	}
	buf_printf(out, "%s]}\n", n ? "\n" : "");
}
