/* Counts the file operations below one directory, and ends the process (or the disk) at the n-th.
 *
 * Loaded with LD_PRELOAD it stands before the C library, so that it sees what Python, torch and
 * Rust's safetensors do alike. Operations that only read are not counted: nothing they do can be
 * left half-done.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, TORN, FULL }; /* what happens at the n-th operation */
#define DESCRIPTORS 65536

#define KINDS 8192

/* Survives the child that is killed: how many operations it did, the last, and all by initial. */
static struct { long done; char last[64]; char kinds[KINDS]; } *shared;
static long kill_at;
static int mode;
static char below[4096];
static char inside[DESCRIPTORS];

void *shim_shared(void) {
    if (!shared)
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return shared;
}

void shim_arm(const char *directory, int what, long n) {
    shim_shared();
    shared->done = 0;
    shared->last[0] = 0;
    memset(shared->kinds, 0, KINDS);
    mode = what;
    kill_at = n;
    strncpy(below, directory, sizeof below - 1);
}

static int counts(const char *path) {
    return below[0] && path && (path[0] != '/' || !strncmp(path, below, strlen(below)));
}

/* 0: go on; 1: fail as a full disk does. Does not return where the process is to die. */
static int operation(const char *name, int takes_space) {
    if (!below[0]) return 0;
    long n = __sync_add_and_fetch(&shared->done, 1);
    if (n < KINDS) shared->kinds[n - 1] = name[0];
    if (n <= kill_at || !kill_at) strncpy(shared->last, name, sizeof shared->last - 1);
    if (mode == KILL && n == kill_at) kill(getpid(), SIGKILL);
    if (mode == FULL && n >= kill_at && takes_space) { errno = ENOSPC; return 1; }
    return 0;
}

static int torn(void) { return mode == TORN && shared->done == kill_at; }

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name)

static int opened(int descriptor, int is_inside) {
    if (descriptor >= 0 && descriptor < DESCRIPTORS) inside[descriptor] = is_inside;
    return descriptor;
}

#define WRITES(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC))
#define MODE_ARGUMENT(flags) \
    mode_t access = 0; \
    if ((flags) & O_CREAT) { va_list rest; va_start(rest, flags); access = va_arg(rest, int); va_end(rest); }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE_ARGUMENT(flags) \
        REAL(int, #name, const char *, int, ...); \
        int counted = counts(path) && WRITES(flags); \
        if (counted && operation("open", flags & O_CREAT)) return -1; \
        return opened(real(path, flags, access), counted); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) { \
        MODE_ARGUMENT(flags) \
        REAL(int, #name, int, const char *, int, ...); \
        int counted = counts(path) && WRITES(flags); \
        if (counted && operation("open", flags & O_CREAT)) return -1; \
        return opened(real(directory, path, flags, access), counted); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *how) { \
        REAL(FILE *, #name, const char *, const char *); \
        int counted = counts(path) && how[0] != 'r'; \
        if (counted && operation("open", 1)) return NULL; \
        FILE *file = real(path, how); \
        if (file) opened(fileno(file), counted); \
        return file; \
    }
FOPEN(fopen)
FOPEN(fopen64)

static int is_inside(int descriptor) {
    return descriptor > 2 && descriptor < DESCRIPTORS && inside[descriptor];
}

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (is_inside(descriptor)) {
        if (operation("write", 1)) return -1;
        if (torn()) { real(descriptor, data, size / 2); kill(getpid(), SIGKILL); }
    }
    return real(descriptor, data, size);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (is_inside(descriptor)) {
        if (operation("write", 1)) return -1;
        if (torn()) { real(descriptor, parts, count / 2); kill(getpid(), SIGKILL); }
    }
    return real(descriptor, parts, count);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    if (is_inside(descriptor) && operation("write", 1)) return -1;
    return real(descriptor, data, size, offset);
}

/* Operations on an open file, and on one or two paths, the last of which decides. */
#define ON_FILE(name, what, space, parameters, arguments) \
    int name parameters { \
        static int (*real) parameters; \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        if (is_inside(descriptor) && operation(what, space)) return -1; \
        return real arguments; \
    }
ON_FILE(ftruncate, "truncate", 0, (int descriptor, off_t size), (descriptor, size))
ON_FILE(ftruncate64, "truncate", 0, (int descriptor, off64_t size), (descriptor, size))
ON_FILE(posix_fallocate, "allocate", 0, (int descriptor, off_t at, off_t size), (descriptor, at, size))
ON_FILE(posix_fallocate64, "allocate", 0, (int descriptor, off64_t at, off64_t size), (descriptor, at, size))
ON_FILE(fdatasync, "fsync", 0, (int descriptor), (descriptor))

/* A directory, or a file opened to be read, is flushed as well: every fsync counts. */
int fsync(int descriptor) {
    REAL(int, "fsync", int);
    operation("fsync", 0);
    return real(descriptor);
}

#define ON_PATH(name, what, space, parameters, arguments) \
    int name parameters { \
        static int (*real) parameters; \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        if (counts(path) && operation(what, space)) return -1; \
        return real arguments; \
    }
ON_PATH(rename, "rename", 0, (const char *from, const char *path), (from, path))
ON_PATH(renameat, "rename", 0, (int a, const char *from, int b, const char *path), (a, from, b, path))
ON_PATH(unlink, "unlink", 0, (const char *path), (path))
ON_PATH(unlinkat, "unlink", 0, (int directory, const char *path, int flags), (directory, path, flags))
ON_PATH(mkdir, "mkdir", 1, (const char *path, mode_t access), (path, access))
ON_PATH(mkdirat, "mkdir", 1, (int directory, const char *path, mode_t access), (directory, path, access))
ON_PATH(rmdir, "rmdir", 0, (const char *path), (path))
ON_PATH(link, "link", 1, (const char *from, const char *path), (from, path))
ON_PATH(linkat, "link", 1, (int a, const char *from, int b, const char *path, int flags), (a, from, b, path, flags))
ON_PATH(symlink, "symlink", 1, (const char *from, const char *path), (from, path))
ON_PATH(symlinkat, "symlink", 1, (const char *from, int directory, const char *path), (from, directory, path))
