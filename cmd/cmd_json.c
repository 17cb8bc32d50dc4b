/* cmd/cmd_json.c - the block list as JSON, the same for /-/flush and `varve bucket ls`. */
#include <inttypes.h>
#include "base/json.h"
#include "cmd/cmd_int.h"

void blocks_json(const struct catalog_block *b, size_t n, struct buf *out)
{
	buf_printf(out, "{\"blocks\":[");
	for (size_t i = 0; i < n; i++) {
		buf_printf(out, "%s\n{\"ulid\":\"%s\",\"tenant\":", i ? "," : "", ulid_text(b[i].ulid).s);
		buf_json_string(out, b[i].tenant);
		buf_printf(out,
			",\"min_time\":%" PRId64 ",\"max_time\":%" PRId64 ",\"resolution\":%" PRId64 ",\"level\":%" PRIu32
			",\"state\":\"%s\",\"labels\":{",
			b[i].mint, b[i].maxt, b[i].resolution_ms, b[i].level, block_state_name(b[i].state));
		for (uint32_t k = 0; k < b[i].ext_labels.n; k++) {
			buf_printf(out, "%s", k ? "," : "");
			buf_json_string(out, b[i].ext_labels.v[k].name);
			buf_u8(out, ':');
			buf_json_string(out, b[i].ext_labels.v[k].value);
		}
		buf_printf(out, "},\"samples\":%" PRIu64 ",\"series\":%" PRIu64 ",\"bytes\":%" PRIu64, b[i].n_samples, b[i].n_series, b[i].bytes);
		if (b[i].reason.n > 0) {
			buf_printf(out, ",\"reason\":");
			buf_json_string(out, b[i].reason);
		}
		buf_printf(out, "}");
	}
	buf_printf(out, "%s]}\n", n ? "\n" : "");
}
