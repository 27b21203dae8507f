//! `mirror`: which requests are copied, and how many copies may be under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::config::resolve::Target;
use crate::config::{At, Problems, route};

/// Most copies under way per worker. A shadow that is slow costs copies, never the gateway's memory.
const MOST_PER_WORKER: usize = 128;

/// A compiled mirror.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Numbers below it, of all of `u64`, are copied.
    share: u128,
    linger: Duration,
    room: Arc<Room>,
}

impl Mirror {
    /// Compiles what is written at `at`, for a route with this target. `None` inside where a mirror is inherited that has nothing to copy:
    /// only what is proxied can be. One that the route wrote itself is reported then. (`own` is where the route's own would stand.)
    pub fn compile(
        written: &route::Mirror,
        at: &At,
        own: &At,
        target: &Target,
        room: &Arc<Room>,
        problems: &mut Problems,
    ) -> Option<Option<Self>> {
        match target {
            Target::Upstream(_) | Target::Split(_) => {
                // Exact for 0 % and 100 %; rounded in the 53rd bit between them.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let share = (written.percent.fraction().clamp(0.0, 1.0) * 2_f64.powi(64)) as u128;
                Some(Some(Self { share, linger: written.linger.get(), room: Arc::clone(room) }))
            }
            Target::Aggregate(_) | Target::Respond(_) | Target::Redirect(_) if at == own => {
                problems
                    .error(at.clone(), "`mirror` copies proxied requests, and this route does not proxy")
                    .help("write it on a route with `upstream` or `split`");
                None
            }
            Target::Aggregate(_) | Target::Respond(_) | Target::Redirect(_) => Some(None),
        }
    }

    /// Whether a request is copied. `random` is uniform over all of `u64`.
    pub fn chooses(&self, random: u64) -> bool {
        u128::from(random) < self.share
    }

    /// How long the connection of a copy lingers once the request is over.
    pub fn linger(&self) -> Duration {
        self.linger
    }

    /// Room for a copy; `None` while too many are under way.
    pub fn enter(&self, worker: usize) -> Option<Place> {
        self.room.enter(worker)
    }
}

/// Copies under way, of all routes together, those whose connections linger included. It lives as long as the gateway, for copies outlive
/// reloads.
#[derive(Debug)]
pub struct Room(Box<[Count]>);

/// One worker's count, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Count(AtomicUsize);

impl Room {
    /// For so many workers.
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self((0..workers.max(1)).map(|_| Count::default()).collect()))
    }

    fn enter(self: &Arc<Self>, worker: usize) -> Option<Place> {
        let worker = worker % self.0.len();
        let count = &self.0.get(worker)?.0;
        count.try_update(Relaxed, Relaxed, |open| (open < MOST_PER_WORKER).then_some(open + 1)).ok()?;
        Some(Place { room: Arc::clone(self), worker })
    }
}

/// Counts a copy as under way until it is dropped.
#[derive(Debug)]
pub struct Place {
    room: Arc<Room>,
    worker: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(count) = self.room.0.get(self.worker) {
            count.0.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Percent;

    fn written(percent: f64) -> route::Mirror {
        route::Mirror { upstream: "shadow".to_owned(), percent: Percent(percent), linger: crate::units::Duration::from_secs(1) }
    }

    fn mirror(percent: f64) -> Mirror {
        let written = written(percent);
        let (at, target) = (At::main("routes"), Target::Upstream("users".to_owned()));
        Mirror::compile(&written, &at, &at, &target, &Room::new(2), &mut Problems::default()).flatten().unwrap()
    }

    #[test]
    fn nothing_and_everything_are_exact() {
        for random in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(!mirror(0.0).chooses(random) && mirror(100.0).chooses(random), "{random}");
        }
    }

    #[test]
    fn a_share_is_the_share_of_all_numbers() {
        let mirror = mirror(10.0);
        let chosen = (0..100_000_u64).filter(|i| mirror.chooses(i.wrapping_mul(0x9E37_79B9_7F4A_7C15))).count();
        assert!((9_900..=10_100).contains(&chosen), "{chosen}");
    }

    #[test]
    fn only_so_many_are_under_way_and_an_ended_one_makes_room() {
        let mirror = mirror(100.0);
        let mut places: Vec<Place> = (0..MOST_PER_WORKER).map(|_| mirror.enter(0).unwrap()).collect();
        assert!(mirror.enter(0).is_none());
        assert!(mirror.enter(1).is_some(), "the other worker has a room of its own");
        drop(places.pop());
        assert!(mirror.enter(0).is_some());
    }

    #[test]
    fn what_is_not_proxied_cannot_be_copied() {
        let written = written(50.0);
        let (own, group) = (At::main("routes").index(1).key("mirror"), At::main("routes").key("mirror"));
        let target = Target::Respond(route::Respond::default());
        let mut problems = Problems::default();
        assert!(matches!(Mirror::compile(&written, &group, &own, &target, &Room::new(1), &mut problems), Some(None)));
        assert!(!problems.has_errors());
        assert!(Mirror::compile(&written, &own, &own, &target, &Room::new(1), &mut problems).is_none());
        assert!(problems.has_errors());
    }
}
