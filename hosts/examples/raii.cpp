// A host in C++: handles that free themselves, errors as exceptions, lambdas as callbacks; storage that answers from a thread of
// its own; and a loop that waits for a condition variable instead of a descriptor.
//
//     raii OLD NEW
//
// mirrors the image OLD to the new file NEW while a guest writes, and switches the guest over.
#include <blkmirror.hpp>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <fcntl.h>
#include <iostream>
#include <mutex>
#include <sys/uio.h>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

namespace {

// Storage of the host's own: requests are queued, and carried out by a thread.
class image {
public:
    image(const char *path, int flags) : fd_(open(path, flags, 0644)) {
        if (fd_ < 0)
            throw std::system_error(errno, std::generic_category(), path);
        worker_ = std::thread([this] { work(); });
    }
    image(const image &) = delete;
    // Nothing uses the device any more, so nothing is queued.
    ~image() {
        {
            std::lock_guard guard(lock_);
            stop_ = true;
        }
        news_.notify_one();
        worker_.join();
        close(fd_);
    }

    std::uint64_t length() const { return static_cast<std::uint64_t>(lseek(fd_, 0, SEEK_END)); }
    void set_length(std::uint64_t length) {
        if (ftruncate(fd_, static_cast<off_t>(length)) < 0)
            throw std::system_error(errno, std::generic_category(), "ftruncate");
    }
    // Requests are completed with the device that the image became.
    void completes_with(blkmirror::device_ref device) { device_ = device; }

    int read(std::uint64_t token, std::uint64_t offset, std::uint64_t length, const mirror_iovec *iov, std::size_t iovcnt) {
        return later({MIRROR_OP_READ, token, offset, length, {iov, iov + iovcnt}});
    }
    int write(std::uint64_t token, std::uint64_t offset, std::uint64_t length, const mirror_iovec *iov, std::size_t iovcnt,
              std::uint32_t flags) {
        return later({flags & MIRROR_FUA ? write_fua : MIRROR_OP_WRITE, token, offset, length, {iov, iov + iovcnt}});
    }
    int flush(std::uint64_t token) { return later({MIRROR_OP_FLUSH, token, 0, 0, {}}); }

private:
    static constexpr int write_fua = 100;
    struct queued {
        int operation;
        std::uint64_t token, offset, length;
        std::vector<mirror_iovec> iov; // a copy: the library's list is good during the callback only
    };

    int later(queued request) {
        {
            std::lock_guard guard(lock_);
            queue_.push_back(std::move(request));
        }
        news_.notify_one();
        return MIRROR_PENDING;
    }

    void work() {
        std::unique_lock guard(lock_);
        for (;;) {
            news_.wait(guard, [this] { return stop_ || !queue_.empty(); });
            if (queue_.empty())
                return;
            const queued request = std::move(queue_.front());
            queue_.pop_front();
            guard.unlock();
            device_.complete(request.token, carry_out(request)); // without the lock: it may call read or write
            guard.lock();
        }
    }

    int carry_out(const queued &request) const {
        if (request.operation == MIRROR_OP_FLUSH)
            return fdatasync(fd_) < 0 ? -errno : 0;
        const auto *list = reinterpret_cast<const iovec *>(request.iov.data());
        const int count = static_cast<int>(request.iov.size());
        const auto offset = static_cast<off_t>(request.offset);
        const ssize_t moved = request.operation == MIRROR_OP_READ
                                  ? preadv(fd_, list, count, offset)
                                  : pwritev2(fd_, list, count, offset, request.operation == write_fua ? RWF_DSYNC : 0);
        if (moved < 0)
            return -errno;
        return static_cast<std::uint64_t>(moved) == request.length ? 0 : -EIO;
    }

    int fd_;
    blkmirror::device_ref device_;
    std::mutex lock_;
    std::condition_variable news_;
    std::deque<queued> queue_;
    bool stop_ = false;
    std::thread worker_;
};

// What the library owns of an image. It can be the worker, inside device_ref::complete, that lets go of a device last and destroys
// this; so this isn't the image itself, which waits for its worker when it is destroyed.
struct lent_image {
    image *storage;

    int read(std::uint64_t token, std::uint64_t offset, std::uint64_t length, const mirror_iovec *iov, std::size_t iovcnt) {
        return storage->read(token, offset, length, iov, iovcnt);
    }
    int write(std::uint64_t token, std::uint64_t offset, std::uint64_t length, const mirror_iovec *iov, std::size_t iovcnt,
              std::uint32_t flags) {
        return storage->write(token, offset, length, iov, iovcnt, flags);
    }
    int flush(std::uint64_t token) { return storage->flush(token); }
};

blkmirror::device lend(image &storage) {
    const blkmirror::device_limits limits(storage.length());
    auto device = blkmirror::device::of(std::make_unique<lent_image>(lent_image{&storage}), limits);
    storage.completes_with(device); // before anything uses the device
    return device;
}

// What a thread can wait for until another rings.
class bell {
public:
    void ring() {
        {
            std::lock_guard guard(lock_);
            rung_ = true;
        }
        rings_.notify_one();
    }
    void wait() { wait_for(std::chrono::hours(24)); }
    void wait_for(std::chrono::nanoseconds longest) {
        std::unique_lock guard(lock_);
        rings_.wait_for(guard, longest, [this] { return rung_; });
        rung_ = false;
    }

private:
    std::mutex lock_;
    std::condition_variable rings_;
    bool rung_ = false;
};

// The guest: what it writes is told in guest.h.
class guest {
public:
    explicit guest(const blkmirror::filter &disk) : disk_(disk), blocks_(disk.length() / sizeof block_) {}

    void write() {
        block_.fill(++writes);
        // The lambda captures one pointer and travels in the request: nothing is allocated.
        disk_.write(7919 * writes % blocks_ * sizeof block_, block_.data(), sizeof block_, 0, [this](int result) {
            result_ = result;
            told_.ring();
        });
        told_.wait();
        if (result_ < 0)
            throw std::system_error(-result_, std::generic_category(), "the guest's write");
    }

    std::uint64_t writes = 0;

private:
    const blkmirror::filter &disk_;
    std::uint64_t blocks_;
    std::array<std::uint64_t, 512> block_;
    bell told_;
    int result_ = 0;
};

int mirror(const char *old_path, const char *new_path) {
    // What is declared first is destroyed last: images, devices, the filter, the job.
    image old_storage(old_path, O_RDWR), new_storage(new_path, O_RDWR | O_CREAT);
    new_storage.set_length(old_storage.length());
    const auto old_image = lend(old_storage), new_image = lend(new_storage);
    const blkmirror::filter disk(old_image);
    bell news;
    blkmirror::job job(
        disk, new_image, blkmirror::job_options(), [&news] { news.ring(); },
        [](const mirror_prepare_info &) {
            std::cerr << "source and target are equal, and the guest waits\n";
            return 0;
        });
    job.start();

    std::atomic<bool> over{false};
    guest writer(disk);
    std::thread vcpu([&] {
        while (!over || writer.writes < 100)
            writer.write();
        for (int more = 0; more < 100; more++)
            writer.write();
    });
    for (;;) {
        const std::uint64_t now = mirror_clock_ns();
        const auto polled = job.poll(now);
        while (const auto event = job.next_event())
            if (event->type == MIRROR_EVENT_READY)
                job.complete();
        if (polled.over())
            break;
        if (polled.idle())
            news.wait_for(std::chrono::milliseconds(polled.wake_at_ns == MIRROR_NEVER ? 1000 : polled.timeout_ms(now)));
    }
    over = true;
    vcpu.join();
    const auto info = job.query();
    std::cerr << mirror_status_name(info.status) << ", " << info.done << " bytes copied " << info.message << '\n';
    std::cout << writer.writes << " writes\n";
    return info.result;
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 3) {
        std::cerr << "usage: raii OLD NEW\n";
        return 2;
    }
    try {
        return mirror(argv[1], argv[2]) < 0;
    } catch (const std::exception &thrown) {
        std::cerr << "raii: " << thrown.what() << '\n';
        return 1;
    }
}
