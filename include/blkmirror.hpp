// blkmirror.h for C++17 and later: handles that free themselves, errors as exceptions or as std::error_code, lambdas as
// callbacks.
//
// What the functions do, who owns what and which threads may call is told in blkmirror.h; only what C++ adds is told here.
//
// Handles: device, filter and job own what they hold, move, and don't copy. An empty one (made without arguments, moved from,
// or of a call that failed) holds a null pointer, which the library refuses with EINVAL. get() is the C handle, for calls that
// this header doesn't have.
//
// Errors: the last argument of what can fail is a std::error_code&, of std::generic_category. Where it is left out, an
// error is thrown, whose what() has the words of mirror_last_error; without exceptions (-fno-exceptions, or
// BLKMIRROR_EXCEPTIONS defined as 0) it can't be left out.
//
// Callbacks: a guest's request takes any callable of an int. One that is no larger than a pointer and trivially copyable, such
// as a lambda that captures `this` or one pointer, travels inside the request's opaque pointer; a larger one is put in
// a request<F>, which the host keeps until it was called. So nothing is allocated for a request. Hooks (of a job, a filter's
// gate, the log) and a host's device are kept on the heap, once each.
//
// An exception must not leave a callback: of one that answers an int it becomes that answer (ENOMEM for bad_alloc, an errno
// of a system_error's, else EIO); one that answers nothing ends the program with std::terminate.
#ifndef BLKMIRROR_HPP
#define BLKMIRROR_HPP

#include <blkmirror.h>

#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <system_error>
#include <type_traits>
#include <utility>

#if !defined(BLKMIRROR_EXCEPTIONS)
#if defined(__cpp_exceptions)
#define BLKMIRROR_EXCEPTIONS 1
#else
#define BLKMIRROR_EXCEPTIONS 0
#endif
#endif

// The last parameter of what can fail.
#if BLKMIRROR_EXCEPTIONS
#define BLKMIRROR_ERROR std::error_code &ec = ::blkmirror::detail::throws()
#else
#define BLKMIRROR_ERROR std::error_code &ec
#endif

namespace blkmirror {

// What was wrong with this thread's last call that failed, in words.
inline const char *last_error() noexcept { return mirror_last_error(); }

// Whether the library that runs has what this header declares: the same major version, and as new.
inline bool library_fits() noexcept {
    return mirror_version() >> 16 == MIRROR_VERSION_MAJOR && mirror_version() >= MIRROR_VERSION;
}

// Two files of a program can be compiled with exceptions and without: what differs between them has another name.
#if BLKMIRROR_EXCEPTIONS
inline namespace throwing {
#else
inline namespace not_throwing {
#endif

#if BLKMIRROR_EXCEPTIONS
class error : public std::system_error {
public:
    explicit error(std::error_code code) : std::system_error(code, mirror_last_error()) {}
};
#endif

namespace detail {

// Stands for an std::error_code that was left out. Never written to.
inline std::error_code left_out;
inline std::error_code &throws() noexcept { return left_out; }

// Tells a failure in the way that the caller chose, and passes the answer on.
inline int check(int answer, std::error_code &ec) {
#if BLKMIRROR_EXCEPTIONS
    if (&ec == &throws()) {
        if (answer < 0)
            throw error(std::error_code(-answer, std::generic_category()));
        return answer;
    }
#endif
    if (answer < 0)
        ec.assign(-answer, std::generic_category());
    else
        ec.clear();
    return answer;
}

// What a callback that answers an int answers, whatever it throws.
template <class F>
int guarded(F &&call) noexcept {
#if BLKMIRROR_EXCEPTIONS
    try {
        return call();
    } catch (const std::bad_alloc &) {
        return -ENOMEM;
    } catch (const std::system_error &thrown) {
        const std::error_code &code = thrown.code();
        const bool is_errno = code.category() == std::generic_category() || code.category() == std::system_category();
        return is_errno && code.value() > 0 ? -code.value() : -EIO;
    } catch (...) {
        return -EIO;
    }
#else
    return call();
#endif
}

template <class Raw, void (*Free)(Raw *)>
class handle {
public:
    handle() noexcept = default;
    explicit handle(Raw *raw) noexcept : raw_(raw) {}
    handle(handle &&other) noexcept : raw_(other.release()) {}
    handle &operator=(handle &&other) noexcept {
        reset(other.release());
        return *this;
    }
    handle(const handle &) = delete;
    handle &operator=(const handle &) = delete;
    ~handle() { reset(); }

    Raw *get() const noexcept { return raw_; }
    explicit operator bool() const noexcept { return raw_ != nullptr; }
    // Gives the handle away, to be freed with the function of C.
    Raw *release() noexcept { return std::exchange(raw_, nullptr); }
    void reset(Raw *raw = nullptr) noexcept {
        Raw *old = std::exchange(raw_, raw);
        if (old != nullptr && old != raw)
            Free(old);
    }

protected:
    Raw *raw_ = nullptr;
};

inline void free_device(mirror_device *raw) { mirror_device_free(raw); }
inline void free_filter(mirror_filter *raw) { mirror_filter_free(raw); }
inline void free_job(mirror_job *raw) { mirror_job_free(raw); }

// A callable that travels inside a pointer.
template <class F>
struct in_pointer {
    static constexpr bool fits = sizeof(F) <= sizeof(void *) && alignof(F) <= alignof(void *) &&
                                 std::is_trivially_copyable_v<F> && std::is_trivially_destructible_v<F>;
    static void *pack(const F &callable) noexcept {
        void *opaque = nullptr;
        std::memcpy(&opaque, static_cast<const void *>(std::addressof(callable)), sizeof(F));
        return opaque;
    }
    static void call(void *opaque, int result) noexcept {
        alignas(F) unsigned char bytes[sizeof(F)];
        std::memcpy(bytes, &opaque, sizeof(F));
        (*std::launder(reinterpret_cast<F *>(bytes)))(result);
    }
};

template <class F>
void drop(void *opaque) noexcept {
    delete static_cast<F *>(opaque);
}

// The optional callbacks that a host's device has. One of the right name and the wrong parameters is not overlooked.
#define BLKMIRROR_OPTIONAL(name, ...)                                                                                   \
    template <class H, class = void>                                                                                    \
    struct names_##name : std::false_type {};                                                                           \
    template <class H>                                                                                                  \
    struct names_##name<H, std::void_t<decltype(&H::name)>> : std::true_type {};                                        \
    template <class H, class = void>                                                                                    \
    struct has_##name : std::false_type {                                                                               \
        static_assert(!names_##name<H>::value, "the device's " #name " can't be called with what the library passes");  \
    };                                                                                                                  \
    template <class H>                                                                                                  \
    struct has_##name<H, std::void_t<decltype(std::declval<H &>().name(__VA_ARGS__))>> : std::true_type {};
BLKMIRROR_OPTIONAL(zero, std::uint64_t(), std::uint64_t(), std::uint64_t(), std::uint32_t())
BLKMIRROR_OPTIONAL(discard, std::uint64_t(), std::uint64_t(), std::uint64_t())
BLKMIRROR_OPTIONAL(flush, std::uint64_t())
BLKMIRROR_OPTIONAL(extents, std::uint64_t(), std::uint64_t(), std::uint64_t())
BLKMIRROR_OPTIONAL(truncate, std::uint64_t(), std::uint64_t())
BLKMIRROR_OPTIONAL(copy, std::uint64_t(), std::declval<H &>(), std::uint64_t(), std::uint64_t())
BLKMIRROR_OPTIONAL(cancel, )
BLKMIRROR_OPTIONAL(poll, )
#undef BLKMIRROR_OPTIONAL

// The callbacks of C that call those of a host's class.
template <class H>
struct device_table {
    static H &host(void *opaque) noexcept { return *static_cast<H *>(opaque); }

    static mirror_device_ops ops() noexcept {
        mirror_device_ops ops = {};
        ops.struct_size = sizeof ops;
        ops.read = [](void *opaque, std::uint64_t token, std::uint64_t offset, std::uint64_t length, const mirror_iovec *iov,
                      std::size_t iovcnt) noexcept {
            return guarded([&] { return host(opaque).read(token, offset, length, iov, iovcnt); });
        };
        ops.write = [](void *opaque, std::uint64_t token, std::uint64_t offset, std::uint64_t length, const mirror_iovec *iov,
                       std::size_t iovcnt, std::uint32_t flags) noexcept {
            return guarded([&] { return host(opaque).write(token, offset, length, iov, iovcnt, flags); });
        };
        if constexpr (has_zero<H>::value)
            ops.zero = [](void *opaque, std::uint64_t token, std::uint64_t offset, std::uint64_t length,
                          std::uint32_t flags) noexcept {
                return guarded([&] { return host(opaque).zero(token, offset, length, flags); });
            };
        if constexpr (has_discard<H>::value)
            ops.discard = [](void *opaque, std::uint64_t token, std::uint64_t offset, std::uint64_t length) noexcept {
                return guarded([&] { return host(opaque).discard(token, offset, length); });
            };
        if constexpr (has_flush<H>::value)
            ops.flush = [](void *opaque, std::uint64_t token) noexcept {
                return guarded([&] { return host(opaque).flush(token); });
            };
        if constexpr (has_extents<H>::value)
            ops.extents = [](void *opaque, std::uint64_t token, std::uint64_t offset, std::uint64_t length) noexcept {
                return guarded([&] { return host(opaque).extents(token, offset, length); });
            };
        if constexpr (has_truncate<H>::value)
            ops.truncate = [](void *opaque, std::uint64_t token, std::uint64_t length) noexcept {
                return guarded([&] { return host(opaque).truncate(token, length); });
            };
        if constexpr (has_copy<H>::value)
            ops.copy = [](void *opaque, std::uint64_t token, void *source, std::uint64_t offset, std::uint64_t length) noexcept {
                return guarded([&] { return host(opaque).copy(token, host(source), offset, length); });
            };
        if constexpr (has_cancel<H>::value)
            ops.cancel = [](void *opaque) noexcept { host(opaque).cancel(); };
        if constexpr (has_poll<H>::value)
            ops.poll = [](void *opaque) noexcept { return guarded([&] { return host(opaque).poll(); }); };
        ops.close = drop<H>;
        return ops;
    }
};

// Hooks that were left out.
template <class F>
inline constexpr bool given = !std::is_same_v<F, std::nullptr_t>;

template <class Wake, class Prepare>
struct job_hooks {
    Wake wake;
    Prepare prepare;
    std::uint64_t (*clock)(void *);
    void *clock_opaque;
};

} // namespace detail

// A device's limits: all "no limit" but the length.
struct device_limits : mirror_device_limits {
    explicit device_limits(std::uint64_t bytes = 0) noexcept : mirror_device_limits{} {
        struct_size = sizeof(mirror_device_limits);
        length = bytes;
    }
};

// A job's options, at first their defaults.
struct job_options : mirror_job_options {
    job_options() noexcept : mirror_job_options{} { mirror_job_options_init(this, sizeof(mirror_job_options)); }
};

// A device that somebody else owns: what completes its requests. Small, to be copied.
class device_ref {
public:
    device_ref() noexcept = default;
    device_ref(mirror_device *raw) noexcept : raw_(raw) {}

    mirror_device *get() const noexcept { return raw_; }
    // As in C: 0, or -errno for a token that isn't out.
    int complete(std::uint64_t token, int result) const noexcept { return mirror_device_complete(raw_, token, result); }
    // As in C: 0, 1 if that is enough for one answer, or -errno.
    int extent(std::uint64_t token, std::uint64_t length, std::uint32_t flags) const noexcept {
        return mirror_device_extent(raw_, token, length, flags);
    }
    int kick() const noexcept { return mirror_device_kick(raw_); }

private:
    mirror_device *raw_ = nullptr;
};

class device : public detail::handle<mirror_device, detail::free_device> {
public:
    using handle::handle;

    static device open_file(const char *path, BLKMIRROR_ERROR) { return open_file(path, 0, 0, ec); }
    static device open_file(const char *path, std::uint32_t flags, std::uint64_t create_length, BLKMIRROR_ERROR) {
        mirror_device *raw = nullptr;
        detail::check(mirror_device_open_file(path, flags, create_length, &raw), ec);
        return device(raw);
    }
    static device memory(std::uint64_t length, BLKMIRROR_ERROR) {
        mirror_device *raw = nullptr;
        detail::check(mirror_device_new_memory(length, &raw), ec);
        return device(raw);
    }
    static device null(std::uint64_t length, std::uint32_t flags, BLKMIRROR_ERROR) {
        mirror_device *raw = nullptr;
        detail::check(mirror_device_new_null(length, flags, &raw), ec);
        return device(raw);
    }

    // A host's own device. `H` has, as public members without the opaque pointer, the callbacks of mirror_device_ops: `read` and
    // `write`, and such of the others as it has (`copy` gets an `H &source`; for `close` there is the destructor). The library owns it from here on, also
    // if this fails.
    template <class H>
    static device of(std::unique_ptr<H> host, const mirror_device_limits &limits, BLKMIRROR_ERROR) {
        mirror_device *raw = nullptr;
        const mirror_device_ops ops = detail::device_table<H>::ops();
        detail::check(mirror_device_new(&ops, &limits, host.release(), &raw), ec);
        return device(raw);
    }

    device_ref ref() const noexcept { return device_ref(raw_); }
    operator device_ref() const noexcept { return ref(); }

    device_limits limits(BLKMIRROR_ERROR) const {
        device_limits limits;
        detail::check(mirror_device_query(raw_, &limits), ec);
        return limits;
    }
    // NULL where there is no choice.
    const char *engine(BLKMIRROR_ERROR) const {
        const char *word = nullptr;
        detail::check(mirror_device_engine(raw_, &word), ec);
        return word;
    }
    std::uint64_t refused(BLKMIRROR_ERROR) const {
        std::uint64_t count = 0;
        detail::check(mirror_device_refused(raw_, &count), ec);
        return count;
    }
    bool same(device_ref other, BLKMIRROR_ERROR) const {
        return detail::check(mirror_device_same(raw_, other.get()), ec) > 0;
    }
    // The number of findings, each of which `finding` gets, a callable of const mirror_check_finding&. All that the device holds
    // is lost.
    template <class F>
    int check(const mirror_check_options &options, F &&finding, BLKMIRROR_ERROR) {
        using Callable = std::remove_reference_t<F>;
        const auto told = [](void *opaque, const mirror_check_finding *found) noexcept {
            (*static_cast<Callable *>(opaque))(*found);
        };
        void *opaque = const_cast<void *>(static_cast<const void *>(std::addressof(finding)));
        return detail::check(mirror_device_check(raw_, &options, told, opaque), ec);
    }
};

// A callable of an int that the host keeps until it was called.
template <class F>
class request {
public:
    explicit request(F callable) : callable_(std::move(callable)) {}
    request(const request &) = delete;
    request &operator=(const request &) = delete;

    static void call(void *opaque, int result) noexcept { static_cast<request *>(opaque)->callable_(result); }

private:
    F callable_;
};

// Where the outcome of a guest's request goes: a small callable of an int, a request, or a function and a pointer of C.
class completion {
public:
    template <class F, class = std::enable_if_t<std::is_invocable_v<F &, int> && !std::is_same_v<F, completion>>>
    completion(F callable) noexcept : done(detail::in_pointer<F>::call), opaque(detail::in_pointer<F>::pack(callable)) {
        static_assert(detail::in_pointer<F>::fits,
                      "this callable doesn't fit into a pointer: capture one pointer, or keep it in a blkmirror::request");
    }
    template <class F>
    completion(request<F> &kept) noexcept : done(request<F>::call), opaque(&kept) {}
    completion(void (*function)(void *, int), void *pointer) noexcept : done(function), opaque(pointer) {}

    void (*done)(void *opaque, int result);
    void *opaque;
};

class filter : public detail::handle<mirror_filter, detail::free_filter> {
public:
    filter() noexcept = default;
    explicit filter(mirror_filter *raw) noexcept : handle(raw) {}
    explicit filter(const device &source, BLKMIRROR_ERROR) {
        detail::check(mirror_filter_new(source.get(), &raw_), ec);
    }
    filter(const device &source, std::uint32_t alignment, BLKMIRROR_ERROR) {
        detail::check(mirror_filter_new_aligned(source.get(), alignment, &raw_), ec);
    }

    // A guest's requests. If they fail here, `done` is not called.
    void read(std::uint64_t offset, const mirror_iovec *iov, std::size_t iovcnt, completion done, BLKMIRROR_ERROR) const {
        detail::check(mirror_filter_read(raw_, offset, iov, iovcnt, 0, done.done, done.opaque), ec);
    }
    void read(std::uint64_t offset, void *bytes, std::size_t length, completion done, BLKMIRROR_ERROR) const {
        const mirror_iovec iov = {bytes, length};
        read(offset, &iov, 1, done, ec);
    }
    void write(std::uint64_t offset, const mirror_iovec *iov, std::size_t iovcnt, std::uint32_t flags, completion done,
               BLKMIRROR_ERROR) const {
        detail::check(mirror_filter_write(raw_, offset, iov, iovcnt, flags, done.done, done.opaque), ec);
    }
    void write(std::uint64_t offset, const void *bytes, std::size_t length, std::uint32_t flags, completion done,
               BLKMIRROR_ERROR) const {
        const mirror_iovec iov = {const_cast<void *>(bytes), length};
        write(offset, &iov, 1, flags, done, ec);
    }
    void zero(std::uint64_t offset, std::uint64_t length, std::uint32_t flags, completion done, BLKMIRROR_ERROR) const {
        detail::check(mirror_filter_zero(raw_, offset, length, flags, done.done, done.opaque), ec);
    }
    void discard(std::uint64_t offset, std::uint64_t length, completion done, BLKMIRROR_ERROR) const {
        detail::check(mirror_filter_discard(raw_, offset, length, done.done, done.opaque), ec);
    }
    void flush(completion done, BLKMIRROR_ERROR) const {
        detail::check(mirror_filter_flush(raw_, done.done, done.opaque), ec);
    }

    // The ticket; none while the gate is closed, or if it fails.
    std::optional<std::uint64_t> begin(std::uint32_t kind, std::uint64_t offset, std::uint64_t length, BLKMIRROR_ERROR) const {
        std::uint64_t ticket = 0;
        const int answer = detail::check(mirror_filter_begin(raw_, kind, offset, length, &ticket), ec);
        return answer == 0 ? std::optional(ticket) : std::nullopt;
    }
    void end(std::uint64_t ticket, int result, BLKMIRROR_ERROR) const {
        detail::check(mirror_filter_end(raw_, ticket, result), ec);
    }
    void mark_dirty(std::uint64_t offset, std::uint64_t length, BLKMIRROR_ERROR) const {
        detail::check(mirror_filter_mark_dirty(raw_, offset, length), ec);
    }
    // The device that the filter is on now.
    device current(BLKMIRROR_ERROR) const {
        mirror_device *raw = nullptr;
        detail::check(mirror_filter_device(raw_, &raw), ec);
        return device(raw);
    }
    std::uint64_t length(BLKMIRROR_ERROR) const {
        std::uint64_t length = 0;
        detail::check(mirror_filter_length(raw_, &length), ec);
        return length;
    }
    // Calls `opened` when the gate opens again after `begin` found it closed; nullptr takes it away.
    template <class F>
    void on_opened(F opened, BLKMIRROR_ERROR) const {
        if constexpr (detail::given<F>) {
            F *kept = new (std::nothrow) F(std::move(opened));
            const auto call = [](void *opaque) noexcept { (*static_cast<F *>(opaque))(); };
            detail::check(kept ? mirror_filter_set_opened(raw_, call, kept, detail::drop<F>) : -ENOMEM, ec);
        } else {
            detail::check(mirror_filter_set_opened(raw_, nullptr, nullptr, nullptr), ec);
        }
    }
};

// What mirror_job_poll answered; `state` is MIRROR_POLL_..., or -errno.
struct poll_result {
    int state;
    std::uint64_t wake_at_ns;

    bool idle() const noexcept { return state == MIRROR_POLL_IDLE; }
    // Also after a failure: a loop is to end.
    bool over() const noexcept { return state == MIRROR_POLL_CONCLUDED || state < 0; }
    // What poll(2) and epoll_wait(2) take: milliseconds, rounded up, or -1.
    int timeout_ms(std::uint64_t now_ns) const noexcept {
        if (!idle())
            return 0;
        if (wake_at_ns == MIRROR_NEVER)
            return -1;
        const std::uint64_t left_ns = wake_at_ns > now_ns ? wake_at_ns - now_ns : 0;
        const std::uint64_t left_ms = left_ns / 1000000 + (left_ns % 1000000 != 0);
        return left_ms < INT_MAX ? static_cast<int>(left_ms) : INT_MAX;
    }
};

// Freed inside a callback of its own, or while another thread polls it, a job refuses (EBUSY), and the destructor leaves it: its
// filter stays held. Let the thread that polls it free it, outside of the poll.
class job : public detail::handle<mirror_job, detail::free_job> {
public:
    job() noexcept = default;
    explicit job(mirror_job *raw) noexcept : handle(raw) {}
    job(const filter &disk, device_ref target, const mirror_job_options &options, BLKMIRROR_ERROR) {
        detail::check(mirror_job_new(disk.get(), target.get(), &options, &raw_), ec);
    }
    // With hooks: `wake` is a callable of nothing, from any thread; `prepare` one of const mirror_prepare_info& that answers 0 or
    // -errno. Either can be nullptr. They live as long as the library may call them, and take the place of those in `options`,
    // whose `opaque` goes to its `clock` alone.
    template <class Wake, class Prepare>
    job(const filter &disk, device_ref target, mirror_job_options options, Wake wake, Prepare prepare, BLKMIRROR_ERROR) {
        using Hooks = detail::job_hooks<Wake, Prepare>;
        Hooks *hooks = new (std::nothrow) Hooks{std::move(wake), std::move(prepare), options.clock, options.opaque};
        if (options.clock != nullptr)
            options.clock = [](void *opaque) noexcept {
                const Hooks *kept = static_cast<Hooks *>(opaque);
                return kept->clock(kept->clock_opaque);
            };
        options.opaque = hooks;
        options.closed = detail::drop<Hooks>;
        options.wake = nullptr;
        options.prepare = nullptr;
        if constexpr (detail::given<Wake>)
            options.wake = [](void *opaque) noexcept { static_cast<Hooks *>(opaque)->wake(); };
        if constexpr (detail::given<Prepare>)
            options.prepare = [](void *opaque, const mirror_prepare_info *info) noexcept {
                return detail::guarded([&] { return static_cast<Hooks *>(opaque)->prepare(*info); });
            };
        detail::check(hooks ? mirror_job_new(disk.get(), target.get(), &options, &raw_) : -ENOMEM, ec);
    }

    // Frees it now, and tells if it is refused; it is still held then.
    void free(BLKMIRROR_ERROR) {
        const int answer = mirror_job_free(raw_);
        if (answer == 0)
            raw_ = nullptr;
        detail::check(answer, ec);
    }

    poll_result poll(std::uint64_t now_ns, BLKMIRROR_ERROR) const {
        poll_result polled = {0, MIRROR_NEVER};
        polled.state = detail::check(mirror_job_poll(raw_, now_ns, &polled.wake_at_ns), ec);
        return polled;
    }
    int fd(BLKMIRROR_ERROR) const { return detail::check(mirror_job_fd(raw_), ec); }
    // The oldest event that was not read, if there is one.
    std::optional<mirror_event> next_event(BLKMIRROR_ERROR) const {
        mirror_event event = {};
        event.struct_size = sizeof event;
        return detail::check(mirror_job_next_event(raw_, &event), ec) == 1 ? std::optional(event) : std::nullopt;
    }
    mirror_job_info query(BLKMIRROR_ERROR) const {
        mirror_job_info info = {};
        info.struct_size = sizeof info;
        detail::check(mirror_job_query(raw_, &info), ec);
        return info;
    }

    void start(BLKMIRROR_ERROR) const { detail::check(mirror_job_start(raw_), ec); }
    void pause(BLKMIRROR_ERROR) const { detail::check(mirror_job_pause(raw_), ec); }
    void resume(BLKMIRROR_ERROR) const { detail::check(mirror_job_resume(raw_), ec); }
    void drain_begin(BLKMIRROR_ERROR) const { detail::check(mirror_job_drain_begin(raw_), ec); }
    void drain_end(BLKMIRROR_ERROR) const { detail::check(mirror_job_drain_end(raw_), ec); }
    void complete(BLKMIRROR_ERROR) const { detail::check(mirror_job_complete(raw_), ec); }
    void finalize(BLKMIRROR_ERROR) const { detail::check(mirror_job_finalize(raw_), ec); }
    void dismiss(BLKMIRROR_ERROR) const { detail::check(mirror_job_dismiss(raw_), ec); }
    // With `force` at once, without it as a copy of one point in time where the job is ready.
    void cancel(bool force, BLKMIRROR_ERROR) const { detail::check(mirror_job_cancel(raw_, force), ec); }
    void set_speed(std::uint64_t bytes_per_second, BLKMIRROR_ERROR) const {
        detail::check(mirror_job_set_speed(raw_, bytes_per_second), ec);
    }
    void change(std::uint32_t copy_mode, BLKMIRROR_ERROR) const { detail::check(mirror_job_change(raw_, copy_mode), ec); }
};

// Sends the library's messages to `log`, a callable of a level and a text, from any thread; nullptr sends them nowhere.
template <class F>
void set_log(F log, std::uint32_t level, BLKMIRROR_ERROR) {
    if constexpr (detail::given<F>) {
        F *kept = new (std::nothrow) F(std::move(log));
        const auto call = [](void *opaque, std::uint32_t of, const char *message) noexcept {
            (*static_cast<F *>(opaque))(of, message);
        };
        detail::check(kept ? mirror_set_log(call, kept, level, detail::drop<F>) : -ENOMEM, ec);
    } else {
        detail::check(mirror_set_log(nullptr, nullptr, level, nullptr), ec);
    }
}

} // namespace (not_)throwing
} // namespace blkmirror

#undef BLKMIRROR_ERROR

#endif
