use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::gate::{Breaker, Gate};
use crate::health::Score;

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
            spent: Arc::default(),
        };
        let project = key / 2;
        let home = name_hash(&format!("p{project}"));
        Seat { key, project, home, share: share(key), dial: Arc::default(), gates }
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

/// The project to which each of `sessions` goes; 0 for none.
fn projects_of(lane: &Lane, sessions: std::ops::Range<u64>, now: u64) -> Vec<u32> {
    let project = |session| {
        let want = Want { session: Some(session), ..Want::default() };
        lane.select(&want, 0, Mono::from_ms(now)).map(|pick| pick.seat.project)
    };
    sessions.map(|session| project(session).unwrap_or_default()).collect()
}

#[test]
fn sessions_spread_over_all_projects_and_those_of_a_closed_one_over_the_rest() {
    for projects in [2, 3, 12, 40, 200] {
        let pool = pool(projects * 2);
        let before = projects_of(&pool.lane, 0..4_000, 1);
        let share = |of: &[u32], project| of.iter().filter(|p| **p == project).count();
        let fair = 4_000 / projects as usize;
        for project in 0..projects {
            let got = share(&before, project);
            assert!((fair / 2..fair * 2).contains(&got), "{project} of {projects} got {got}");
        }
        pool.seat(0).gates.bucket.close(Mono::from_ms(1_000), None);
        let after = projects_of(&pool.lane, 0..4_000, 2);
        assert!(before.iter().zip(&after).all(|(old, new)| *old == 0 || old == new));
        let heirs: std::collections::BTreeSet<_> =
            before.iter().zip(&after).filter(|(old, _)| **old == 0).map(|(_, new)| *new).collect();
        assert!(heirs.len() >= (projects as usize - 1).min(fair / 3), "{projects}: {heirs:?}");
        assert_eq!(projects_of(&pool.lane, 0..4_000, 1_000), before, "they come back");
    }
}

#[test]
fn a_project_that_joins_or_leaves_moves_few_sessions() {
    let (small, large) = (pool(40), pool(42));
    let (before, after) = (projects_of(&small.lane, 0..2_000, 1), projects_of(&large.lane, 0..2_000, 1));
    let moved = before.iter().zip(&after).filter(|(old, new)| old != new).count();
    assert!((50..200).contains(&moved), "a 21st project takes a 21st of 2,000: {moved}");
}

#[test]
fn sessions_follow_the_projects_weights() {
    let pool = pool_of(8, |key| if key < 2 { FULL_SHARE } else { FULL_SHARE / 4 });
    let projects = projects_of(&pool.lane, 0..7_000, 1);
    let share = |project| projects.iter().filter(|p| **p == project).count();
    assert!((3_600..4_400).contains(&share(0)), "4 of 7: {}", share(0));
    assert!((800..1_200).contains(&share(1)), "1 of 7: {}", share(1));
}

#[test]
fn a_session_finds_the_last_open_projects_of_a_large_pool() {
    for left in [1_u32, 2, 20] {
        let pool = pool(3_000);
        let is_open = |seat: &Seat| seat.project % (1_500 / left) == 7;
        for seat in pool.lane.seats().iter().filter(|seat| !is_open(seat)) {
            seat.gates.project.close(Mono::FOREVER, None);
        }
        let found = projects_of(&pool.lane, 0..600, 1);
        assert!(found.iter().all(|project| project % (1_500 / left) == 7), "{found:?}");
        for project in &found {
            let share = found.iter().filter(|p| *p == project).count();
            assert!(share >= 300 / left as usize / 2, "{project} of {left}: {share}");
        }
        assert_eq!(projects_of(&pool.lane, 0..600, 2), found, "and stays there");
    }
}

#[test]
fn a_session_finds_its_project_wherever_that_stands_in_the_configuration() {
    let renumbered = |number: fn(u32) -> u32| {
        let mut seats: Vec<Seat> = pool(200).lane.seats.into_vec();
        for seat in &mut seats {
            seat.project = number(seat.project);
        }
        seats.sort_by_key(|seat| seat.project);
        Lane::new(vec![seats], 3)
    };
    let homes = |lane: &Lane| -> Vec<u64> {
        let projects = projects_of(lane, 0..500, 1).into_iter();
        projects.map(|project| lane.seats.iter().find(|seat| seat.project == project).unwrap().home).collect()
    };
    assert_eq!(homes(&renumbered(|number| number)), homes(&renumbered(|number| 99 - number)));
}

#[test]
fn the_keys_of_a_project_take_turns_by_health() {
    let pool = pool(4);
    let key = |want: &Want<'_>| pool.lane.select(want, 0, Mono::from_ms(1)).unwrap().seat.key;
    let owned = Want { project: Some(1), ..Want::default() };
    let session = (0..100).find(|session| {
        let want = Want { session: Some(*session), ..Want::default() };
        pool.lane.select(&want, 0, Mono::from_ms(1)).unwrap().seat.project == 1
    });
    for want in [owned, Want { session, ..Want::default() }] {
        pool.seat(3).dial.set_score(Score::PERFECT);
        let second = |want| (0..1_000).filter(|_| key(want) == 3).count();
        assert!((480..520).contains(&second(&want)), "equal keys: {}", second(&want));
        pool.seat(3).dial.set_score(Score::from_tenths(2));
        assert!((150..185).contains(&second(&want)), "1 of 6: {}", second(&want));
        pool.seat(2).gates.key.close(Mono::from_ms(2), None);
        assert_eq!(second(&want), 1_000, "the one that works");
        pool.seat(2).gates.key.open();
        assert_eq!(key(&Want { tried: &[2], ..want }), 3);
    }
    let lost = Want { project: Some(9), ..Want::default() };
    assert_eq!(pool.lane.select(&lost, 0, Mono::from_ms(1)).unwrap_err().blame, Blame::Tried);
}

#[test]
fn what_is_stored_avoids_a_project_that_is_used_up_for_the_day() {
    let pool = pool(20);
    let stored = |session| {
        let want = Want { session: Some(session), stores: true, ..Want::default() };
        pool.lane.select(&want, 0, Mono::from_ms(1)).unwrap().seat.project
    };
    let first = stored(7);
    for seat in pool.lane.seats().iter().filter(|seat| seat.project == first) {
        seat.gates.spent.close(Mono::FOREVER, None);
    }
    let second = stored(7);
    assert_ne!(second, first);
    assert_eq!(projects_of(&pool.lane, 7..8, 1), [first], "requests still go there");
    pool.lane.seats().iter().for_each(|seat| seat.gates.spent.close(Mono::FOREVER, None));
    assert_eq!(stored(7), first, "where all are, it is no reason");
}

#[test]
fn small_requests_pass_where_a_quota_of_tokens_is_used_up() {
    let pool = pool(6);
    let ask = |bytes, project| {
        let want = Want { project, bytes, ..Want::default() };
        pool.lane.select(&want, 0, Mono::from_ms(1)).map(|pick| pick.seat.project)
    };
    for project in 0..3 {
        pool.seat(project * 2).gates.bucket.close_to_large(
            Some(40_000),
            Mono::from_ms(900),
            Mono::from_ms(1),
        );
    }
    assert_eq!(ask(Some(40_000), None).unwrap_err().retry_at, Mono::from_ms(900));
    assert_eq!(ask(None, None).unwrap_err().blame, Blame::Quota, "nobody knows how many tokens it has");
    let used: std::collections::BTreeSet<_> = (0..12).map(|_| ask(Some(9_000), None).unwrap()).collect();
    assert_eq!(used.len(), 3, "all projects take part: {used:?}");
    assert_eq!(ask(Some(9_000), Some(1)), Ok(1));
}

#[test]
fn the_same_seed_gives_the_same_choices() {
    let build = || pool_of(7, |key| FULL_SHARE / (key + 1));
    assert_eq!(build().picks(500, 1), build().picks(500, 1));
}
