use super::*;
use crate::id::{ClientName, ProjectId};
use crate::quota::Dimension;
use crate::quota::used::TWILIGHT;
use crate::time::Utc;

const TERMS: Terms = Terms::MINUTE;
const LIMIT: u64 = 10;

fn bucket(dimension: Dimension) -> Bucket {
    Bucket::Quota(ProjectId::new("p"), Model::new("m"), dimension)
}

fn at(secs: u64) -> Moment {
    // 2026-07-01, noon in California.
    let noon = Utc::from_ms(1_782_932_400_000);
    Moment { epoch: 1, time: LedgerTime::from_ms(secs * 1_000), utc: noon.plus(Duration::from_secs(secs)) }
}

/// The `number`th request of a gateway: what it reports of its lots, and how much it needs.
fn request(boot: &str, number: u64, reports: Vec<LotReport>, need: u64) -> LeaseRequest {
    let wants = vec![Want { bucket: bucket(Dimension::Rpm), need, ahead: 0, debt: 0 }];
    LeaseRequest { boot: ReplicaId::new(boot), number, epoch: 0, reports, wants }
}

fn open(lot: LotId, drawn: u64) -> LotReport {
    LotReport { bucket: bucket(Dimension::Rpm), lot, drawn, given_back: 0, closed: false }
}

fn closed(lot: LotId, drawn: u64) -> LotReport {
    LotReport { closed: true, ..open(lot, drawn) }
}

fn grantor() -> Grantor {
    Grantor::new(TERMS, [])
}

/// The lot and its size that a single request gets.
fn serve(grantor: &mut Grantor, request: LeaseRequest, now: Moment) -> Option<(LotId, u64)> {
    let reply = grantor.serve(&[request], |_| Some(LIMIT), now).remove(0);
    reply.grants.first().map(|grant| (grant.lot, grant.size))
}

/// What is used of the bucket, and what is out in lots.
fn usage(grantor: &mut Grantor, now: Moment) -> (u64, u64) {
    grantor.sweep(now);
    grantor.usage(now).first().map_or((0, 0), |(_, used, open)| (*used, *open))
}

#[test]
fn what_is_drawn_is_charged_with_the_report_and_counts_for_a_window() {
    let mut grantor = grantor();
    let (lot, size) = serve(&mut grantor, request("a", 1, vec![], 8), at(0)).unwrap();
    assert_eq!((size, usage(&mut grantor, at(0))), (8, (0, 8)));
    serve(&mut grantor, request("a", 2, vec![open(lot, 3)], 0), at(5));
    assert_eq!(usage(&mut grantor, at(5)), (3, 5));
    // The same again, as when a request comes twice, changes nothing.
    serve(&mut grantor, request("a", 2, vec![open(lot, 3)], 0), at(6));
    assert_eq!(usage(&mut grantor, at(6)), (3, 5));
    // The rest of a closed lot is free at once.
    serve(&mut grantor, request("a", 3, vec![closed(lot, 4)], 0), at(7));
    assert_eq!(usage(&mut grantor, at(7)), (4, 0));
    assert_eq!(usage(&mut grantor, at(65)), (4, 0), "three since 5, one since 7");
    assert_eq!(usage(&mut grantor, at(66)), (1, 0));
    assert_eq!(usage(&mut grantor, at(68)), (0, 0));
}

#[test]
fn a_lot_that_runs_out_unheard_is_written_off() {
    let mut grantor = grantor();
    serve(&mut grantor, request("a", 1, vec![], LIMIT), at(0));
    assert_eq!(usage(&mut grantor, at(9)), (0, LIMIT));
    assert_eq!(usage(&mut grantor, at(40)), (LIMIT, 0), "as if drawn in its last moment, at 10");
    assert_eq!(serve(&mut grantor, request("b", 1, vec![], 1), at(70)), None);
    assert!(serve(&mut grantor, request("b", 2, vec![], 1), at(71)).is_some());
}

#[test]
fn a_report_that_comes_too_late_changes_nothing() {
    let mut grantor = grantor();
    let (lot, _) = serve(&mut grantor, request("a", 1, vec![], LIMIT), at(0)).unwrap();
    serve(&mut grantor, request("a", 2, vec![closed(lot, 1)], 0), at(10));
    assert_eq!(usage(&mut grantor, at(10)), (LIMIT, 0));
}

#[test]
fn a_lot_that_was_never_accepted_is_free_again() {
    let mut grantor = grantor();
    let (lost, _) = serve(&mut grantor, request("a", 1, vec![], LIMIT), at(0)).unwrap();
    // The same request again says nothing: its first answer may be on the way.
    assert_eq!(serve(&mut grantor, request("a", 1, vec![], LIMIT), at(1)), None);
    let (lot, size) = serve(&mut grantor, request("a", 2, vec![], LIMIT), at(1)).unwrap();
    assert!(lot != lost && size == LIMIT);
    // Nobody else's lots are touched.
    assert_eq!(serve(&mut grantor, request("b", 9, vec![], 1), at(1)), None);
    assert_eq!(usage(&mut grantor, at(1)), (0, LIMIT));
}

#[test]
fn what_comes_back_unspent_is_charged_no_more() {
    let mut grantor = grantor();
    let (lot, _) = serve(&mut grantor, request("a", 1, vec![], 8), at(0)).unwrap();
    serve(&mut grantor, request("a", 2, vec![open(lot, 6)], 0), at(1));
    assert_eq!(usage(&mut grantor, at(1)), (6, 2));
    serve(&mut grantor, request("a", 3, vec![LotReport { given_back: 4, ..open(lot, 6) }], 0), at(2));
    assert_eq!(usage(&mut grantor, at(2)), (2, 6));
    // Two of the four are drawn once more.
    serve(&mut grantor, request("a", 4, vec![LotReport { given_back: 4, ..closed(lot, 8) }], 0), at(3));
    assert_eq!(usage(&mut grantor, at(3)), (4, 0));
}

#[test]
fn two_who_need_more_than_there_is_get_the_same() {
    let mut grantor = grantor();
    let requests = [request("a", 1, vec![], 50), request("b", 1, vec![], 7)];
    let replies = grantor.serve(&requests, |_| Some(LIMIT), at(0));
    let sizes: Vec<_> = replies.iter().map(|reply| reply.grants[0].size).collect();
    assert_eq!(sizes, [5, 5]);
    let half_a_life = millis(TERMS.life / 2);
    assert!(replies.iter().all(|reply| reply.refusals[0].retry_ms == half_a_life), "then there may be more");
}

#[test]
fn nobody_gets_anything_ahead_while_others_need_it() {
    let mut grantor = grantor();
    let mut greedy = request("a", 1, vec![], 0);
    greedy.wants[0].ahead = 8;
    assert_eq!(serve(&mut grantor, greedy.clone(), at(0)).unwrap().1, 2, "a quarter of what is left");
    serve(&mut grantor, request("b", 1, vec![], 9), at(1));
    let starved = grantor.serve(&[request("c", 1, vec![], 1)], |_| Some(LIMIT), at(1)).remove(0);
    assert!(starved.grants.is_empty());
    // The lot of `b` was never accepted; but somebody went without a moment ago.
    serve(&mut grantor, request("b", 2, vec![], 0), at(2));
    greedy.boot = ReplicaId::new("d");
    assert_eq!(serve(&mut grantor, greedy.clone(), at(2)), None);
    assert!(serve(&mut grantor, greedy, at(7)).is_some());
}

#[test]
fn what_a_store_gives_back_is_all_that_a_next_leader_needs() {
    let mut first = grantor();
    let (lot, _) = serve(&mut first, request("a", 1, vec![], 8), at(0)).unwrap();
    serve(&mut first, request("a", 2, vec![open(lot, 3)], 0), at(1));
    let stored: Vec<_> =
        first.changes().into_iter().filter_map(|(bucket, account)| Some((bucket, account?))).collect();
    let mut second = Grantor::new(TERMS, stored);
    assert_eq!(usage(&mut second, at(2)), (3, 5));
    // It knows whose lots they are: this one is listed no more.
    serve(&mut second, request("a", 3, vec![], 0), at(2));
    assert_eq!(usage(&mut second, at(2)), (3, 0));
    assert_eq!(second.changes().len(), 1, "and that is stored too");
}

#[test]
fn in_quarantine_minutes_are_granted_nothing_and_days_are() {
    let mut grantor = grantor();
    grantor.quarantine(at(0).time);
    let wants = [Dimension::Rpm, Dimension::Rpd].map(|dimension| Want {
        bucket: bucket(dimension),
        need: 1,
        ahead: 0,
        debt: 0,
    });
    let ask = |number| LeaseRequest { wants: wants.to_vec(), ..request("a", number, vec![], 0) };
    let reply = grantor.serve(&[ask(1)], |_| Some(LIMIT), at(70)).remove(0);
    let granted: Vec<_> = reply.grants.iter().map(|grant| grant.bucket.clone()).collect();
    assert_eq!(granted, [bucket(Dimension::Rpd)]);
    assert_eq!(reply.refusals[0].retry_ms, 250);
    // A window, the life of a lot and the jitter later, nothing can be left that nobody knows of.
    assert_eq!(grantor.serve(&[ask(2)], |_| Some(LIMIT), at(71)).remove(0).grants.len(), 2);
}

#[test]
fn a_quarantine_is_only_ever_made_longer() {
    let mut grantor = grantor();
    grantor.stay_blind(LedgerTime::from_ms(90_000));
    grantor.quarantine(at(0).time);
    assert_eq!(grantor.blind_until(), LedgerTime::from_ms(90_000));
}

#[test]
fn names_that_clients_make_up_fill_no_book() {
    let mut grantor = grantor();
    let made_up = |n: usize| Bucket::Quota(ProjectId::new("p"), Model::new(format!("m{n}")), Dimension::Rpm);
    let ask = |bucket: Bucket, n: usize| {
        let wants = vec![Want { bucket, need: 1, ahead: 0, debt: 0 }];
        LeaseRequest { wants, ..request(&format!("g{n}"), 1, vec![], 0) }
    };
    for n in 0..MAX_PROVISIONAL {
        assert!(serve(&mut grantor, ask(made_up(n), n), at(0)).is_some());
    }
    let one_more = MAX_PROVISIONAL;
    assert!(serve(&mut grantor, ask(made_up(one_more), one_more), at(0)).is_none());
    assert!(serve(&mut grantor, ask(Bucket::Client(ClientName::new("c")), 0), at(0)).is_some());
    // A model that an upstream has answered for is no made-up name.
    grantor.served(&[Model::new(format!("m{one_more}"))]);
    assert!(serve(&mut grantor, ask(made_up(one_more), one_more), at(0)).is_some());
    // Those that nobody uses are dropped, and make room.
    grantor.sweep(at(10));
    grantor.sweep(at(71));
    assert!(serve(&mut grantor, ask(made_up(one_more + 1), 0), at(71)).is_some());
    assert_eq!(grantor.usage(at(71)).len(), 1);
}

#[test]
fn a_day_is_charged_until_it_is_over_by_every_clock() {
    let mut grantor = grantor();
    let day = bucket(Dimension::Rpd);
    let midnight = at(12 * 3_600);
    grantor.charge(&day, 4, at(0));
    let used = |grantor: &mut Grantor, now| grantor.usage(now)[0].1;
    let later = |span: Duration| Moment { utc: midnight.utc.plus(span), ..midnight };
    assert_eq!(used(&mut grantor, later(TWILIGHT / 2)), 4);
    assert_eq!(used(&mut grantor, later(TWILIGHT)), 0);
}

#[test]
fn where_there_is_no_limit_everybody_gets_what_they_ask_for_and_no_book_is_kept() {
    let mut grantor = grantor();
    let mut ask = request("a", 1, vec![], 1_000);
    ask.wants[0].ahead = 50;
    let reply = grantor.serve(&[ask], |_| None, at(0)).remove(0);
    assert_eq!(reply.grants[0].size, 1_050);
    assert!(grantor.usage(at(0)).is_empty() && grantor.changes().is_empty());
}

#[test]
fn what_was_spent_beyond_a_draw_is_charged_before_anything_is_granted() {
    let mut grantor = grantor();
    let mut ask = request("a", 1, vec![], 5);
    ask.wants[0].debt = 7;
    assert_eq!(serve(&mut grantor, ask, at(0)).unwrap().1, 3);
    assert_eq!(usage(&mut grantor, at(0)), (7, 3));
}

#[test]
fn of_a_day_a_holder_has_one_permit_ahead_while_few_are_left() {
    let mut grantor = grantor();
    let ask = |boot: &str, number, reports| {
        let wants = vec![Want { bucket: bucket(Dimension::Rpd), need: 1, ahead: 7, debt: 0 }];
        LeaseRequest { boot: ReplicaId::new(boot), number, epoch: 0, reports, wants }
    };
    let list = |lot, drawn| LotReport { bucket: bucket(Dimension::Rpd), ..open(lot, drawn) };
    let (first, size) = serve(&mut grantor, ask("a", 1, vec![]), at(0)).unwrap();
    assert_eq!(size, 2);
    let (second, size) = serve(&mut grantor, ask("a", 2, vec![list(first, 1)]), at(1)).unwrap();
    assert_eq!(size, 1, "one is in hand");
    let (_, size) = serve(&mut grantor, ask("b", 1, vec![]), at(1)).unwrap();
    assert_eq!(size, 2, "others have theirs");
    let all = vec![list(first, 2), list(second, 1)];
    assert_eq!(serve(&mut grantor, ask("a", 3, all), at(2)).map(|(_, size)| size), Some(2));
}

mod probes {
    use super::*;
    use crate::message::Subject;

    fn probe() -> Bucket {
        Bucket::Probe(Subject::Project(ProjectId::new("p")))
    }

    fn ask(boot: &str, number: u64, reports: Vec<LotReport>) -> LeaseRequest {
        let wants = vec![Want { bucket: probe(), need: 3, ahead: 5, debt: 0 }];
        LeaseRequest { boot: ReplicaId::new(boot), number, epoch: 0, reports, wants }
    }

    fn list(lot: LotId, drawn: u64) -> LotReport {
        LotReport { bucket: probe(), lot, drawn, given_back: 0, closed: false }
    }

    fn granted(grantor: &mut Grantor, request: LeaseRequest, now: Moment) -> Option<LotId> {
        let reply = grantor.serve(&[request], |_| Some(1), now).remove(0);
        assert!(reply.grants.iter().all(|grant| grant.size == 1 && grant.life_ms == 5_000));
        reply.grants.first().map(|grant| grant.lot)
    }

    #[test]
    fn one_replica_may_try_and_for_as_long_as_it_says_that_it_does() {
        let mut grantor = grantor();
        let lot = granted(&mut grantor, ask("a", 1, vec![]), at(0)).unwrap();
        for second in 1..40 {
            assert_eq!(granted(&mut grantor, ask("b", second, vec![]), at(second)), None);
            assert_eq!(granted(&mut grantor, ask("a", 1 + second, vec![list(lot, 1)]), at(second)), None);
        }
        assert_eq!(granted(&mut grantor, ask("b", 41, vec![]), at(48)), None);
        assert!(
            granted(&mut grantor, ask("b", 42, vec![]), at(49)).is_some(),
            "it was not heard of any more"
        );
    }

    #[test]
    fn the_next_one_waits_for_the_verdict() {
        let mut grantor = grantor();
        let closed = |lot, drawn| LotReport { closed: true, ..list(lot, drawn) };
        let boot = ReplicaId::new("a");
        let lot = granted(&mut grantor, ask("a", 1, vec![]), at(0)).unwrap();
        assert_eq!(granted(&mut grantor, ask("a", 2, vec![closed(lot, 1)]), at(1)), None);
        assert_eq!(granted(&mut grantor, ask("a", 3, vec![]), at(2)), None);
        grantor.judged(&probe(), &boot, LotId { number: 99, ..lot });
        assert_eq!(
            granted(&mut grantor, ask("b", 1, vec![]), at(2)),
            None,
            "another lot's is not this one's"
        );
        grantor.judged(&probe(), &boot, lot);
        let next = granted(&mut grantor, ask("b", 2, vec![]), at(2)).unwrap();
        // Here the verdict comes before the lot is closed.
        grantor.judged(&probe(), &ReplicaId::new("b"), next);
        assert_eq!(
            granted(&mut grantor, ask("b", 3, vec![closed(next, 1)]), at(3)).map(|lot| lot.number),
            Some(3)
        );
        // A verdict that never comes is not waited for forever.
        let third = LotId { number: 3, ..lot };
        assert_eq!(granted(&mut grantor, ask("b", 4, vec![closed(third, 1)]), at(4)), None);
        assert!(granted(&mut grantor, ask("c", 1, vec![]), at(14)).is_some());
        grantor.sweep(at(60));
        assert_eq!(grantor.counts(), (0, 0));
    }

    #[test]
    fn who_did_not_try_gives_the_right_back() {
        let mut grantor = grantor();
        let lot = granted(&mut grantor, ask("a", 1, vec![]), at(0)).unwrap();
        let unused = LotReport { closed: true, given_back: 1, ..list(lot, 1) };
        let mut leaving = ask("a", 2, vec![unused]);
        leaving.wants.clear();
        grantor.serve(&[leaving], |_| Some(1), at(1));
        assert!(granted(&mut grantor, ask("b", 1, vec![]), at(1)).is_some());
        assert_eq!(granted(&mut grantor, ask("c", 1, vec![]), at(1)), None);
    }

    #[test]
    fn a_probe_that_is_out_is_known_to_the_next_leader() {
        let mut grantor = grantor();
        granted(&mut grantor, ask("a", 1, vec![]), at(0)).unwrap();
        let stored = grantor.changes().into_iter().filter_map(|(bucket, account)| Some((bucket, account?)));
        let text = serde_json::to_string(&stored.collect::<Vec<_>>()).unwrap();
        let read: Vec<(Bucket, Account)> = serde_json::from_str(&text).unwrap();
        let mut next = Grantor::new(TERMS, read);
        assert_eq!(granted(&mut next, ask("b", 1, vec![]), at(1)), None);
    }
}
