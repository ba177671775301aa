//! What a leader and the telling of an outage leave each other.

use keyfleet_core::alert::mute::Silence;
use keyfleet_core::alert::{Alerts, Labels, Past, Rule};

use super::*;

fn outage() -> Past {
    let (rule, summary) = (Rule::StoreUnreachable, "gone".to_owned());
    Past { rule, labels: Labels::new(), summary, started: Utc::from_ms(1), ended: Utc::from_ms(2) }
}

#[tokio::test]
async fn silences_are_left_at_once_and_an_outage_that_is_over_is_stored() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, config: _same, verdicts: _none, desk, .. } = fixture(&store);
    let stop = CancellationToken::new();
    let left = driver.left.clone();
    let now = clock::utc();
    let silence = Silence {
        matchers: [("rule".to_owned(), "store_unreachable".to_owned())].into(),
        author: "a test".to_owned(),
        reason: String::new(),
        until: now.plus(Duration::from_hours(1)),
    };
    let scene = async {
        led(&gateway).await;
        let answer = desk.silence(Wish::Begin(silence.clone()), "a test".to_owned(), SOON).await;
        assert_eq!(answer, Ok(Answer::Done));
        assert!(left.borrow().silences.values().eq([&silence]));
        left.send_modify(|left| left.past.push(outage()));
        let mut waiting = left.subscribe();
        let stored = waiting.wait_for(|left| left.past.is_empty());
        tokio::time::timeout(SOON, stored).await.expect("no later term has to store it").unwrap();
        let image = store.load().await.unwrap();
        assert!(Alerts::restore(&image, now).0.history().eq([&outage()]));
        stop.cancel();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
    // The next term, which may be of another process, begins with what is stored.
    let Fixture { mut driver, gateway, config: _same, verdicts: _none, .. } = fixture(&store);
    let (stop, left) = (CancellationToken::new(), driver.left.clone());
    let scene = async {
        led(&gateway).await;
        assert!(left.borrow().silences.values().eq([&silence]));
        stop.cancel();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
}

#[tokio::test]
async fn an_outage_whose_commit_fails_waits_for_the_next_term() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, config: _same, verdicts: _none, .. } = fixture(&store);
    let (stop, left) = (CancellationToken::new(), driver.left.clone());
    let scene = async {
        led(&gateway).await;
        store.close().await.unwrap();
        left.send_modify(|left| left.past.push(outage()));
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Lost);
    assert_eq!(left.borrow().past, [outage()]);
    let mut alerts = Watch::resume(&Image::default(), None, clock::mono());
    assert!(alerts.catch_up(&left).is_some() && alerts.catch_up(&left).is_none());
    assert_eq!(left.borrow().past.len(), 1, "it is not stored yet");
    alerts.caught_up(&left);
    assert!(left.borrow().past.is_empty());
    // That commit was written, but nobody knew.
    left.send_modify(|left| left.past.push(outage()));
    assert!(alerts.catch_up(&left).is_none());
    assert!(alerts.machine.history().eq([&outage()]));
}
