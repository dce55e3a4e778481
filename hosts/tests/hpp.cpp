// blkmirror.hpp holds what it says: ownership, both kinds of errors, callables, and nothing allocated for a request.
// Built by scripts/test-install with each compiler, standard, with exceptions and without.
#include <blkmirror.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <poll.h>
#include <string>
#include <thread>
#include <vector>

// Not inlined: the compilers take malloc and free, seen apart, for a mismatch.
#define APART __attribute__((noinline))
static std::atomic<long> allocations{0};
APART void *operator new(std::size_t size) {
    allocations++;
    void *memory = std::malloc(size ? size : 1);
    return memory ? memory : (std::abort(), nullptr);
}
APART void *operator new(std::size_t size, const std::nothrow_t &) noexcept {
    allocations++;
    return std::malloc(size ? size : 1);
}
APART void operator delete(void *memory) noexcept { std::free(memory); }
APART void operator delete(void *memory, std::size_t) noexcept { std::free(memory); }

static int checks;
#define CHECK(condition)                                                                     \
    (checks++, (condition) ? (void)0                                                         \
                           : (std::fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #condition, \
                                           blkmirror::last_error()),                         \
                              std::exit(1)))

using blkmirror::device;
using blkmirror::filter;
using blkmirror::job;

static_assert(!std::is_copy_constructible_v<device> && !std::is_copy_assignable_v<device>);
static_assert(!std::is_copy_constructible_v<filter> && !std::is_copy_constructible_v<job>);
static_assert(std::is_nothrow_move_constructible_v<device> && std::is_nothrow_move_assignable_v<filter>);
static_assert(std::is_nothrow_move_constructible_v<job> && sizeof(job) == sizeof(void *));

constexpr std::uint64_t LENGTH = 4 << 20;

// A disk in memory that answers at once.
struct inline_disk {
    std::vector<unsigned char> bytes = std::vector<unsigned char>(LENGTH);
    int *closed;
    int zeroes = 0, polls = 0;
    int fail = 0; // what a read answers or throws

    explicit inline_disk(int &count) : closed(&count) {}
    inline_disk(const inline_disk &) = delete;
    ~inline_disk() { ++*closed; }

    int read(std::uint64_t, std::uint64_t offset, std::uint64_t, const mirror_iovec *iov, std::size_t iovcnt) {
#if BLKMIRROR_EXCEPTIONS
        if (fail == 1)
            throw std::bad_alloc();
        if (fail == 2)
            throw std::system_error(ENODEV, std::generic_category());
        if (fail == 3)
            throw 7;
#endif
        if (fail < 0)
            return fail;
        for (std::size_t i = 0; i < iovcnt; offset += iov[i++].len)
            std::memcpy(iov[i].base, &bytes[offset], iov[i].len);
        return MIRROR_DONE;
    }
    int write(std::uint64_t, std::uint64_t offset, std::uint64_t, const mirror_iovec *iov, std::size_t iovcnt, std::uint32_t) {
        for (std::size_t i = 0; i < iovcnt; offset += iov[i++].len)
            std::memcpy(&bytes[offset], iov[i].base, iov[i].len);
        return MIRROR_DONE;
    }
    int zero(std::uint64_t, std::uint64_t offset, std::uint64_t length, std::uint32_t) {
        zeroes++;
        std::memset(&bytes[offset], 0, length);
        return MIRROR_DONE;
    }
    int poll() {
        polls++;
        return 0;
    }
};

// A disk whose requests are finished by a thread of its own.
class threaded_disk {
public:
    std::vector<unsigned char> bytes = std::vector<unsigned char>(LENGTH);
    blkmirror::device_ref me;
    std::atomic<int> refused{0};

    threaded_disk() : worker_([this] { work(); }) {}
    ~threaded_disk() {
        stop_ = true;
        worker_.join();
    }
    int read(std::uint64_t token, std::uint64_t offset, std::uint64_t, const mirror_iovec *iov, std::size_t iovcnt) {
        return later({token, offset, false, {iov, iov + iovcnt}});
    }
    int write(std::uint64_t token, std::uint64_t offset, std::uint64_t, const mirror_iovec *iov, std::size_t iovcnt,
              std::uint32_t) {
        return later({token, offset, true, {iov, iov + iovcnt}});
    }

private:
    struct asked {
        std::uint64_t token, offset;
        bool write;
        std::vector<mirror_iovec> iov;
    };
    int later(asked request) {
        std::lock_guard<std::mutex> guard(lock_);
        queue_.push_back(std::move(request));
        return MIRROR_PENDING;
    }
    void work() {
        while (!stop_) {
            std::unique_lock<std::mutex> guard(lock_);
            if (queue_.empty()) {
                guard.unlock();
                std::this_thread::yield();
                continue;
            }
            asked request = std::move(queue_.front());
            queue_.pop_front();
            guard.unlock();
            std::uint64_t at = request.offset;
            for (const mirror_iovec &part : request.iov) {
                request.write ? std::memcpy(&bytes[at], part.base, part.len) : std::memcpy(part.base, &bytes[at], part.len);
                at += part.len;
            }
            refused += me.complete(request.token, 0) != 0;
        }
    }
    std::mutex lock_;
    std::deque<asked> queue_;
    std::atomic<bool> stop_{false};
    std::thread worker_;
};

// Drives a job until it is over, completing it once it is ready.
static int drive(job &mirror) {
    std::error_code ec;
    for (;;) {
        const std::uint64_t now = mirror_clock_ns();
        const blkmirror::poll_result polled = mirror.poll(now, ec);
        CHECK(!ec);
        while (const auto event = mirror.next_event(ec))
            if (event->type == MIRROR_EVENT_READY)
                mirror.complete(ec);
        if (polled.over())
            break;
        pollfd fd = {mirror.fd(ec), POLLIN, 0};
        if (polled.idle())
            ::poll(&fd, 1, polled.timeout_ms(now));
    }
    return mirror.query(ec).result;
}

static void errors_come_both_ways() {
    std::error_code ec;
    device missing = device::open_file("/nowhere/there", ec);
    CHECK(!missing && ec == std::errc::no_such_file_or_directory);
    CHECK(std::string(blkmirror::last_error()).find("/nowhere/there") != std::string::npos);
    device memory = device::memory(LENGTH, ec);
    CHECK(memory && !ec); // a success clears it
    CHECK(memory.engine(ec) == nullptr && memory.refused(ec) == 0 && memory.limits(ec).length == LENGTH && !ec);
    CHECK(memory.same(memory, ec) && !ec);
    device none;
    CHECK(none.limits(ec).length == 0 && ec == std::errc::invalid_argument);
    job empty;
    CHECK(empty.poll(1, ec).over() && ec == std::errc::invalid_argument);
    CHECK(filter(none, ec).get() == nullptr && ec);
#if BLKMIRROR_EXCEPTIONS
    bool caught = false;
    try {
        device::open_file("/nowhere/there");
    } catch (const blkmirror::error &thrown) {
        CHECK(thrown.code() == std::errc::no_such_file_or_directory);
        CHECK(std::string(thrown.what()).find("/nowhere/there") != std::string::npos);
        caught = true;
    }
    CHECK(caught);
    CHECK(device::memory(4096).limits().length == 4096);
#endif
}

static void handles_move_and_close_once() {
    std::error_code ec;
    int closed = 0;
    {
        device first = device::of(std::make_unique<inline_disk>(closed), blkmirror::device_limits(LENGTH), ec);
        device second = std::move(first);
        CHECK(!first && second && closed == 0); // NOLINT: it is promised to be empty
        device &same = second;
        second = std::move(same);
        CHECK(second && closed == 0);
        first = std::move(second);
        CHECK(first && !second && closed == 0); // NOLINT: as above
        second = std::move(first);
        filter disk(second, ec);
        second = device();
        CHECK(!second && closed == 0); // the filter has it
        device current = disk.current(ec);
        CHECK(current && disk.length(ec) == LENGTH);
        mirror_device_free(current.release());
        CHECK(!current && closed == 0);
    }
    CHECK(closed == 1);
    mirror_device_limits bad = blkmirror::device_limits(LENGTH);
    bad.request_alignment = 3;
    device refused = device::of(std::make_unique<inline_disk>(closed), bad, ec);
    CHECK(!refused && ec == std::errc::invalid_argument && closed == 2);
}

static void a_disk_is_mirrored_and_switched(std::uint32_t inline_or_not) {
    std::error_code ec;
    int closed = 0, prepared = 0, dropped = 0;
    std::atomic<int> woken{0};
    struct count_drop {
        int *count;
        explicit count_drop(int *dropped) : count(dropped) {}
        count_drop(count_drop &&other) noexcept : count(std::exchange(other.count, nullptr)) {}
        ~count_drop() { count ? ++*count : 0; }
    };
    auto source_disk = std::make_unique<inline_disk>(closed);
    auto target_disk = std::make_unique<threaded_disk>();
    inline_disk *from = source_disk.get();
    threaded_disk *to = target_disk.get();
    for (std::size_t i = 0; i < LENGTH; i++)
        from->bytes[i] = static_cast<unsigned char>((i / 512 * 7 + i) | 1);
    device source = device::of(std::move(source_disk), blkmirror::device_limits(LENGTH), ec);
    device target = device::of(std::move(target_disk), blkmirror::device_limits(LENGTH), ec);
    to->me = target;
    filter disk(source, ec);
    blkmirror::job_options options;
    options.id = "hpp";
    options.max_io = 65536;
    options.flags |= inline_or_not;
    std::atomic<int> asked{0};
    options.opaque = &asked;
    options.clock = [](void *opaque) {
        ++*static_cast<std::atomic<int> *>(opaque);
        return mirror_clock_ns();
    };
    job mirror(disk, target, options, [&woken] { woken++; },
               [&prepared, counted = count_drop(&dropped)](const mirror_prepare_info &info) {
                   prepared += info.backing_mode == MIRROR_BACKING_SOURCE_CHAIN;
                   return 0;
               }, ec);
    CHECK(!ec && dropped == 0);
    job other(disk, target, options, ec);
    CHECK(!other && ec == std::errc::device_or_resource_busy);
    mirror.start(ec);
    int told = 1;
    const std::vector<unsigned char> fresh(4096, 0xee);
    disk.write(8192, fresh.data(), fresh.size(), 0, [&told](int result) { told = result; }, ec);
    CHECK(!ec && told == 0);
    CHECK(drive(mirror) == 0 && prepared == 1);
    CHECK(inline_or_not ? asked > 0 : woken > 0);
    CHECK(from->bytes == to->bytes && to->bytes[8192] == 0xee && from->polls > 0);
    CHECK(disk.current(ec).same(target, ec));
    // A write goes to the new disk, and is told from its thread.
    std::atomic<int> later{1};
    disk.write(0, fresh.data(), fresh.size(), 0, [&later](int result) { later = result; }, ec);
    while (later == 1)
        std::this_thread::yield();
    CHECK(later == 0 && to->bytes[0] == 0xee && from->bytes[0] != 0xee);
    CHECK(dropped == 0 && to->refused == 0);
    mirror.free(ec);
    CHECK(!ec && !mirror && dropped == 1);
}

static void nothing_is_allocated_for_a_request() {
    std::error_code ec;
    filter disk(device::memory(LENGTH, ec), ec);
    std::vector<unsigned char> buffer(4096, 5);
    struct {
        long calls = 0, results = 0;
    } seen;
    auto large = [&seen, a = 1L, b = 2L](int result) { seen.calls += a + b, seen.results += result; };
    blkmirror::request<decltype(large)> kept(large);
    disk.write(0, buffer.data(), buffer.size(), 0, kept, ec); // what is allocated at the first
    const long before = allocations;
    for (int i = 0; i < 1000; i++) {
        disk.write(4096, buffer.data(), buffer.size(), 0, [&seen](int result) { seen.calls++, seen.results += result; }, ec);
        disk.read(4096, buffer.data(), buffer.size(), kept, ec);
        disk.flush([](int) {}, ec);
    }
    CHECK(allocations == before && !ec);
    CHECK(seen.calls == 3 + 1000 + 3000 && seen.results == 0);
    disk.zero(0, 4096, 0, kept, ec);
    disk.discard(0, 4096, kept, ec);
    mirror_iovec iov[2] = {{buffer.data(), 512}, {buffer.data() + 512, 512}};
    disk.read(0, iov, 2, kept, ec);
    CHECK(!ec && seen.calls == 4003 + 9 && buffer[1023] == 0 && buffer[1024] == 5);
    disk.read(LENGTH, buffer.data(), 512, kept, ec);
    CHECK(ec == std::errc::result_out_of_range && seen.calls == 4012); // refused: not called
    disk.write(0, iov, 2, 8, blkmirror::completion([](void *, int) {}, nullptr), ec);
    CHECK(ec == std::errc::invalid_argument);
}

static void callbacks_keep_their_exceptions() {
    std::error_code ec;
    int closed = 0;
    auto host = std::make_unique<inline_disk>(closed);
    inline_disk *disk_host = host.get();
    device source = device::of(std::move(host), blkmirror::device_limits(LENGTH), ec);
    filter disk(source, ec);
    unsigned char bytes[512];
    const int answers[] = {0, -ENOMEM, -ENODEV, -EIO};
    for (int fail = 0; fail < (BLKMIRROR_EXCEPTIONS ? 4 : 1); fail++) {
        int told = 1;
        disk_host->fail = fail;
        disk.read(0, bytes, sizeof bytes, [&told](int result) { told = result; }, ec);
        CHECK(told == answers[fail]);
    }
    disk_host->fail = 0;
    disk.zero(0, 4096, 0, [](int) {}, ec);
    CHECK(disk_host->zeroes == 1); // the optional callback is found
    job *inside = nullptr;
    job mirror(disk, device::memory(LENGTH, ec), blkmirror::job_options(), nullptr,
               [&inside](const mirror_prepare_info &) -> int {
                   std::error_code refused;
                   inside->free(refused);
                   CHECK(refused == std::errc::device_or_resource_busy && *inside);
#if BLKMIRROR_EXCEPTIONS
                   throw std::bad_alloc();
#else
                   return -ENOMEM;
#endif
               }, ec);
    inside = &mirror;
    mirror.start(ec);
    CHECK(drive(mirror) == -ENOMEM);
}

static void the_rest_of_the_verbs() {
    std::error_code ec;
    filter disk(device::memory(LENGTH, ec), 4096, ec);
    device target = device::memory(LENGTH, ec);
    blkmirror::job_options options;
    options.flags &= ~static_cast<std::uint32_t>(MIRROR_JOB_AUTO_FINALIZE | MIRROR_JOB_AUTO_DISMISS);
    job mirror(disk, target, options, ec);
    const auto ticket = disk.begin(MIRROR_OP_WRITE, 0, 4096, ec);
    CHECK(ticket && !ec);
    disk.end(*ticket, 0, ec);
    CHECK(!ec);
    disk.end(*ticket, 0, ec);
    CHECK(ec == std::errc::no_such_file_or_directory);
    disk.mark_dirty(0, 4096, ec);
    int opened = 0;
    disk.on_opened([&opened] { opened++; }, ec);
    mirror.set_speed(1 << 30, ec), CHECK(!ec);
    mirror.pause(ec), CHECK(!ec);
    mirror.resume(ec), CHECK(!ec);
    mirror.drain_begin(ec), CHECK(!ec);
    mirror.drain_end(ec), CHECK(!ec);
    mirror.change(MIRROR_COPY_WRITE_BLOCKING, ec), CHECK(ec == std::errc::operation_not_supported);
    mirror.finalize(ec), CHECK(ec == std::errc::operation_not_permitted);
    mirror.dismiss(ec), CHECK(ec == std::errc::operation_not_permitted);
    mirror.start(ec), CHECK(!ec);
    std::uint64_t now = 1;
    const auto until = [&](std::uint32_t status) {
        for (int i = 0; i < 10000 && mirror.query(ec).status != status; i++) {
            const auto polled = mirror.poll(now, ec);
            now = polled.idle() && polled.wake_at_ns != MIRROR_NEVER ? polled.wake_at_ns : now + 1000000;
        }
        CHECK(mirror.query(ec).status == status);
    };
    until(MIRROR_STATUS_READY);
    mirror.complete(ec);
    until(MIRROR_STATUS_PENDING);
    CHECK(!disk.begin(MIRROR_OP_READ, 0, 4096, ec) && !ec); // the gate is closed
    mirror.finalize(ec);
    until(MIRROR_STATUS_CONCLUDED);
    mirror.dismiss(ec), CHECK(!ec);
    CHECK(opened == 1);
    disk.on_opened(nullptr, ec), CHECK(!ec);
    job second(disk, device::memory(LENGTH, ec), options, ec);
    second.start(ec);
    second.cancel(true, ec), CHECK(!ec);

    std::atomic<int> lines{0};
    blkmirror::set_log([&lines](std::uint32_t, const char *) { lines++; }, MIRROR_LOG_TRACE, ec);
    CHECK(!ec);
    int closed = 0;
    device of_host = device::of(std::make_unique<inline_disk>(closed), blkmirror::device_limits(LENGTH), ec);
    CHECK(of_host.ref().complete(77, 0) == -ENOENT && of_host.refused(ec) == 1);
    blkmirror::set_log(nullptr, MIRROR_LOG_OFF, ec);
    CHECK(!ec && lines > 0);
    mirror_check_options check = {};
    check.struct_size = sizeof check;
    check.flags = MIRROR_CHECK_DESTROY;
    check.max_bytes = 1 << 20;
    int findings = 0;
    CHECK(device::memory(LENGTH, ec).check(check, [&](const mirror_check_finding &) { findings++; }, ec) == findings);
    CHECK(!ec && findings == 0);
    const blkmirror::poll_result idle = {MIRROR_POLL_IDLE, 5000001}, never = {MIRROR_POLL_IDLE, MIRROR_NEVER};
    CHECK(idle.timeout_ms(1) == 5 && idle.timeout_ms(0) == 6 && idle.timeout_ms(6000000) == 0 && never.timeout_ms(9) == -1);
    CHECK(blkmirror::library_fits());
}

int main() {
    errors_come_both_ways();
    handles_move_and_close_once();
    a_disk_is_mirrored_and_switched(0);
    a_disk_is_mirrored_and_switched(MIRROR_JOB_INLINE);
    nothing_is_allocated_for_a_request();
    callbacks_keep_their_exceptions();
    the_rest_of_the_verbs();
    std::printf("%d checks\n", checks);
}
