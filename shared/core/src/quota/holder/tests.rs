use super::*;
use crate::id::ClientName;
use crate::quota::message::{Grant, Refusal};

const TERMS: Terms = Terms::MINUTE;

fn at(ms: u64) -> Mono {
    Mono::from_ms(1_000_000 + ms)
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap()
}

fn bucket() -> Bucket {
    Bucket::Client(ClientName::new("c"))
}

fn holder() -> (Holder, Arc<Purse>) {
    let mut holder = Holder::new(ReplicaId::new("a"), TERMS, at(0));
    let purse = holder.purse(&bucket(), at(0));
    (holder, purse)
}

fn lot(number: u64) -> LotId {
    LotId { epoch: 1, number }
}

/// An answer that grants a lot of that number.
fn grant(request: &LeaseRequest, number: u64, size: u64) -> LeaseReply {
    let grants = vec![Grant { bucket: bucket(), lot: lot(number), size, life_ms: 10_000 }];
    LeaseReply { epoch: 1, number: request.number, grants, refusals: Vec::new() }
}

fn nothing(request: &LeaseRequest) -> LeaseReply {
    LeaseReply { grants: Vec::new(), ..grant(request, 0, 0) }
}

/// A holder that asked at 0 and got so many permits at 100.
fn stocked(size: u64) -> (Holder, Arc<Purse>) {
    let (mut holder, purse) = holder();
    purse.draw(1, at(0)).unwrap_err();
    let request = holder.poll(at(0)).unwrap();
    assert!(holder.answered(&grant(&request, 1, size), at(100)));
    (holder, purse)
}

#[test]
fn what_is_not_there_is_asked_for() {
    let (mut holder, purse) = holder();
    assert!(holder.poll(at(0)).is_none(), "nobody wants anything");
    assert_eq!(purse.draw(3, at(0)).unwrap_err(), Empty::Cold);
    let request = holder.poll(at(0)).unwrap();
    assert_eq!((request.number, request.wants[0].need), (1, 3));
    assert!(holder.poll(at(100)).is_none(), "one request at a time");
    holder.answered(&grant(&request, 1, 3), at(100));
    assert_eq!(purse.draw(3, at(100)).unwrap().permits(), 3);
}

#[test]
fn a_lot_lives_from_when_it_was_asked_for() {
    let (_, purse) = stocked(5);
    // A hundredth less than granted, since clocks drift, and 5 ms.
    let drawn = purse.draw(1, at(9_894)).unwrap();
    assert!(drawn.is_live(at(9_894)) && !drawn.is_live(at(9_895)));
    assert!(purse.draw(1, at(9_895)).is_err());
    assert_eq!(purse.in_hand(at(9_895)), 0);
}

/// Else it is charged in full, and what nobody drew is missing for a whole window.
#[test]
fn what_nobody_draws_is_returned_while_that_can_be_heard() {
    let (mut holder, purse) = stocked(50);
    purse.draw(20, at(200)).unwrap();
    let closed = (1_000..10_000).step_by(1_000).find(|ms| {
        let request = holder.poll(at(*ms)).expect("a report every second");
        holder.answered(&nothing(&request), at(ms + 1));
        request.reports.iter().any(|report| report.closed)
    });
    assert_eq!(closed, Some(9_000), "it was in demand until then, and is over at 9,895");
}

#[test]
fn only_the_answer_that_is_waited_for_is_taken() {
    let (mut holder, purse) = holder();
    purse.draw(1, at(0)).unwrap_err();
    let first = holder.poll(at(0)).unwrap();
    let second = holder.poll(at(250)).unwrap();
    assert!(!holder.answered(&grant(&first, 1, 5), at(260)), "it is given up");
    holder.saw_epoch(2);
    assert!(!holder.answered(&grant(&second, 2, 5), at(270)), "its sender leads no more");
    let current = LeaseReply { epoch: 2, ..grant(&second, 3, 5) };
    assert!(holder.answered(&current, at(280)));
    assert!(!holder.answered(&current, at(290)), "it comes twice");
    assert_eq!(purse.in_hand(at(290)), 5);
}

#[test]
fn a_request_that_is_given_up_is_made_again() {
    let (mut holder, purse) = holder();
    purse.draw(4, at(0)).unwrap_err();
    purse.owe(6);
    let lost = holder.poll(at(0)).unwrap();
    assert_eq!((lost.wants[0].need, lost.wants[0].debt), (4, 6));
    let again = holder.poll(at(250)).unwrap();
    assert_eq!((again.number, again.wants[0].need), (2, 4));
    assert_eq!(again.wants[0].debt, 6, "it may have been charged; twice is better than never");
    holder.answered(&nothing(&again), at(260));
    purse.draw(1, at(270)).unwrap_err();
    assert_eq!(holder.poll(at(270)).unwrap().wants[0].debt, 0);
}

/// Nobody waits for what was asked for minutes ago, and others need quota as well when answers come again.
#[test]
fn a_long_silence_leaves_no_more_demand_than_there_is() {
    let (mut holder, purse) = holder();
    let wants = |holder: &mut Holder, now| holder.poll(now).map(|request| request.wants[0].clone());
    // Ten a second, for five minutes.
    for ms in (0..300_000).step_by(100) {
        purse.draw(1, at(ms)).unwrap_err();
        if wants(&mut holder, at(ms)).is_some() {
            holder.give_up();
        }
    }
    purse.draw(1, at(300_000)).unwrap_err();
    let want = wants(&mut holder, at(300_000)).unwrap();
    let ahead = 10 * TERMS.ahead.as_secs();
    assert!(want.need <= 2 && (ahead / 2..=ahead + 10).contains(&want.ahead), "{want:?} of {ahead}");
}

#[test]
fn a_closed_lot_is_listed_until_an_answer_says_that_it_was_heard() {
    let (mut holder, purse) = stocked(2);
    purse.draw(2, at(200)).unwrap();
    let spent = LotReport { bucket: bucket(), lot: lot(1), drawn: 2, given_back: 0, closed: true };
    let lost = holder.poll(at(1_000)).unwrap();
    assert_eq!(lost.reports, std::slice::from_ref(&spent));
    let heard = holder.poll(at(1_300)).unwrap();
    assert_eq!(heard.reports, [spent]);
    holder.answered(&nothing(&heard), at(1_310));
    purse.draw(1, at(1_320)).unwrap_err();
    assert!(holder.poll(at(1_320)).unwrap().reports.is_empty());
}

#[test]
fn what_others_may_need_is_returned_at_half_of_its_life() {
    let (mut holder, purse) = stocked(50);
    let half = ms(TERMS.life) / 2;
    purse.draw(1, at(200)).unwrap();
    // What is young is more than what is needed soon.
    let young = holder.poll(at(half - 100)).unwrap();
    assert!(!young.reports[0].closed && young.reports[0].drawn == 1);
    holder.answered(&grant(&young, 2, 50), at(half - 90));
    let old = holder.poll(at(half + 950)).unwrap();
    let closed: Vec<_> = old.reports.iter().filter(|report| report.closed).collect();
    assert!(closed.len() == 1 && closed[0].lot == lot(1) && closed[0].drawn == 1, "{old:?}");
    assert_eq!(purse.in_hand(at(half + 960)), 50, "it is told, and drawn from no more");
}

/// A holder in demand, at 5,900: 80 permits are old, and so many are young.
fn with_old_and(young: u64) -> (Holder, Arc<Purse>) {
    let (mut holder, purse) = stocked(80 + 60);
    for tenth in 1..=50 {
        purse.draw(1, at(tenth * 100)).unwrap();
    }
    purse.draw(10, at(5_000)).unwrap();
    let request = holder.poll(at(5_050)).unwrap();
    holder.answered(&grant(&request, 2, young), at(5_060));
    (holder, purse)
}

#[test]
fn what_is_old_is_kept_until_there_is_enough_that_is_young() {
    // Some ten a second.
    let needed = 10 * TERMS.ahead.as_secs();
    let (mut holder, purse) = with_old_and(needed / 2);
    holder.poll(at(6_100)).unwrap();
    assert_eq!(purse.in_hand(at(6_110)), 80 + needed / 2);
    let (mut holder, purse) = with_old_and(2 * needed);
    holder.poll(at(6_100)).unwrap();
    assert_eq!(purse.in_hand(at(6_110)), 2 * needed);
}

#[test]
fn nothing_that_can_be_drawn_is_closed_while_nobody_answers() {
    let (mut holder, purse) = with_old_and(1_000);
    // Somebody asks for more than any lot has.
    let lost = holder.poll(at(6_100)).unwrap();
    assert_eq!(purse.in_hand(at(6_100)), 1_000);
    assert!(lost.reports.iter().any(|report| report.closed));
    for ms in (6_400..14_900).step_by(300) {
        purse.draw(5_000, at(ms)).unwrap_err();
        holder.poll(at(ms)).unwrap();
        assert_eq!(purse.in_hand(at(ms)), 1_000);
    }
    // It has come to the end of its life.
    let back = holder.poll(at(15_100)).unwrap();
    assert_eq!(back.reports.iter().filter(|report| report.closed).count(), 2);
}

#[test]
fn what_is_in_hand_is_filled_up_every_second_and_at_once_when_it_is_low() {
    let (mut holder, purse) = holder();
    purse.draw(1, at(0)).unwrap_err();
    let first = holder.poll(at(0)).unwrap();
    let ahead = first.wants[0].ahead;
    holder.answered(&grant(&first, 1, 1 + ahead), at(5));
    // More than a part of it is drawn at once; but the last request was just now.
    purse.draw(1 + ahead * 2 / 3, at(10)).unwrap();
    assert!(!purse.is_low() && holder.poll(at(10)).is_none());
    purse.draw(1, at(250)).unwrap();
    assert!(purse.is_low());
    let low = holder.poll(at(250)).unwrap();
    holder.answered(&grant(&low, 2, 1_000), at(255));
    // It is full, and what is missing is asked for a second later.
    purse.draw(1, at(600)).unwrap();
    assert!(!purse.is_low() && holder.poll(at(600)).is_none());
    let again = holder.poll(at(1_250)).unwrap();
    assert!(again.wants.is_empty(), "{again:?}");
}

#[test]
fn what_is_given_back_can_be_drawn_again() {
    let (mut holder, purse) = stocked(3);
    purse.draw(3, at(200)).unwrap().give_back();
    let drawn = purse.draw(3, at(300)).unwrap();
    let report = |holder: &mut Holder, now| {
        let request = holder.poll(at(now)).unwrap();
        holder.answered(&nothing(&request), at(now + 10));
        let report = &request.reports[0];
        (report.drawn, report.given_back, report.closed)
    };
    // A spent lot is closed with the report, and takes nothing back any more.
    assert_eq!(report(&mut holder, 400), (3, 0, true));
    drawn.give_back();
    assert_eq!(purse.in_hand(at(500)), 0);
}

#[test]
fn what_comes_back_after_the_report_is_told() {
    let (mut holder, purse) = stocked(4);
    let drawn = purse.draw(2, at(200)).unwrap();
    let first = holder.poll(at(1_000)).unwrap();
    assert_eq!((first.reports[0].drawn, first.reports[0].given_back), (2, 0));
    holder.answered(&nothing(&first), at(1_010));
    drawn.settle(1, &purse);
    let second = holder.poll(at(2_000)).unwrap();
    assert_eq!((second.reports[0].drawn, second.reports[0].given_back), (2, 1));
    assert_eq!(purse.in_hand(at(2_000)), 3);
}

#[test]
fn what_is_spent_beyond_a_draw_is_owed() {
    let (mut holder, purse) = stocked(4);
    purse.draw(2, at(200)).unwrap().settle(5, &purse);
    assert_eq!(holder.poll(at(1_000)).unwrap().wants[0].debt, 3);
}

#[test]
fn who_was_refused_asks_again_when_it_was_told_to() {
    let (mut holder, purse) = holder();
    purse.draw(1, at(0)).unwrap_err();
    let request = holder.poll(at(0)).unwrap();
    let refusals = vec![Refusal { bucket: bucket(), retry_ms: 3_000 }];
    holder.answered(&LeaseReply { refusals, ..nothing(&request) }, at(10));
    assert_eq!(purse.draw(1, at(1_500)).unwrap_err(), Empty::Spent(at(3_010)));
    assert!(holder.poll(at(1_500)).is_none());
    assert_eq!(purse.draw(1, at(3_010)).unwrap_err(), Empty::Cold);
    assert_eq!(holder.poll(at(3_010)).unwrap().wants[0].need, 1);
}

#[test]
fn who_leaves_returns_everything_and_says_what_it_owes() {
    let (mut holder, purse) = stocked(5);
    purse.draw(2, at(200)).unwrap().settle(6, &purse);
    let last = holder.leave(at(300));
    let all = LotReport { bucket: bucket(), lot: lot(1), drawn: 2, given_back: 0, closed: true };
    assert_eq!(last.reports, [all]);
    assert_eq!(last.wants, [Want { bucket: bucket(), need: 0, ahead: 0, debt: 4 }]);
    assert!(purse.draw(1, at(310)).is_err());
}

#[test]
fn steady_demand_is_asked_for_ahead() {
    let (mut holder, purse) = stocked(100);
    for second in 1..=8 {
        purse.draw(5, at(second * 1_000)).unwrap();
        if let Some(request) = holder.poll(at(second * 1_000)) {
            holder.answered(&nothing(&request), at(second * 1_000 + 5));
        }
    }
    // Five a second; what is in hand is too old to count.
    purse.draw(5, at(9_000)).unwrap();
    let ahead = holder.poll(at(9_000)).unwrap().wants[0].ahead;
    let needed = 5 * TERMS.ahead.as_secs();
    assert!((needed * 4 / 5..=needed * 6 / 5).contains(&ahead), "{ahead}");
}

#[test]
fn the_first_second_is_enough_to_be_stocked_for_two() {
    let (mut holder, purse) = holder();
    purse.draw(1, at(0)).unwrap_err();
    let request = holder.poll(at(0)).unwrap();
    let second = TERMS.ahead.as_secs();
    assert!((2..=second + 1).contains(&request.wants[0].ahead), "one request is a sign of more: {request:?}");
    holder.answered(&grant(&request, 1, 40), at(5));
    for tenth in 1..=10 {
        purse.draw(2, at(tenth * 100)).unwrap();
    }
    // Twenty a second.
    let ahead = holder.poll(at(1_000)).unwrap().wants[0].ahead;
    assert!((12 * second..=24 * second).contains(&ahead), "{ahead}");
    // After a silence one request says as much as the first.
    purse.draw(40, at(120_000)).unwrap_err();
    purse.draw(1, at(120_000)).unwrap_err();
    let request = holder.poll(at(120_000)).unwrap();
    assert!(request.wants[0].ahead >= 2, "{request:?}");
}

#[test]
fn a_purse_that_nobody_draws_from_is_forgotten() {
    let (mut holder, purse) = holder();
    holder.forget_idle(at(600_001));
    assert_eq!(holder.purses.len(), 1, "somebody holds it");
    drop(purse);
    holder.forget_idle(at(600_001));
    assert!(holder.purses.is_empty());
}

#[test]
fn a_probe_is_listed_for_as_long_as_it_is_under_way() {
    let probe = Bucket::Probe(crate::message::Subject::Key(crate::id::KeyId::new("k")));
    let mut holder = Holder::new(ReplicaId::new("a"), TERMS, at(0));
    let purse = holder.purse(&probe, at(0));
    for _ in 0..3 {
        purse.draw(1, at(0)).unwrap_err();
    }
    let request = holder.poll(at(0)).unwrap();
    assert_eq!(request.wants, [Want { bucket: probe.clone(), need: 1, ahead: 0, debt: 0 }]);
    let grants = vec![Grant { bucket: probe, lot: lot(1), size: 1, life_ms: 5_000 }];
    holder.answered(&LeaseReply { grants, ..nothing(&request) }, at(10));
    let drawn = purse.draw(1, at(20)).unwrap();
    for second in 1..30 {
        let request = holder.poll(at(second * 1_000)).unwrap();
        let [report] = &request.reports[..] else { panic!("{request:?}") };
        assert!(report.drawn == 1 && !report.closed && request.wants.is_empty(), "{request:?}");
        holder.answered(&nothing(&request), at(second * 1_000 + 5));
    }
    assert_eq!(drawn.judged(), lot(1));
    assert!(holder.poll(at(30_000)).unwrap().reports[0].closed);
}
