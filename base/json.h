/* base/json.h - writing JSON text. Reading is jansson's job, in the folder that needs it. */
#pragma once
#include "base/bytes.h"

/* Quoted and escaped. In a text that is not UTF-8 each byte above 0x7f becomes U+FFFD. */
void buf_json_string(struct buf *out, struct span s);
