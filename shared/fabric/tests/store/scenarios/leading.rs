//! Who leads, in which epoch, and for how long.

use super::{LONG, World, claim, elected, following};
use keyfleet_core::state::Meta;
use keyfleet_core::time::{LedgerTime, Utc};
use keyfleet_fabric::store::{Claim, Lead, StateStore, StoreError};
use std::time::{Duration, Instant};

fn holder(lead: Result<Lead, StoreError>) -> (String, u64, Duration) {
    match lead {
        Ok(Lead::Theirs { holder, epoch, left }) => (holder.to_string(), epoch, left),
        other => panic!("somebody else should lead: {other:?}"),
    }
}

pub(crate) async fn a_claim_is_kept_and_nobody_else_gets_it(world: World) {
    let [a, b] = world.stores;
    let meta = elected(&*a, "a").await;
    assert_eq!(meta, Meta { epoch: 1, leader: "a".to_owned(), ..Meta::default() });
    let (name, epoch, left) = holder(b.lead(&claim("b", LONG, 0)).await);
    assert_eq!((name.as_str(), epoch), ("a", 1));
    assert!(left > LONG / 2 && left <= LONG, "{left:?}");
    // Shorter, longer: it always counts from now.
    assert_eq!(a.lead(&claim("a", LONG / 4, 1)).await, Ok(Lead::Mine(meta.clone())));
    assert!(holder(b.lead(&claim("b", LONG, 0)).await).2 <= LONG / 4);
    assert_eq!(a.lead(&claim("a", LONG, 1)).await, Ok(Lead::Mine(meta)));
    assert!(holder(b.lead(&claim("b", LONG, 0)).await).2 > LONG / 2);
    assert_eq!(
        holder(b.lead(&claim("b", Duration::ZERO, 0)).await).0,
        "a",
        "b cannot give up what is not its own"
    );
    assert_eq!(holder(b.lead(&claim("b", LONG, 1)).await).0, "a", "an epoch is not enough");
}

async fn taken(store: &dyn StateStore, claim: &Claim) -> Meta {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match store.lead(claim).await {
            Ok(Lead::Mine(meta)) => return meta,
            Ok(Lead::Theirs { .. }) if Instant::now() < until => tokio::task::yield_now().await,
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn a_claim_that_lapsed_can_be_taken_or_kept(world: World) {
    let [a, b] = world.stores;
    let short = Duration::from_millis(50);
    assert!(matches!(a.lead(&claim("a", short, 0)).await, Ok(Lead::Mine(_))));
    assert_eq!(taken(&*b, &claim("b", short, 0)).await.epoch, 2);
    // Nobody takes it for a while, and b is back in time.
    let begun = Instant::now();
    while begun.elapsed() < short * 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(taken(&*b, &claim("b", LONG, 2)).await.epoch, 2, "it lapsed, but nobody has led since");
    assert_eq!(holder(a.lead(&claim("a", LONG, 1)).await).1, 2);
}

pub(crate) async fn a_place_that_is_given_up_is_free_at_once(world: World) {
    let [a, b] = world.stores;
    let meta = elected(&*a, "a").await;
    let clock = Some((LedgerTime::from_ms(7), Utc::from_ms(8)));
    let resign = Claim { clock, ..claim("a", Duration::ZERO, meta.epoch) };
    assert_eq!(a.lead(&resign).await, Ok(Lead::Nobody));
    assert_eq!(a.lead(&resign).await, Ok(Lead::Nobody), "again");
    let meta = elected(&*b, "b").await;
    assert_eq!((meta.epoch, meta.time, meta.at), (2, LedgerTime::from_ms(7), Utc::from_ms(8)));
    // One that does not know whether its claim arrived gives it up all the same.
    assert_eq!(b.lead(&claim("b", Duration::ZERO, 0)).await, Ok(Lead::Nobody));
    assert_eq!(elected(&*a, "a").await.epoch, 3);
}

pub(crate) async fn epochs_only_rise(world: World) {
    let [a, b] = world.stores;
    assert_eq!(elected(&*a, "a").await.epoch, 1);
    assert_eq!(elected(&*a, "a").await.epoch, 2, "a new claim of the same holder fences what it sent before");
    a.lead(&claim("a", Duration::ZERO, 2)).await.unwrap();
    for (above, epoch) in
        [(1, 3), (3, 4), (9, 10), (98, 99), (99, 100), (50, 101), (u64::MAX - 2, u64::MAX - 1)]
    {
        let Ok(Lead::Mine(meta)) = b.lead(&Claim { above, ..claim("b", LONG, 0) }).await else { panic!() };
        assert_eq!(meta.epoch, epoch);
        assert_eq!(a.load().await.unwrap().meta.epoch, epoch);
    }
    assert_eq!(elected(&*b, "b").await.epoch, u64::MAX);
    assert!(matches!(b.lead(&claim("b", LONG, 0)).await, Err(StoreError::Damaged(_))));
    assert_eq!(a.load().await.unwrap().meta.epoch, u64::MAX);
}

pub(crate) async fn a_claim_for_an_epoch_that_is_over_changes_nothing(world: World) {
    let [a, b] = world.stores;
    elected(&*a, "a").await;
    let meta = elected(&*a, "a").await;
    let clock = Some((LedgerTime::from_ms(99), Utc::from_ms(99)));
    for ttl in [LONG, Duration::ZERO] {
        let late = Claim { clock, ..claim("a", ttl, 1) };
        let (name, epoch, _) = holder(a.lead(&late).await);
        assert_eq!((name.as_str(), epoch), ("a", 2));
    }
    assert_eq!(holder(b.lead(&claim("b", LONG, 0)).await).0, "a", "it still leads");
    a.lead(&claim("a", Duration::ZERO, 2)).await.unwrap();
    for epoch in [1, 3] {
        let lost = Claim { clock, ..claim("a", LONG, epoch) };
        assert_eq!(a.lead(&lost).await, Ok(Lead::Nobody), "epoch {epoch}");
    }
    assert_eq!(b.load().await.unwrap().meta, meta);
    elected(&*b, "b").await;
}

pub(crate) async fn the_time_never_goes_back(world: World) {
    let [a, _] = world.stores;
    let clock = |time, at| Some((LedgerTime::from_ms(time), Utc::from_ms(at)));
    elected(&*a, "a").await;
    let renewed = |clock| Claim { clock, ..claim("a", LONG, 1) };
    for (time, at, expected) in [(10, 1000, (10, 1000)), (9, 5000, (10, 1000)), (1000, -4, (1000, -4))] {
        let Ok(Lead::Mine(meta)) = a.lead(&renewed(clock(time, at))).await else { panic!() };
        assert_eq!((meta.time.as_ms(), meta.at.as_ms()), expected);
        assert_eq!(a.load().await.unwrap().meta, meta);
    }
    // One that was on its way when the claim was renewed.
    let mut meta = a.load().await.unwrap().meta;
    for (time, at, expected) in [(999, 50, (1000, -4)), (1001, 60, (1001, 60))] {
        (meta.time, meta.at) = (LedgerTime::from_ms(time), Utc::from_ms(at));
        a.commit(&following(&meta)).await.unwrap();
        meta = a.load().await.unwrap().meta;
        assert_eq!((meta.time.as_ms(), meta.at.as_ms()), expected);
    }
    // Nobody but a leader has a say.
    let Ok(Lead::Mine(meta)) = a.lead(&Claim { clock: clock(5000, 1), ..claim("a", LONG, 0) }).await else {
        panic!()
    };
    assert_eq!(meta.time.as_ms(), 1001);
}
