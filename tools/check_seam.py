#!/usr/bin/env python3
"""Holds the seam: files, clocks and randomness only in base/base_io_posix.c, sockets only in net/.

Comments and strings are taken out first; then any call of a forbidden function is a fault, unless it is a member's (`ops->open(`). A call
that is no file, clock or random number (an eventfd's read, say) is allowed on a line that says why: /* seam: ... */.
"""
import os
import re
import sys

FOLDERS = "base proto net wal block head bucket shipper compactor cluster ingest query ui cmd".split()
SEAM = {"base/base_io_posix.c"}
SOCKETS_TOO = {"cmd/cmd_notify.c"}  # systemd's one datagram
FILES = """open open64 openat openat2 creat close_range read write readv writev pread pwrite preadv pwritev pread64 pwrite64 lseek
    fsync fdatasync sync syncfs sync_file_range msync rename renameat renameat2 link linkat symlink unlink unlinkat remove mkdir mkdirat rmdir
    truncate ftruncate fallocate posix_fallocate stat lstat fstat fstatat statx access faccessat chmod chown utimensat statfs statvfs
    fstatvfs opendir fdopendir readdir scandir glob nftw ftw mkstemp mkdtemp mkostemp tmpfile tmpnam fopen fopen64 freopen fdopen popen
    system mmap mmap64 mremap munmap flock lockf sendfile copy_file_range splice realpath""".split()
CLOCKS = "clock_gettime clock_getres gettimeofday time times ftime sleep usleep nanosleep clock_nanosleep".split()
RANDOM = "rand rand_r srand random srandom drand48 lrand48 mrand48 getrandom getentropy arc4random RAND_bytes".split()
SOCKETS = """socket socketpair bind listen accept accept4 connect send sendto sendmsg recv recvfrom recvmsg getaddrinfo
    gethostbyname setsockopt getsockopt""".split()

TOKENS = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
CALL = re.compile(r"(?<![\w.>])(" + "|".join(FILES + CLOCKS + RANDOM + SOCKETS) + r")[ \t]*\(")


def blank(m):
    return re.sub(r"[^\n]", " ", m[0])


def main():
    faults = []
    for folder in FOLDERS:
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            path = f"{folder}/{name}"
            if not name.endswith((".c", ".h", ".cc")) or path in SEAM:
                continue
            text = open(path, encoding="utf-8").read()
            lines = text.split("\n")
            for n, line in enumerate(TOKENS.sub(blank, text).split("\n"), 1):
                for m in CALL.finditer(line):
                    if "/* seam:" in lines[n - 1] or (m[1] in SOCKETS and (folder == "net" or path in SOCKETS_TOO)):
                        continue
                    if f"(*{m[1]})(" in text:  # a parameter or member of this name
                        continue
                    # members of struct io_ops are declared as (*open)(...), and a prototype has a type before the name
                    if re.search(r"\b(?:int|void|ssize_t|bool|errc|static|struct \w+ \*?)\s*\*?$", line[: m.start()]):
                        continue
                    faults.append(f"{path}:{n}: {m[1]}() goes through base/io.h" if m[1] not in SOCKETS else f"{path}:{n}: sockets belong to net/")
    for f in faults:
        print(f)
    return bool(faults)


sys.exit(main())
