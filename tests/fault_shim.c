/* LD_PRELOAD: sees the calls with which a program reads and changes the files below one directory,
 * writes them to a log, and breaks one of them. Driven by fault_server.py; Linux and glibc. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE = 2, TRUNCATE = 4, SYNC = 8, RENAME = 16, UNLINK = 32, CLOSE = 64, READ = 128 };
enum { NOTHING, KILL, FAIL, FAIL_ON, SHORT, SHORT_KILL, SIGNAL, CUT, FILL, SIGNAL_ON };

static char directory[PATH_MAX], victim[PATH_MAX];
static unsigned kinds;           /* of the calls that are counted */
static long at, argument;        /* which of them is broken, from 1; errno, bytes or signal */
static int action, log_fd = -1;
static atomic_long seen;
static atomic_int armed;

void fault_arm(const char * dir, unsigned which, long number, int what, long arg, const char * file, int log) {
    snprintf(directory, sizeof(directory), "%s", dir);
    snprintf(victim, sizeof(victim), "%s", file);
    kinds = which, at = number, action = what, argument = arg, log_fd = log;
    armed = 1;
}

static int below(const char * path) {
    const size_t n = strlen(directory);
    return strncmp(path, directory, n) == 0 && (path[n] == '/' || path[n] == 0);
}

static int path_of(int fd, char * path) {
    char link[64];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    const ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[n < 0 ? 0 : n] = 0;
    return n > 0 && below(path);
}

static void fill(const char * path) {
    static char zeros[65536];
    const int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    for (size_t n = sizeof(zeros); n > 0; n /= 2) {
        while (syscall(SYS_write, fd, zeros, n) == (ssize_t) n) {}
    }
    syscall(SYS_close, fd);
}

/* What becomes of a call: 0 it goes on, -1 it fails with errno; *nbytes, of a transfer, may shrink. */
static int broken(unsigned kind, const char * name, const char * path, long offset, size_t * nbytes) {
    char line[PATH_MAX + 100];
    const int n = snprintf(line, sizeof(line), "%s\t%ld\t%zu\t%s\n", name, offset, nbytes ? *nbytes : 0, path);
    if (log_fd >= 0) {
        syscall(SYS_write, log_fd, line, n);
    }
    if (!(kinds & kind)) {
        return 0;
    }
    const long now = ++seen;
    if (now != at && !((action == FAIL_ON || action == SIGNAL_ON) && now > at)) {
        return 0;
    }
    switch (action) {
        case KILL:
            raise(SIGKILL);
            break;
        case FAIL: case FAIL_ON:
            errno = (int) argument;
            return -1;
        case SHORT: case SHORT_KILL:
            if (nbytes && *nbytes > (size_t) argument) {
                *nbytes = (size_t) argument;
            }
            break;
        case SIGNAL: case SIGNAL_ON:
            syscall(SYS_kill, getpid(), (int) argument);
            break;
        case CUT:
            syscall(SYS_truncate, victim, argument);
            break;
        case FILL:
            fill(victim);
            break;
    }
    return 0;
}

static int fd_broken(unsigned kind, const char * name, int fd, long offset, size_t * nbytes) {
    char path[PATH_MAX];
    return armed && path_of(fd, path) ? broken(kind, name, path, offset, nbytes) : 0;
}

static int path_broken(unsigned kind, const char * name, const char * path) {
    return armed && below(path) ? broken(kind, name, path, 0, NULL) : 0;
}

static ssize_t transferred(unsigned kind, ssize_t n) {
    if (armed && action == SHORT_KILL && (kinds & kind) && seen == at) {
        raise(SIGKILL);
    }
    return n;
}

#define AND_64(name) __attribute__((alias(#name)))

int openat(int dir, const char * path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
    va_end(list);
    if ((flags & (O_CREAT | O_TRUNC)) && path_broken(CREATE, "create", path)) {
        return -1;
    }
    return syscall(SYS_openat, dir, path, flags, mode);
}
int openat64(int, const char *, int, ...) AND_64(openat);

int open(const char * path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
    va_end(list);
    return openat(AT_FDCWD, path, flags, mode);
}
int open64(const char *, int, ...) AND_64(open);

int mkdir(const char * path, mode_t mode) {
    return path_broken(CREATE, "mkdir", path) ? -1 : syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

ssize_t write(int fd, const void * data, size_t n) {
    return fd_broken(WRITE, "write", fd, -1, &n) ? -1 : transferred(WRITE, syscall(SYS_write, fd, data, n));
}

ssize_t pwrite(int fd, const void * data, size_t n, off_t offset) {
    return fd_broken(WRITE, "write", fd, offset, &n) ? -1 : transferred(WRITE, syscall(SYS_pwrite64, fd, data, n, offset));
}
ssize_t pwrite64(int, const void *, size_t, off_t) AND_64(pwrite);

static size_t total(const struct iovec * parts, int count) {
    size_t n = 0;
    for (int i = 0; i < count; ++i) {
        n += parts[i].iov_len;
    }
    return n;
}

/* Several buffers are shortened to a piece of the first one. */
static ssize_t vectored(unsigned kind, const char * name, long call, int fd, const struct iovec * parts, int count,
        off_t offset) {
    size_t n = total(parts, count);
    const size_t whole = n;
    if (fd_broken(kind, name, fd, offset, &n)) {
        return -1;
    }
    struct iovec less = { parts[0].iov_base, n < parts[0].iov_len ? n : parts[0].iov_len };
    return transferred(kind, n < whole ? syscall(call, fd, &less, 1, offset, 0) : syscall(call, fd, parts, count, offset, 0));
}

ssize_t pwritev(int fd, const struct iovec * parts, int count, off_t offset) {
    return vectored(WRITE, "write", SYS_pwritev, fd, parts, count, offset);
}
ssize_t pwritev64(int, const struct iovec *, int, off_t) AND_64(pwritev);

/* What Python calls; its flags are always 0. */
ssize_t pwritev2(int fd, const struct iovec * parts, int count, off_t offset, int flags) {
    (void) flags;
    return pwritev(fd, parts, count, offset);
}
ssize_t pwritev64v2(int, const struct iovec *, int, off_t, int) AND_64(pwritev2);

ssize_t preadv(int fd, const struct iovec * parts, int count, off_t offset) {
    return vectored(READ, "read", SYS_preadv, fd, parts, count, offset);
}
ssize_t preadv64(int, const struct iovec *, int, off_t) AND_64(preadv);

ssize_t preadv2(int fd, const struct iovec * parts, int count, off_t offset, int flags) {
    (void) flags;
    return preadv(fd, parts, count, offset);
}
ssize_t preadv64v2(int, const struct iovec *, int, off_t, int) AND_64(preadv2);

ssize_t read(int fd, void * data, size_t n) {
    return fd_broken(READ, "read", fd, -1, &n) ? -1 : syscall(SYS_read, fd, data, n);
}

ssize_t pread(int fd, void * data, size_t n, off_t offset) {
    return fd_broken(READ, "read", fd, offset, &n) ? -1 : syscall(SYS_pread64, fd, data, n, offset);
}
ssize_t pread64(int, void *, size_t, off_t) AND_64(pread);

ssize_t copy_file_range(int in, off_t * in_at, int out, off_t * out_at, size_t n, unsigned flags) {
    return fd_broken(READ, "read", in, in_at ? *in_at : -1, &n) || fd_broken(WRITE, "write", out, out_at ? *out_at : -1, &n)
        ? -1 : transferred(WRITE, syscall(SYS_copy_file_range, in, in_at, out, out_at, n, flags));
}

ssize_t sendfile(int out, int in, off_t * offset, size_t n) {
    return fd_broken(READ, "read", in, offset ? *offset : -1, &n) || fd_broken(WRITE, "write", out, -1, &n)
        ? -1 : transferred(WRITE, syscall(SYS_sendfile, out, in, offset, n));
}
ssize_t sendfile64(int, int, off_t *, size_t) AND_64(sendfile);

int ftruncate(int fd, off_t n) {
    return fd_broken(TRUNCATE, "ftruncate", fd, n, NULL) ? -1 : syscall(SYS_ftruncate, fd, n);
}
int ftruncate64(int, off_t) AND_64(ftruncate);

int posix_fallocate(int fd, off_t offset, off_t n) {
    if (fd_broken(TRUNCATE, "fallocate", fd, offset + n, NULL) || syscall(SYS_fallocate, fd, 0, offset, n)) {
        return errno;
    }
    return 0;
}
int posix_fallocate64(int, off_t, off_t) AND_64(posix_fallocate);

int fsync(int fd) {
    return fd_broken(SYNC, "fsync", fd, 0, NULL) ? -1 : syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    return fd_broken(SYNC, "fdatasync", fd, 0, NULL) ? -1 : syscall(SYS_fdatasync, fd);
}

int rename(const char * from, const char * to) {
    return path_broken(RENAME, "rename", to) ? -1 : syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlink(const char * path) {
    return path_broken(UNLINK, "unlink", path) ? -1 : syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int rmdir(const char * path) {
    return path_broken(UNLINK, "rmdir", path) ? -1 : syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
}

/* A close that fails has closed all the same. */
int close(int fd) {
    const int failed = fd_broken(CLOSE, "close", fd, 0, NULL);
    const int number = errno;
    if (syscall(SYS_close, fd)) {
        return -1;
    }
    errno = number;
    return failed;
}
