//! A leader whose process is to end leaves word of that, so that the next one is no news.

use keyfleet_core::alert::Alerts;

use super::*;

/// Whether the last leader that is stored did.
async fn left_word(store: &MemoryStore) -> bool {
    let image = store.load().await.unwrap();
    Alerts::restore(&image, clock::utc()).0.was_handed_over(image.meta.epoch)
}

#[tokio::test]
async fn whoever_is_to_end_leaves_word_of_that() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, config: _same, verdicts: _none, .. } = fixture(&store);
    let stop = CancellationToken::new();
    let scene = async {
        led(&gateway).await;
        assert!(!left_word(&store).await);
        stop.cancel();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
    assert!(left_word(&store).await);
}

#[tokio::test]
async fn whoever_dies_does_not() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, config: _same, verdicts, .. } = fixture(&store);
    let stop = CancellationToken::new();
    let scene = async {
        led(&gateway).await;
        drop(verdicts);
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Dead);
    assert!(!left_word(&store).await);
}
