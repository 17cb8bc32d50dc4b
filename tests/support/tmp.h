/* tests/support/tmp.h - temporary directories of a test, on the real disk, removed when the program ends. */
#pragma once

/* A fresh, empty directory; stays valid until exit. Ends the program when it can't be made. TMPDIR is honoured. */
const char *tmp_dir(void);
/* printf into one of 16 rotating buffers: tmp_path("%s/wal", dir) */
const char *tmp_path(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
