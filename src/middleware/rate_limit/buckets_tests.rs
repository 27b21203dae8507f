//! Tests of the table: what is kept, what goes, and that parallel requests are counted exactly.

use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn key(n: u64) -> u128 {
    let half = |salt: u64| u128::from(xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), salt));
    half(1) << 64 | half(2)
}

/// A key of the first set, and of no other.
fn of_one_set(n: u64) -> u128 {
    u128::from((n + 1) << 8)
}

fn set(buckets: &Buckets, key: u128, capacity: u64, now: u64, tat: u64) {
    assert_eq!(buckets.update(key, capacity, now, |_| Some(tat)), Ok(tat));
}

#[test]
fn a_key_has_what_was_last_made_of_it() {
    let buckets = Buckets::default();
    assert_eq!(buckets.get(key(1)), None);
    assert_eq!(buckets.update(key(1), SECOND, 0, |tat| Some(tat + 7)), Ok(7));
    assert_eq!(buckets.update(key(1), SECOND, 0, |tat| Some(tat + 7)), Ok(14));
    assert_eq!(buckets.update(key(1), SECOND, 0, |_| None), Err(14));
    assert_eq!((buckets.get(key(1)), buckets.get(key(2))), (Some(14), None));
    assert_eq!(buckets.update(key(2), SECOND, 0, |_| None), Err(0));
    assert_eq!(buckets.get(key(2)), None, "a decision that fails leaves nothing behind");
    // The extremes of what a key can be, and of what a time can be.
    for odd in [0, 1, 0xff, u128::MAX] {
        assert!(buckets.update(odd, SECOND, 0, |tat| Some(tat + 1)).is_ok());
        assert!(buckets.get(odd).is_some());
    }
    set(&buckets, key(3), u64::MAX, 0, u64::MAX);
    assert_eq!(buckets.get(key(3)), Some((u64::MAX >> 2) - 1));
}

#[test]
fn a_full_bucket_makes_room_and_others_stay() {
    let buckets = Buckets::default();
    // One set: half of its keys are full again after a second.
    for n in 0..8 {
        set(&buckets, of_one_set(n), 100 * SECOND, 0, if n % 2 == 0 { SECOND } else { 3 * SECOND });
    }
    for n in 8..12 {
        set(&buckets, of_one_set(n), 100 * SECOND, SECOND, 4 * SECOND);
    }
    let there: Vec<u64> = (0..12).filter(|n| buckets.get(of_one_set(*n)).is_some()).collect();
    assert_eq!(there, [1, 3, 5, 7, 8, 9, 10, 11]);
}

#[test]
fn when_all_are_active_the_one_nearest_to_full_goes_by_its_own_measure() {
    let buckets = Buckets::default();
    // Empty after a second each; the one that takes longest to fill has used a tenth.
    for n in 0..7 {
        set(&buckets, of_one_set(n), SECOND, 0, SECOND);
    }
    set(&buckets, of_one_set(7), 1_000 * SECOND, 0, 100 * SECOND);
    set(&buckets, of_one_set(8), SECOND, 0, SECOND);
    let there: Vec<u64> = (0..9).filter(|n| buckets.get(of_one_set(*n)).is_some()).collect();
    assert_eq!(there, [0, 1, 2, 3, 4, 5, 6, 8]);
}

#[test]
fn a_scale_is_right_to_a_quarter_and_never_nothing() {
    for capacity_in in (2..62).flat_map(|bit| [1_u64 << bit, 5 << (bit - 2), (1 << bit) + (1 << bit) / 3, (2 << bit) - 1]) {
        let ratio = capacity_in as f64 / capacity(scale(capacity_in));
        assert!((1.0..1.25).contains(&ratio), "{capacity_in}: {ratio}");
    }
    for odd in [0, 1, 2, 3, u64::MAX] {
        assert!((1..=SCALE).contains(&scale(odd)), "{odd}");
    }
}

#[test]
fn a_flood_of_new_keys_is_bounded_and_resets_no_throttled_one() {
    let origin = Instant::now();
    let buckets = Buckets::new(origin);
    // Empty buckets, a hundred seconds from full, all over the table.
    for n in 0..5_000 {
        set(&buckets, key(n), 100 * SECOND, 0, 100 * SECOND);
    }
    // More active keys than there is room for, each with one request of a hundred.
    for n in 5_000..1_200_000 {
        set(&buckets, key(n), 100 * SECOND, 0, SECOND + n);
        if n == 900_000 {
            let active = buckets.active(origin);
            assert!(active > 885_000, "few are lost while there is room: {active}");
        }
    }
    assert!(buckets.active(origin) <= MAX_KEYS && MAX_KEYS <= 1_000_000);
    assert!(buckets.active(origin) > MAX_KEYS * 98 / 100, "{}", buckets.active(origin));
    for n in 0..5_000 {
        assert_eq!(buckets.get(key(n)), Some(100 * SECOND), "throttled key {n} was reset");
    }
    assert_eq!(buckets.active(origin + Duration::from_secs(200)), 0, "idle keys hold nothing");
}

/// Runs `work` on `threads` threads that start together.
fn together(threads: usize, work: impl Fn(usize) + Sync) {
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                barrier.wait();
                work(thread);
            });
        }
    });
}

#[test]
fn a_key_that_enters_from_all_threads_at_once_is_counted_exactly() {
    let buckets = Buckets::default();
    let rounds = 3_000;
    let allowed: Vec<AtomicUsize> = (0..rounds).map(|_| AtomicUsize::new(0)).collect();
    let barrier = Barrier::new(4);
    together(4, |_| {
        for (n, allowed) in (0..).zip(&allowed) {
            // All see the key for the first time, together; five pass.
            if n % 64 == 0 {
                barrier.wait();
            }
            for _ in 0..3 {
                let outcome = buckets.update(key(n), 5, 0, |tat| (tat < 5).then_some(tat + 1));
                allowed.fetch_add(usize::from(outcome.is_ok()), Ordering::Relaxed);
            }
        }
    });
    assert!(allowed.iter().all(|count| count.load(Ordering::Relaxed) == 5));
}

#[test]
fn keys_that_push_each_other_out_never_share_a_bucket_nor_touch_a_throttled_one() {
    let buckets = Buckets::default();
    // Six throttled keys leave two slots of a set, for which forty keys fight; each has a time nobody else can have.
    for n in 0..6 {
        set(&buckets, of_one_set(n), 1_000, 0, 1_000);
    }
    let counted = AtomicUsize::new(0);
    together(4, |thread| {
        for round in 0..20_000 {
            let n = 6 + (round * 7 + thread as u64 * 3) % 40;
            let own = |tat: u64| tat == 0 || tat % 64 == n;
            let outcome = buckets.update(of_one_set(n), 1_000, 0, |tat| {
                // A tat that another key has made is seen at times, by who reads while the slot goes: it must never be charged.
                own(tat).then_some(if tat == 0 || tat >= 256 { n + 64 } else { tat + 64 })
            });
            if let Ok(tat) = outcome {
                assert_eq!(tat % 64, n);
                counted.fetch_add(1, Ordering::Relaxed);
            }
            let throttled = buckets.update(of_one_set(round % 6), 1_000, 0, |tat| (tat < 1_000).then_some(tat + 1));
            assert_eq!(throttled, Err(1_000));
        }
    });
    assert_eq!(counted.into_inner(), 80_000, "no decision was made on another key's time");
}
