//! Reports go on elsewhere while the leader serves.

use keyfleet_core::message::{Beat, Delta};
use keyfleet_fabric::bus::local::LocalLeader;

use super::*;

/// A way to gateways whose reader finds itself in another stream when it is told to.
#[derive(Debug)]
struct Moving {
    inner: LocalLeader,
    moves: mpsc::Receiver<Position>,
}

#[async_trait]
impl LeaderBus for Moving {
    async fn lead(&mut self, stream: &str, cursor: u64) -> Result<Position, Unreachable> {
        self.inner.lead(stream, cursor).await
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            biased;
            told = self.inner.next() => told,
            Some(position) = self.moves.recv() => Told::Reconnected(position),
        }
    }

    async fn publish(&self, delta: &Delta) -> Result<(), Unreachable> {
        self.inner.publish(delta).await
    }

    async fn beat(&self, beat: Beat) -> Result<(), Unreachable> {
        self.inner.beat(beat).await
    }

    async fn resign(&mut self) {
        self.inner.resign().await;
    }
}

#[tokio::test]
async fn a_stream_that_was_made_anew_is_stored_with_the_reports_of_the_old_one() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway: _gone, key, config: _config, verdicts: _verdicts, .. } =
        fixture(&store);
    let (gateway, inner) = fabric(ASK_TIMEOUT);
    let (moves, moved) = mpsc::channel(1);
    driver.bus = Box::new(Moving { inner, moves: moved });
    let mut pulse = driver.post.pulse().subscribe();
    let stop = CancellationToken::new();
    let scene = async {
        led(&gateway).await;
        // The leader finds all of it at once.
        for seq in 1..=3 {
            gateway.report(&Report { seq, ..report(&key) }).await.unwrap();
        }
        moves.try_send(Position { stream: "another".to_owned(), before: 1, last: 1 }).unwrap();
        pulse.wait_for(|pulse| pulse.cursor == 1).await.unwrap();
        let image = store.load().await.unwrap();
        assert_eq!((image.meta.stream.as_str(), image.meta.cursor), ("another", 1));
        assert_eq!(image.heard, [(ReplicaId::new("r"), 3)]);
        assert_eq!(gateway.ask(block(&key)).await, Ok(Answer::Done));
        stop.cancel();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
    let meta = store.load().await.unwrap().meta;
    assert_eq!((meta.stream.as_str(), meta.cursor, meta.epoch), ("another", 1, 1));
}
