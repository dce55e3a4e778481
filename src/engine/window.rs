//! How many bytes of copies are on their way at a time, fitted to the link (SPEC C-7, C-11).
//!
//! As many as come through in the time that a copy takes by itself, and in a short delay on top of that: `rate × (base +
//! delay)`. The *rate* is the most that came through in one of the last rounds, guests' carried writes among it; a round
//! lasts until a copy is done that was started in it. The *base* is the least that a copy took, among the last that were
//! sent alone and those that were faster. So the window grows for as long as more comes through, and stays where more would
//! only wait: what a guest's write finds queued before it is never more than the delay. The first copy is sent alone, and
//! once in a while another (a *probe*), because the least of what was seen behind a queue is no base; sooner where guests
//! wait for the link and the base was seen only once, since the host may have been elsewhere when it was.
//!
//! The model of the link is that of BBR (Cardwell, Cheng, Gunn, Yeganeh, Jacobson: "BBR: Congestion-Based Congestion
//! Control", ACM Queue 14-5, 2016), the delay as a target that of LEDBAT (RFC 6817), for traffic that makes way for other.

use crate::clock::Nanos;

/// The window before anything is known of the link.
const FIRST_WINDOW: u64 = 512 << 10;
/// The least window, and the least that a copy is cut to for the window's sake.
const LEAST_WINDOW: u64 = 64 << 10;
const LEAST_COPY: u64 = 32 << 10;
/// A copy takes this part of the window at most, so that the link has the next while one is awaited.
const COPIES_PER_WINDOW: u64 = 4;
/// What the copy may keep waiting at the target: itself, or guests' carried writes.
const DELAY_NS: u64 = 4_000_000;
const DELAY_FOR_GUESTS_NS: u64 = 1_000_000;
/// More need not wait at a target that is fast and near: it only turns buffers out of the processor's cache.
const LONGEST_QUEUE: u64 = 4 << 20;
/// A guest that has much on its way is one that waits for the link: copies make way for more than what it has sent. Else a
/// guest with few writes at a time, once behind, would find as many bytes of copies before each as its own, for ever.
const GUESTS_WEIGH: u64 = 2;
/// Rates are measured over at least this.
const SHORTEST_ROUND_NS: u64 = 1_000_000;
const ROUNDS: usize = 10;
/// The base is the least of so many probes.
const PROBES: usize = 4;
/// How long a base is believed, where guests write, that was seen once: a host that was kept from running saw too much, and
/// with that keeps so much under way that it never sees less.
const FIRST_BASE_LASTS_NS: u64 = 250_000_000;
const FIRST_BASE_LASTS_TIMES: u64 = 5;
/// How long one that was seen again; each time twice as long, up to this.
const BASE_LASTS_NS: u64 = 10_000_000_000;
const BASE_LASTS_TIMES: u64 = 50;
/// Guests that fill the window leave the copy this part of the rate.
const TRICKLE: u64 = 8;
const LONGEST_TRICKLE_NS: u64 = 100_000_000;

/// What is remembered of a copy that is under way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamp {
    round: u32,
    /// When it was sent, if that is known.
    sent: Option<Nanos>,
    /// It was sent alone to see the base.
    probe: bool,
    /// What guests had on its way before it.
    behind: u64,
}

/// Whether another copy may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Yes,
    /// When something has come through.
    Later,
    /// At this time, whatever else happens, or earlier when something has come through.
    At(Nanos),
}

#[derive(Debug)]
pub(super) struct Window {
    now: Nanos,
    /// `now` was told just now; else it is only the last that was told.
    exact: bool,
    /// Bytes that ever came through.
    delivered: u64,
    round: u32,
    round_began: Nanos,
    delivered_before: u64,
    /// The window has held something back in this round: what comes through is what the link can do.
    held_back: bool,
    /// It has done so since the last copy was done: what is sent next was wanted before.
    held_back_last: bool,
    /// Bytes per second in the last rounds.
    rates: [u64; ROUNDS],
    next_rate: usize,
    /// The best of them.
    rate: u64,
    base_ns: Option<u64>,
    /// What the last probes took.
    probes: [u64; PROBES],
    next_probe: usize,
    base_seen: Nanos,
    base_lasts_ns: u64,
    /// Guests wrote when room was last asked for.
    has_guests: bool,
    /// The next copy is sent alone, to see the base.
    probing: bool,
    /// When the last copy was sent, and its bytes.
    last_sent: (Nanos, u64),
    last_done: Nanos,
}

impl Window {
    pub(super) fn new() -> Self {
        Self {
            now: Nanos(0),
            exact: false,
            delivered: 0,
            round: 1,
            round_began: Nanos(0),
            delivered_before: 0,
            held_back: false,
            held_back_last: false,
            rates: [0; ROUNDS],
            next_rate: 0,
            rate: 0,
            base_ns: None,
            probes: [u64::MAX; PROBES],
            next_probe: 0,
            base_seen: Nanos(0),
            base_lasts_ns: FIRST_BASE_LASTS_NS,
            has_guests: false,
            probing: true,
            last_sent: (Nanos(0), 0),
            last_done: Nanos(0),
        }
    }

    /// One that has seen this of a link.
    #[cfg(all(test, not(loom)))]
    pub(super) fn seen(rate: u64, base_ns: u64) -> Self {
        Self { rates: [rate; ROUNDS], rate, base_ns: Some(base_ns), ..Self::new() }
    }

    pub(super) fn set_time(&mut self, now: Nanos, exact: bool) {
        (self.now, self.exact) = (now, exact);
    }

    /// Most bytes on their way at a time, guests' among them where there are any.
    fn bytes(&self, guests: bool) -> u64 {
        let rate = self.rate();
        if rate == 0 {
            return FIRST_WINDOW;
        }
        let base = self.base();
        let delay = if guests { DELAY_FOR_GUESTS_NS.max(base / 4) } else { DELAY_NS.max(base) };
        let under_way = bytes_in(rate, base);
        let queued = bytes_in(rate, delay).min(under_way.max(LONGEST_QUEUE));
        under_way.saturating_add(queued).max(LEAST_WINDOW)
    }

    /// How many nanoseconds it takes to copy so many bytes, if that is known.
    pub(super) fn time_to_copy(&self, bytes: u64) -> Option<u64> {
        let rate = self.rate();
        (rate > 0).then(|| time_for(bytes, rate))
    }

    /// The least that a copy took, in nanoseconds; 0 if none was seen.
    pub(super) fn base(&self) -> u64 {
        self.base_ns.unwrap_or(0)
    }

    /// Most bytes in one copy: a power of two.
    pub(super) fn longest_copy(&self, guests: bool) -> u64 {
        if self.probing {
            return LEAST_COPY;
        }
        let part = (self.bytes(guests) / COPIES_PER_WINDOW).max(LEAST_COPY);
        1 << part.ilog2()
    }

    /// Whether another copy may be sent while so many bytes of copies and of guests' writes are on their way.
    pub(super) fn room(&mut self, copies: u64, guests: Option<u64>) -> Room {
        self.has_guests = guests.is_some();
        let before = guests.unwrap_or(0).saturating_mul(GUESTS_WEIGH);
        if copies > 0 && (self.probing || copies.saturating_add(before) >= self.bytes(guests.is_some())) {
            (self.held_back, self.held_back_last) = (true, true);
            return Room::Later;
        }
        // One copy is always on its way, or soon: a guest must not keep the disk from being copied for ever.
        if guests.is_some() && before >= self.bytes(true) {
            let next = self.next_trickle();
            if self.now < next {
                (self.held_back, self.held_back_last) = (true, true);
                return Room::At(next);
            }
        }
        Room::Yes
    }

    /// When the next copy may be sent beside guests that fill the window.
    fn next_trickle(&self) -> Nanos {
        let (sent, bytes) = self.last_sent;
        sent + time_for(bytes, self.rate()).saturating_mul(TRICKLE).min(LONGEST_TRICKLE_NS)
    }

    /// A copy is sent; `alone` if no other is on its way, behind so many bytes of guests' writes.
    pub(super) fn sent(&mut self, bytes: u64, alone: bool, behind: u64) -> Stamp {
        // Who sends others beside it hasn't asked for room: the user has said how many there may be. So none will be alone.
        self.probing &= alone;
        if alone && !self.held_back_last && self.now.since(self.last_done) >= SHORTEST_ROUND_NS {
            // The time in which there was nothing to send says nothing about the link.
            self.begin_round();
        }
        // What was sent before anything was known of the link keeps nothing waiting.
        self.last_sent = (self.now, if self.rate() > 0 { bytes } else { 0 });
        Stamp { round: self.round, sent: self.exact.then_some(self.now), probe: self.probing, behind }
    }

    /// A guest's carried write came through.
    pub(super) fn delivered(&mut self, bytes: u64) {
        self.delivered += bytes;
    }

    /// A copy is done; `bytes` of it came through.
    pub(super) fn done(&mut self, stamp: Stamp, bytes: u64) {
        (self.last_done, self.held_back_last) = (self.now, false);
        self.delivered += bytes;
        if bytes > 0
            && self.exact
            && let Some(sent) = stamp.sent
        {
            let took = self.now.since(sent);
            // A probe may have had to wait for guests' writes.
            let waited = if stamp.probe { time_for(stamp.behind, self.rate()) } else { 0 };
            // Not for all of its time: some of what was before it may have been nearly through.
            self.look_at_base(took.saturating_sub(waited).max(took / 8), stamp.probe);
        }
        if stamp.probe {
            self.probing = false;
        }
        let elapsed = self.now.since(self.round_began);
        if stamp.round == self.round && self.exact && elapsed >= SHORTEST_ROUND_NS {
            self.end_round(elapsed);
        }
    }

    fn look_at_base(&mut self, took: u64, probe: bool) {
        if self.base_ns.is_none() && probe {
            self.least_of_probes(took);
        }
        if let Some(base) = self.base_ns {
            if took > base && !probe {
                if self.now.since(self.base_seen) >= self.base_lasts(base) && self.held_back {
                    self.probing = true;
                    // Seen or not, not again at once.
                    self.base_seen = self.now;
                }
                return;
            }
            if probe {
                let seen = self.least_of_probes(took);
                let agrees = (base / 2..=base.saturating_mul(2)).contains(&took);
                let twice = (2 * self.base_lasts_ns).min(BASE_LASTS_NS);
                self.base_lasts_ns = if agrees { twice } else { FIRST_BASE_LASTS_NS };
                (self.base_ns, self.base_seen) = (Some(seen), self.now);
                return;
            }
        }
        (self.base_ns, self.base_seen) = (Some(took), self.now);
    }

    /// One that took long may have found the host elsewhere; a link that is farther makes all of them take long.
    fn least_of_probes(&mut self, took: u64) -> u64 {
        self.probes[self.next_probe] = took;
        self.next_probe = (self.next_probe + 1) % PROBES;
        self.probes.into_iter().fold(u64::MAX, u64::min)
    }

    /// Who copies without guests loses nothing by a queue, and a little by each look.
    fn base_lasts(&self, base: u64) -> u64 {
        let sure = self.base_lasts_ns > FIRST_BASE_LASTS_NS;
        let (least, times) = match (self.has_guests, sure) {
            (true, false) => (self.base_lasts_ns, FIRST_BASE_LASTS_TIMES),
            (true, true) => (self.base_lasts_ns, BASE_LASTS_TIMES),
            (false, _) => (BASE_LASTS_NS, BASE_LASTS_TIMES),
        };
        least.max(base.saturating_mul(times))
    }

    fn end_round(&mut self, elapsed: u64) {
        let bytes = self.delivered - self.delivered_before;
        let rate = (u128::from(bytes) * 1_000_000_000 / u128::from(elapsed)).min(u128::from(u64::MAX)) as u64;
        if self.held_back || rate > self.rate() {
            self.rates[self.next_rate] = rate;
            self.next_rate = (self.next_rate + 1) % ROUNDS;
            self.rate = self.rates.into_iter().fold(0, u64::max);
        }
        self.begin_round();
    }

    fn begin_round(&mut self) {
        self.round = self.round.wrapping_add(1);
        (self.round_began, self.delivered_before, self.held_back) = (self.now, self.delivered, false);
    }

    /// Bytes per second that come through; 0 if nobody knows.
    fn rate(&self) -> u64 {
        self.rate
    }
}

fn bytes_in(rate: u64, nanos: u64) -> u64 {
    (u128::from(rate) * u128::from(nanos) / 1_000_000_000).min(u128::from(u64::MAX)) as u64
}

/// Nanoseconds for so many bytes; 0 if the rate isn't known.
fn time_for(bytes: u64, rate: u64) -> u64 {
    (u128::from(bytes) * 1_000_000_000).checked_div(u128::from(rate)).unwrap_or(0).min(u128::from(u64::MAX))
        as u64
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const RATE: u64 = 100_000_000;
    const US: u64 = 1000;
    const MS: u64 = 1_000_000;

    /// Bytes go through one after the other, and are then under way for the latency. Copies are sent for as long as there
    /// is room, guests' writes at a steady rate.
    struct Link {
        window: Window,
        rate: u64,
        latency: u64,
        now: u64,
        free_at: u64,
        /// When each is done, in order; what it is, and its bytes.
        out: std::collections::VecDeque<(u64, Option<Stamp>, u64)>,
        copies: u64,
        guests: u64,
        guest_interval: u64,
        guest_depth: u64,
        next_guest: u64,
        copied: u64,
        written: u64,
        longest_wait: u64,
    }

    const WRITE: u64 = 4096;

    impl Link {
        fn new(rate: u64, latency: u64) -> Self {
            Self {
                window: Window::new(),
                rate,
                latency,
                now: MS,
                free_at: 0,
                out: std::collections::VecDeque::new(),
                copies: 0,
                guests: 0,
                guest_interval: 0,
                guest_depth: u64::MAX,
                next_guest: u64::MAX,
                copied: 0,
                written: 0,
                longest_wait: 0,
            }
        }

        fn guest_writes(&mut self, bytes_per_second: u64) {
            self.guest_interval = WRITE * 1_000_000_000 / bytes_per_second;
            self.next_guest = self.now;
        }

        fn has_guests(&self) -> Option<u64> {
            (self.next_guest != u64::MAX).then_some(self.guests)
        }

        fn send(&mut self, bytes: u64, stamp: Option<Stamp>) {
            self.free_at = self.free_at.max(self.now) + time_for(bytes, self.rate);
            self.out.push_back((self.free_at + self.latency, stamp, bytes));
        }

        /// Goes on for this long, with a copy always wanted.
        fn run(&mut self, nanos: u64) {
            let end = self.now + nanos;
            (self.copied, self.written, self.longest_wait) = (0, 0, 0);
            while self.now < end {
                self.window.set_time(Nanos(self.now), true);
                while self.out.front().is_some_and(|(at, ..)| *at <= self.now) {
                    let Some((_, stamp, bytes)) = self.out.pop_front() else { break };
                    match stamp {
                        Some(stamp) => {
                            self.copies -= bytes;
                            self.copied += bytes;
                            self.window.done(stamp, bytes);
                        }
                        None => {
                            self.guests -= bytes;
                            self.written += bytes;
                            self.window.delivered(bytes);
                        }
                    }
                }
                while self.next_guest <= self.now && self.guests < self.guest_depth {
                    self.longest_wait = self.longest_wait.max(self.free_at.saturating_sub(self.now));
                    self.send(WRITE, None);
                    self.guests += WRITE;
                    self.next_guest += self.guest_interval;
                }
                let wake_at = loop {
                    let guests = self.has_guests();
                    match self.window.room(self.copies, guests) {
                        Room::Yes => {}
                        Room::Later => break u64::MAX,
                        Room::At(at) => break at.0,
                    }
                    let bytes = self.window.longest_copy(guests.is_some()).min(1 << 20);
                    let stamp = self.window.sent(bytes, self.copies == 0, self.guests);
                    self.send(bytes, Some(stamp));
                    self.copies += bytes;
                    assert!(self.copies < 1 << 33, "a window without end");
                };
                let next = self.out.front().map_or(u64::MAX, |(at, ..)| *at);
                let next_guest = if self.guests < self.guest_depth { self.next_guest } else { u64::MAX };
                self.now = next.min(next_guest).min(wake_at).max(self.now + 1);
            }
        }
    }

    #[test]
    fn the_window_is_what_the_link_takes_in_a_round_trip_and_a_little_more() {
        // SPEC C-7: whatever the link is like, almost all of it is used and little waits.
        for latency in [10 * US, 100 * US, MS, 10 * MS, 100 * MS] {
            for rate in [10_000_000, RATE, 1_000_000_000, 10_000_000_000] {
                let mut link = Link::new(rate, latency);
                link.run(3_000 * MS);
                link.run(1_000 * MS);
                assert!(link.copied * 100 >= rate * 90, "{latency} ns, {rate} B/s: {} copied", link.copied);
                let needed = bytes_in(rate, latency + DELAY_NS.max(latency));
                assert!(
                    link.copies <= (2 * needed).max(4 * LEAST_WINDOW),
                    "{latency} ns, {rate} B/s: {} under way, {needed} needed",
                    link.copies
                );
            }
        }
    }

    #[test]
    fn it_grows_from_nothing_in_some_round_trips() {
        // SPEC C-7: 64 MB are under way at the end.
        let mut link = Link::new(6_400_000_000, 10 * MS);
        link.run(200 * MS);
        link.run(10 * MS);
        assert!(link.copied > 40_000_000, "{}", link.copied);
    }

    #[test]
    fn guests_find_little_before_them_and_get_what_they_want() {
        // SPEC C-11
        for share in [1, 10, 50, 70, 90] {
            let mut link = Link::new(RATE, 100 * US);
            link.run(500 * MS);
            link.guest_writes(RATE * share / 100);
            link.run(30 * MS);
            link.run(25_000 * MS);
            let wanted = RATE / 4 * share;
            assert!(link.written * 100 >= wanted * 99, "{share} %: {} of {wanted}", link.written);
            assert!(link.longest_wait < 4 * MS, "{share} %: {} ns", link.longest_wait);
            let used = (link.written + link.copied) * 100 / (25 * RATE);
            assert!(used >= 95, "{share} %: the copy leaves {} % unused", 100 - used);
        }
    }

    #[test]
    fn guests_with_few_writes_at_a_time_get_what_they_want_on_a_link_that_seems_far() {
        // SPEC C-11: what was seen of the link was seen when the host was slow.
        let mut link = Link::new(RATE, MS);
        link.run(20 * MS);
        link.latency = 100 * US;
        link.guest_depth = 32 * WRITE;
        link.guest_writes(RATE * 7 / 10);
        link.run(1_000 * MS);
        assert!(link.written * 100 >= RATE * 69, "{} written", link.written);
        assert!((link.written + link.copied) * 100 >= RATE * 95, "{} copied", link.copied);
    }

    #[test]
    fn a_base_that_came_out_too_long_is_soon_put_right() {
        // SPEC C-11: the host didn't run while the first copy was under way.
        for took in [MS, 10 * MS, 50 * MS, 100 * MS] {
            let mut link = Link::new(RATE, 100 * US);
            link.window.set_time(Nanos(link.now), true);
            let first = link.window.sent(LEAST_COPY, true, 0);
            link.now += took;
            link.window.set_time(Nanos(link.now), true);
            link.window.done(first, LEAST_COPY);
            link.guest_depth = 32 * WRITE;
            link.guest_writes(RATE * 7 / 10);
            link.run(1_000 * MS);
            link.run(1_000 * MS);
            assert!(link.written * 100 >= RATE * 69, "{took}: {} written", link.written);
            assert!(link.longest_wait < 4 * MS, "{took}: {} ns", link.longest_wait);
        }
    }

    #[test]
    fn guests_that_want_all_of_the_link_leave_the_copy_something() {
        // SPEC C-11
        let mut window = Window::new();
        window.set_time(Nanos(MS), true);
        let probe = window.sent(LEAST_COPY, true, 0);
        window.set_time(Nanos(3 * MS), true);
        window.done(probe, LEAST_COPY);
        assert!(window.rate() > 0);
        let all = 1 << 30;
        assert_eq!(window.room(0, Some(all)), Room::Yes, "for the first time");
        window.sent(LEAST_COPY, true, all);
        assert_eq!(window.room(LEAST_COPY, Some(all)), Room::Later, "one is under way");
        let then = 3 * MS + time_for(LEAST_COPY, window.rate()) * TRICKLE;
        assert_eq!(window.room(0, Some(all)), Room::At(Nanos(then)));
        window.set_time(Nanos(then), true);
        assert_eq!(window.room(0, Some(all)), Room::Yes);
    }

    #[test]
    fn a_link_that_changes_is_followed() {
        // SPEC C-7: slower, farther and back.
        let mut link = Link::new(1_000_000_000, MS);
        link.run(1_000 * MS);
        for (rate, latency) in [(50_000_000, MS), (50_000_000, 20 * MS), (1_000_000_000, MS)] {
            (link.rate, link.latency) = (rate, latency);
            link.run(60_000 * MS);
            link.run(1_000 * MS);
            assert!(link.copied * 100 >= rate * 90, "{rate} B/s: {} copied", link.copied);
            let needed = bytes_in(rate, latency + DELAY_NS.max(latency));
            assert!(
                link.copies <= (2 * needed).max(4 * LEAST_WINDOW),
                "{rate} B/s: {} under way",
                link.copies
            );
        }
    }

    #[test]
    fn times_that_nobody_told_measure_nothing() {
        let mut window = Window::new();
        window.set_time(Nanos(MS), false);
        let stamp = window.sent(LEAST_COPY, true, 0);
        window.set_time(Nanos(50 * MS), true);
        window.done(stamp, LEAST_COPY);
        assert_eq!(window.base_ns, None, "sent nobody knows when");
        let stamp = window.sent(LEAST_COPY, true, 0);
        window.set_time(Nanos(60 * MS), false);
        window.done(stamp, LEAST_COPY);
        assert_eq!(window.base_ns, None, "done nobody knows when");
        assert!(!window.probing, "and it does not wait for ever");
    }

    /// A round of two milliseconds in which so many bytes come through.
    fn round(window: &mut Window, now: &mut u64, bytes: u64, held_back: bool) {
        window.set_time(Nanos(*now), true);
        let stamp = window.sent(bytes, false, 0);
        if held_back {
            assert!(window.room(1 << 60, None) != Room::Yes);
        }
        *now += 2 * MS;
        window.set_time(Nanos(*now), true);
        window.done(stamp, bytes);
    }

    #[test]
    fn the_rate_is_the_best_of_ten_rounds() {
        // SPEC C-7: a round in which the host was elsewhere says nothing, and what was once is not for ever.
        let (mut window, mut now) = (Window::new(), MS);
        for _ in 0..3 {
            round(&mut window, &mut now, 2_000_000, true);
            now += 1;
        }
        let fast = window.rate();
        assert!(fast.abs_diff(1_000_000_000) < 1_000_000, "{fast}");
        for _ in 0..30 {
            round(&mut window, &mut now, 200_000, false);
        }
        assert_eq!(window.rate(), fast, "there was no more to send");
        for _ in 0..7 {
            round(&mut window, &mut now, 200_000, true);
            assert_eq!(window.rate(), fast);
        }
        for _ in 0..3 {
            round(&mut window, &mut now, 200_000, true);
        }
        assert_eq!(window.rate(), 100_000_000);
    }

    #[test]
    fn a_round_that_was_not_over_when_there_was_nothing_to_send_is_not_one_with_that_time() {
        // SPEC C-7: all that there was came through in less than a round, and an hour later there is more.
        let (mut window, mut now) = (Window::new(), MS);
        lone(&mut window, &mut now, LEAST_COPY, 100 * US);
        window.set_time(Nanos(now), true);
        let stamps = [true, false].map(|alone| window.sent(1 << 20, alone, 0));
        assert_eq!(window.room(2 << 20, None), Room::Later);
        now += 100 * US;
        window.set_time(Nanos(now), true);
        for stamp in stamps {
            window.done(stamp, 1 << 20);
        }
        now += 3_600_000 * MS;
        lone(&mut window, &mut now, 1_000_000, 10 * MS);
        assert_eq!(window.rate(), RATE);
    }

    #[test]
    fn guests_writes_are_a_part_of_what_comes_through() {
        // SPEC C-11
        let (mut window, mut now) = (Window::new(), MS);
        round(&mut window, &mut now, 1_000_000, true);
        round(&mut window, &mut now, 1_000_000, true);
        assert_eq!(window.rate(), 500_000_000);
        window.delivered(1_000_000);
        round(&mut window, &mut now, 1_000_000, true);
        assert_eq!(window.rate(), 1_000_000_000);
    }

    #[test]
    fn a_probe_behind_guests_writes_is_less_what_they_took_but_never_nothing() {
        // SPEC C-11
        for (behind, base) in [(0, 8 * MS), (200_000, 6 * MS), (1 << 40, MS)] {
            let (mut window, mut now) = (Window::new(), MS);
            lone(&mut window, &mut now, 100_000, 16 * MS);
            for _ in 0..3 {
                round(&mut window, &mut now, 200_000, true);
            }
            assert_eq!(window.rate(), 100_000_000);
            window.probing = true;
            window.set_time(Nanos(now), true);
            let probe = window.sent(LEAST_COPY, true, behind);
            window.set_time(Nanos(now + 8 * MS), true);
            window.done(probe, LEAST_COPY);
            assert_eq!(window.base_ns, Some(base), "behind {behind}");
        }
    }

    #[test]
    fn a_copy_that_failed_is_no_measure() {
        let mut window = Window::new();
        window.set_time(Nanos(MS), true);
        let stamp = window.sent(LEAST_COPY, true, 0);
        window.set_time(Nanos(MS + 10), true);
        window.done(stamp, 0);
        assert_eq!(window.base_ns, None);
        assert!(!window.probing);
    }

    #[test]
    fn a_base_is_looked_at_again_when_nothing_has_reached_it_for_long() {
        let (mut window, mut now) = (Window::new(), MS);
        window.set_time(Nanos(now), true);
        let probe = window.sent(LEAST_COPY, true, 0);
        now += MS;
        window.set_time(Nanos(now), true);
        window.done(probe, LEAST_COPY);
        let mut copy = |window: &mut Window, guests: Option<u64>, alone: bool, took: u64| {
            window.set_time(Nanos(now), true);
            let stamp = window.sent(LEAST_COPY, alone, 0);
            assert!(window.room(1 << 60, guests) != Room::Yes);
            now += took;
            window.set_time(Nanos(now), true);
            window.done(stamp, LEAST_COPY);
        };
        for _ in 0..20_000 {
            copy(&mut window, Some(0), false, MS);
            assert!(!window.probing, "it is as it was");
        }
        for _ in 0..4999 {
            copy(&mut window, None, false, 2 * MS);
            assert!(!window.probing, "without guests it lasts ten seconds");
        }
        copy(&mut window, None, false, 2 * MS);
        assert!(window.probing);
        window.base_lasts_ns = FIRST_BASE_LASTS_NS;
        copy(&mut window, Some(0), false, MS);
        window.probing = false;
        // A quarter of a second, twice that and so on up to ten seconds, while it is seen again each time.
        for lasts in [125, 250, 500, 1000, 2000, 4000, 5000, 5000] {
            for _ in 1..lasts {
                copy(&mut window, Some(0), false, 2 * MS);
                assert!(!window.probing, "{lasts}");
            }
            copy(&mut window, Some(0), false, 2 * MS);
            assert!(window.probing, "{lasts}");
            assert_eq!(window.longest_copy(false), LEAST_COPY);
            assert!(window.room(1, None) != Room::Yes && window.room(0, None) == Room::Yes);
            copy(&mut window, Some(0), true, MS);
            assert!(!window.probing);
        }
        // One probe that took long proves nothing, and four do.
        for _ in 0..5000 {
            copy(&mut window, Some(0), false, 2 * MS);
        }
        for nth in 0..4 {
            assert!(window.probing);
            copy(&mut window, Some(0), true, 100 * MS);
            assert_eq!(window.base(), if nth < 3 { MS } else { 100 * MS });
            let lasts = if nth < 3 { 2 } else { 4 };
            for _ in 0..lasts {
                assert!(!window.probing, "a quarter of a second, or five times the base");
                copy(&mut window, Some(0), false, 125 * MS);
            }
        }
    }

    #[test]
    fn copies_are_not_kept_short_where_the_user_says_how_many_there_may_be() {
        // SPEC C-11: then none is alone, and to wait for a measure would be to wait for ever.
        let mut window = Window::new();
        window.set_time(Nanos(MS), true);
        let _ = window.sent(LEAST_COPY, true, 0);
        assert_eq!(window.longest_copy(true), LEAST_COPY);
        let _ = window.sent(LEAST_COPY, false, 0);
        assert!(window.longest_copy(true) > LEAST_COPY);
    }

    /// A copy that is sent with no other under way and takes so long.
    fn lone(window: &mut Window, now: &mut u64, bytes: u64, took: u64) {
        window.set_time(Nanos(*now), true);
        let stamp = window.sent(bytes, true, 0);
        *now += took;
        window.set_time(Nanos(*now), true);
        window.done(stamp, bytes);
    }

    #[test]
    fn what_is_under_way_follows_from_rate_base_and_delay() {
        // SPEC C-7, C-11
        let (mut window, mut now) = (Window::new(), 3_600_000 * MS);
        assert_eq!((window.bytes(false), window.bytes(true)), (512 << 10, 512 << 10), "nothing is known");
        assert_eq!(window.longest_copy(false), 32 << 10);
        lone(&mut window, &mut now, 1_000_000, 100 * MS);
        assert_eq!(window.rate(), 10_000_000, "the time before it doesn't count");
        assert_eq!(
            (window.bytes(false), window.bytes(true)),
            (2_000_000, 1_250_000),
            "a hundred ms more, or 25"
        );
        assert_eq!((window.longest_copy(false), window.longest_copy(true)), (256 << 10, 256 << 10));
        now += 10_000 * MS;
        lone(&mut window, &mut now, 2_000_000, 100 * MS);
        assert_eq!(window.rate(), 20_000_000, "nor that in which there was nothing to send");
        lone(&mut window, &mut now, 4_000_000, 200 * MS);
        assert_eq!(window.base_ns, Some(100 * MS), "one that is slower is no base because it is alone");
        let (mut window, mut now) = (Window::new(), MS);
        lone(&mut window, &mut now, 1000, MS);
        assert_eq!((window.bytes(false), window.bytes(true)), (64 << 10, 64 << 10), "the least");
    }

    #[test]
    fn nothing_overflows() {
        let mut window = Window::new();
        for now in [1, 2 * MS, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
            window.set_time(Nanos(now), true);
            let stamp = window.sent(u64::MAX >> 8, true, u64::MAX);
            window.set_time(Nanos(now.saturating_add(3 * MS)), true);
            window.done(stamp, u64::MAX >> 8);
            let _ = (window.bytes(true), window.bytes(false), window.longest_copy(true));
            let _ = window.room(u64::MAX >> 1, Some(u64::MAX >> 1));
        }
    }
}
