/* Lets the system fail for a while below a folder, as where a file server starts anew: for LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* FLAKY=FOLDER:ERRNO:PERIOD:LENGTH: of every PERIOD seconds the first LENGTH. */
static const char *folder; static int number; static double period, length; static size_t size;

__attribute__((constructor)) static void begin(void) {
  char *text = getenv("FLAKY"), *rest;
  if (!text) return;
  text = strdup(text);
  rest = strchr(text, ':'); *rest++ = 0;
  folder = text; size = strlen(folder);
  number = strtol(rest, &rest, 10); period = strtod(rest + 1, &rest); length = strtod(rest + 1, &rest);
}

static int now(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  double s = t.tv_sec + 1e-9 * t.tv_nsec;
  return s - period * (long)(s / period) < length;
}

static int path_fails(const char *path) { return folder && path && !strncmp(path, folder, size) && now(); }

static int fd_fails(int fd) {
  char link[64], path[4096];
  if (!folder || fd < 3 || !now()) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  return n >= (ssize_t)size && !strncmp(path, folder, size);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define FAIL do { errno = number; return -1; } while (0)
#define OPEN(name, params, args) int name params { REAL(name); mode_t mode = 0; va_list more; \
  if (flags & (O_CREAT | O_TMPFILE)) { va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
  if (path_fails(path)) FAIL; return real args; }
OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPEN(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode))
ssize_t read(int fd, void *b, size_t n) { REAL(read); if (fd_fails(fd)) FAIL; return real(fd, b, n); }
ssize_t pread(int fd, void *b, size_t n, off_t o) { REAL(pread); if (fd_fails(fd)) FAIL; return real(fd, b, n, o); }
ssize_t pread64(int fd, void *b, size_t n, off64_t o) { REAL(pread64); if (fd_fails(fd)) FAIL; return real(fd, b, n, o); }
ssize_t write(int fd, const void *b, size_t n) { REAL(write); if (fd_fails(fd)) FAIL; return real(fd, b, n); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { REAL(pwrite); if (fd_fails(fd)) FAIL; return real(fd, b, n, o); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { REAL(pwrite64); if (fd_fails(fd)) FAIL; return real(fd, b, n, o); }
int rename(const char *a, const char *b) { REAL(rename); if (path_fails(a)) FAIL; return real(a, b); }
int mkdir(const char *a, mode_t m) { REAL(mkdir); if (path_fails(a)) FAIL; return real(a, m); }
