//! The names of the live jobs of this process.

use crate::error::{Errno, Error, Result};
use once_cell::sync::Lazy;
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Names that are taken, and the number of the next one that is made up.
static LIVE: Lazy<Mutex<(HashSet<String>, u64)>> = Lazy::new(Mutex::default);

fn live() -> MutexGuard<'static, (HashSet<String>, u64)> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A job's name, taken for as long as this lives.
#[derive(Debug)]
pub(super) struct Name(String);

impl Name {
    /// Takes the name; `EEXIST` if another job has it. `None`: makes one up.
    pub(super) fn take(wanted: Option<&str>) -> Result<Self> {
        let mut live = live();
        let name = match wanted {
            Some(name) if live.0.contains(name) => {
                return Err(Error::new(
                    Errno::EEXIST,
                    format!("id '{name}': a job of that name lives already"),
                ));
            }
            Some(name) => name.to_owned(),
            None => loop {
                let name = format!("job{}", live.1);
                live.1 += 1;
                if !live.0.contains(&name) {
                    break name;
                }
            },
        };
        live.0.insert(name.clone());
        Ok(Self(name))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        live().0.remove(&self.0);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_free_again_when_its_job_is_gone() {
        let first = Name::take(Some("registry-test")).expect("free");
        assert_eq!(Name::take(Some("registry-test")).expect_err("taken").errno(), Errno::EEXIST);
        drop(first);
        assert_eq!(Name::take(Some("registry-test")).expect("free again").as_str(), "registry-test");
        let (a, b) = (Name::take(None).expect("made up"), Name::take(None).expect("made up"));
        assert_ne!(a.as_str(), b.as_str());
    }
}
