/* The version can be asked of the header, in the preprocessor, and of the library that runs. */
#include "harness.h"

#if !MIRROR_VERSION_AT_LEAST(MIRROR_VERSION_MAJOR, MIRROR_VERSION_MINOR, MIRROR_VERSION_PATCH) || \
    !MIRROR_VERSION_AT_LEAST(0, 1, 0)
#error "the header is of its own version"
#endif
#if MIRROR_VERSION_AT_LEAST(MIRROR_VERSION_MAJOR, MIRROR_VERSION_MINOR, MIRROR_VERSION_PATCH + 1) || \
    MIRROR_VERSION_AT_LEAST(MIRROR_VERSION_MAJOR, MIRROR_VERSION_MINOR + 1, 0) || \
    MIRROR_VERSION_AT_LEAST(MIRROR_VERSION_MAJOR + 1, 0, 0)
#error "the header is of no later version"
#endif

int main(void) {
    char text[32];
    eq(mirror_version(), MIRROR_VERSION);
    snprintf(text, sizeof text, "%d.%d.%d", MIRROR_VERSION_MAJOR, MIRROR_VERSION_MINOR, MIRROR_VERSION_PATCH);
    check(strcmp(text, mirror_version_string()) == 0);
    return done();
}
