use super::*;
use crate::gate::Breaker;

struct Pool {
    lane: Lane,
    model: Arc<Breaker>,
}

/// `keys` seats of one tier, two to a project, all with full weight.
fn pool(keys: u32) -> Pool {
    pool_of(keys, |_| FULL_SHARE)
}

fn pool_of(keys: u32, share: impl Fn(u32) -> u32) -> Pool {
    let model = Arc::new(Breaker::default());
    let egress = Arc::new(Breaker::default());
    let mut bucket = Arc::new(Gate::default());
    let seats = (0..keys).map(|key| {
        if key % 2 == 0 {
            bucket = Arc::new(Gate::default());
        }
        let gates = Gates {
            key: Arc::default(),
            key_model: Gate::default(),
            bucket: bucket.clone(),
            project: Arc::default(),
            model: model.clone(),
            egress: egress.clone(),
        };
        Seat { key, project: key / 2, share: share(key), dial: Arc::default(), gates }
    });
    Pool { lane: Lane::new(vec![seats.collect()], 0), model: model.clone() }
}

impl Pool {
    fn pick(&self, now: u64) -> Option<u32> {
        self.lane.select(&Want::default(), 0, Mono::from_ms(now)).ok().map(|pick| pick.seat.key)
    }

    fn picks(&self, n: usize, now: u64) -> Vec<u32> {
        (0..n).filter_map(|_| self.pick(now)).collect()
    }

    fn seat(&self, key: usize) -> &Seat {
        &self.lane.seats()[key]
    }
}

#[test]
fn equal_keys_take_turns_exactly() {
    assert_eq!(pool(4).picks(9, 1), [0, 1, 2, 3, 0, 1, 2, 3, 0]);
}

#[test]
fn the_neighbour_of_dead_keys_gets_no_more_than_its_turn() {
    let pool = pool(100);
    for dead in 0..90 {
        pool.seat(dead).gates.key.close(Mono::FOREVER, None);
    }
    let picks = pool.picks(1_000, 1);
    for key in 90..100 {
        assert_eq!(picks.iter().filter(|k| **k == key).count(), 100, "key {key}");
    }
}

#[test]
fn siblings_of_an_exhausted_project_are_skipped_and_come_back() {
    let pool = pool(6);
    pool.seat(0).gates.bucket.close(Mono::from_ms(1_000), None);
    assert_eq!(pool.picks(8, 1), [2, 3, 4, 5, 2, 3, 4, 5]);
    let back = pool.picks(6, 1_000);
    assert!(back.contains(&0) && back.contains(&1), "{back:?}");
}

#[test]
fn weights_and_scores_hold_over_the_rounds() {
    let pool = pool_of(3, |key| if key == 0 { FULL_SHARE / 4 } else { FULL_SHARE });
    pool.seat(1).dial.set_score(Score::from_tenths(5));
    let picks = pool.picks(7_000, 1);
    let share = |key| picks.iter().filter(|k| **k == key).count();
    assert!((950..1_050).contains(&share(0)), "{}", share(0));
    assert!((1_950..2_050).contains(&share(1)), "{}", share(1));
    assert!((3_950..4_050).contains(&share(2)), "{}", share(2));
}

#[test]
fn one_heavy_key_and_fifty_light_ones_get_what_they_weigh() {
    let pool = pool_of(51, |key| if key == 0 { FULL_SHARE } else { FULL_SHARE / 50 });
    let heavy = pool.picks(10_000, 1).iter().filter(|key| **key == 0).count();
    assert!((4_800..5_200).contains(&heavy), "{heavy}");
}

#[test]
fn keys_that_are_all_poor_still_take_turns() {
    for score in [0, 1, 3] {
        let pool = pool(4);
        (0..4).for_each(|key| pool.seat(key).dial.set_score(Score::from_tenths(score)));
        let picks = pool.picks(1_000, 1);
        for key in 0..4 {
            let share = picks.iter().filter(|k| **k == key).count();
            assert!((200..300).contains(&share), "key {key} with score {score}: {share}");
        }
    }
}

#[test]
fn one_good_key_among_poor_ones_gets_most() {
    let pool = pool(50);
    (1..50).for_each(|key| pool.seat(key).dial.set_score(Score::from_tenths(0)));
    let good = pool.picks(1_000, 1).iter().filter(|key| **key == 0).count();
    assert!((500..650).contains(&good), "1 against 49 / 64: {good}");
}

#[test]
fn a_poor_score_never_empties_the_pool() {
    let pool = pool(2);
    (0..2).for_each(|key| pool.seat(key).dial.set_score(Score::from_tenths(0)));
    assert_eq!(pool.picks(100, 1).len(), 100);
}

#[test]
fn a_recovered_key_starts_slowly() {
    let pool = pool(2);
    pool.seat(0).dial.recovered(Mono::from_ms(1_000));
    let share = |now| pool.picks(1_000, now).iter().filter(|k| **k == 0).count();
    let (early, later, full) = (share(1_000), share(16_000), share(31_000));
    assert!(early < 120, "{early}");
    assert!((300..370).contains(&later), "{later}");
    assert_eq!(full, 500);
}

#[test]
fn a_probe_is_one_request() {
    let pool = pool(2);
    pool.seat(0).gates.bucket.close(Mono::FOREVER, Some(Mono::from_ms(500)));
    assert_eq!(pool.picks(3, 499), Vec::<u32>::new());
    let want = Want::default();
    let pick = pool.lane.select(&want, 0, Mono::from_ms(500)).unwrap();
    assert!(pick.probes.any());
    assert_eq!(pool.pick(500), None, "one only");
    pick.seat.return_probes(pick.probes, Mono::from_ms(600));
    assert!(pool.lane.select(&want, 1, Mono::from_ms(600)).is_ok(), "given back");
}

#[test]
fn a_probe_that_failed_is_due_again_when_its_gate_says_so() {
    let pool = pool(2);
    let policy = crate::gate::BreakerPolicy { failures: 1, successes: 1, recovery: Duration::from_secs(2) };
    pool.model.failed(&policy, Mono::from_ms(0));
    assert!(pool.pick(2_000).is_some(), "the probe");
    assert_eq!(pool.pick(2_000), None, "others wait, and note that the probe is out");
    pool.model.failed(&policy, Mono::from_ms(2_500));
    assert_eq!(pool.pick(4_499), None);
    assert!(pool.pick(4_500).is_some(), "two seconds after the failed probe");
}

#[test]
fn a_gate_opened_before_its_time_shows_with_the_next_generation() {
    let pool = pool(2);
    pool.seat(0).gates.bucket.close(Mono::FOREVER, None);
    assert_eq!(pool.pick(1), None);
    pool.seat(0).gates.bucket.open();
    assert!(pool.lane.select(&Want::default(), 1, Mono::from_ms(2)).is_ok());
}

#[test]
fn a_refusal_names_the_mildest_reason_and_the_soonest_key() {
    let pool = pool(4);
    let refusal = |now| pool.lane.select(&Want::default(), 0, Mono::from_ms(now)).unwrap_err();
    pool.seat(0).gates.bucket.close(Mono::from_ms(5_000), Some(Mono::from_ms(2_000)));
    pool.seat(2).gates.key.close(Mono::FOREVER, None);
    pool.seat(3).gates.key.close(Mono::FOREVER, None);
    let when_all_may_come = Mono::from_ms(5_000);
    assert_eq!(refusal(1), NoKey { blame: Blame::Quota, retry_at: when_all_may_come });
    pool.seat(0).gates.key.close(Mono::FOREVER, None);
    pool.seat(1).gates.key.close(Mono::FOREVER, None);
    assert_eq!(refusal(1), NoKey { blame: Blame::Keys, retry_at: Mono::FOREVER });
    (0..4).for_each(|key| pool.seat(key).gates.key.open());
    pool.model.gate.close(Mono::FOREVER, Some(Mono::from_ms(2_000)));
    assert_eq!(refusal(1), NoKey { blame: Blame::Model, retry_at: Mono::from_ms(2_000) });
}

#[test]
fn never_the_same_key_twice_and_never_a_foreign_project() {
    let pool = pool(4);
    let now = Mono::from_ms(1);
    let mut tried = Vec::new();
    while let Ok(pick) = pool.lane.select(&Want { tried: &tried, ..Want::default() }, 0, now) {
        tried.push(pick.seat.key);
    }
    tried.sort_unstable();
    assert_eq!(tried, [0, 1, 2, 3]);
    let want = Want { project: Some(1), ..Want::default() };
    (0..9).for_each(|_| assert_eq!(pool.lane.select(&want, 0, now).unwrap().seat.project, 1));
}

#[test]
fn a_session_keeps_its_project_and_moves_only_when_that_is_closed() {
    let pool = pool(20);
    let now = Mono::from_ms(1);
    let project = |session| {
        let want = Want { session: Some(session), ..Want::default() };
        pool.lane.select(&want, 0, now).unwrap().seat.project
    };
    let before: Vec<_> = (0..200).map(project).collect();
    assert_eq!(before, (0..200).map(project).collect::<Vec<_>>());
    let gone = before[0];
    pool.seat(gone as usize * 2).gates.bucket.close(Mono::FOREVER, None);
    for (session, old) in (0..200).zip(&before) {
        let new = project(session);
        assert!(new == *old || *old == gone, "session {session} moved from {old} to {new}");
        assert_ne!(new, gone);
    }
    let used: std::collections::BTreeSet<_> = before.iter().collect();
    assert!(used.len() >= 8, "sessions spread: {used:?}");
}

#[test]
fn the_same_seed_gives_the_same_choices() {
    let build = || pool_of(7, |key| FULL_SHARE / (key + 1));
    assert_eq!(build().picks(500, 1), build().picks(500, 1));
}
