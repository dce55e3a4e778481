//! Delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002): leaves out ever
//! smaller parts of what fails for as long as it still does.

/// A small part of `all`, in order, that still shows what `all` shows. While `may_go_on`; what was found by then counts.
/// With all the time it wants, nothing can be left out of the answer alone.
pub(crate) fn minimise<T: Clone>(
    all: Vec<T>,
    shows: impl Fn(&[T]) -> bool,
    may_go_on: impl Fn() -> bool,
) -> Vec<T> {
    let mut kept = all;
    let mut parts = 2;
    while !kept.is_empty() && may_go_on() {
        let size = kept.len().div_ceil(parts);
        match without_one_part(&kept, size, &shows, &may_go_on) {
            Some(smaller) => {
                kept = smaller;
                parts = parts.saturating_sub(1).max(2);
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(kept.len()),
        }
    }
    kept
}

/// What is left without the first part of this size that isn't needed.
fn without_one_part<T: Clone>(
    kept: &[T],
    size: usize,
    shows: &impl Fn(&[T]) -> bool,
    may_go_on: &impl Fn() -> bool,
) -> Option<Vec<T>> {
    // Backwards: what comes after a failure is never needed.
    let starts: Vec<usize> = (0..kept.len()).step_by(size).collect();
    starts.into_iter().rev().take_while(|_| may_go_on()).find_map(|start| {
        let end = (start + size).min(kept.len());
        let rest = [&kept[..start], &kept[end..]].concat();
        shows(&rest).then_some(rest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn what_is_needed_together_is_kept_and_nothing_else() {
        let needed = [3, 500, 501, 1999];
        let tries = Cell::new(0);
        let shows = |part: &[u32]| {
            tries.set(tries.get() + 1);
            needed.iter().all(|step| part.contains(step))
        };
        assert_eq!(minimise((0..2000).collect(), shows, || true), needed);
        assert!(tries.get() < 400, "{} tries", tries.get());
    }

    #[test]
    fn nothing_may_be_needed() {
        assert_eq!(minimise((0..100).collect(), |_| true, || true), Vec::<u32>::new());
    }

    #[test]
    fn when_the_time_is_up_what_was_found_counts() {
        let tries = Cell::new(0);
        let shows = |part: &[u32]| {
            tries.set(tries.get() + 1);
            part.contains(&7)
        };
        let found = minimise((0..64).collect(), shows, || tries.get() < 2);
        assert!(found.contains(&7) && found.len() < 64, "{found:?}");
        assert_eq!(tries.get(), 2);
    }
}
